"""What venues really send is read as they mean it, and every account type that is listed can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal

import exchange_service_ccxt_generic as plugin
import pytest

from exchange_service.plugin_api import AssetBalance, Balance, ExchangeMetadata, VenueAccount, VenueError
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.further_types import FURTHER
from plugins.ccxt_generic.tests.every_exchange.true_answers import (
    TrueAnswer,
    differences,
    true_answers,
    unproven_types,
)
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, as_json

LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [name for name, listing in LISTINGS.items() if listing.capabilities.balance]
BY_NAME = {answer.name: answer for answer in true_answers()}

# Answers that are read otherwise than the venue means them. An entry goes when its answer is read well.
KNOWN_DIFFERENCES: Mapping[str, str] = {}


async def read_answer(answer: TrueAnswer) -> Balance:
    """The balance of a venue that gives this answer, through the plugin's hook."""
    listing = LISTINGS[answer.exchange_id]
    async with opened(listing, answer.assets, answer.account_type, answer.metadata) as (venue, call):
        venue.answers = {request: Fault(body=as_json(body)) for request, body in answer.before.items()}
        venue.answers[answer.request] = Fault(body=answer.body)
        return await read(call)


async def wrong(answer: TrueAnswer) -> tuple[str, ...]:
    """What comes out otherwise than the venue means it."""
    try:
        return differences(answer, await read_answer(answer))
    except VenueError as error:
        return (f"{type(error).__name__}: {error}",)


@pytest.mark.parametrize("name", BY_NAME)
async def test_each_figure_that_a_venue_sends_is_the_figure_shown(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    found = await wrong(BY_NAME[name])
    record_property(SWEEP, ["true answers", [BY_NAME[name].exchange_id], 1, 0, int(bool(found))])
    assert found == ()


@pytest.mark.parametrize("exchange_id", SERVED)
async def test_every_account_type_that_is_listed_can_be_read(
    exchange_id: str, record_property: Callable[[str, object], None]
) -> None:
    """From a true answer, or where none is public from a made-up one in the shape of CCXT's sample."""
    unreadable = []
    for account_type in LISTINGS[exchange_id].account_types:
        balances = [
            await read_answer(answer)
            for answer in true_answers()
            if (answer.exchange_id, answer.account_type) == (exchange_id, account_type) and answer.rows
        ]
        balances = balances or [await read_well_formed(exchange_id, account_type)]
        if not any(row.total is not None or row.free is not None for one in balances for _, row in one.rows()):
            unreadable.append(account_type)
    tried = len(LISTINGS[exchange_id].account_types)
    unknown = [kind for name, kind in unproven_types(LISTINGS) if name == exchange_id]
    record_property(SWEEP, ["account types that are listed", [exchange_id], tried, len(unknown), len(unreadable)])
    assert unreadable == []


async def read_well_formed(exchange_id: str, account_type: str) -> Balance:
    """What a made-up good answer for this type is read as."""
    account = FURTHER.get(f"{exchange_id} {account_type}") or ACCOUNTS[exchange_id]
    async with opened(LISTINGS[exchange_id], account.assets, account_type) as (venue, call):
        venue.tell(account, account.answer)
        return await read(call)


def test_types_without_a_public_answer_are_known_as_such() -> None:
    unproven = Counter(exchange_id for exchange_id, _ in unproven_types(LISTINGS))
    assert set(unproven) <= set(SERVED)
    for answer in true_answers():
        assert answer.account_type in LISTINGS[answer.exchange_id].account_types, answer.name
        assert answer.name.split("/")[1].split("-")[0] == answer.account_type, answer.name


class TestComparing:
    """How a balance is compared with a true answer: total 10, free 7, and no word on what is used."""

    ANSWER = replace(true_answers()[0], rows={"BTC": {"total": Decimal(10), "free": Decimal(7)}})

    @pytest.mark.parametrize(
        "row",
        [
            AssetBalance("BTC", Decimal(11), Decimal(7)),
            AssetBalance("BTC", Decimal(10)),
            AssetBalance("BTC", Decimal(10), Decimal(7), Decimal(2)),
            AssetBalance("BTC", Decimal(10), Decimal(7), debt=Decimal(1)),
            AssetBalance("ETH", Decimal(10), Decimal(7)),
        ],
        ids=str,
    )
    def test_another_figure_is_a_difference(self, row: AssetBalance) -> None:
        assert differences(self.ANSWER, balance_of(row)) != ()

    def test_what_follows_from_the_others_may_be_shown_or_left_out(self) -> None:
        for used in (None, Decimal(3)):
            assert differences(self.ANSWER, balance_of(AssetBalance("BTC", Decimal(10), Decimal(7), used))) == ()

    def test_a_second_row_is_a_difference(self) -> None:
        row = AssetBalance("BTC", Decimal(10), Decimal(7))
        assert differences(self.ANSWER, balance_of(row, row)) == ("BTC: several rows",)


def balance_of(*rows: AssetBalance) -> Balance:
    """One account with these rows."""
    return Balance(venue_accounts=(VenueAccount(type="spot", assets=rows),))
