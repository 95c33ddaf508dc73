"""The connection that accounts share: what fails in a plugin's language ends it, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from exchange_service.errors import PluginFailed, ServiceError
from exchange_service.model import Capabilities, PushLimits
from exchange_service.plugin_api import CredentialRejected, PushLanguage, VenueCall, VenueMalformed, subscribed
from exchange_service.testing import venue_call
from exchange_service.testing.push import PushClient
from exchange_service.testing.venue import LoopbackVenue
from tests.harness import listing


class PushingVenue(LoopbackVenue):
    """Follows what it is told to, and acknowledges it."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self._push), web.get("/account", self._account)]

    async def _push(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self._answer)

    async def _account(self, request: web.Request) -> web.Response:
        return web.json_response({})

    def _answer(self, client: PushClient, message: Any) -> None:
        if topic := message.get("follow"):
            client.topics.add(topic)
            client.send({"topic": topic})
        elif topic := message.get("leave"):
            client.topics.discard(topic)


class Language(PushLanguage):
    """How that venue is spoken."""

    linger = 0.0

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"follow": topic}) for topic in topics]

    def unsubscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"leave": topic}) for topic in topics]

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        if not isinstance(message, dict) or "topic" not in message:
            raise VenueMalformed("another venue's message")
        yield message["topic"], message.get("state")


@asynccontextmanager
async def calling(**limits: int) -> AsyncIterator[tuple[PushingVenue, VenueCall]]:
    exchange = listing(capabilities=Capabilities(push=True), push=PushLimits(**limits))
    async with PushingVenue() as venue, venue_call(exchange, override=venue.url) as call:
        yield venue, call


async def follow(call: VenueCall, language: PushLanguage) -> None:
    """Follow a topic until its subscription ends."""
    async with asyncio.timeout(5), subscribed(call, language, ["mine"]) as subscription:
        async for _ in subscription:
            pass


async def end_of(call: VenueCall, language: PushLanguage) -> ServiceError:
    """The error that a subscription ends with."""
    with pytest.raises(ServiceError) as raised:
        await follow(call, language)
    return raised.value


async def test_a_subscription_that_a_plugin_cannot_write_ends_with_its_failure_and_without_its_text() -> None:
    class Broken(Language):
        def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
            raise KeyError("a secret")

    async with calling() as (_, call):
        error = await end_of(call, Broken(call.url()))
    assert isinstance(error, PluginFailed)
    assert "KeyError" in error.message
    assert "secret" not in error.message


async def test_a_keep_alive_may_make_a_request_first_and_its_error_ends_the_connection() -> None:
    class Renewing(Language):
        keep_alive_every = 0.01

        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.renewed = 0

        async def keep_alive(self) -> str:
            assert (await call.http.get(call.url() + "/account")).status == 200
            self.renewed += 1
            if self.renewed == 3:
                raise CredentialRejected("The grant was revoked.")
            return json.dumps({"beat": self.renewed})

    async with calling() as (venue, call):
        error = await end_of(call, Renewing(call.url()))
        assert isinstance(error, CredentialRejected)
        assert sum(request.path == "/account" for request in venue.requests) == 3
