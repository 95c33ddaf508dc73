"""Tradier keeps the contract of a plugin, in both of its listings."""

from __future__ import annotations

import exchange_service_tradier
from exchange_service_tradier.simulator import TradierOptionsSimulator, TradierSimulator

from exchange_service.testing.contract import PluginContract

_REQUESTS = ("GET /v1/user/profile", "GET /v1/accounts/{number}/balances")


# The contract asks more often than a token may in a minute.
class PatientTradier(TradierSimulator):
    allowance = 1_000_000


class PatientTradierOptions(TradierOptionsSimulator):
    allowance = 1_000_000


class TestTradier(PluginContract):
    plugin = exchange_service_tradier
    exchange_id = "tradier"
    simulator = PatientTradier
    allowed_requests = _REQUESTS


class TestTradierOptions(PluginContract):
    plugin = exchange_service_tradier
    exchange_id = "tradier_options"
    simulator = PatientTradierOptions
    allowed_requests = _REQUESTS
