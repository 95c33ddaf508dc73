"""CCXT's plugin keeps the contract of a plugin, with Binance as its example."""

from __future__ import annotations

import exchange_service_ccxt_generic
from exchange_service_ccxt_generic.simulator import BinanceSimulator

from exchange_service.testing.contract import PluginContract


class TestBinance(PluginContract):
    plugin = exchange_service_ccxt_generic
    exchange_id = "binance"
    simulator = BinanceSimulator
