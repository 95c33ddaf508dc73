"""What plugins push with: connections that accounts share, guarded sockets and lines, against a venue on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from exchange_service.errors import (
    CredentialRejected,
    NotSupported,
    PluginFailed,
    ServiceError,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import Capabilities, Environment, ExchangeMetadata, PushLimits
from exchange_service.plugin_api import Changed, PushLanguage, Socket, State, Subscription, VenueCall, subscribed
from exchange_service.plugin_kit import push, push_connection
from exchange_service.testing import Fault, LoopbackVenue, venue_call
from exchange_service.testing.certificates import untrusted_certificate
from exchange_service.testing.push import PushClient, PushFault
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.push_figures import PushFigures

NO_LIMITS = PushLimits()
SECRET = "listen-key-of-somebody"


class PushVenue(LoopbackVenue):
    """Pushes the value of a topic, acknowledges subscriptions, and answers pings."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, int] = {}
        # Topics whose subscription is not answered, and those that are refused.
        self.deaf: set[str] = set()
        self.refused: set[str] = set()
        self.acknowledges = True
        # The most subscriptions that were ever unanswered at once on a connection.
        self.unanswered = 0
        self.answers_after = 0.0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/ws", self._socket),
            web.get("/ws/{key}", self._socket),
            web.get("/lines", self._lines),
            web.get("/away", self._redirect),
            web.get("/page", self._page),
            web.get("/packed", self._packed),
            web.get("/drip", self._drip_refusal),
            web.get("/bomb", self._bomb),
        ]

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        return await self.push.serve(request, self.answer)

    async def _lines(self, request: web.Request) -> web.StreamResponse:
        return await self.push.stream(request, "lines")

    async def answer(self, client: PushClient, message: Any) -> None:
        if message["op"] == "ping":
            client.send({"pong": True})
            return
        topic = message.get("topic")
        if message["op"] == "unsubscribe":
            client.topics.discard(topic)
            return
        if topic in self.deaf:
            return
        self.unanswered = max(self.unanswered, client.notes.get("unanswered", 0) + 1)
        client.notes["unanswered"] = client.notes.get("unanswered", 0) + 1
        asyncio.get_running_loop().call_later(self.answers_after, self._acknowledge, client, topic)

    def _acknowledge(self, client: PushClient, topic: str) -> None:
        client.notes["unanswered"] -= 1
        if topic in self.refused:
            client.send({"topic": topic, "error": "refused"})
            return
        client.topics.add(topic)
        if self.acknowledges:
            client.send({"ack": topic})
        if topic in self.values:
            client.send({"topic": topic, "value": self.values[topic]})

    def change(self, topic: str, value: int) -> None:
        self.values[topic] = value
        self.push.publish(topic, {"topic": topic, "value": value})

    async def _redirect(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/elsewhere")

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    async def _packed(self, request: web.Request) -> web.StreamResponse:
        """Sends a compressed message, although nobody has asked for compression."""
        response = web.WebSocketResponse()
        await response.prepare(request)
        assert request.transport is not None
        # The reserved bit says that it is compressed.
        request.transport.write(bytes([0xC1, 2]) + b"{}")  # type: ignore[attr-defined]
        await self._stopping.wait()
        return response

    async def _bomb(self, request: web.Request) -> web.Response:
        fault = _bomb()
        return web.Response(body=fault.body, headers=dict(fault.headers))

    async def _drip_refusal(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=503)
        await response.prepare(request)
        await self._stopping.wait()
        return response

    @property
    def client(self) -> PushClient:
        (client,) = self.push.clients
        return client

    def subscriptions(self) -> list[str]:
        """The topics that were asked for on open connections, in their order."""
        received = [message for client in self.push.clients for message in client.received]
        return [message["topic"] for message in received if message["op"] == "subscribe"]


class Language(PushLanguage):
    """The language of `PushVenue`."""

    silence = 5.0
    acknowledging_limit = 5.0

    def keep_alive(self) -> str:
        return '{"op": "ping"}'

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"op": "subscribe", "topic": topic}) for topic in topics]

    def unsubscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"op": "unsubscribe", "topic": topic}) for topic in topics]

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        if not isinstance(message, dict):
            raise VenueMalformed("This is no message of the venue.")
        if "ack" in message:
            yield message["ack"], None
        elif "error" in message:
            yield message["topic"], CredentialRejected("The venue refuses the topic.")
        elif "topic" in message:
            yield message["topic"], message["value"]
        elif "pong" not in message and "ping" not in message:
            raise VenueMalformed("This is no message of the venue.")

    def reply(self, message: Any) -> str | None:
        return '{"op": "pong"}' if "ping" in message else None

    def state(self, topic: Any, before: Any, part: Any) -> Any:
        if part == "nonsense":
            raise VenueMalformed("The value is nonsense.")
        if part == "poison":
            raise KeyError(SECRET)
        return part


class Silent(Language):
    silence = 0.15


class Impatient(Language):
    acknowledging_limit = 0.15


def listing(limits: PushLimits = NO_LIMITS) -> ExchangeMetadata:
    return ExchangeMetadata(
        "acme", "Acme", "Crypto", "Crypto Spot", "24/7 Trading",
        (Environment("production", {"api": "https://api.acme.example", "push": "wss://push.acme.example/ws"}),),
        capabilities=Capabilities(push=True), push=limits,
    )  # fmt: skip


@asynccontextmanager
async def opened(
    limits: PushLimits = NO_LIMITS, venue: PushVenue | None = None, **options: Any
) -> AsyncIterator[tuple[PushVenue, VenueCall]]:
    """A venue and a call; nothing is left of either at the end."""
    before = asyncio.all_tasks()
    async with venue or PushVenue() as venue:
        async with venue_call(listing(limits), override=venue.url, **options) as call:
            yield venue, call
        assert ours(before) == []
        assert await until(lambda: venue.push.clients == [])
    assert await until(lambda: asyncio.all_tasks() <= before)


def ours(before: set[asyncio.Task[Any]]) -> list[str]:
    """The tasks of the kit that are new."""
    names = [task.get_name() for task in asyncio.all_tasks() - before if not task.done()]
    return [name for name in names if "Acme" in name or name.startswith("state ")]


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether the condition becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.005)
    return True


def follow(call: VenueCall, *topics: str, language: PushLanguage | None = None, state: State | None = None) -> Any:
    return subscribed(call, language or Language(call.url("push")), topics, state=state)


async def values(subscription: Subscription, topic: str, wanted: int) -> None:
    """Return when the topic has the wanted value."""
    async with asyncio.timeout(30):
        async for states in subscription:
            if states.get(topic) == wanted:
                return


async def error_of(work: Awaitable[Any]) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        async with asyncio.timeout(10):
            await work
    assert SECRET not in repr(raised.value) + str(vars(raised.value))
    return raised.value


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of some hundredths of a second."""
    monkeypatch.setattr(push, "_SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(PushLanguage, "linger", 0.05)


@cache
def _bomb() -> Fault:
    return Fault.gzip_bomb(80 * 1024 * 1024)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class TestSharing:
    async def test_accounts_share_one_connection_and_each_gets_its_own(self) -> None:
        async with opened() as (venue, call), follow(call, "a") as alice, follow(call, "b") as bob:
            venue.change("a", 1)
            venue.change("b", 2)
            await values(alice, "a", 1)
            await values(bob, "b", 2)
            assert alice.states == {"a": 1}
            assert bob.states == {"b": 2}
            assert venue.push.opened == 1

    async def test_several_topics_are_one_turn(self) -> None:
        async with opened() as (venue, call), follow(call, "a", "b") as alice:
            venue.change("a", 1)
            venue.change("b", 2)
            venue.change("a", 3)
            assert await until(lambda: alice.states == {"a": 3, "b": 2})
            assert await anext(alice) == {"a": 3, "b": 2}

    async def test_one_that_comes_later_gets_the_present_state_and_subscribes_no_second_time(self) -> None:
        async with opened() as (venue, call), follow(call, "a") as early:
            venue.change("a", 7)
            await values(early, "a", 7)
            async with follow(call, "a") as late:
                await values(late, "a", 7)
                venue.change("a", 8)
                await values(late, "a", 8)
                await values(early, "a", 8)
            assert venue.subscriptions() == ["a"]

    async def test_the_last_one_to_leave_a_topic_ends_its_subscription(self) -> None:
        async with opened() as (venue, call), follow(call, "b"):
            async with follow(call, "a"):
                async with follow(call, "a"):
                    pass
                assert venue.client.topics == {"a", "b"}
            assert await until(lambda: venue.client.topics == {"b"})

    async def test_a_topic_that_is_left_and_followed_at_once_is_subscribed_in_this_order(self) -> None:
        async with opened(PushLimits(messages=1000)) as (venue, call), follow(call, "other"):
            for _ in range(50):
                async with follow(call, "a"):
                    pass
            async with follow(call, "a") as subscription:
                venue.change("a", 1)
                await values(subscription, "a", 1)
                assert venue.client.topics == {"a", "other"}

    async def test_one_that_leaves_before_its_turn_is_never_subscribed(self) -> None:
        async with opened(PushLimits(unacknowledged=1)) as (venue, call):
            venue.deaf = {"deaf"}
            async with follow(call, "stays"):
                waiting = [asyncio.create_task(enter(follow(call, topic))) for topic in ("deaf", "gone")]
                assert await until(lambda: "deaf" in venue.subscriptions())
                for task in waiting:
                    task.cancel()
                async with follow(call, "next"):
                    assert venue.subscriptions() == ["stays", "deaf", "next"]

    async def test_a_turn_is_waited_for_so_long_and_nothing_is_lost_by_that(self) -> None:
        async with opened() as (venue, call), follow(call, "a") as subscription:
            assert await subscription.next_within(0.01) is None
            venue.change("a", 2)
            assert await subscription.next_within(5.0) == {"a": 2}
            venue.push.drop_all()
            assert isinstance(await error_of(subscription.next_within(5.0)), VenueUnavailable)

    async def test_a_hint_that_is_the_same_each_time_is_news_each_time(self) -> None:
        class Hints(Language):
            def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
                for topic, part in super().read(message):
                    yield topic, part and True

        async with opened() as (venue, call), follow(call, "a", language=Hints(call.url("push"))) as hints:
            for value in range(1, 4):
                venue.change("a", value)
                async with asyncio.timeout(5):
                    assert await anext(hints) == {"a": True}

    async def test_partial_messages_are_folded_where_the_venue_is_read(self) -> None:
        class Folding(Language):
            def state(self, topic: Any, before: Any, part: Any) -> Any:
                known = {**(before or {}), **part}
                return before if known == before else known

        async with opened() as (venue, call), follow(call, "a", language=Folding(call.url("push"))) as folded:
            for part in ({"x": 1}, {"y": 2}, {"x": 3}, {"y": 2}):
                venue.push.publish("a", {"topic": "a", "value": part})
            assert await until(lambda: folded.states.get("a") == {"x": 3, "y": 2})
            async with follow(call, "a", language=Folding(call.url("push"))) as late:
                assert await anext(late) == {"a": {"x": 3, "y": 2}}

    async def test_without_a_topic_there_is_nothing_to_follow(self) -> None:
        async with opened() as (_, call):
            with pytest.raises(ValueError, match="at least one topic"):
                await enter(follow(call))


async def enter(context: Any) -> Any:
    """Enter and leave."""
    async with context as value:
        return value


class TestOneTopicAlone:
    async def test_a_subscription_that_is_not_acknowledged_in_time_ends_alone(self) -> None:
        async with opened() as (venue, call):
            venue.deaf = {"deaf"}
            language = Impatient(call.url("push"))
            async with follow(call, "a", language=language) as alice:
                assert isinstance(await error_of(enter(follow(call, "deaf", language=language))), VenueTimeout)
                venue.change("a", 1)
                await values(alice, "a", 1)

    async def test_one_that_is_refused_ends_alone_and_may_be_asked_for_again(self) -> None:
        async with opened() as (venue, call), follow(call, "a") as alice:
            venue.refused = {"bad"}
            assert isinstance(await error_of(enter(follow(call, "bad"))), CredentialRejected)
            venue.refused = set()
            assert [message["op"] for message in venue.client.received] == ["subscribe", "subscribe"]
            async with follow(call, "bad") as accepted:
                venue.change("bad", 1)
                await values(accepted, "bad", 1)
            venue.change("a", 1)
            await values(alice, "a", 1)

    @pytest.mark.parametrize(("value", "kind"), [("nonsense", VenueMalformed), ("poison", PluginFailed)])
    async def test_what_one_topics_message_breaks_ends_that_one_alone(
        self, value: str, kind: type[ServiceError]
    ) -> None:
        async with opened() as (venue, call), follow(call, "a") as alice, follow(call, "bad") as broken:
            venue.push.publish("bad", {"topic": "bad", "value": value})
            assert isinstance(await error_of(values(broken, "bad", 1)), kind)
            venue.change("a", 1)
            await values(alice, "a", 1)
            assert venue.push.opened == 1

    async def test_one_that_follows_a_topic_just_after_it_has_ended_is_subscribed_again(self) -> None:
        async with opened() as (venue, call), follow(call, "bad") as broken:
            venue.push.publish("bad", {"topic": "bad", "error": "taken over"})
            venue.client.topics.clear()
            await error_of(values(broken, "bad", 1))
            # The broken one has not left yet.
            async with asyncio.timeout(5), follow(call, "bad") as whole:
                venue.change("bad", 4)
                await values(whole, "bad", 4)

    async def test_a_topic_that_cannot_be_asked_for_ends_alone(self) -> None:
        class Choosy(Language):
            def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
                if "bad" in topics:
                    raise NotSupported("Acme does not push this account.")
                return super().subscribe(topics)

        async with opened() as (venue, call), follow(call, "a", language=Choosy(call.url("push"))) as alice:
            wrong = follow(call, "bad", language=Choosy(call.url("push")))
            assert isinstance(await error_of(enter(wrong)), NotSupported)
            venue.change("a", 1)
            await values(alice, "a", 1)


class TestLife:
    async def test_messages_keep_it_open_and_the_venues_pings_are_answered(self) -> None:
        class Chatty(Language):
            silence = 0.3
            keep_alive_every = 0.05

        async with opened() as (venue, call), follow(call, "a", language=Chatty(call.url("push"))) as alice:
            venue.client.send({"ping": 1})
            assert await until(lambda: sum(m["op"] == "ping" for m in venue.client.received) >= 8)
            assert any(message["op"] == "pong" for message in venue.client.received)
            venue.change("a", 1)
            await values(alice, "a", 1)

    async def test_keep_alive_may_make_a_request_first_and_its_error_ends_the_connection(self) -> None:
        class Renewing(Language):
            keep_alive_every = 0.01
            renewed = 0

            async def keep_alive(self) -> str:
                assert (await call.http.get(call.url() + "/page")).status == 200
                self.renewed += 1
                if self.renewed == 3:
                    raise CredentialRejected("The grant was revoked.")
                return '{"op": "ping"}'

        async with opened() as (venue, call), follow(call, "a", language=Renewing(call.url("push"))) as subscription:
            assert isinstance(await error_of(anext(subscription)), CredentialRejected)
            assert sum(request.path == "/page" for request in venue.requests) == 3

    async def test_keep_alive_waits_for_no_limit_on_messages(self) -> None:
        class Chatty(Language):
            keep_alive_every = 0.02

        async with opened(PushLimits(messages=2)) as (venue, call):
            waiting = asyncio.create_task(enter(follow(call, "a", "b", "c", language=Chatty(call.url("push")))))
            assert await until(lambda: bool(venue.push.clients))
            client = venue.client
            assert await until(lambda: sum(message["op"] == "ping" for message in client.received) >= 3)
            assert len(venue.subscriptions()) == 1
            waiting.cancel()

    async def test_it_outlives_the_time_limit_of_requests(self) -> None:
        async with opened(timeout=0.2) as (venue, call), follow(call, "a") as alice:
            await asyncio.sleep(0.4)
            venue.change("a", 1)
            await values(alice, "a", 1)

    async def test_silence_ends_it_in_time(self, quick: None) -> None:
        async with opened() as (venue, call), follow(call, "a", language=Silent(call.url("push"))) as alice:
            venue.push.fail(PushFault(silent=True))
            began = time.monotonic()
            error = await error_of(values(alice, "a", 1))
            assert isinstance(error, VenueTimeout)
            assert "sent nothing for 0.15 seconds" in error.message
            assert time.monotonic() - began < 2

    async def test_a_half_open_one_is_found_by_its_pings(self) -> None:
        class Pinging(Language):
            ping = 0.1
            silence = 30.0

        async with opened() as (venue, call), follow(call, "a", language=Pinging(call.url("push"))) as alice:
            await asyncio.sleep(0.4)
            venue.change("a", 1)
            await values(alice, "a", 1)
            venue.push.fail(PushFault(half_open=True))
            error = await error_of(values(alice, "a", 2))
            assert isinstance(error, VenueTimeout)
            assert "ping" in error.message

    async def test_a_drop_ends_everybody_with_an_error_of_their_own(self, quick: None) -> None:
        async with opened() as (venue, call), follow(call, "a") as alice, follow(call, "b") as bob:
            venue.push.drop_all()
            first, second = await error_of(values(alice, "a", 1)), await error_of(values(bob, "b", 1))
            assert isinstance(first, VenueUnavailable)
            assert isinstance(second, VenueUnavailable)
            assert first is not second

    async def test_an_oversized_message_ends_it(self, quick: None) -> None:
        async with opened() as (venue, call), follow(call, "a") as alice:
            venue.push.fail(PushFault.oversized())
            venue.change("a", 1)
            assert isinstance(await error_of(values(alice, "a", 1)), VenueMalformed)

    async def test_a_large_message_is_read(self) -> None:
        async with opened() as (venue, call), follow(call, "a") as alice:
            venue.client.send({"topic": "a", "value": 5, "padding": "0" * 1_000_000})
            await values(alice, "a", 5)

    async def test_some_nonsense_is_passed_over_and_too_much_is_not(self, quick: None) -> None:
        async with opened() as (venue, call), follow(call, "a") as alice:
            venue.push.fail(PushFault.nonsense())
            for value in range(1, 8):
                venue.change("a", value)
            await values(alice, "a", 7)
            for _ in range(20):
                venue.client.send("<html>")
            error = await error_of(values(alice, "a", 8))
            assert isinstance(error, VenueMalformed)
            assert "html" not in repr(error)

    @pytest.mark.parametrize("method", ["keep_alive", "read", "reply", "subscribe", "unsubscribe"])
    @pytest.mark.parametrize("failure", [KeyError(SECRET), SystemExit(3)], ids=["error", "exit"])
    async def test_a_language_that_fails_ends_the_connection_without_its_text(
        self, quick: None, method: str, failure: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Failing(Language):
            keep_alive_every = 0.1

        def fail(*_: Any) -> None:
            raise failure

        async with opened() as (venue, call):
            language = Failing(call.url("push"))
            async with follow(call, "a", language=language) as alice:
                monkeypatch.setattr(Failing, method, fail)
                other = asyncio.create_task(error_of(enter(follow(call, "b", language=language))))
                venue.change("a", 1)
                if method == "unsubscribe":
                    await asyncio.wait({other}, timeout=0.1)
                error = await error_of(values(alice, "a", 2))
                assert isinstance(error, PluginFailed)
                # Its author learns where, and nobody what the exception says.
                assert SECRET not in error.message
                assert (f", in {fail.__qualname__}, line " in error.message) == isinstance(failure, KeyError)
                other.cancel()
                await asyncio.wait({other})

    async def test_a_flood_is_few_turns_in_little_memory_and_others_go_on(self) -> None:
        turns = 0
        memory: list[int] = []

        async def watch() -> None:
            while True:
                memory.append(resident())
                await asyncio.sleep(0.005)

        async with opened() as (venue, call), follow(call, "a") as alice, follow(call, "b"):
            assert venue.client.transport is not None
            text = json.dumps({"topic": "a", "value": 1, "padding": "0" * 50}).encode()
            venue.client.transport.write((bytes([0x81, len(text)]) + text) * 100_000)
            venue.change("a", 2)
            watching = asyncio.create_task(watch())
            async with asyncio.timeout(60):
                async for states in alice:
                    turns += 1
                    if states["a"] == 2:
                        break
            watching.cancel()
            assert turns < 50_000
            assert len(memory) > 20
            assert max(memory) - memory[0] < 8 * 1024 * 1024

    async def test_a_flood_of_pings_lets_others_go_on(self) -> None:
        class Patient(Language):
            silence = 60.0

        async with opened() as (venue, call), follow(call, "a", language=Patient(call.url("push"))) as alice:
            assert venue.client.transport is not None
            venue.client.transport.write(bytes([0x89, 0]) * 20_000)
            venue.change("a", 1)
            turns = 0
            waiting = asyncio.create_task(values(alice, "a", 1))
            while not waiting.done():
                await asyncio.sleep(0)
                turns += 1
            await waiting
            assert turns > 15_000


class TestLimits:
    async def test_subscriptions_beyond_a_connections_limit_open_another(self) -> None:
        async with opened(PushLimits(subscriptions=2)) as (venue, call), AsyncExitStack() as stack:
            for topic in ("a", "b", "c", "b"):
                await stack.enter_async_context(follow(call, topic))
            assert sorted(len(client.topics) for client in venue.push.clients) == [1, 2]

    async def test_an_account_of_more_topics_than_a_connection_takes_is_not_pushed(self) -> None:
        async with opened(PushLimits(subscriptions=2)) as (venue, call):
            error = await error_of(enter(follow(call, "a", "b", "c")))
            assert isinstance(error, NotSupported)
            assert "2 topics" in error.message
            assert venue.push.opened == 0

    async def test_no_connection_beyond_the_limit_is_opened_of_whatever_login(self) -> None:
        async with opened(PushLimits(connections=1, subscriptions=1)) as (venue, call), follow(call, "a"):
            other = Language(call.url("push"), "somebody else")
            for wanted in (follow(call, "b"), follow(call, "b", language=other, state=call.account_state)):
                error = await error_of(enter(wanted))
                assert isinstance(error, VenueRateLimited)
                assert error.retry_after
            assert venue.push.opened == 1

    async def test_one_that_nobody_uses_makes_room(self) -> None:
        async with opened(PushLimits(connections=1)) as (venue, call):
            async with follow(call, "a"):
                pass
            async with follow(call, "b", language=Language(call.url("push"), "somebody else")):
                assert [client.topics for client in venue.push.clients] == [{"b"}]
            assert venue.push.opened == 2

    async def test_subscriptions_wait_for_the_venues_word_on_those_before(self) -> None:
        async with opened(PushLimits(unacknowledged=3)) as (venue, call), AsyncExitStack() as stack:
            venue.answers_after = 0.005
            await asyncio.gather(*(stack.enter_async_context(follow(call, str(n))) for n in range(40)))
            assert len(venue.client.topics) == 40
            assert 1 < venue.unanswered <= 3

    async def test_messages_keep_to_the_limit_of_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(push_connection, "_MINUTE", 0.3)
        async with opened(PushLimits(messages=20)) as (venue, call), AsyncExitStack() as stack:
            began = time.monotonic()
            await asyncio.gather(*(stack.enter_async_context(follow(call, str(n))) for n in range(50)))
            # 18 at once, because a tenth is left, 18 after a minute and 14 after two.
            assert 0.6 <= time.monotonic() - began < 3
            assert len(venue.client.topics) == 50

    async def test_connections_keep_to_the_limit_of_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(push_connection, "_MINUTE", 0.3)
        async with opened(PushLimits(connects=2, subscriptions=1)) as (venue, call), AsyncExitStack() as stack:
            began = time.monotonic()
            for n in range(3):
                await stack.enter_async_context(follow(call, str(n)))
            assert time.monotonic() - began >= 0.6
            assert venue.push.opened == 3


class TestAfterAFailure:
    async def test_500_accounts_that_wait_make_one_attempt_and_share_its_failure(self) -> None:
        async with opened() as (venue, call):
            venue.push.fail(PushFault(refused=503))
            errors = await asyncio.gather(*(error_of(enter(follow(call, str(n)))) for n in range(500)))
            assert all(isinstance(error, VenueUnavailable) for error in errors)
            assert len({id(error) for error in errors}) == 500
            assert len(venue.requests) == 1

    async def test_attempts_become_rare_however_often_accounts_ask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(push, "_SHORTEST_PAUSE", 0.05)
        async with opened() as (venue, call):
            venue.push.fail(PushFault(refused=503))

            async def insist(topic: str) -> None:
                while True:
                    await error_of(enter(follow(call, topic)))

            asking = [asyncio.create_task(insist(str(n))) for n in range(100)]
            await asyncio.sleep(1)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            # After 0.05, 0.1, 0.2, ... seconds, or half of each.
            assert 3 <= len(venue.requests) <= 7

    async def test_a_venue_that_accepts_and_drops_at_once_is_asked_rarely_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(push, "_SHORTEST_PAUSE", 0.02)
        async with opened() as (venue, call):
            async with asyncio.timeout(10):
                for _ in range(6):
                    async with follow(call, "a") as alice:
                        venue.push.drop_all()
                        await error_of(values(alice, "a", 1))
                began = time.monotonic()
                async with follow(call, "a"):
                    assert time.monotonic() - began > 0.3

    async def test_the_venues_own_delay_is_kept(self, quick: None) -> None:
        async with opened() as (venue, call):
            limit = venue.fail(Fault.rate_limited("1"))
            error = await error_of(enter(follow(call, "a")))
            assert isinstance(error, VenueRateLimited)
            venue.recover(limit)
            began = time.monotonic()
            async with follow(call, "a"):
                assert time.monotonic() - began > 0.9

    async def test_what_the_plugin_breaks_while_it_opens_is_tried_once_for_all(self, quick: None) -> None:
        attempts = 0

        class Failing(Language):
            async def open(self, socket: Socket) -> None:
                nonlocal attempts
                attempts += 1
                raise KeyError(SECRET)

        async with opened() as (_, call):
            language = Failing(call.url("push"))
            tried = [enter(follow(call, str(n), language=language)) for n in range(50)]
            errors = await asyncio.gather(*tried, return_exceptions=True)
            assert attempts == 1
            assert sum(isinstance(error, PluginFailed) for error in errors) == 49

    async def test_after_a_drop_500_accounts_are_back_on_one_connection(self, quick: None) -> None:
        async with opened(PushLimits(unacknowledged=50)) as (venue, call):
            heard: set[int] = set()

            async def stay(n: int) -> None:
                while n not in heard:
                    try:
                        async with follow(call, str(n)) as subscription:
                            await values(subscription, str(n), n)
                            heard.add(n)
                    except VenueError:
                        continue

            staying = [asyncio.create_task(stay(n)) for n in range(500)]
            assert await until(lambda: bool(venue.push.clients) and len(venue.client.topics) == 500)
            venue.push.drop_all()
            assert await until(lambda: bool(venue.push.clients) and len(venue.client.topics) == 500)
            for n in range(500):
                venue.change(str(n), n)
            await asyncio.gather(*staying)
            assert venue.push.opened == 2
            assert venue.unanswered <= 50

    async def test_a_login_that_takes_too_long_is_a_timeout(self, quick: None) -> None:
        class Slow(Language):
            opening_limit = 0.1

            async def open(self, socket: Socket) -> None:
                await socket.receive()

        async with opened() as (_, call):
            error = await error_of(enter(follow(call, "a", language=Slow(call.url("push")))))
            assert isinstance(error, VenueTimeout)


class TestTheEnd:
    async def test_a_connection_that_nobody_follows_is_closed_after_a_while(self, quick: None) -> None:
        async with opened() as (venue, call):
            async with follow(call, "a"):
                pass
            async with follow(call, "b"):
                assert venue.push.opened == 1
            assert await until(lambda: not venue.push.clients)
            async with follow(call, "b"):
                assert venue.push.opened == 2

    async def test_one_that_no_other_account_could_use_does_not_wait_for_another(self) -> None:
        class Alone(Language):
            linger = 0.0

        async with opened() as (venue, call):
            async with follow(call, "a", language=Alone(call.url("push"))):
                assert len(venue.push.clients) == 1
            assert await until(lambda: venue.push.clients == [], 2.0)

    async def test_closing_the_state_ends_all_and_leaves_neither_task_nor_socket(self) -> None:
        before = asyncio.all_tasks()
        async with (
            PushVenue() as venue,
            venue_call(listing(), override=venue.url) as call,
            follow(call, "a") as alice,
            follow(call, "b", state=call.account_state) as bob,
        ):
            await call.account_state.close()
            await call.plugin_state.close()
            assert ours(before) == []
            assert await until(lambda: not venue.push.clients)
            for subscription in (alice, bob):
                assert isinstance(await error_of(values(subscription, "a", 1)), VenueUnavailable)

    async def test_a_state_that_is_closed_while_a_connection_opens_leaves_none(self) -> None:
        class Slow(Language):
            async def open(self, socket: Socket) -> None:
                await asyncio.sleep(0.1)

        async with opened() as (venue, call):
            language = Slow(call.url("push"))
            waiting = asyncio.create_task(error_of(enter(follow(call, "a", language=language))))
            assert await until(lambda: bool(venue.push.clients))
            await call.plugin_state.close()
            assert isinstance(await waiting, VenueUnavailable)

    async def test_addresses_that_are_new_each_time_are_not_kept(self, quick: None) -> None:
        async with opened() as (venue, call):
            for key in range(10):
                async with follow(call, "a", language=Language(f"{call.url('push')}/{key}")):
                    pass
            assert await until(lambda: not venue.push.clients)
            async with follow(call, "a"):
                pool = await call.plugin_state.get("push acme", asyncio.Event)
                assert len(vars(pool)["_by_language"]) == 1

    async def test_neither_the_address_nor_the_login_is_shown(self, quick: None) -> None:
        async with opened() as (venue, call):
            language = Language(f"{call.url('push')}/{SECRET}", SECRET)
            async with follow(call, "a", language=language) as alice:
                shown = [repr(language), repr(alice), repr(call), repr(call.plugin_state)]
                shown += [repr(task) for task in asyncio.all_tasks() if "Acme" in task.get_name()]
                assert SECRET not in "".join(shown)
                venue.push.drop_all()
                await error_of(values(alice, "a", 1))
            venue.push.fail(PushFault(refused=500))
            await error_of(enter(follow(call, "a", language=language)))


class TestTheGuard:
    async def test_a_host_that_the_manifest_does_not_name_is_never_reached(self) -> None:
        async with PushVenue() as other, opened() as (_, call):
            error = await error_of(enter(call.http.websocket(f"{other.url}/ws?{SECRET}")))
            assert isinstance(error, PluginFailed)
            assert other.requests == []

    @pytest.mark.parametrize(
        ("path", "kind"),
        [("/away", VenueMalformed), ("/page", VenueMalformed), ("/nowhere", ServiceError)],
    )
    async def test_what_is_no_websocket_is_refused(self, path: str, kind: type[ServiceError]) -> None:
        async with opened() as (venue, call):
            error = await error_of(enter(call.http.websocket(f"{venue.url}{path}?key={SECRET}")))
            assert isinstance(error, kind)

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(401, CredentialRejected), (429, VenueRateLimited), (502, VenueUnavailable)],
    )
    async def test_a_refused_handshake_is_the_error_of_its_status(self, status: int, kind: type[ServiceError]) -> None:
        async with opened() as (venue, call):
            venue.push.fail(PushFault(refused=status))
            error = await error_of(enter(call.http.websocket(f"{venue.url}/ws?key={SECRET}")))
        assert type(error) is kind
        assert SECRET not in "".join(traceback.format_exception(error))

    async def test_a_venue_that_does_not_answer_the_handshake_is_not_waited_for(self) -> None:
        async with opened(timeout=0.2) as (venue, call):
            venue.fail(Fault(silent=True))
            assert isinstance(await error_of(enter(call.http.websocket(f"{venue.url}/ws"))), VenueTimeout)

    async def test_wss_is_https_and_the_operators_address_may_be_http(self) -> None:
        async with opened() as (venue, call):
            assert call.url("push") == f"{venue.url}/ws"
            async with call.http.websocket(call.url("push").replace("http://", "ws://")) as socket:
                await socket.send('{"op": "ping"}')
                assert json.loads(await socket.receive()) == {"pong": True}

    async def test_compression_is_neither_offered_nor_accepted(self) -> None:
        async with opened() as (venue, call):
            async with call.http.websocket(f"{venue.url}/packed") as socket:
                assert isinstance(await error_of(socket.receive()), VenueMalformed)
            assert "Sec-WebSocket-Extensions" not in venue.requests[-1].headers

    async def test_sockets_that_stay_open_take_no_requests_place(self) -> None:
        async with opened() as (_, call), AsyncExitStack() as stack:
            for _ in range(110):
                await stack.enter_async_context(call.http.websocket(call.url("push")))
            assert (await call.http.get(call.url() + "/page")).status == 200

    async def test_an_address_inside_our_own_network_is_not_connected_to(self) -> None:
        async with PushVenue() as venue:
            urls = {"push": venue.url.replace("http", "ws") + "/ws"}
            inside = replace(listing(), environments=(Environment("production", urls),))
            async with venue_call(inside) as call:
                error = await error_of(enter(call.http.websocket(call.url("push"))))
            assert isinstance(error, VenueUnavailable)
            assert "public internet" in error.message
            assert venue.requests == []

    async def test_a_certificate_that_nobody_trusts_is_refused_before_anything_is_sent(self, tmp_path: Path) -> None:
        venue = PushVenue()
        await venue.start(tls=untrusted_certificate(tmp_path))
        async with venue_call(listing(), override=venue.url) as call:
            assert isinstance(await error_of(enter(call.http.websocket(f"{venue.url}/ws"))), VenueUnavailable)
        await venue.stop()
        assert venue.requests == []

    @pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def test_a_venue_that_reads_no_more_holds_nobody_up_at_the_end(
        self, loop: Callable[[], asyncio.AbstractEventLoop]
    ) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(self._leave_a_venue_that_reads_no_more())

    async def _leave_a_venue_that_reads_no_more(self) -> None:
        async with opened() as (venue, call):
            async with call.http.websocket(f"{venue.url}/ws", ping=0) as socket:
                assert await until(lambda: bool(venue.push.clients))
                assert venue.client.transport is not None
                venue.client.transport.pause_reading()
                sending = asyncio.create_task(socket.send('{"padding": "' + "0" * 20_000_000 + '"}'))
                await asyncio.sleep(0.1)
                assert not sending.done()
                began = time.monotonic()
            assert time.monotonic() - began < 4
            await asyncio.wait({sending})
            sending.exception()
            venue.client.drop()

    async def test_after_its_end_a_socket_says_so(self) -> None:
        async with opened() as (venue, call), call.http.websocket(f"{venue.url}/ws") as socket:
            assert await until(lambda: bool(venue.push.clients))
            venue.client.close()
            assert isinstance(await error_of(socket.receive()), VenueUnavailable)
            assert isinstance(await error_of(socket.send("{}")), VenueUnavailable)

    async def test_the_bytes_of_a_binary_message_are_read_as_text(self) -> None:
        async with opened() as (venue, call), call.http.websocket(f"{venue.url}/ws") as socket:
            assert await until(lambda: bool(venue.push.clients))
            venue.client.send(b'{"a": 1}\xff')
            assert (await socket.receive()).startswith('{"a": 1}')


class TestLines:
    @asynccontextmanager
    async def opened(self, silence: float = 5.0) -> AsyncIterator[tuple[PushVenue, Any]]:
        async with opened() as (venue, call), call.http.lines(f"{venue.url}/lines", silence=silence) as lines:
            assert await until(lambda: bool(venue.push.clients))
            yield venue, lines

    async def test_each_line_is_given_without_its_end_and_empty_ones_are_not(self) -> None:
        async with self.opened() as (venue, lines):
            venue.push.publish("lines", '{"a": 1}\r\n\n  \n{"b": 2}')
            assert [await anext(lines), await anext(lines)] == [b'{"a": 1}', b'{"b": 2}']

    async def test_a_long_line_is_read_and_one_that_is_too_long_is_not(self) -> None:
        async with self.opened() as (venue, lines):
            venue.push.publish("lines", "x" * 1_000_000)
            assert len(await anext(lines)) == 1_000_000
            venue.push.publish("lines", "x" * (1024 * 1024 + 1))
            assert isinstance(await error_of(anext(lines)), VenueMalformed)

    async def test_a_compressed_bomb_ends_it_in_little_memory(self) -> None:
        async with opened() as (venue, call):
            # Made before, and kept: the venue of this test is in the same process.
            assert _bomb().body
            before = resident()
            async with call.http.lines(f"{venue.url}/bomb") as lines:
                assert isinstance(await error_of(anext(lines)), VenueMalformed)
            assert resident() - before < 30 * 1024 * 1024

    async def test_silence_is_a_timeout(self) -> None:
        async with self.opened(silence=0.1) as (_, lines):
            assert isinstance(await error_of(anext(lines)), VenueTimeout)

    @pytest.mark.parametrize("how", ["close", "drop"])
    async def test_the_end_is_the_venues(self, how: str) -> None:
        async with self.opened() as (venue, lines):
            venue.push.publish("lines", "last")
            assert await anext(lines) == b"last"
            getattr(venue.client, how)()
            assert isinstance(await error_of(anext(lines)), VenueUnavailable)

    async def test_a_flood_of_lines_lets_others_go_on(self) -> None:
        async with self.opened() as (venue, lines):
            venue.push.publish("lines", "{}\n" * 200_000 + "end")
            turns = 0

            async def read() -> None:
                async for line in lines:
                    if line == b"end":
                        return

            reading = asyncio.create_task(read())
            while not reading.done():
                await asyncio.sleep(0)
                turns += 1
            await reading
            # One for each 16 KiB at least.
            assert turns >= 36

    @pytest.mark.parametrize(
        ("path", "kind"), [("/away", VenueMalformed), ("/nowhere", ServiceError), ("/drip", VenueTimeout)]
    )
    async def test_a_status_that_is_not_good_is_its_error_in_time(self, path: str, kind: type[ServiceError]) -> None:
        async with opened(timeout=0.3) as (venue, call):
            assert isinstance(await error_of(enter(call.http.lines(venue.url + path, params={"key": SECRET}))), kind)

    async def test_the_example_of_the_how_tos_gives_a_hint_for_each_line_but_heartbeats(self) -> None:
        page = (Path(__file__).parent.parent / "docs" / "plugin-howtos.md").read_text()
        example = re.search(r"<!-- example: a stream of lines -->\n```python\n(.*?)```", page, re.DOTALL)
        assert example
        names: dict[str, Any] = {}
        exec(f"from exchange_service.plugin_api import *\n{example[1]}".replace("/v1/events", "/lines"), names)
        async with opened(api_key="token") as (venue, call), aclosing(names["watch_balance"](call)) as watch:
            assert await anext(watch) == Changed()
            assert await until(lambda: bool(venue.push.clients))
            assert venue.requests[-1].headers["Authorization"] == "Bearer token"
            venue.push.publish("lines", {"type": "heartbeat"})
            venue.push.publish("lines", {"type": "trade"})
            assert await anext(watch) == Changed()
            venue.client.drop()
            assert isinstance(await error_of(anext(watch)), VenueUnavailable)


async def test_what_is_open_is_counted_however_it_was_opened() -> None:
    exchange, pool = listing(), VenueHttpPool(timeout=5.0)
    async with PushVenue() as venue:
        http = pool.http(exchange, exchange.environments[0], venue.url)
        assert pool.push_figures() == {}
        async with (
            http.websocket(f"{venue.url}/ws") as socket,
            http.client_session.ws_connect(f"{venue.url}/ws"),
            http.lines(f"{venue.url}/lines"),
        ):
            socket.subscriptions = 20
            assert pool.push_figures() == {exchange.id: PushFigures(connections=3, subscriptions=21, opened=3)}
        assert pool.push_figures() == {exchange.id: PushFigures(opened=3)}
        await pool.close()
