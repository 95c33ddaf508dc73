"""The contract suite finds bad plugins: the documented plugin passes, and each fault in it fails the test for it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, LoopbackVenue, contract, venue
from exchange_service.testing.trouble_contract import ERRORS_OF_TROUBLES
from tests.test_docs import write_documented_plugin

NAME = "exchange_service_acme"
ANSWER = 'response = await call.http.get(call.url() + "/v1/holdings", headers={"Authorization": f"Bearer {token}"})'
CHECK = "    response.raise_for_status()\n"
IMPORTS = "from exchange_service.plugin_api import (\n"


def _late(seconds: float) -> tuple[str, str]:
    """A change that makes the plugin wait so many seconds after its request has failed."""
    return (
        ANSWER,
        f"try:\n        {ANSWER}\n    except VenueError:\n        await asyncio.sleep({seconds})\n        raise",
    )


STUBBORN = """request = asyncio.ensure_future(call.http.get(
        call.url() + "/v1/holdings", headers={"Authorization": f"Bearer {token}"}))
    while not request.done():
        try:
            await asyncio.wait({request})
        except asyncio.CancelledError:
            continue
    response = request.result()"""

# The change to the documented plugin, the test that must find it with its arguments, and a part of its message.
BAD: dict[str, tuple[list[tuple[str, str]], str, tuple[Any, ...], str]] = {
    "a figure that went through a float": (
        [('total=required_amount(row, "quantity", "holdings[]")', 'total=float(row["quantity"])')],
        "test_a_good_credential_gives_a_balance",
        (),
        "must be a Decimal",
    ),
    "an amount made of whatever digits there are": (
        [
            ("    return VenueAccount", "    right = re.compile(r'[0-9.]+')\n    return VenueAccount"),
            (
                'total=required_amount(row, "quantity", "holdings[]")',
                'total=Decimal((right.findall(str(row["quantity"])) or ["0"])[0])',
            ),
        ],
        "test_a_figure_that_is_no_number_is_never_believed",
        (),
        "changed the rows",
    ),
    "an account that cannot be read and is left out": (
        [
            (
                "    return Balance(venue_accounts=(parse(response.json()),))",
                "    try:\n        read = (parse(response.json()),)\n    except VenueError:\n        read = ()\n"
                '    return Balance(venue_accounts=(*read, VenueAccount(id="2", type="cash")))',
            )
        ],
        "test_a_figure_that_is_no_number_is_never_believed",
        (),
        "left .* out in silence",
    ),
    "an empty object as an empty balance": (
        [
            (
                'as_list(as_object(payload, "answer").get("holdings"), "holdings")',
                'as_object(payload, "").get("holdings", [])',
            )
        ],
        "test_nonsense_is_never_a_balance",
        (),
        "an empty object in answer 1 became a balance",
    ),
    "an answer that is not JSON as an empty balance": (
        [
            (
                "    return Balance(venue_accounts=(parse(response.json()),))",
                "    try:\n        return Balance(venue_accounts=(parse(response.json()),))\n"
                "    except VenueError:\n        return Balance(venue_accounts=())",
            )
        ],
        "test_nonsense_is_never_a_balance",
        (),
        "a page for people in answer 1 became a balance",
    ),
    "the secret in the error's text": (
        [
            (
                CHECK,
                "    if response.status == 401:\n"
                '        raise CredentialRejected(f"Acme refuses the token {token}.")\n' + CHECK,
            )
        ],
        "test_a_refused_key_is_no_passing_trouble",
        (),
        "holds a secret",
    ),
    "the secret in the chain behind the error": (
        [
            (
                CHECK,
                "    try:\n    " + CHECK + "    except VenueError as error:\n"
                '        raise CredentialRejected("Acme refuses the token.") from ValueError(token)\n',
            )
        ],
        "test_a_refused_key_is_no_passing_trouble",
        (),
        "holds a secret",
    ),
    "a deadline that is slept past": (
        [_late(1.7)],
        "test_it_ends_with_its_deadline",
        ("silent",),
        "a call with a deadline of 0.4 s took",
    ),
    "a cancellation that is caught": (
        [(ANSWER, STUBBORN)],
        "test_a_cancelled_call_ends_at_once",
        (),
        "does not end when it is cancelled",
    ),
    "metadata that are not checked": (
        [("    read_metadata(call.credential)", "    #")],
        "test_metadata_that_it_does_not_know_are_refused",
        ("urls",),
        "became a balance",
    ),
    "a request without the key": (
        [('required_text(call.credential, "api_key")', "call.credential.api_key.reveal()")],
        "test_a_missing_field_is_named_before_the_venue_is_asked",
        (),
        "without api_key",
    ),
    "a refused key reported as an outage": (
        [(CHECK, '    if response.status != 200:\n        raise VenueUnavailable("Acme is down.")\n')],
        "test_a_refused_key_is_no_passing_trouble",
        (),
        "the last good value would hide it",
    ),
}
MORE_IMPORTS = (
    "import asyncio\nimport re\nfrom decimal import Decimal\n"
    + IMPORTS
    + "    CredentialRejected, VenueError, VenueUnavailable,\n"
)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., contract.PluginContract]]:
    """A function that makes the suite for the documented plugin with the given changes."""
    write_documented_plugin(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(changes: list[tuple[str, str]]) -> contract.PluginContract:
        source = tmp_path / NAME / "__init__.py"
        text = source.read_text().replace(IMPORTS, MORE_IMPORTS)
        for old, new in changes:
            assert text.count(old) == 1, f"the documented plugin no longer has {old!r}"
            text = text.replace(old, new)
        source.write_text(text)
        return _suite_of(__import__(NAME), __import__(f"{NAME}.simulator", fromlist=["x"]).AcmeSimulator)

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def _suite_of(module: ModuleType, venue: type[LoopbackVenue]) -> contract.PluginContract:
    class Suite(contract.PluginContract):
        plugin = module
        exchange_id = "acme"
        simulator = venue

        def credential(self, _: Any) -> dict[str, str]:
            return {"api_key": "good-token-0123456789"}

    return Suite()


async def run(suite: contract.PluginContract, test: str, arguments: tuple[Any, ...]) -> None:
    faults = {"silent": Fault(silent=True)}
    await getattr(suite, test)(*(faults.get(argument, argument) for argument in arguments))


@pytest.mark.parametrize("name", BAD)
async def test_a_faulty_plugin_fails_the_test_for_its_fault(
    suite: Callable[..., contract.PluginContract], name: str
) -> None:
    changes, test, arguments, word = BAD[name]
    # A TypeError is the plugin's own failure, which the service would report as PLUGIN_FAILED.
    with pytest.raises((AssertionError, TypeError), match=word):
        await run(suite(changes), test, arguments)


async def test_the_documented_plugin_passes_all_of_these_tests(
    suite: Callable[..., contract.PluginContract],
) -> None:
    good = suite([])
    for test, arguments in {(test, arguments) for _, test, arguments, _ in BAD.values()}:
        await run(good, test, arguments)


def _naming(acme: Any) -> type[DemoVenue]:
    """The documented simulator with the account's name in each answer."""

    class NamingVenue(acme, DemoVenue):  # type: ignore[misc]
        named_by = "`account`"

        def account_of(self, request: web.Request, body: bytes) -> str:
            return request.headers.get("Authorization", "").removeprefix("Bearer ")

        async def _holdings(self, request: web.Request) -> web.Response:
            token = self.account_of(request, b"")
            return web.json_response({"account": token[:4], "holdings": self.holdings[token]})

        def other_credential(self) -> dict[str, str]:
            self.holdings["other-token-0123456789"] = [{"code": "ACME", "quantity": "77"}]
            return {"api_key": "other-token-0123456789"}

    return NamingVenue


COMPARED = (
    CHECK,
    CHECK + '    await require_same_accounts(call.account_state, [response.json().get("account")], "Acme")\n',
)


@pytest.mark.parametrize("compares", [False, True])
async def test_a_plugin_that_believes_another_users_answer_is_found(
    suite: Callable[..., contract.PluginContract], compares: bool
) -> None:
    made = suite([COMPARED, (IMPORTS, IMPORTS + "    require_same_accounts,\n")] if compares else [])
    type(made).simulator = _naming(type(made).simulator)
    test = made.test_another_users_answer_is_never_this_ones_balance()
    if compares:
        await test
        return
    with pytest.raises(AssertionError, match="another user's answer for every request became a balance"):
        await test


def test_the_kits_own_words_say_which_errors_each_trouble_may_become() -> None:
    source = inspect.getsource(venue)
    comments = " ".join(re.findall(r"^# (.*)", source[: source.index("TROUBLES = ")], re.MULTILINE))
    told = dict(re.findall(r'"([a-z ]+)"([^"]*)', comments.rpartition("suite accepts for each")[2]))
    names = {error.__name__ for errors in ERRORS_OF_TROUBLES.values() for error in errors}
    for trouble, errors in ERRORS_OF_TROUBLES.items():
        named = {name for name in names if re.search(rf"\b{name}\b", told[trouble])}
        assert named == {error.__name__ for error in errors}, trouble
