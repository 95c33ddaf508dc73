"""A console over a service of which some calls give other replies: what no plugin of the tests would say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from exchange_service.console.app import make_console
from exchange_service.console.pages import ConsoleOptions
from exchange_service.grpc_server.direct import DirectCalls
from exchange_service.v1.exchange_pb2 import Exchange
from exchange_service.v1.exchange_service_pb2 import ListExchangesResponse
from tests.console.browsing import Browser
from tests.console.consoles import signed_in
from tests.harness import HASH_KEY, ScriptedPlugin, registry_of, serving


class OtherReplies:
    """The calls of a service, with these replies by the methods' names."""

    def __init__(self, calls: DirectCalls, replies: dict[str, Message]) -> None:
        self._calls = calls
        self._replies = replies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls, name)

    async def unary(self, path: str, request: bytes, metadata: Any = (), *, timeout: float | None = None) -> bytes:
        """The bytes of the reply."""
        reply = self._replies.get(path.rpartition("/")[2])
        if reply is not None:
            return reply.SerializeToString()
        return await self._calls.unary(path, request, metadata, timeout=timeout)


@asynccontextmanager
async def browsing_replies(folder: Path, **replies: Message) -> AsyncIterator[Browser]:
    """A browser at a console whose service gives these replies."""
    async with serving(folder, registry=registry_of(ScriptedPlugin()), manage_accounts=True) as running:
        calls: Any = OtherReplies(running.service.server.direct, replies)
        yield await signed_in(make_console(calls, ConsoleOptions(HASH_KEY, authenticated=False)))


@asynccontextmanager
async def browsing_listing(folder: Path, exchange: Exchange) -> AsyncIterator[Browser]:
    """A browser at a console whose catalogue has this listing alone."""
    async with browsing_replies(folder, ListExchanges=ListExchangesResponse(exchanges=[exchange])) as browser:
        yield browser
