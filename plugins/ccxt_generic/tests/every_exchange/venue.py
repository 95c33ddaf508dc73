"""A venue that answers for every exchange from a script, and reads of balances there, with the markets preset."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import exchange_service_ccxt_generic as plugin
import pytest
from aiohttp import web
from exchange_service_ccxt_generic.client import CcxtClient
from exchange_service_ccxt_generic.exact import Guarded
from exchange_service_ccxt_generic.instances import import_ccxt

from exchange_service.plugin_api import Balance, ExchangeMetadata, State, VenueCall
from exchange_service.testing import Fault, LoopbackVenue, RecordedRequest, venue_call
from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.every_exchange.well_formed import Account, as_json


class ScriptedVenue(LoopbackVenue):
    """It gives each request, such as "GET /v2/balance", the scripted body or fault; any other gets `default`."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Fault] = {}
        self.default = Fault(body=b"{}")

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{tail:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        fault = self.answers.get(f"{request.method} {request.path}", self.default)
        headers = {"Content-Type": fault.content_type, **fault.headers}
        return web.Response(status=fault.status, body=fault.body, headers=headers)

    def tell(self, account: Account, answer: Any) -> None:
        """Give this answer for the account's balance, and good ones before."""
        self.answers = {request: Fault(body=as_json(body)) for request, body in account.before.items()}
        self.answers[account.request] = Fault(body=as_json(answer))

    def seen(self) -> set[str]:
        """What was asked for, such as "GET /v2/balance"."""
        return {f"{request.method} {request.path}" for request in self.requests}


def shown_by(request: RecordedRequest) -> str:
    """All that a request holds, also what is within base64, such as the claims of a token."""
    texts = [request.path, *request.query.values(), *request.headers.values(), request.body.decode("utf-8", "replace")]
    parts = [part for text in texts for part in text.replace(":", " ").replace(".", " ").split()]
    return unquote(" ".join(texts + [_decoded(part) for part in parts]))


def _decoded(text: str) -> str:
    padded = text.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""


def _market(quote: str) -> dict[str, Any]:
    known = {"id": f"BTC{quote}", "symbol": f"BTC/{quote}", "base": "BTC", "quote": quote, "baseId": "BTC"}
    return {**known, "quoteId": quote, "type": "spot", "spot": True, "active": True, "info": {}}


# A contract that is settled in its own coin.
_COIN_SETTLED = _market("USD") | {
    "id": "BTCUSDM",
    "symbol": "BTC/USD:BTC",
    "type": "swap",
    "spot": False,
    "swap": True,
    "contract": True,
    "settle": "BTC",
}


def preset_markets(client: CcxtClient, ccxt: Any, assets: Mapping[str, str]) -> Any:
    """What the client keeps of an exchange's public lists: here three markets, and the assets of the test."""
    instance = client.instances.construct(ccxt, Guarded, None, 1000)
    currencies = {
        code: {"id": venue_id, "code": code, "precision": 1e-8, "info": {}} for code, venue_id in assets.items()
    }
    instance.set_markets([_market("USDT"), _market("USD"), _COIN_SETTLED], currencies)
    for name in instance.options.get("marketHelperProps", []):
        instance.options.setdefault(name, {})
    return instance


async def _markets(client: CcxtClient, ccxt: Any, assets: Mapping[str, str]) -> Any:
    return preset_markets(client, ccxt, assets)


@asynccontextmanager
async def opened(
    listing: ExchangeMetadata,
    assets: Mapping[str, str],
    account_type: str = "",
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[tuple[ScriptedVenue, VenueCall]]:
    """The venue, listening, and a call for an account there, with the markets preset in the plugin's state and without
    CCXT's pauses between requests. `account_type` as a user stores it; empty for the listing's first. `metadata` is
    what the user stores beside it."""
    given, state = credential(listing), State()
    given["metadata"].update(metadata)
    if account_type:
        given["metadata"]["defaultType"] = account_type

    async def no_pause(self: Guarded, cost: Any = None) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guarded, "throttle", no_pause, raising=False)
        async with (
            ScriptedVenue() as venue,
            venue_call(listing, override=venue.url, plugin_state=state, timeout=100.0, **given) as call,
        ):
            if listing.capabilities.balance:
                ccxt = await state.get("ccxt", import_ccxt)
                where = f"markets {listing.id} {call.environment.name} {venue.url}"
                await state.get(where, partial(_markets, CcxtClient(call), ccxt, assets))
            yield venue, call
        await state.close()


async def read(call: VenueCall) -> Balance:
    """One balance through the plugin's hook."""
    return await plugin.fetch_balance(call)
