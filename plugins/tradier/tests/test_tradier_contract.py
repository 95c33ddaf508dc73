"""Tradier keeps the contract of a plugin, in both of its listings."""

from __future__ import annotations

import exchange_service_tradier
from exchange_service_tradier.simulator import TradierOptionsSimulator, TradierSimulator

from exchange_service.testing.contract import PluginContract

_REQUESTS = ("GET /v1/user/profile", "GET /v1/accounts/{number}/balances")


class TestTradier(PluginContract):
    plugin = exchange_service_tradier
    exchange_id = "tradier"
    simulator = TradierSimulator
    allowed_requests = _REQUESTS


class TestTradierOptions(PluginContract):
    plugin = exchange_service_tradier
    exchange_id = "tradier_options"
    simulator = TradierOptionsSimulator
    allowed_requests = _REQUESTS
