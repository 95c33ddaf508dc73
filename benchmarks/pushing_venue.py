"""A venue on loopback whose accounts, one for each key, hold one asset; it pushes each change with its number."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from aiohttp import web

from exchange_service.testing.push import PushClient
from exchange_service.testing.venue import LoopbackVenue


class PushingVenue(LoopbackVenue):
    """See the module. An account holds 1 before its first change."""

    def __init__(self) -> None:
        super().__init__()
        self.amounts: dict[str, str] = {}
        self.numbers: Counter[str] = Counter()
        # How often each account was read, and how many reads wait for `reading`.
        self.reads: Counter[str] = Counter()
        self.waiting = 0
        self.reading = asyncio.Event()
        self.reading.set()
        # Keys that the venue does not know any more, and when each account changed last, by the monotonic clock.
        self.revoked: set[str] = set()
        self.changed_at: dict[tuple[str, str], float] = {}

    def routes(self) -> list[web.RouteDef]:
        """See LoopbackVenue."""
        return [web.get("/socket", self._socket), web.get("/balances/{key}", self._balance)]

    async def _balance(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        self.reads[key] += 1
        # The answer is of the moment at which the request came.
        amount = self.amounts.get(key, "1")
        self.waiting += 1
        await self.reading.wait()
        self.waiting -= 1
        return web.json_response({"amount": amount}, status=401 if key in self.revoked else 200)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self._answer)

    def _answer(self, client: PushClient, message: Any) -> None:
        client.topics.discard(message.get("unsubscribe"))
        key = message.get("subscribe")
        if key in self.revoked:
            client.send({"refused": key})
        elif key is not None:
            client.topics.add(key)
            client.send(self._state(key))

    def _state(self, key: str) -> dict[str, Any]:
        return {"account": key, "amount": self.amounts.get(key, "1"), "number": self.numbers[key]}

    def change(self, key: str, amount: object, *, push: bool = True) -> None:
        """The account holds so much from now on, and the venue says so to those who follow it unless not `push`."""
        self.amounts[key] = str(amount)
        self.numbers[key] += 1
        self.changed_at[key, str(amount)] = time.monotonic()
        if push:
            self.push.publish(key, self._state(key))

    def followed(self) -> Counter[str]:
        """How many connections follow each account now."""
        return Counter(str(topic) for client in self.push.clients for topic in client.topics)
