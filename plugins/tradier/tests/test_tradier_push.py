"""Tradier's account events: what is a hint to read again, and how the one session of a user is shared and given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange_service_tradier
import pytest
from exchange_service_tradier import TRADIER, TRADIER_OPTIONS, parse
from exchange_service_tradier.push import OrderEvents, Sessions, watch_orders
from exchange_service_tradier.simulator import SimulatedAccount, TradierSimulator, cash_account

from exchange_service.plugin_api import (
    Balance,
    Changed,
    CredentialRejected,
    ExchangeMetadata,
    NotSupported,
    RequestRefused,
    State,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueTimeout,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import Fault, venue_call
from exchange_service.testing.push import PushFault
from exchange_service.testing.witnesses import read_payload

TOKEN, OTHER_TOKEN = "a-token-for-tests", "a-token-of-another-user"
FIRST, SECOND = "6YA00000", "6YB11111"
CASH = Decimal("100.00")
MINUTES = 300.0
PAYLOADS = Path(__file__).parents[1] / "payloads"


class ShortSilence(OrderEvents):
    silence = 0.3


class ShortPings(OrderEvents):
    ping = 0.6


@asynccontextmanager
async def venue_with(*accounts: SimulatedAccount) -> AsyncIterator[TradierSimulator]:
    async with TradierSimulator() as venue:
        venue.heartbeat_every = 0.05
        venue.add_token(TOKEN, *(accounts or (cash_account(FIRST),)))
        yield venue


class Watch:
    """A running watch: its hints, and the error that has ended it."""

    def __init__(self, call: VenueCall) -> None:
        self.call = call
        self._told: asyncio.Queue[Changed | Exception] = asyncio.Queue()

    async def run(self, language: type[OrderEvents], prices: float) -> None:
        try:
            async with aclosing(watch_orders(self.call, language, prices)) as hints:
                async for hint in hints:
                    self._told.put_nowait(hint)
        except VenueError as error:
            self._told.put_nowait(error)

    async def next(self) -> Changed | Exception:
        async with asyncio.timeout(5):
            return await self._told.get()

    async def hint(self) -> None:
        assert await self.next() == Changed()

    async def error(self) -> VenueError:
        told = await self.next()
        assert isinstance(told, VenueError)
        return told

    async def is_quiet(self, seconds: float = 0.2) -> bool:
        await asyncio.sleep(seconds)
        return self._told.empty()

    async def balance(self) -> Balance:
        return await exchange_service_tradier.fetch_balance(self.call)


@asynccontextmanager
async def watching(
    venue: TradierSimulator,
    *,
    token: str = TOKEN,
    listing: ExchangeMetadata = TRADIER,
    language: type[OrderEvents] = OrderEvents,
    prices: float = 60.0,
    plugin_state: State | None = None,
) -> AsyncIterator[Watch]:
    async with venue_call(listing, override=venue.url, api_key=token, plugin_state=plugin_state) as call:
        watch = Watch(call)
        running = asyncio.create_task(watch.run(language, prices))
        try:
            yield watch
        finally:
            running.cancel()
            await asyncio.wait({running})


@asynccontextmanager
async def shared_state() -> AsyncIterator[State]:
    state = State()
    try:
        yield state
    finally:
        await state.close()


def sessions_made(venue: TradierSimulator) -> int:
    return sum(request.method == "POST" for request in venue.requests)


async def test_the_first_hint_comes_when_the_session_is_subscribed_to_orders() -> None:
    async with venue_with() as venue, watching(venue) as watch:
        await watch.hint()
        await until_followed(venue)
        subscriptions = [client.received for client in venue.push.clients]
        (made,) = [request for request in venue.requests if request.method == "POST"]
    assert made.headers["Authorization"] == f"Bearer {TOKEN}"
    assert (made.headers["Content-Length"], made.body) == ("0", b"")
    ((subscription,),) = subscriptions
    assert subscription.keys() == {"events", "sessionid", "excludeAccounts"}
    assert (subscription["events"], subscription["excludeAccounts"]) == (["order"], [])


async def until_followed(venue: TradierSimulator) -> None:
    async with asyncio.timeout(5):
        while not any(client.topics for client in venue.push.clients):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_each_order_event_is_a_hint_and_heartbeats_are_not() -> None:
    async with venue_with() as venue, watching(venue) as watch:
        await watch.hint()
        before = await watch.balance()
        await until_followed(venue)
        assert await watch.is_quiet()
        venue.fill(TOKEN, FIRST, CASH)
        await watch.hint()
        after = await watch.balance()
    assert before.summary is not None
    assert after.summary is not None
    assert after.summary.cash == Decimal(before.summary.cash or 0) + CASH


async def test_while_there_are_positions_a_hint_comes_as_often_as_prices_are_to_be_seen() -> None:
    account = SimulatedAccount(FIRST)
    async with venue_with(account) as venue, watching(venue, prices=0.05) as watch:
        await watch.hint()
        await watch.balance()
        for _ in range(3):
            await watch.hint()
        account.stock_long_value = account.option_long_value = account.option_short_value = Decimal(0)
        await watch.balance()
        # One may have been on its way.
        await asyncio.sleep(0.1)
        while not await watch.is_quiet(0):
            await watch.hint()
        assert await watch.is_quiet(0.3)


async def test_two_who_follow_one_token_share_its_session() -> None:
    async with (
        venue_with() as venue,
        shared_state() as state,
        watching(venue, plugin_state=state) as first,
        watching(venue, plugin_state=state) as second,
    ):
        await first.hint()
        await second.hint()
        await until_followed(venue)
        venue.fill(TOKEN, FIRST, CASH)
        await first.hint()
        await second.hint()
        assert (venue.push.opened, sessions_made(venue)) == (1, 1)


async def test_another_token_has_a_session_of_its_own_and_hints_for_its_own_orders_alone() -> None:
    async with venue_with() as venue, shared_state() as state:
        venue.add_token(OTHER_TOKEN, cash_account(SECOND))
        async with (
            watching(venue, plugin_state=state) as mine,
            watching(venue, token=OTHER_TOKEN, plugin_state=state) as theirs,
        ):
            for watch in (mine, theirs):
                await watch.hint()
            async with asyncio.timeout(5):
                while {client.account for client in venue.push.clients} != {TOKEN, OTHER_TOKEN}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            venue.push.fail(PushFault(replay=True))
            venue.fill(OTHER_TOKEN, SECOND, CASH)
            await theirs.hint()
            assert await mine.is_quiet()


class TestAnotherProgram:
    """One session at a time: another program of the user's may take it, and keeps it."""

    async def take_over(self, venue: TradierSimulator) -> None:
        """Have the session as another program does."""
        await until_followed(venue)
        async with watching(venue) as other:
            await other.hint()
            async with asyncio.timeout(5):
                while len(venue.push.clients) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def test_a_session_that_it_takes_ends_the_watch_for_minutes_with_the_reason(self) -> None:
        async with venue_with() as venue, watching(venue) as watch:
            await watch.hint()
            await self.take_over(venue)
            error = await watch.error()
        assert isinstance(error, VenueUnavailable)
        assert "another program" in error.message
        assert error.given_delay == pytest.approx(MINUTES, abs=5)

    async def test_no_session_is_made_before_the_minutes_are_over_whatever_asks_for_one(self) -> None:
        async with venue_with() as venue, shared_state() as state:
            async with watching(venue, plugin_state=state) as watch:
                await watch.hint()
                await self.take_over(venue)
                await watch.error()
            made = sessions_made(venue), venue.push.opened
            for _ in range(3):
                async with watching(venue, plugin_state=state) as watch:
                    error = await watch.error()
                assert "another program" in error.message
                assert error.given_delay == pytest.approx(MINUTES, abs=5)
            assert (sessions_made(venue), venue.push.opened) == made

    async def test_a_session_that_is_refused_because_it_has_one_is_not_asked_for_again_soon(self) -> None:
        async with venue_with() as venue, shared_state() as state:
            venue.refuses_second_session = True
            async with watching(venue) as other:
                await other.hint()
                await until_followed(venue)
                async with watching(venue, plugin_state=state) as watch:
                    await watch.hint()
                    error = await watch.error()
                made = sessions_made(venue)
                async with watching(venue, plugin_state=state) as watch:
                    await watch.error()
                assert sessions_made(venue) == made
                # The other program goes on.
                venue.fill(TOKEN, FIRST, CASH)
                await other.hint()
        assert isinstance(error, VenueUnavailable)
        assert error.given_delay == pytest.approx(MINUTES, abs=5)

    async def test_a_refusal_in_the_answer_to_the_request_counts_as_well(self) -> None:
        async with venue_with() as venue, shared_state() as state:
            path = "/v1/accounts/events/session"
            venue.fail(Fault(status=400, body=b"Too many sessions requested", content_type="text/plain", path=path))
            async with watching(venue, plugin_state=state) as watch:
                error = await watch.error()
            assert error.given_delay == pytest.approx(MINUTES, abs=5)
            venue.recover()
            async with watching(venue, plugin_state=state) as watch:
                assert isinstance(await watch.error(), VenueUnavailable)
            assert sessions_made(venue) == 1

    def test_the_pause_doubles_until_a_session_lasts(self) -> None:
        sessions, now, pauses = Sessions(), 1000.0, []
        for lasted in (1, 1, 1, 1, 1, 3599, 3600, 1):
            sessions.check(now)
            sessions.begin(now)
            now += lasted
            pauses.append(sessions.end(now))
            # Another account that shared the session notices its end too.
            assert sessions.end(now) == pauses[-1]
            with pytest.raises(VenueUnavailable):
                sessions.check(now + pauses[-1] - 1)
            now += pauses[-1]
        assert [pause / 60 for pause in pauses] == [5, 10, 20, 40, 60, 60, 5, 10]


async def test_a_session_that_nobody_follows_is_closed_at_once_and_made_again_when_it_is_followed() -> None:
    async with venue_with() as venue, venue_call(TRADIER, override=venue.url, api_key=TOKEN) as call:
        for _ in range(2):
            async with aclosing(watch_orders(call)) as hints:
                await anext(hints)
            async with asyncio.timeout(2):
                while venue.push.clients:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert sessions_made(venue) == 2


async def test_a_session_that_was_not_used_in_time_is_refused() -> None:
    async with venue_with() as venue:
        venue.session_life = -1.0
        async with watching(venue) as watch:
            await watch.hint()
            assert isinstance(await watch.error(), VenueUnavailable)


async def test_a_refused_token_is_the_error_and_no_take_over() -> None:
    async with venue_with() as venue, shared_state() as state:
        for _ in range(2):
            async with watching(venue, token="another", plugin_state=state) as watch:
                error = await watch.error()
            assert isinstance(error, CredentialRejected)


async def test_the_listing_of_options_is_polled_because_the_session_is_the_other_listings() -> None:
    assert not TRADIER_OPTIONS.capabilities.push
    async with venue_with() as venue, watching(venue, listing=TRADIER_OPTIONS) as watch:
        assert isinstance(await watch.error(), NotSupported)
        assert not venue.requests


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (PushFault(silent=True), VenueTimeout),
        (PushFault(half_open=True), VenueTimeout),
        (PushFault.oversized(), VenueMalformed),
    ],
    ids=["silence", "pings without an answer", "a message that is too large"],
)
async def test_a_socket_that_fails_ends_the_watch(fault: PushFault, expected: type[VenueError]) -> None:
    language = ShortPings if fault.half_open else ShortSilence
    async with venue_with() as venue, watching(venue, language=language) as watch:
        await watch.hint()
        await until_followed(venue)
        venue.push.fail(fault)
        assert isinstance(await watch.error(), expected)


async def test_a_socket_that_is_dropped_or_refused_ends_the_watch() -> None:
    async with venue_with() as venue:
        async with watching(venue) as watch:
            await watch.hint()
            await until_followed(venue)
            venue.push.drop_all()
            assert isinstance(await watch.error(), VenueUnavailable)
        venue.push.fail(PushFault(refused=503))
        async with watching(venue) as watch:
            assert isinstance(await watch.error(), VenueUnavailable)
        assert sessions_made(venue) == 1


async def test_nonsense_and_unknown_events_are_passed_over() -> None:
    async with venue_with() as venue, watching(venue) as watch:
        await watch.hint()
        await until_followed(venue)
        for client in venue.push.clients:
            client.send({"event": "new in 2030"})
        venue.push.fail(PushFault.nonsense())
        venue.fill(TOKEN, FIRST, CASH)
        await watch.hint()
        assert await watch.is_quiet(0)


class TestMessages:
    """The answer to the request for a session, and an event, as Tradier sends them."""

    def test_the_session_has_an_id(self) -> None:
        session = parse.session_id(parse_json(read_payload(PAYLOADS / "event_session.json")))
        assert session == "c0ffee00-0000-4000-8000-000000000001"

    @pytest.mark.parametrize("answer", [None, {}, {"stream": None}, {"stream": {}}, {"stream": {"sessionid": 7}}])
    def test_an_answer_without_a_session_is_malformed(self, answer: Any) -> None:
        with pytest.raises(VenueMalformed):
            parse.session_id(answer)

    def test_an_order_is_an_event(self) -> None:
        assert parse.is_order_event(parse_json(read_payload(PAYLOADS / "order_event.json")))

    @pytest.mark.parametrize("event", ["heartbeat", "new in 2030"])
    def test_anything_else_is_not_a_hint(self, event: str) -> None:
        assert not parse.is_order_event({"event": event})

    def test_an_error_is_told_by_its_words_and_they_are_not_shown(self) -> None:
        with pytest.raises(VenueUnavailable) as taken:
            parse.is_order_event({"error": "Session not found: 9D1C7018"})
        with pytest.raises(RequestRefused) as refused:
            parse.is_order_event({"error": "1234 is not a valid symbol"})
        assert "9D1C7018" not in str(taken.value)
        assert "1234" not in str(refused.value)

    @pytest.mark.parametrize("message", [None, [], {}, {"event": 7}, {"event": ""}, {"error": 7}, "order"])
    def test_a_message_that_names_no_event_is_malformed(self, message: Any) -> None:
        with pytest.raises(VenueMalformed):
            parse.is_order_event(message)
