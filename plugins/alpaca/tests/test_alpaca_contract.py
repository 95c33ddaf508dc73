"""Alpaca keeps the contract of a plugin."""

from __future__ import annotations

import exchange_service_alpaca
from exchange_service_alpaca.simulator import AlpacaSimulator

from exchange_service.testing.contract import PluginContract


class TestAlpaca(PluginContract):
    plugin = exchange_service_alpaca
    exchange_id = "alpaca"
    simulator = AlpacaSimulator
    allowed_requests = AlpacaSimulator.allowed_requests
