"""Kraken Futures keeps the contract of a plugin."""

from __future__ import annotations

import exchange_service_krakenfutures
from exchange_service_krakenfutures.simulator import KrakenfuturesSimulator

from exchange_service.testing.contract import PluginContract


class TestKrakenfutures(PluginContract):
    plugin = exchange_service_krakenfutures
    exchange_id = "krakenfutures"
    simulator = KrakenfuturesSimulator
