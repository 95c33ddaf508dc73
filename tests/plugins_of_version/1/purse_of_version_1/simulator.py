"""Purse on loopback, as simulators that push were written for version 1. Never edit it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from exchange_service.testing import DemoVenue
from exchange_service.testing.push import PushClient

WALLET = "0x" + "a1" * 20


class PurseSimulator(DemoVenue):
    exchange_id = "purse_of_version_1"
    allowed_requests = ("GET /v1/wallets",)

    def __init__(self) -> None:
        super().__init__()
        self.quantities: dict[str, int] = {}

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/wallets", self._read), web.get("/v1", self._push)]

    def account_of(self, request: web.Request, body: bytes) -> str:
        return request.query.get("wallet", "")

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation != "moving":
            return None
        self.quantities[WALLET] = 12
        return {"extra_metadata": {"wallet_address": WALLET}}

    def move(self) -> None:
        for wallet in self.quantities:
            self.quantities[wallet] += 1
            self.push.publish(wallet, self._state(wallet))

    async def _read(self, request: web.Request) -> web.Response:
        wallet = request.query.get("wallet", "")
        if wallet not in self.quantities:
            raise web.HTTPNotFound
        return web.json_response({"wallets": [self._state(wallet)]})

    async def _push(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self._answer)

    def _answer(self, client: PushClient, message: Any) -> None:
        if message["op"] == "ping":
            client.send({"op": "pong"})
        elif message["op"] == "leave":
            client.topics.discard(message["wallet"])
        elif message["op"] == "follow":
            client.topics.add(message["wallet"])
            client.send(self._state(message["wallet"]))

    def _state(self, wallet: str) -> dict[str, Any]:
        return {"wallet": wallet, "holdings": [{"code": "PURSE", "quantity": str(self.quantities[wallet])}]}
