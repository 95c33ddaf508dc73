"""Accounts that few have, at the venues on chains, through the whole service: no row is lost and no figure invented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_aster.simulator import AsterSimulator, SimulatedAsset
from exchange_service_aster.simulator import SimulatedWallet as AsterWallet
from exchange_service_hyperliquid.simulator import (
    HyperliquidSimulator,
    SimulatedPerps,
    SimulatedWallet,
    escrowed_wallet,
    portfolio_margin_wallet,
)
from exchange_service_lighter.simulator import LighterSimulator, SimulatedAccount
from exchange_service_lighter.simulator import SimulatedAsset as LighterAsset

from exchange_service.plugin_api import Account, Credential
from exchange_service.testing import DemoVenue
from exchange_service.v1 import balance_pb2
from tests.harness import USER, serving

WALLET = "0x" + "5a" * 20
ADDRESS = {"extra_metadata": {"wallet_address": WALLET}}


@dataclass(frozen=True)
class Expected:
    """The rows that hold something, as "type sub-account asset total/free/used/debt", and words of the notes.

    `total` is that of the balance's summary, empty if there is none.
    """

    rows: set[str]
    notes: tuple[str, ...] = ()
    total: str = ""


def hyperliquid(wallet: SimulatedWallet) -> tuple[DemoVenue, Mapping[str, Any]]:
    venue = HyperliquidSimulator()
    venue.add_wallet(WALLET, wallet)
    return venue, ADDRESS


def lighter(*assets: LighterAsset, collateral: str = "0") -> tuple[DemoVenue, Mapping[str, Any]]:
    venue = LighterSimulator()
    venue.add(SimulatedAccount(7, WALLET, mode=1, collateral=Decimal(collateral), assets=list(assets)))
    return venue, {"extra_metadata": {"l1_address": WALLET}}


def aster(*assets: SimulatedAsset, multi_assets: bool = True) -> tuple[DemoVenue, Mapping[str, Any]]:
    venue = AsterSimulator()
    venue.add_key("a-key", "a-secret", AsterWallet(list(assets), multi_assets=multi_assets))
    return venue, {"api_key": "a-key", "api_secret": "a-secret"}


EXAMPLES: dict[str, tuple[tuple[DemoVenue, Mapping[str, Any]], Expected]] = {
    "USDC in escrow of a wallet that the venue does not know": (
        hyperliquid(escrowed_wallet()),
        Expected({"spot escrow USDC 250.75/-/-/-"}, ("activate",), total="250.75"),
    ),
    "a debt under portfolio margin": (
        hyperliquid(portfolio_margin_wallet()),
        Expected({"spot  USDC 7.5/3/4.5/0.2"}, ("borrowed",), total="7.5"),
    ),
    "a mode that was never set": (
        hyperliquid(
            SimulatedWallet(mode=None, perps={"": SimulatedPerps(Decimal(20))}, spot=[("USDC", 0, "5.5", "1.5")])
        ),
        Expected({"perpetual  USDC 20/20/0/-", "spot  USDC 5.5/4/1.5/-"}, ("mode",)),
    ),
    "a negative hold": (
        hyperliquid(SimulatedWallet(spot=[("HYPE", 150, "2.5", "-1.0")])),
        Expected({"spot  HYPE 2.5/-/-/-"}),
    ),
    "an amount with an exponent": (
        hyperliquid(SimulatedWallet(spot=[("HYPE", 150, "1e3", "2.5E1")])),
        Expected({"spot  HYPE 1000/975/25/-"}),
    ),
    "an asset that is only margin": (
        lighter(LighterAsset("USDC", 3, "10.000000", "0.000000"), LighterAsset("ETH", 1, "0", "0", margin="0.75")),
        Expected({"spot  USDC 10/10/0/-", "perpetual  ETH 0.75/-/-/-"}, ("no summary",)),
    ),
    "a lock beyond the balance": (
        lighter(LighterAsset("USDC", 3, "10.000000", "25.000000")),
        Expected({"spot  USDC 10/-/25/-"}, ("no summary",)),
    ),
    "an asset that is owed, one that is at risk and one that could be borrowed": (
        aster(
            SimulatedAsset("USDT", Decimal("-3.5"), lent=Decimal(50)),
            SimulatedAsset("BNB", Decimal(1), price=Decimal(600)),
            SimulatedAsset("USD1", unrealized=Decimal("-2.25"), lent=Decimal(40)),
            SimulatedAsset("USDF", lent=Decimal(95)),
        ),
        Expected(
            {"futures  USDT -3.5/46.5/0/-", "futures  BNB 1/1/0/-", "futures  USD1 0/37.75/0/-"},
            ("multi-assets mode", "lend"),
        ),
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
async def test_a_rare_account_is_shown_as_the_venue_states_it(example: str, tmp_path: Path) -> None:
    (venue, row), expected = EXAMPLES[example]
    async with venue, serving(tmp_path, venue_urls={venue.exchange_id: venue.url}) as running:
        credential = Credential.from_texts(row, row.get("extra_metadata"))
        await running.service.store.put(Account(USER, venue.exchange_id), credential)
        balance = (await running.client.get_balance(USER, venue.exchange_id)).balance
    shown = [entry for account in balance.venue_accounts for entry in account.assets]
    assert {row_text(entry) for entry in shown if holds(entry)} == expected.rows
    assert [account.error.message for account in balance.venue_accounts if account.HasField("error")] == []
    for word in expected.notes:
        assert any(word in note for note in balance.notes), list(balance.notes)
    total = f"{Decimal(balance.summary.total).normalize():f}" if balance.HasField("summary") else ""
    assert total == expected.total


def amounts(row: balance_pb2.AssetBalance) -> list[Decimal | None]:
    names = ("total", "free", "used", "debt")
    return [Decimal(getattr(row, name)) if row.HasField(name) else None for name in names]


def holds(row: balance_pb2.AssetBalance) -> bool:
    return any(amounts(row))


def row_text(row: balance_pb2.AssetBalance) -> str:
    figures = "/".join("-" if amount is None else f"{amount.normalize():f}" for amount in amounts(row))
    return f"{row.account_type} {row.sub_account} {row.asset} {figures}"
