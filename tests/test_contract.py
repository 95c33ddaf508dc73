"""The contract suite finds bad plugins: the documented one passes its tests, and each way to be wrong fails the right
one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exchange_service.testing import Fault, LoopbackVenue, contract
from tests.test_docs import write_documented_plugin

NAME = "exchange_service_acme"
ANSWER = 'response = await call.http.get(call.url() + "/v1/holdings", headers={"Authorization": f"Bearer {token}"})'
CHECK = "    response.raise_for_status()\n"
IMPORTS = "from exchange_service.plugin_api import (\n"


def _late(seconds: float) -> tuple[str, str]:
    """In place of the one answer: whatever happens, go on waiting."""
    return (
        ANSWER,
        f"try:\n        {ANSWER}\n    except VenueError:\n        await asyncio.sleep({seconds})\n        raise",
    )


STUBBORN = """asked = asyncio.ensure_future(call.http.get(
        call.url() + "/v1/holdings", headers={"Authorization": f"Bearer {token}"}))
    while not asked.done():
        try:
            await asyncio.wait({asked})
        except asyncio.CancelledError:
            continue
    response = asked.result()"""

# What is changed in the documented plugin, the test that must find it, and a word of what that says.
BAD: dict[str, tuple[list[tuple[str, str]], str, tuple[Any, ...], str]] = {
    "a figure that went through a float": (
        [('total=required_amount(row, "quantity", "holdings[]")', 'total=float(row["quantity"])')],
        "test_a_good_credential_gives_a_balance",
        (),
        "must be a Decimal",
    ),
    "what is no figure as one": (
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
    "whatever is no JSON as an empty balance": (
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
        "a deadline of 0.4 s was kept after",
    ),
    "a cancellation that is caught": (
        [(ANSWER, STUBBORN)],
        "test_a_cancelled_call_ends_at_once",
        (),
        "does not let itself be cancelled",
    ),
    "metadata that nobody reads": (
        [("    read_metadata(call.credential)", "    #")],
        "test_metadata_that_it_does_not_know_are_refused",
        ("urls",),
        "became a balance",
    ),
    "a missing key that the venue is asked for": (
        [('required_text(call.credential, "api_key")', "call.credential.api_key.reveal()")],
        "test_a_missing_field_is_named_before_the_venue_is_asked",
        (),
        "without api_key",
    ),
    "a refused key that is called a passing trouble": (
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
    """Makes the suite for the documented plugin with these changes."""
    write_documented_plugin(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(changes: list[tuple[str, str]]) -> contract.PluginContract:
        source = tmp_path / NAME / "__init__.py"
        text = source.read_text().replace(IMPORTS, MORE_IMPORTS)
        for old, new in changes:
            assert text.count(old) == 1, f"the documented plugin has no {old!r} any more"
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

    made = Suite()
    made._secrets = set()
    return made


async def run(suite: contract.PluginContract, test: str, arguments: tuple[Any, ...]) -> None:
    faults = {"silent": Fault(silent=True)}
    await getattr(suite, test)(*(faults.get(argument, argument) for argument in arguments))


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_plugin_fails_the_test_that_is_there_for_it(
    suite: Callable[..., contract.PluginContract], name: str
) -> None:
    changes, test, arguments, word = BAD[name]
    # A TypeError is what the plugin's own failure is here; the service would call it PLUGIN_FAILED.
    with pytest.raises((AssertionError, TypeError), match=word):
        await run(suite(changes), test, arguments)


async def test_the_documented_plugin_passes_all_of_them(suite: Callable[..., contract.PluginContract]) -> None:
    good = suite([])
    for test, arguments in {(test, arguments) for _, test, arguments, _ in BAD.values()}:
        await run(good, test, arguments)
