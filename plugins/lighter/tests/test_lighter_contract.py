"""Lighter fulfils the contract of a plugin, here with a token: without one there is no secret to hide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import exchange_service_lighter
from exchange_service_lighter.simulator import LighterSimulator

from exchange_service.testing.contract import PluginContract


class TestLighter(PluginContract):
    plugin = exchange_service_lighter
    exchange_id = "lighter"
    simulator = LighterSimulator
    allowed_requests = ("GET /api/v1/account", "GET /stream")

    def credential(self, venue: Any) -> Mapping[str, Any]:
        return {**super().credential(venue), "api_key": venue.add_token(90210)}
