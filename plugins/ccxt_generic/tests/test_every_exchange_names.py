"""An answer that names another user or account than the answers before is refused, at every exchange that names one."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic import account_names
from exchange_service_ccxt_generic.account_names import NAMES, names

from exchange_service.plugin_api import Balance, ExchangeMetadata, VenueMalformed
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.named import bodies, is_named
from plugins.ccxt_generic.tests.every_exchange.true_answers import TrueAnswer, true_answer, true_answers
from plugins.ccxt_generic.tests.every_exchange.venue import ScriptedVenue, opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import as_json

LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
Change = Callable[[Any], Any]


NAMED = [answer.name for answer in true_answers() if is_named(answer)]

# What looks like a name in a recorded answer and is not compared.
NO_NAMES: Mapping[str, str] = {
    "luno balance.[].account_id": "of each asset's wallet",
    "independentreserve [].AccountGuid": "of each asset's wallet",
    "phemex data.account.accountId": "of each settlement's wallet",
    "dydx subaccount.subaccountNumber": "zero for every user's first one",
    "dydx subaccount.assetPositions.USDC.subaccountNumber": "zero for every user's first one",
    "lighter accounts.[].account_index": "the index is compared",
    "onetrading balances.[].account_id": "the whole answer has the same one",
}
_LIKE_A_NAME = re.compile(
    r"(user|member|account|profile|client|customer|sub|short)_?(u?id|number|guid|name|index|address)\Z|\Auid\Z|\Auser\Z",
    re.IGNORECASE,
)


def renamed(value: Any, path: list[str], change: Change) -> Any:
    """A copy of the value with every name at the path changed."""
    if not path:
        return change(value) if isinstance(value, str | int) and value != "" else value
    step, rest = path[0], path[1:]
    if step == "[]" and isinstance(value, list):
        return [renamed(entry, rest, change) for entry in value]
    if isinstance(value, dict) and step in value:
        return {**value, step: renamed(value[step], rest, change)}
    return copy.copy(value)


def with_names(answer: TrueAnswer, change: Change) -> TrueAnswer:
    """The same answer with other names."""

    def all_renamed(body: Any) -> Any:
        for path in NAMES[answer.exchange_id]:
            body = renamed(body, path.split("."), change)
        return body

    before = {request: all_renamed(body) for request, body in answer.before.items()}
    return replace(answer, before=before, body=as_json(all_renamed(json.loads(answer.body))))


def another(name: Any) -> Any:
    """The name of another user, of the same type."""
    return name + 1 if isinstance(name, int) else f"{name[:-1]}{'2' if name[-1] != '2' else '3'}"


def tell(venue: ScriptedVenue, answer: TrueAnswer) -> None:
    venue.answers = {request: Fault(body=as_json(body)) for request, body in answer.before.items()}
    venue.answers[answer.request] = Fault(body=answer.body)


def opened_for(answer: TrueAnswer) -> Any:
    return opened(LISTINGS[answer.exchange_id], answer.assets, answer.account_type, answer.metadata)


def rows(balance: Balance) -> list[Any]:
    return [(account.identity, account.assets) for account in balance.venue_accounts]


@pytest.mark.parametrize("name", NAMED)
async def test_the_same_answer_with_another_name_is_refused(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    answer = true_answer(name)
    other = with_names(answer, another)
    async with opened_for(other) as (venue, call):
        tell(venue, other)
        assert rows(await read(call)), "the answer itself is a balance"
    async with opened_for(answer) as (venue, call):
        tell(venue, answer)
        good = rows(await read(call))
        tell(venue, other)
        with pytest.raises(VenueMalformed, match="another account"):
            await read(call)
        tell(venue, answer)
        assert rows(await read(call)) == good
    record_property(SWEEP, ["answers for another account", [answer.exchange_id], 1, 0, 0])


@pytest.mark.parametrize("name", NAMED)
async def test_the_same_name_as_a_text_or_left_out_is_no_other_account(name: str) -> None:
    answer = true_answer(name)
    async with opened_for(answer) as (venue, call):
        tell(venue, answer)
        good = rows(await read(call))
        for change in (str, partial(lambda _: None)):
            tell(venue, with_names(answer, change))
            assert rows(await read(call)) == good


@pytest.mark.parametrize("name", ["bingx/swap-two", "extended/swap", "coinbaseexchange/spot"])
async def test_rows_of_two_users_in_one_answer_are_refused(name: str) -> None:
    answer = true_answer(name)
    seen: list[Any] = []

    def another_in_the_second_row(one: Any) -> Any:
        seen.append(one)
        return another(one) if len(seen) > 1 else one

    mixed = with_names(answer, another_in_the_second_row)
    assert len(seen) > 1
    async with opened_for(answer) as (venue, call):
        tell(venue, mixed)
        with pytest.raises(VenueMalformed, match="another account"):
            await read(call)


async def test_sub_accounts_come_and_go() -> None:
    answer = true_answer("derive/spot")
    (entry,) = json.loads(answer.body)["result"]

    def with_sub_accounts(*ids: int) -> TrueAnswer:
        result = [{**entry, "subaccount_id": number} for number in ids]
        return replace(answer, body=as_json({"id": "1", "result": result}))

    async with opened_for(answer) as (venue, call):
        for ids in ((1,), (2, 1), (2,)):
            tell(venue, with_sub_accounts(*ids))
            await read(call)
        tell(venue, with_sub_accounts(7))
        with pytest.raises(VenueMalformed, match="another account"):
            await read(call)


async def test_the_names_of_two_account_types_are_not_compared() -> None:
    spot, margin = true_answer("htx/spot"), true_answer("htx/margin")
    async with opened_for(spot) as (venue, call):
        tell(venue, spot)
        await read(call)
        tell(venue, margin)
        venue.answers |= {request: Fault(body=as_json(body)) for request, body in spot.before.items()}
        account = replace(call.account, account_type="margin")
        assert rows(await read(replace(call, account=account)))


def test_every_exchange_of_the_table_has_a_recorded_answer_with_each_name() -> None:
    assert {name.partition("/")[0] for name in NAMED} == set(NAMES)
    for exchange_id, paths in NAMES.items():
        recorded = [body for answer in true_answers() if answer.exchange_id == exchange_id for body in bodies(answer)]
        for path in paths:
            assert any(names(body, path) for body in recorded), f"{exchange_id}: no recorded answer has {path}"


def leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for below in value:
            yield from leaves(below, f"{path}.[]".lstrip("."))
    elif isinstance(value, str | int):
        yield path


def test_every_name_in_a_recorded_answer_is_compared_or_said_to_be_none() -> None:
    left = {
        f"{answer.exchange_id} {path}"
        for answer in true_answers()
        for body in bodies(answer)
        for path in leaves(body)
        if _LIKE_A_NAME.search(path.rpartition(".")[2]) and path not in NAMES.get(answer.exchange_id, ())
    }
    assert left == set(NO_NAMES)


async def test_without_the_comparison_another_users_answer_would_be_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rely on: nothing else refuses these answers."""
    monkeypatch.setattr(account_names, "NAMES", {})
    answer = true_answer("bybit/funding")
    other = with_names(answer, another)
    async with opened_for(answer) as (venue, call):
        for one in (answer, other):
            tell(venue, one)
            assert rows(await read(call))
