"""Whose answer it is: the account's name there is the one that was asked for, or the one of the answer before."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exchange_service import plugin_api
from exchange_service.model import Credential
from exchange_service.plugin_api import State, VenueMalformed, require_account, require_same_accounts
from exchange_service.plugin_kit import account_names

ROOT = Path(__file__).parent.parent
_EXAMPLE = re.compile(r"<!-- example: account names -->\n```python\n(?P<text>.*?)```\n", re.DOTALL)


@pytest.fixture
async def state() -> State:
    return State()


async def name(state: State, *names: object, kind: str = "") -> None:
    await require_same_accounts(state, names, "Acme", kind=kind)


@pytest.mark.parametrize(
    ("expected", "found"),
    [("7", "7"), ("7", 7), (7, "7"), ("7", Decimal(7)), ("7", " 7 "), ("7", None), ("7", ""), (0, 0)],
)
def test_the_requested_account_or_no_name_at_all_is_believed(expected: object, found: object) -> None:
    require_account(expected, found, "Acme")


@pytest.mark.parametrize(("expected", "found"), [("7", "8"), ("7", 8), (7, "07"), ("a", "A"), ("7", True), ("", "7")])
def test_another_account_is_refused_and_not_named_in_the_message(expected: object, found: object) -> None:
    with pytest.raises(VenueMalformed, match="another account") as refusal:
        require_account(expected, found, "Acme")
    assert refusal.value.message == "Acme answered for another account than the requested one."


async def test_the_name_of_the_first_answer_must_stay_the_same(state: State) -> None:
    await name(state, 7)
    await name(state, "7")
    with pytest.raises(VenueMalformed, match="Acme answered for another account than before"):
        await name(state, 8)
    await name(state, "7")


async def test_an_answer_without_a_name_is_no_other_account(state: State) -> None:
    await name(state)
    await name(state, 7)
    await name(state, None, "")
    with pytest.raises(VenueMalformed):
        await name(state, 8)


async def test_accounts_are_added_go_away_and_change_their_order(state: State) -> None:
    for accounts in ("A", "AB", "BA", "B", "BCD", "D"):
        await name(state, *accounts)
    with pytest.raises(VenueMalformed):
        await name(state, *"XYZ")


async def test_another_credential_has_another_account(state: State) -> None:
    await name(state, 7)
    await name(State(), 8)


async def test_names_of_different_kinds_are_not_compared(state: State) -> None:
    await name(state, 7, kind="user")
    await name(state, 8, kind="account")
    with pytest.raises(VenueMalformed):
        await name(state, 8, kind="user")


async def test_a_first_answer_about_another_account_is_not_believed_for_ever(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    await name(state, "of somebody else")
    with pytest.raises(VenueMalformed):
        await name(state, 7)
    monkeypatch.setattr(account_names, "_NAMES_AGE", 0.0)
    await name(state, 7)


async def test_more_names_than_any_venue_has_are_refused(state: State) -> None:
    await name(state, *range(200))
    with pytest.raises(VenueMalformed, match="more than 200"):
        await name(state, *range(201))


def acme_call(state: State, answer: dict[str, str]) -> Any:
    """A call that reads account A-7, and gets this answer."""

    async def get(*_: object, **__: object) -> Any:
        return SimpleNamespace(json=lambda: answer, raise_for_status=lambda: None)

    credential = Credential.from_texts({"api_key": "a-token"}, {"account_id": "A-7"})
    return SimpleNamespace(
        account_state=state,
        credential=credential,
        http=SimpleNamespace(get=get),
        url=lambda: "https://api.acme.example",
    )


async def test_the_example_for_plugin_authors_refuses_the_answer_of_another_user_and_one_without_a_name(
    state: State,
) -> None:
    example = _EXAMPLE.search((ROOT / "docs" / "plugin-howtos.md").read_text())
    assert example is not None
    run: dict[str, Any] = {**vars(plugin_api), "parse": lambda _: plugin_api.VenueAccount(type="cash")}
    exec(example["text"], run)
    await run["fetch_balance"](acme_call(state, {"account": "A-7", "owner": "alice"}))
    for other in ({"account": "A-8", "owner": "alice"}, {"account": "A-7", "owner": "bob"}):
        with pytest.raises(VenueMalformed, match="another account"):
            await run["fetch_balance"](acme_call(state, other))
    with pytest.raises(VenueMalformed, match="should be a text"):
        await run["fetch_balance"](acme_call(state, {"owner": "alice"}))
