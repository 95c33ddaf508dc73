"""tastytrade keeps the contract of a plugin."""

from __future__ import annotations

import exchange_service_tastytrade
from exchange_service_tastytrade.simulator import TastytradeSimulator

from exchange_service.testing.contract import PluginContract


class TestTastytrade(PluginContract):
    plugin = exchange_service_tastytrade
    exchange_id = "tastytrade"
    simulator = TastytradeSimulator
    allowed_requests = (
        "POST /oauth/token",
        "GET /customers/me/accounts",
        "GET /accounts/{number}/balances",
        # The account streamer.
        "GET /",
    )
