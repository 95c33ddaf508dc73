"""Aster keeps the contract of a plugin."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import exchange_service_aster
import pytest
from exchange_service_aster.simulator import AsterSimulator

from exchange_service.testing.contract import PluginContract


@pytest.mark.skipif(find_spec("coincurve") is None, reason="agents cannot sign here")
class TestAster(PluginContract):
    plugin = exchange_service_aster
    exchange_id = "aster"
    simulator = AsterSimulator
    allowed_requests = ("GET /fapi/v3/accountWithJoinMargin", "GET /api/v3/account")


class TestAsterWithAnHmacKey(PluginContract):
    plugin = exchange_service_aster
    exchange_id = "aster"
    simulator = AsterSimulator
    allowed_requests = ("GET /fapi/v4/account", "GET /api/v1/account")

    def credential(self, venue: AsterSimulator) -> Mapping[str, Any]:
        venue.add_key("an-hmac-key-for-tests", "an-hmac-secret-for-tests").moving = True
        return {"api_key": "an-hmac-key-for-tests", "api_secret": "an-hmac-secret-for-tests"}
