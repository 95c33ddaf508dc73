"""The venues' wire forms: the project's simulators of OANDA and of Binance, with amounts that say whose they are."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, Protocol

from aiohttp import web
from exchange_service_ccxt_generic.simulator.binance import BinanceSimulator, SimulatedWallet
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.testing import LoopbackVenue, bearer_token
from tests.chaos.accounts import CANARY, number_of_secret, secret_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Answers a request of a user (a number) at a venue; `handler` gives the simulator's own answer.
Answering = Callable[["Form", int, web.Request, Handler], Awaitable[web.StreamResponse]]

# Users from this number on have two accounts at OANDA, so that one of them can be refused.
SEVERAL = 50_000
_KEY = CANARY.replace("-", "")


class Form(Protocol):
    """A wire form, as the modes of the venue use it."""

    name: str

    def reads_figures(self, request: web.Request) -> bool:
        """Whether the answer to this request holds amounts."""

    def set_amount(self, user: int, request: web.Request, amount: Decimal) -> None:
        """Let the next answer to the user hold this amount."""

    def rename(self, payload: dict[str, Any], user: int) -> None:
        """Let the payload name another user's account as the one that it is of."""


class OandaForm(OandaSimulator):
    """OANDA for every user of `accounts`; `name` is that of the account for the history."""

    def __init__(self, answering: Answering, name: str = "oanda") -> None:
        super().__init__()
        self.name = name
        self._answering = answering

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        user = number_of_secret(bearer_token(request))
        self.add_token(secret_of(user), *_oanda_accounts(user))
        return await self._answering(self, user, request, handler)

    def reads_figures(self, request: web.Request) -> bool:
        return request.path.endswith("/summary")

    def set_amount(self, user: int, request: web.Request, amount: Decimal) -> None:
        self.add_token(secret_of(user), *_oanda_accounts(user, amount))

    def rename(self, payload: dict[str, Any], user: int) -> None:
        payload["account"]["id"] = oanda_account(user)


def oanda_account(user: int, place: int = 1) -> str:
    """The number of a user's account at OANDA."""
    return f"101-004-{user:07}-{place:03}"


def _oanda_accounts(user: int, amount: Decimal = Decimal(0)) -> list[SimulatedAccount]:
    places = (1, 2) if user >= SEVERAL else (1,)
    nothing = Decimal(0)
    return [
        SimulatedAccount(oanda_account(user, place), "EUR", "Chaos", amount, nothing, nothing, amount)
        for place in places
    ]


class BinanceForm(BinanceSimulator):
    """Binance, as CCXT reads it, for every user of `accounts`."""

    def __init__(self, answering: Answering, name: str = "binance") -> None:
        super().__init__()
        self.name = name
        self._answering = answering

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        key = request.headers.get("X-MBX-APIKEY", "")
        # Public lists are sent without a key.
        if not key.startswith(_KEY):
            answer: web.StreamResponse = await handler(request)
            return answer
        user = int(key.removeprefix(_KEY))
        return await self._answering(self, user, request, handler)

    def reads_figures(self, request: web.Request) -> bool:
        return request.path == "/api/v3/account"

    def set_amount(self, user: int, request: web.Request, amount: Decimal) -> None:
        row = binance_row(user)
        spot = {"USDT": (format(amount, "f"), "0")}
        self.add_wallet(SimulatedWallet(row["api_key"], row["api_secret"], spot=spot))

    def rename(self, payload: dict[str, Any], user: int) -> None:
        payload["uid"] = 1_000_000 + user


def binance_row(user: int) -> Mapping[str, str]:
    """What to store for a user of Binance. Its keys are of letters and digits only."""
    return {"api_key": f"{_KEY}{user:05}", "api_secret": secret_of(user)}


def oanda_row(user: int) -> Mapping[str, str]:
    """What to store for a user of OANDA: every account of the token is read."""
    return {"api_key": secret_of(user)}


def body_of(response: web.StreamResponse) -> bytes:
    """The whole body of a simulator's answer."""
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return response.body


def renamed(form: Form, response: web.StreamResponse, user: int) -> web.Response:
    """The answer, with the number of this user's account in it."""
    payload = json.loads(body_of(response))
    form.rename(payload, user)
    return web.json_response(payload)


__all__ = [
    "SEVERAL",
    "BinanceForm",
    "Form",
    "Handler",
    "LoopbackVenue",
    "OandaForm",
    "binance_row",
    "body_of",
    "oanda_account",
    "oanda_row",
    "renamed",
]
