"""Hyperliquid keeps the contract of a plugin."""

from __future__ import annotations

import exchange_service_hyperliquid
from exchange_service_hyperliquid.simulator import HyperliquidSimulator

from exchange_service.testing.contract import PluginContract


class TestHyperliquid(PluginContract):
    plugin = exchange_service_hyperliquid
    exchange_id = "hyperliquid"
    simulator = HyperliquidSimulator
    allowed_requests = ("POST /info",)
