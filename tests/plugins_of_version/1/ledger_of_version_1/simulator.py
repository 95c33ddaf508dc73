"""Ledger on loopback, as simulators were written for version 1. Never edit it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import TROUBLES, DemoVenue, Fault, bearer_token, show_situation

GOOD = "good-key-0123456789"


class LedgerSimulator(DemoVenue):
    exchange_id = "ledger_of_version_1"
    settings: ClassVar[Mapping[str, Any]] = {"application_secret": "secret-of-the-application-0123456789"}
    allowed_requests = ("GET /v1/time", "GET /v1/accounts", "GET /v1/accounts/{number}", "GET /v1/key")

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, str] = {}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/time", self._time),
            web.get("/v1/accounts", self._accounts),
            web.get("/v1/accounts/{number}", self._account),
            web.get("/v1/key", self._key),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return bearer_token(request)

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation not in ("moving", "refused", "limited", "slow", "stale"):
            return None
        key = GOOD if situation == "moving" else f"{situation}-key-0123456789"
        if situation != "refused":
            self.keys[key] = "secret-of-alice"
        show_situation(self, situation, key, answers=4)
        return {"api_key": key, "api_secret": "secret-of-alice"}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        assert trouble in TROUBLES
        if trouble != "outage":
            return None
        key = "outage-key-0123456789"
        self.keys[key] = "secret-of-alice"
        self.fail(Fault(status=503, account=key))
        return {"api_key": key, "api_secret": "secret-of-alice"}

    async def _time(self, request: web.Request) -> web.Response:
        return web.json_response({"time": int(time.time())})

    async def _accounts(self, request: web.Request) -> web.Response:
        self._check(request)
        entries = [{"number": "A-1", "kind": "cash", "label": "Mine"}, {"number": "A-2", "kind": "margin"}]
        return web.json_response({"owner": "alice", "accounts": entries}, headers={"X-Used": "7"})

    async def _account(self, request: web.Request) -> web.Response:
        self._check(request)
        rows = [{"code": "ACME", "total": "12.50", "reserved": "2.25", "worth": "1250.10"}]
        return web.json_response(
            {
                "number": request.match_info["number"],
                "at": int(time.time() * 1000),
                "currency": "USD",
                "cash": "100.25",
                "holdings": rows,
            }
        )

    async def _key(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response({"trade": False, "expires": "2031-01-02T03:04:05Z"})

    def _check(self, request: web.Request) -> None:
        if bearer_token(request) not in self.keys or not request.headers["X-Application"]:
            raise web.HTTPUnauthorized
