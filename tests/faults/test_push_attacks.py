"""Attacks by what a venue pushes, or somebody in its place: each first with the mitigation off, then with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from exchange_service.errors import VenueMalformed, VenueTimeout
from exchange_service.model import Capabilities, Environment, ExchangeMetadata
from exchange_service.plugin_api import PushLanguage, Subscription, VenueCall, subscribed
from exchange_service.testing import LoopbackVenue, venue_call
from exchange_service.testing.push import PushClient, PushFault


class Venue(LoopbackVenue):
    """Pushes the figure of a user to all who follow it."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/ws", self._socket)]

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self._answer)

    def _answer(self, client: PushClient, message: Any) -> None:
        client.topics.add(message["user"])
        client.send({"user": message["user"], "ready": True})

    def pay(self, user: str, figure: int) -> None:
        self.push.publish(user, {"user": user, "figure": figure})


class ByName(PushLanguage):
    """Sorts by the user that a message names."""

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"user": topic}) for topic in topics]

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        if not isinstance(message, dict) or "user" not in message:
            raise VenueMalformed("It names nobody.")
        yield message["user"], None if "ready" in message else message["figure"]


class ByArrival(ByName):
    """Sorts by the order in which the users came: the first message is the first one's, and so on in turn."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._turn = 0

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        for user, figure in super().read(message):
            if figure is None:
                yield user, None
                continue
            yield ("alice", "bob")[self._turn % 2], figure
            self._turn += 1


LISTING = ExchangeMetadata(
    id="fakex",
    name="Fakex",
    asset_class="Crypto",
    asset_types="Crypto",
    market_hours="24/7",
    environments=(Environment("production", {"api": "https://api.fakex.example"}),),
    capabilities=Capabilities(push=True),
)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Venue, VenueCall]]:
    async with Venue() as venue, venue_call(LISTING, override=venue.url, api_key="a-key-for-tests") as call:
        yield venue, call


@asynccontextmanager
async def followed(call: VenueCall, kind: type[PushLanguage], *users: str) -> AsyncIterator[tuple[Subscription, ...]]:
    """A subscription for each user, on one connection."""
    language = kind(call.url() + "/ws")
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(subscribed(call, language, [user])) for user in users])


@pytest.mark.threat("T66", attack=True)
async def test_messages_in_another_order_show_one_user_the_others_money_unless_they_are_sorted_by_name() -> None:
    for kind, wrong in ((ByArrival, True), (ByName, False)):
        async with opened() as (venue, call), followed(call, kind, "alice", "bob") as (alice, bob):
            venue.pay("bob", 1_000_000)
            venue.pay("alice", 5)
            seen = [(await anext(subscription))[user] for subscription, user in ((alice, "alice"), (bob, "bob"))]
            assert (seen == [1_000_000, 5]) == wrong
            assert (seen == [5, 1_000_000]) == (not wrong)


@pytest.mark.threat("T67", attack=True)
async def test_a_message_of_any_size_is_taken_unless_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for bounded in (False, True):
        with monkeypatch.context() as patch:
            if not bounded:
                patch.setattr("exchange_service.venues.http.MESSAGE_LIMIT", 0)
            async with opened() as (venue, call), call.http.websocket(call.url() + "/ws") as socket:
                venue.push.clients[0].send("0" * (8 * 1024 * 1024))
                if bounded:
                    with pytest.raises(VenueMalformed, match="too large"):
                        await socket.receive()
                else:
                    assert len(await socket.receive()) == 8 * 1024 * 1024


@pytest.mark.threat("T68", attack=True)
async def test_a_venue_that_falls_silent_is_believed_unless_its_silence_is_watched() -> None:
    class Trusting(ByName):
        silence, ping = 3600.0, 0.0

    class Watchful(ByName):
        silence, ping = 0.3, 0.0

    for kind, watched in ((Trusting, False), (Watchful, True)):
        async with opened() as (venue, call), followed(call, kind, "alice") as (alice,):
            venue.push.fail(PushFault(silent=True))
            venue.pay("alice", 7)
            if watched:
                with pytest.raises(VenueTimeout):
                    await anext(alice)
            else:
                with pytest.raises(TimeoutError):
                    await _in_time(alice)
                assert alice.states == {}


async def _in_time(subscription: Subscription) -> None:
    async with asyncio.timeout(0.6):
        await anext(subscription)
