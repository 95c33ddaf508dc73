"""The venues' worked examples through the whole service: the venue's answer in, gRPC's decimals out, to the digit."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, standard_wallet, unified_wallet

from exchange_service.cli.demo import SIMULATOR_GROUP
from exchange_service.plugin_api import Account, Credential
from exchange_service.testing import DemoVenue
from exchange_service.v1 import balance_pb2
from tests.harness import USER, serving

WALLET = "0x" + "5a" * 20

# By example: the rows as "type asset total/free/used" and the figures of the accounts that have a summary as
# "type currency equity cash available margin_used unrealised"; "-" where the venue does not say.
EXAMPLES: dict[str, tuple[set[str], set[str]]] = {
    "oanda": (
        {"forex EUR 25310.4426/23246.1055/1940.2271"},
        {"forex EUR 25182.5126 25310.4426 23246.1055 1940.2271 -127.93"},
    ),
    "tradier": (
        {"margin USD 18450.27/14203.77/11555"},
        {"margin USD 40615.27 18450.27 14203.77 11555 612.4"},
    ),
    "tradier_options": (
        {
            "options USD 18450.27/14203.77/0",
            "options OPTION_LONG 1875/-/-",
            "options OPTION_SHORT -940/-/-",
            "options OPTION_NET 935/-/-",
        },
        {"options USD 40615.27 18450.27 14203.77 0 -"},
    ),
    "aster": (
        {
            "futures USDT 5120.44/4594.54/610.1",
            "futures BNB 1.5/1.5/-",
            "spot USDT 350.25/310.25/40",
            "spot ASTER 12/12/0",
        },
        {"futures USDT 5204.64 5120.44 4594.54 610.1 84.2"},
    ),
    "lighter": (
        {
            "perpetual USDC 3200.5/3099.7/184.8",
            "spot USDC 150/125/25",
            "spot ETH 0.5/0.5/0",
            "pool USDC 100/-/-",
        },
        {"perpetual USDC 3284.5 3200.5 3099.7 184.8 84"},
    ),
    "hyperliquid, standard": (
        {"perpetual USDC 8420.118264/7611.904113/802.5"},
        {"perpetual USDC 8420.118264 - 7611.904113 802.5 321.5"},
    ),
    "hyperliquid, unified": (
        {"spot USDC 5230.118264/4387.618264/842.5", "spot HYPE 31.25/31.25/0"},
        {"spot USDC 5230.118264 - 4387.618264 842.5 321.5"},
    ),
    "krakenfutures": (
        {
            "cash BTC 0.25/-/-",
            "cash EUR 120.5/-/-",
            "margin FI_XBTUSD_270326 -15000/-/-",
            "margin BTC 1.5/-/-",
            "flex USD 5000/5000/-",
            "flex BTC 0.1185308247/0.1185308247/-",
        },
        {"margin BTC 1.5 1.5 1.5 0 0", "flex USD 9965.9490374 - 9215.9490374 750 -12.3456"},
    ),
    "alpaca": (
        {"margin USD 5250.75/-/-", "margin AAPL 12/10/-", "margin BTC 0.0425/0.0425/-"},
        {"margin USD 10148.89625 5250.75 5250.75 2449.073125 -"},
    ),
    "tastytrade": (
        {"margin USD 12875.412/19735.412/24380"},
        {"margin USD 45230.412 12875.412 19735.412 24380 -"},
    ),
}


def prepared(example: str) -> tuple[DemoVenue, Mapping[str, Any]]:
    """The venue with the example's account, and the row that opens it."""
    exchange_id, _, mode = example.partition(", ")
    if mode:
        venue = HyperliquidSimulator()
        venue.add_wallet(WALLET, standard_wallet() if mode == "standard" else unified_wallet())
        return venue, {"extra_metadata": {"wallet_address": WALLET}}
    (point,) = entry_points(group=SIMULATOR_GROUP, name=exchange_id)
    simulator: DemoVenue = point.load()()
    row = simulator.demo_credential("moving")
    assert row is not None
    return simulator, row


@pytest.mark.parametrize("example", EXAMPLES)
async def test_the_worked_example_comes_out_to_the_digit(example: str, tmp_path: Path) -> None:
    venue, row = prepared(example)
    async with venue, serving(tmp_path, venue_urls={venue.exchange_id: venue.url}) as running:
        credential = Credential.from_texts(row, row.get("extra_metadata"))
        await running.service.store.put(Account(USER, venue.exchange_id), credential)
        reply = await running.client.get_balance(USER, venue.exchange_id)
    rows, figures = EXAMPLES[example]
    assert {row_text(entry) for account in reply.balance.venue_accounts for entry in account.assets} == rows
    stated = {figure_text(account) for account in reply.balance.venue_accounts if account.HasField("summary")}
    assert figures <= stated


def row_text(row: balance_pb2.AssetBalance) -> str:
    amounts = "/".join(number(row, name) for name in ("total", "free", "used"))
    return f"{row.account_type} {row.asset} {amounts}"


def figure_text(account: balance_pb2.VenueAccount) -> str:
    names = ("equity", "cash", "available", "margin_used", "unrealised_pnl")
    return " ".join((account.type, account.summary.currency, *(number(account.summary, name) for name in names)))


def number(message: Any, name: str) -> str:
    """The amount without zeros that say nothing, for comparing values: plugins' own tests compare every digit."""
    if not message.HasField(name):
        return "-"
    return f"{Decimal(getattr(message, name)).normalize():f}"
