"""The contract suite finds plugins that push badly: the documented one passes, and each fault in it fails a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exchange_service.errors import PluginFailed
from exchange_service.testing import DemoVenue, push_contract
from exchange_service.testing.contract import PluginContract
from exchange_service.testing.push_contract import PushContract
from tests.test_docs import write_documented_plugin

NAME = "exchange_service_bolt"
IMPORTS = "from exchange_service.plugin_api import (\n"
MORE_IMPORTS = f"import asyncio\nimport time\n{IMPORTS}    Changed, VenueError,\n"
FOLLOW = """        async for states in subscription:
            yield Balance(venue_accounts=(states[wallet],))
"""
READ = """        if "holdings" in as_object(message, "message"):
            yield text(message, "wallet", "message"), message
"""

# The change to the documented plugin, the test that must find it with its arguments, and a part of its message.
BAD: dict[str, tuple[list[tuple[str, str]], str, tuple[Any, ...], str]] = {
    "a push that is sorted by arrival": (
        [
            ('        return [json.dumps({"op": "follow"', "        self.last = topics[0]\n"
             '        return [json.dumps({"op": "follow"'),
            (READ, '        if "holdings" in message:\n            yield self.last, message\n'),
        ],
        "test_what_another_account_is_pushed_never_reaches_this_one",
        (False,),
        "another account's pushes became a balance that was never read",
    ),
    "nonsense as an empty account": (
        [
            (
                READ,
                '        self.last = message.get("wallet", getattr(self, "last", "")) if message else self.last\n'
                "        yield self.last, message or {}\n",
            ),
            ('as_list(answer.get("holdings"), "holdings")', '(answer.get("holdings") or [])'),
        ],
        "test_nonsense_among_the_pushes_is_never_a_balance",
        (),
        "nonsense among its pushes became a balance that lacks",
    ),
    "figures that differ from those that are read": (
        [("        return parse(part)", '        return parse({"holdings": [{"code": "BOLT", "quantity": "1"}]})')],
        "test_a_change_is_pushed_as_it_is_read",
        (),
        "a change is not pushed, or as other figures",
    ),
    "a change that is not pushed": (
        [(FOLLOW, "        yield Changed()\n        await asyncio.Event().wait()\n")],
        "test_a_change_is_pushed_as_it_is_read",
        (),
        "a change is not pushed",
    ),
    "a clock in place of a push": (
        [(FOLLOW, "        while True:\n            yield Changed()\n            await asyncio.sleep(0.03)\n")],
        "test_a_change_is_pushed_as_it_is_read",
        (),
        "a watch goes on to yield although nothing changes",
    ),
    "an end that is passed over": (
        [
            (
                FOLLOW,
                "        try:\n    " + FOLLOW.replace("\n    ", "\n        ")
                + "        except VenueError:\n            await asyncio.Event().wait()\n",
            )
        ],
        "test_a_push_that_breaks_ends_the_watch_in_time",
        ("drop",),
        "a watch goes on after this fault of its pushes: drop",
    ),
    "an end without an error": (
        [
            (
                FOLLOW,
                "        try:\n    " + FOLLOW.replace("\n    ", "\n        ")
                + "        except VenueError:\n            return\n",
            )
        ],
        "test_a_push_that_breaks_ends_the_watch_in_time",
        ("drop",),
        "a watch just ended after this fault of its pushes: drop",
    ),
    "a socket that stays open": (
        [
            (
                FOLLOW,
                "        call.plugin_state.opened = call.http.websocket(call.url('push'))\n"
                "        await call.plugin_state.opened.__aenter__()\n" + FOLLOW,
            )
        ],
        "test_a_watch_that_is_closed_leaves_nothing_behind",
        (),
        "a socket is open after a watch has been closed",
    ),
    "a call that blocks": (
        [("        return parse(part)", "        time.sleep(0.001)\n        return parse(part)")],
        "test_following_never_blocks_the_event_loop",
        (),
        "failed with BlockingError",
    ),
    "a hook without a listing that pushes": (
        [("push=True, ", ""), (" push=PushLimits(subscriptions=500, messages=600),", "")],
        "test_an_exchange_pushes_exactly_if_there_is_a_watch",
        ("hooks", "manifest"),
        "no listing sets capabilities.push",
    ),
    "a listing that pushes without a hook": (
        [("@hookimpl\nasync def watch_balance", "async def _watch_balance")],
        "test_an_exchange_pushes_exactly_if_there_is_a_watch",
        ("hooks", "manifest"),
        "the hook watch_balance is missing",
    ),
}  # fmt: skip


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PluginContract]]:
    """A function that makes the suite for the documented plugin with the given changes."""
    write_documented_plugin(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # What a faulty plugin never does is waited for so long.
    monkeypatch.setattr(push_contract, "_IN_TIME", 1.0)
    monkeypatch.setattr(push_contract, "GRACE", 0.5)

    def make(changes: list[tuple[str, str]]) -> PluginContract:
        source = tmp_path / NAME / "__init__.py"
        text = source.read_text().replace(IMPORTS, MORE_IMPORTS)
        for old, new in changes:
            assert text.count(old) == 1, f"the documented plugin no longer has {old!r}"
            text = text.replace(old, new)
        source.write_text(text)
        simulator = __import__(f"{NAME}.simulator", fromlist=["x"]).BoltSimulator
        return _suite_of(__import__(NAME), simulator)()

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def _suite_of(module: ModuleType, venue: Any) -> type[PluginContract]:
    class TwoWallets(venue, DemoVenue):  # type: ignore[misc]
        """The documented simulator with a second wallet."""

        def demo_credential(self, situation: str) -> dict[str, Any]:
            return {"extra_metadata": {"wallet_address": next(iter(self.quantities))}}

        def other_credential(self) -> dict[str, Any]:
            wallet = "0x" + "b2" * 20
            self.quantities[wallet] = 7_000_000
            return {"extra_metadata": {"wallet_address": wallet}}

        def move(self) -> None:
            for wallet in self.quantities:
                self.add(wallet)

    class Suite(PluginContract):
        plugin = module
        exchange_id = "bolt"
        simulator = TwoWallets

    return Suite


async def run(suite: PluginContract, test: str, arguments: tuple[Any, ...]) -> None:
    made = {"hooks": suite._load_hooks, "manifest": suite._load_manifest}
    result = getattr(suite, test)(*(made[one]() if one in made else one for one in arguments))
    if result is not None:
        await result


@pytest.mark.parametrize("name", BAD)
async def test_a_plugin_that_pushes_badly_fails_the_test_for_its_fault(
    suite: Callable[..., PluginContract], name: str
) -> None:
    changes, test, arguments, words = BAD[name]
    # A failure of the plugin's own is not translated.
    with pytest.raises((AssertionError, PluginFailed), match=words):
        await run(suite(changes), test, arguments)


async def test_the_documented_plugin_passes_all_of_these_tests(suite: Callable[..., PluginContract]) -> None:
    good = suite([])
    for test, arguments in {(test, arguments) for _, test, arguments, _ in BAD.values()}:
        await run(good, test, arguments)


def test_a_listing_that_does_not_push_has_no_such_tests(suite: Callable[..., PluginContract]) -> None:
    names = {name for name in vars(PushContract) if name.startswith("test_")}
    assert len(names) >= 9
    polled = suite(BAD["a hook without a listing that pushes"][0])
    assert all(getattr(polled, name) is None for name in names)
    assert all(getattr(PluginContract, name) is not None for name in names)
