"""A small right plugin of a made-up venue, as a text to be changed, and its venue on loopback."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from aiohttp import web

from exchange_service.testing import LoopbackVenue
from exchange_service.testing.contract import PluginContract

MODULE = "acme"
TOKEN = "good-token-0123456789"
SOURCE = """\
from datetime import datetime
from decimal import Decimal
import time

from exchange_service.plugin_api import (
    AssetBalance, Balance, CredentialField, CredentialRejected, Environment, ExchangeMetadata, KeyRights, Manifest,
    RateLimit, VenueAccount, VenueCall, as_list, as_object, hookimpl, read_metadata, required_amount, required_text,
    text,
)

ACME = ExchangeMetadata(
    id="acme",
    name="Acme Brokerage",
    asset_class="Stocks",
    asset_types="Stocks",
    market_hours="Market Hours",
    environments=(Environment("production", {"api": "https://api.acme.example"}),),
    credential_fields=(CredentialField("api_key", "API token"),),
    instructions="Make a token with the right to read.",
    account_types=("cash",),
    limits=(RateLimit("key", 90, 60),),
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(ACME,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    read_metadata(call.credential)
    token = required_text(call.credential, "api_key")
    response = await call.http.get(call.url() + "/v1/holdings", headers={"Authorization": f"Bearer {token}"})
    response.raise_for_status()
    account = VenueAccount(type="cash", assets=parse(response.json()))
    return Balance(venue_accounts=(account,))


def parse(payload):
    rows = [as_object(row, "holdings[]") for row in as_list(as_object(payload, "answer").get("holdings"), "holdings")]
    return tuple(AssetBalance(text(row, "code", "row"), total=required_amount(row, "quantity", "row")) for row in rows)
"""


class AcmeVenue(LoopbackVenue):
    """Answers one user's token with one holding."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized
        return web.json_response({"holdings": [{"code": "ACME", "quantity": "12.50"}]})


def suite_of(plugin: ModuleType) -> PluginContract:
    """The contract suite for the plugin."""

    class Suite(PluginContract):
        exchange_id = "acme"
        simulator = AcmeVenue

        def credential(self, _: Any) -> dict[str, str]:
            return {"api_key": TOKEN}

    Suite.plugin = plugin
    return Suite()
