"""What venues really send is read as they mean it, and every account type that is listed can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import exchange_service_ccxt_generic as plugin
import pytest

from exchange_service.plugin_api import Balance, ExchangeMetadata, VenueError
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import Fault
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
KNOWN_DIFFERENCES: Mapping[str, str] = {
    "binance/papi": "USDT: debt is 0, not None",
    "bingx/inverse": "SOL: total is 0.35791051, not 0.3579105",
    "bingx/swap-blank": "BingX answered with a row without its amounts.",
    "bingx/swap": "USDT: total is 196.7431, not 194.8211",
    "bitget/future": "Bitget does not say which kind of account it is.",
    "bitget/margin": "Bitget does not say which kind of account it is.",
    "bitget/spot-empty": "Bitget does not say which kind of account it is.",
    "bitget/spot-frozen": "Bitget does not say which kind of account it is.",
    "bitget/spot": "Bitget does not say which kind of account it is.",
    "bitget/swap": "Bitget does not say which kind of account it is.",
    "bitrue/inverse": "USD: total is 1010.4043400372839856, not 1013.3871289972839862",
    "bitrue/swap": "USDT: total is 1010.4043400372839856, not 1013.3871289972839862",
    "blofin/swap": "USDT: used is 15805.149672632597427761, not 17643.518089299264094427048",
    "coincheck/spot": "JPY: debt is 0, not None; BTC: debt is 0, not None",
    "deribit/trading": "BTC: used is 1.24669592, not 0.8857841; ETH: used is 0.000402, not 0",
    "digifinex/margin": "BTC: used does not follow from the others",
    "digifinex/spot": "BTC: used does not follow from the others",
    "dydx/swap": "USDC: total is 161451.040416029, not None",
    "gate/margin-cross": "ETH: total is 1016.1, not 0; ETH: debt is 0.0754043474143333, not 0.075393666654; …",
    "gate/unified": "ETH: total is 1016.1, not 0; USDT: total is 16.1, not 6.2023E-7",
    "gateeu/unified": "ETH: total is 1016.1, not 0; USDT: total is 16.1, not 6.2023E-7",
    "hashkey/swap": "USDT: free is 28.85635534, not 26.29154672",
    "htx/inverse": "THETA: total is 717.600960962561438668, not 702.117489568274839613",
    "htx/margin-isolated": "BTC: debt is 2.433533, not None",
    "htx/margin": "BTC: debt is 2.433533, not None",
    "kucoin/margin-two": "KCS: debt is 0, not None; USDT: debt is 0, not None",
    "kucoin/margin": "USDT: debt is 0, not None",
    "kucoin/unified": "USDT: debt is 0, not None; BTC: debt is 0, not None",
    "lighter/spot": "Lighter answered with a row that CCXT leaves out.",
    "modetrade/swap": "BTC: free does not follow from the others",
    "myokx/trading-frozen": "USDT: used is 158.573, not 158.5730000000005; USDT: debt is 0, not None",
    "okx/trading-frozen": "USDT: used is 158.573, not 158.5730000000005; USDT: debt is 0, not None",
    "okx/trading-isolated": "USDT: used is 5.468566666666667, not 5.46856666666668",
    "okxus/trading-frozen": "USDT: used is 158.573, not 158.5730000000005; USDT: debt is 0, not None",
    "revolutx/spot": "USD: used is 1000, not 1032",
    "toobit/swap": "USDT: used is 21.4825, not -899999999978.5175",
    "woo/spot": "WOO: used is 0, not 1",
    "woofipro/swap": "BTC: free does not follow from the others",
}


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
    if name in KNOWN_DIFFERENCES:
        assert found, f"{name} is read well now: its entry in KNOWN_DIFFERENCES goes"
        pytest.xfail(KNOWN_DIFFERENCES[name])
    assert found == ()


@pytest.mark.parametrize("exchange_id", SERVED)
async def test_every_account_type_that_is_listed_can_be_read(
    exchange_id: str, record_property: Callable[[str, object], None]
) -> None:
    """From a true answer, or for the first type from a made-up one in the shape of CCXT's sample."""
    unreadable, unknown = [], []
    for account_type in LISTINGS[exchange_id].account_types:
        balances = [
            await read_answer(answer)
            for answer in true_answers()
            if (answer.exchange_id, answer.account_type) == (exchange_id, account_type)
            and answer.rows
            and answer.name not in KNOWN_DIFFERENCES
        ]
        if not balances and account_type == LISTINGS[exchange_id].account_types[0]:
            balances = [await read_well_formed(exchange_id)]
        if not balances:
            unknown.append(account_type)
        elif not any(row.total is not None or row.free is not None for one in balances for _, row in one.rows()):
            unreadable.append(account_type)
    tried = len(LISTINGS[exchange_id].account_types)
    record_property(SWEEP, ["account types that are listed", [exchange_id], tried, len(unknown), len(unreadable)])
    assert unreadable == []


async def read_well_formed(exchange_id: str) -> Balance:
    account = ACCOUNTS[exchange_id]
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        venue.tell(account, account.answer)
        return await read(call)


def test_types_without_a_public_answer_are_known_as_such() -> None:
    unproven = Counter(exchange_id for exchange_id, _ in unproven_types(LISTINGS))
    assert set(unproven) <= set(SERVED)
    for answer in true_answers():
        assert answer.account_type in LISTINGS[answer.exchange_id].account_types, answer.name
        assert answer.name.split("/")[1].split("-")[0] == answer.account_type, answer.name
