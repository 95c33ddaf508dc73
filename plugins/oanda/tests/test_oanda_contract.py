"""OANDA keeps the contract of a plugin."""

from __future__ import annotations

import exchange_service_oanda
from exchange_service_oanda.simulator import OandaSimulator

from exchange_service.testing.contract import PluginContract


class TestOanda(PluginContract):
    plugin = exchange_service_oanda
    exchange_id = "oanda"
    simulator = OandaSimulator
    allowed_requests = ("GET /v3/accounts", "GET /v3/accounts/{id}/summary")
