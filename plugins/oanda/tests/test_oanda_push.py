"""OANDA's transaction streams: what is a hint to read again, what is not, and how a stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange_service_oanda
import pytest
from exchange_service_oanda import OANDA, parse
from exchange_service_oanda.push import MOST_STREAMS, Times, watch_transactions
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.plugin_api import (
    Balance,
    Changed,
    CredentialRejected,
    NotSupported,
    PermissionMissing,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import venue_call
from exchange_service.testing.push import PushFault
from exchange_service.testing.witnesses import read_payload

TOKEN, OTHER_TOKEN = "a-token-for-tests", "a-token-of-another-user"
FIRST, SECOND, THIRD = (f"101-004-7654321-00{number}" for number in (1, 2, 3))
# No stream is silent for so long, and prices move nothing.
TIMES = Times(silence=3.0, prices=60.0, openings=0.0)
PROFIT = Decimal("12.3400")
PAYLOADS = Path(__file__).parents[1] / "payloads"


def account(number: str = FIRST, **changes: Any) -> SimulatedAccount:
    """An account without open trades."""
    return SimulatedAccount(number, **{"open_trades": 0, **changes})


@asynccontextmanager
async def venue_with(*accounts: SimulatedAccount) -> AsyncIterator[OandaSimulator]:
    async with OandaSimulator() as venue:
        venue.heartbeat_every, venue.opening_window = 0.05, 0.0
        venue.add_token(TOKEN, *accounts)
        yield venue


class Watch:
    """A running watch: its hints, and the error that has ended it."""

    def __init__(self, call: VenueCall) -> None:
        self.call = call
        self._told: asyncio.Queue[Changed | Exception] = asyncio.Queue()

    async def run(self, times: Times) -> None:
        try:
            async with aclosing(watch_transactions(self.call, times)) as hints:
                async for hint in hints:
                    self._told.put_nowait(hint)
        except VenueError as error:
            self._told.put_nowait(error)

    async def next(self) -> Changed | Exception:
        async with asyncio.timeout(5):
            return await self._told.get()

    async def hint(self) -> None:
        assert await self.next() == Changed()

    async def is_quiet(self, seconds: float = 0.2) -> bool:
        await asyncio.sleep(seconds)
        return self._told.empty()

    async def balance(self) -> Balance:
        return await exchange_service_oanda.fetch_balance(self.call)


@asynccontextmanager
async def watching(
    venue: OandaSimulator, times: Times = TIMES, *, token: str = TOKEN, **metadata: Any
) -> AsyncIterator[Watch]:
    async with venue_call(OANDA, override=venue.url, api_key=token, metadata=metadata) as call:
        watch = Watch(call)
        running = asyncio.create_task(watch.run(times))
        try:
            yield watch
        finally:
            running.cancel()
            await asyncio.wait({running})


async def until_streams(venue: OandaSimulator, count: int) -> None:
    async with asyncio.timeout(5):
        # The venue notices the end of a connection by itself.
        while len(venue.push.clients) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_first_hint_comes_when_the_streams_of_all_accounts_stand() -> None:
    async with venue_with(account(FIRST), account(SECOND)) as venue, watching(venue) as watch:
        await watch.hint()
        assert {topic for client in venue.push.clients for topic in client.topics} == {FIRST, SECOND}
        streams = [request for request in venue.requests if request.path.endswith("/stream")]
    assert [request.headers["Authorization"] for request in streams] == [f"Bearer {TOKEN}"] * 2


async def test_a_transaction_is_a_hint_and_what_is_read_then_has_it() -> None:
    first, second = account(FIRST), account(SECOND)
    async with venue_with(first, second) as venue, watching(venue) as watch:
        await watch.hint()
        venue.trade(second, PROFIT)
        await watch.hint()
        read = await watch.balance()
        assert await watch.is_quiet()
    assert read.venue_accounts[1].assets[0].total == Decimal("25310.4426") + PROFIT


async def test_a_heartbeat_that_knows_of_a_transaction_which_did_not_come_is_a_hint_once() -> None:
    one = account()
    async with venue_with(one) as venue, watching(venue) as watch:
        await watch.hint()
        # Until a heartbeat has come, no number is known to compare with.
        assert await watch.is_quiet()
        venue.trade(one, PROFIT, lost=True)
        await watch.hint()
        assert await watch.is_quiet()


async def test_while_trades_are_open_a_hint_comes_as_often_as_prices_are_to_be_seen() -> None:
    one = account(open_trades=1)
    async with venue_with(one) as venue, watching(venue, replace(TIMES, prices=0.05)) as watch:
        await watch.hint()
        await watch.balance()
        await watch.hint()
        await watch.hint()
        one.open_trades = 0
        await watch.balance()
        # One may have been on its way.
        await asyncio.sleep(0.1)
        while not await watch.is_quiet(0):
            await watch.hint()
        assert await watch.is_quiet(0.3)


async def test_an_account_that_was_not_read_yet_counts_as_one_with_open_trades() -> None:
    async with venue_with(account()) as venue, watching(venue, replace(TIMES, prices=0.05)) as watch:
        await watch.hint()
        await watch.hint()
        # Nobody has read it, and OANDA has told nothing of it.
        assert not any("summary" in request.path for request in venue.requests)


async def test_a_stored_account_is_followed_alone() -> None:
    async with venue_with(account(FIRST), account(SECOND)) as venue, watching(venue, account_id=SECOND) as watch:
        await watch.hint()
        assert [client.topics for client in venue.push.clients] == [{SECOND}]
    assert [request.path for request in venue.requests] == [f"/v3/accounts/{SECOND}/transactions/stream"]


async def test_a_token_with_more_accounts_than_streams_is_not_pushed_and_says_what_to_store() -> None:
    accounts = [account(f"101-004-7654321-{number:03}") for number in range(MOST_STREAMS + 1)]
    async with venue_with(*accounts) as venue, watching(venue) as watch:
        refusal = await watch.next()
        assert not venue.push.opened
    assert isinstance(refusal, NotSupported)
    assert "4 accounts" in refusal.message
    assert "account_id" in (refusal.advice or "")


async def test_an_account_that_is_opened_later_gets_a_stream_once_a_read_has_found_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The list is asked for each time, and a wait for prices is a look at what was read.
    monkeypatch.setattr("exchange_service_oanda.client._ACCOUNT_LIST_AGE", 0.0)
    second = account(SECOND)
    async with venue_with(account(FIRST)) as venue, watching(venue, replace(TIMES, prices=0.05)) as watch:
        await watch.hint()
        await watch.balance()
        venue.add_token(TOKEN, account(FIRST), second)
        assert len((await watch.balance()).venue_accounts) == 2
        await until_streams(venue, 2)
        await watch.balance()
        # One may have been on its way.
        await asyncio.sleep(0.1)
        while not await watch.is_quiet(0):
            await watch.hint()
        venue.trade(second, PROFIT)
        await watch.hint()
        venue.add_token(TOKEN, *(account(f"101-004-7654321-{number:03}") for number in range(MOST_STREAMS + 1)))
        await watch.balance()
        refusal = await watch.next()
        while isinstance(refusal, Changed):
            refusal = await watch.next()
    assert isinstance(refusal, NotSupported)


def test_all_watches_together_keep_within_the_streams_that_oanda_allows() -> None:
    assert OANDA.push.accounts is not None
    assert OANDA.push.connections is not None
    assert OANDA.push.accounts * MOST_STREAMS <= OANDA.push.connections


async def test_an_account_that_oanda_lists_and_refuses_does_not_end_the_push_of_the_others() -> None:
    one, refused = account(FIRST), account(SECOND, refused=True)
    async with venue_with(one, refused) as venue, watching(venue, replace(TIMES, prices=0.05)) as watch:
        await watch.hint()
        assert len(venue.push.clients) == 1
        await watch.balance()
        # Nothing is known of its trades, and nothing is asked for their sake.
        await asyncio.sleep(0.1)
        while not await watch.is_quiet(0):
            await watch.hint()
        assert await watch.is_quiet()
        venue.trade(one, PROFIT)
        await watch.hint()


async def test_if_every_account_is_refused_the_refusal_ends_the_watch() -> None:
    async with venue_with(account(refused=True)) as venue, watching(venue) as watch:
        assert isinstance(await watch.next(), PermissionMissing)


async def test_a_token_that_oanda_does_not_know_is_refused() -> None:
    async with venue_with(account()) as venue:
        for metadata in ({}, {"account_id": FIRST}):
            async with watching(venue, token="another", **metadata) as watch:
                error = await watch.next()
            assert isinstance(error, CredentialRejected)
            assert "another" not in str(error)


@pytest.mark.parametrize(
    ("fault", "expected"), [(PushFault(refused=503), VenueUnavailable), (PushFault(refused=429), VenueRateLimited)]
)
async def test_a_refused_stream_is_the_error_of_its_status(fault: PushFault, expected: type[VenueError]) -> None:
    async with venue_with(account()) as venue:
        venue.push.fail(fault)
        async with watching(venue) as watch:
            assert isinstance(await watch.next(), expected)


async def test_new_streams_are_paced_over_all_users_so_that_oanda_refuses_none() -> None:
    async with venue_with(account(FIRST), account(SECOND)) as venue:
        venue.add_token(OTHER_TOKEN, account(THIRD))
        venue.opening_window = 0.2
        async with venue_call(OANDA, override=venue.url, api_key=TOKEN) as call:
            other = venue_call(OANDA, override=venue.url, api_key=OTHER_TOKEN, plugin_state=call.plugin_state)
            async with other as other_call:
                watches = [Watch(call), Watch(other_call)]
                running = [asyncio.create_task(watch.run(replace(TIMES, openings=0.15))) for watch in watches]
                for watch in watches:
                    await watch.hint()
                assert venue.push.opened == 3
                for task in running:
                    task.cancel()
                await asyncio.wait(running)


async def test_two_users_get_hints_of_their_own_accounts_alone_whatever_the_streams_carry() -> None:
    mine, theirs = account(FIRST), account(SECOND)
    async with venue_with(mine) as venue:
        venue.add_token(OTHER_TOKEN, theirs)
        venue.heartbeat_every = 60.0
        async with watching(venue) as my_watch, watching(venue, token=OTHER_TOKEN) as their_watch:
            await my_watch.hint()
            await their_watch.hint()
            venue.push.fail(PushFault(to_everybody=True, replay=True))
            for _ in range(10):
                venue.trade(theirs, PROFIT)
            await their_watch.hint()
            assert await my_watch.is_quiet()


async def test_a_stream_without_a_heartbeat_is_silent_and_ends() -> None:
    async with venue_with(account()) as venue, watching(venue, replace(TIMES, silence=0.3)) as watch:
        await watch.hint()
        venue.push.fail(PushFault(silent=True))
        assert isinstance(await watch.next(), VenueTimeout)
        await until_streams(venue, 1)


async def test_a_dropped_stream_ends_the_watch_and_with_it_the_streams_of_the_other_accounts() -> None:
    async with venue_with(account(FIRST), account(SECOND)) as venue, watching(venue) as watch:
        await watch.hint()
        venue.push.clients[0].drop()
        assert isinstance(await watch.next(), VenueUnavailable)
        await until_streams(venue, 0)


async def test_nonsense_is_passed_over_and_ends_the_stream_if_nothing_else_comes() -> None:
    one = account()
    async with venue_with(one) as venue, watching(venue) as watch:
        await watch.hint()
        venue.push.fail(PushFault.nonsense())
        venue.trade(one, PROFIT)
        await watch.hint()
        venue.push.recover()
        client = venue.push.clients[0]
        for _ in range(20):
            client.send("<html>gateway</html>")
        error = await watch.next()
    assert isinstance(error, VenueMalformed)
    assert "html" not in str(error)


async def test_a_line_that_is_too_large_ends_the_stream() -> None:
    async with venue_with(account()) as venue, watching(venue) as watch:
        await watch.hint()
        venue.push.fail(PushFault.oversized())
        assert isinstance(await watch.next(), VenueMalformed)


async def test_closing_the_watch_closes_its_streams_and_leaves_no_task() -> None:
    async with venue_with(account(FIRST), account(SECOND)) as venue:
        async with watching(venue) as watch:
            await watch.hint()
        await until_streams(venue, 0)
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "transactions of OANDA"]
    assert left == []


async def test_the_simulator_refuses_a_third_stream_within_a_second() -> None:
    async with venue_with(account(FIRST), account(SECOND), account(THIRD)) as venue:
        venue.opening_window = 1.0
        async with watching(venue) as watch:
            assert isinstance(await watch.next(), VenueRateLimited)


class TestLines:
    """A line of a stream, as OANDA sends it."""

    def read(self, name: str, **changes: Any) -> parse.StreamMessage | None:
        line = {**parse_json(read_payload(PAYLOADS / name)), **changes}
        return parse.stream_message({key: value for key, value in line.items() if value is not ...}, FIRST)

    def test_a_heartbeat_has_the_number_of_the_newest_transaction(self) -> None:
        assert self.read("stream_heartbeat.json") == parse.StreamMessage(2311, heartbeat=True)

    def test_a_transaction_has_its_own_number(self) -> None:
        assert self.read("stream_transaction.json") == parse.StreamMessage(2308, heartbeat=False)

    def test_a_transaction_of_a_type_that_nobody_knows_is_one_all_the_same(self) -> None:
        assert self.read("stream_transaction.json", type="NEW_IN_2030") == parse.StreamMessage(2308, heartbeat=False)

    def test_a_transaction_of_another_account_is_passed_over(self) -> None:
        assert self.read("stream_transaction.json", accountID=SECOND) is None

    @pytest.mark.parametrize("member", ["type", "id", "accountID"])
    @pytest.mark.parametrize("value", [..., None, "", 7, []], ids=["missing", "null", "empty", "number", "list"])
    def test_a_line_without_what_names_it_is_malformed(self, member: str, value: Any) -> None:
        with pytest.raises(VenueMalformed):
            self.read("stream_transaction.json", **{member: value})

    @pytest.mark.parametrize("number", ["-1", "2e9", "²", "9" * 31])
    def test_a_number_that_is_not_one_is_malformed(self, number: str) -> None:
        with pytest.raises(VenueMalformed):
            self.read("stream_heartbeat.json", lastTransactionID=number)
