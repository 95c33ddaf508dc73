"""CCXT's plugin keeps the contract of a plugin, with three exchanges as its examples."""

from __future__ import annotations

import exchange_service_ccxt_generic
import pytest
from exchange_service_ccxt_generic.simulator import ApexSimulator, BinanceSimulator, CoinbaseSimulator

from exchange_service.testing.contract import PluginContract


@pytest.mark.usefixtures("without_pauses")
class TestBinance(PluginContract):
    plugin = exchange_service_ccxt_generic
    exchange_id = "binance"
    simulator = BinanceSimulator
    allowed_requests = (
        "GET /api/v3/exchangeInfo",
        "GET /fapi/v1/exchangeInfo",
        "GET /dapi/v1/exchangeInfo",
        "GET /api/v3/account",
    )


@pytest.mark.usefixtures("without_pauses")
class TestCoinbase(PluginContract):
    plugin = exchange_service_ccxt_generic
    exchange_id = "coinbase"
    simulator = CoinbaseSimulator
    allowed_requests = (
        "GET /api/v3/brokerage/market/products",
        "GET /v2/currencies",
        "GET /v2/currencies/crypto",
        "GET /v2/exchange-rates",
        "GET /api/v3/brokerage/accounts",
    )


@pytest.mark.usefixtures("without_pauses")
class TestApex(PluginContract):
    plugin = exchange_service_ccxt_generic
    exchange_id = "apex"
    simulator = ApexSimulator
    allowed_requests = ("GET /api/v3/symbols", "GET /api/v3/account-balance")

    @pytest.mark.parametrize("status", [401])
    async def test_a_key_that_was_good_before_is_refused_all_the_same(self, status: int) -> None:
        # By 403 ApeX says that it was asked too often.
        await super().test_a_key_that_was_good_before_is_refused_all_the_same(status)
