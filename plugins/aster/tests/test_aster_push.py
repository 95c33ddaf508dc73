"""Aster's user streams: what is a hint to read again, how listen keys are kept, and that they stay secret."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange_service_aster
import pytest
from exchange_service_aster import ASTER, parse
from exchange_service_aster.parse import StreamEvent
from exchange_service_aster.push import Times, watch_account
from exchange_service_aster.simulator import AsterSimulator, SimulatedAsset, SimulatedWallet

from exchange_service.plugin_api import (
    Balance,
    Changed,
    CredentialRejected,
    State,
    VenueAccount,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import Fault, venue_call
from exchange_service.testing.push import PushFault
from exchange_service.testing.witnesses import read_payload

pytest.importorskip("coincurve", reason="agents cannot sign here")

WALLET, OTHER_WALLET = "0x63dd5acc6b1aa0f563956c0e534dd30b6dcf7c4e", "0x" + "7" * 40
PRIVATE_KEY, OTHER_KEY = "4fd0a42218f3eae43a6ce26d22544e986139a01e5b34a62db53757ffca81bae1", "11" * 32
API_KEY, API_SECRET = "an-hmac-key-for-tests", "an-hmac-secret-for-tests"
AGENT_ROW: dict[str, Any] = {"api_secret": PRIVATE_KEY, "metadata": {"wallet_address": WALLET}}
OTHER_ROW: dict[str, Any] = {"api_secret": OTHER_KEY, "metadata": {"wallet_address": OTHER_WALLET}}
KEY_ROW: dict[str, Any] = {"api_key": API_KEY, "api_secret": API_SECRET}
# Prices move nothing, and nothing is renewed.
TIMES = Times(prices=60.0, openings=0.0)
PROFIT = Decimal("12.34")
PAYLOADS = Path(__file__).parents[1] / "payloads"


def flat_wallet() -> SimulatedWallet:
    """A wallet without positions."""
    return SimulatedWallet([SimulatedAsset("USDT", Decimal("5120.44"))], [("USDT", Decimal("310.25"), Decimal(40))])


@asynccontextmanager
async def venue_with(wallet: SimulatedWallet) -> AsyncIterator[AsterSimulator]:
    """A venue that knows the wallet, its agent and an HMAC key for it, and another user's wallet."""
    async with AsterSimulator() as venue:
        venue.add_key(API_KEY, API_SECRET, venue.add_wallet(WALLET, wallet))
        venue.add_agent(WALLET, PRIVATE_KEY)
        venue.add_wallet(OTHER_WALLET, flat_wallet())
        venue.add_agent(OTHER_WALLET, OTHER_KEY)
        yield venue


class Watch:
    """A running watch: its hints, and the error that has ended it."""

    def __init__(self, call: VenueCall) -> None:
        self.call = call
        self._told: asyncio.Queue[Changed | Exception] = asyncio.Queue()

    async def run(self, times: Times) -> None:
        try:
            async with aclosing(watch_account(self.call, times)) as hints:
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
        return await exchange_service_aster.fetch_balance(self.call)


@asynccontextmanager
async def watching(
    venue: AsterSimulator, row: dict[str, Any] = AGENT_ROW, times: Times = TIMES, *, account_type: str = ""
) -> AsyncIterator[Watch]:
    async with venue_call(ASTER, override=venue.url, account_type=account_type, **row) as call:
        watch = Watch(call)
        running = asyncio.create_task(watch.run(times))
        try:
            yield watch
        finally:
            running.cancel()
            await asyncio.wait({running})


async def until_sockets(venue: AsterSimulator, count: int) -> None:
    async with asyncio.timeout(5):
        while len(venue.push.clients) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def keys_asked_for(venue: AsterSimulator) -> list[str]:
    return [request.path for request in venue.requests if request.path.endswith("/listenKey")]


@pytest.mark.parametrize(
    ("row", "version"), [(AGENT_ROW, "v3"), (KEY_ROW, "v1")], ids=["of an agent", "of an HMAC key"]
)
async def test_the_first_hint_comes_when_both_streams_stand(row: dict[str, Any], version: str) -> None:
    async with venue_with(flat_wallet()) as venue, watching(venue, row) as watch:
        await watch.hint()
        assert len(venue.push.clients) == 2
        assert {key.kind for client in venue.push.clients for key in client.topics} == {"futures", "spot"}  # type: ignore[attr-defined]
    assert keys_asked_for(venue) == [f"/fapi/{version}/listenKey", f"/api/{version}/listenKey"]


@pytest.mark.parametrize(("account_type", "path"), [("futures", "/fapi"), ("spot", "/api")])
async def test_of_an_account_type_its_stream_alone_is_opened(account_type: str, path: str) -> None:
    async with venue_with(flat_wallet()) as venue, watching(venue, account_type=account_type) as watch:
        await watch.hint()
        assert len(venue.push.clients) == 1
    assert keys_asked_for(venue) == [f"{path}/v3/listenKey"]


async def test_an_event_of_either_account_is_a_hint_and_what_is_read_then_has_it() -> None:
    wallet = flat_wallet()
    async with venue_with(wallet) as venue, watching(venue) as watch:
        await watch.hint()
        await watch.balance()
        venue.trade(wallet, PROFIT)
        await watch.hint()
        venue.deposit(wallet, PROFIT)
        await watch.hint()
        futures, spot = (await watch.balance()).venue_accounts
        assert await watch.is_quiet()
    assert futures.assets[0].total == Decimal("5120.44") + PROFIT
    assert spot.assets[0].free == Decimal("310.25") + PROFIT


async def test_while_there_are_positions_a_hint_comes_as_often_as_prices_are_to_be_seen() -> None:
    wallet = flat_wallet()
    wallet.assets[0].position_margin = Decimal(480)
    async with venue_with(wallet) as venue, watching(venue, times=replace(TIMES, prices=0.05)) as watch:
        await watch.hint()
        await watch.balance()
        for _ in range(3):
            await watch.hint()
        wallet.assets[0].position_margin = Decimal(0)
        await watch.balance()
        # One may have been on its way.
        await asyncio.sleep(0.1)
        while not await watch.is_quiet(0):
            await watch.hint()
        assert await watch.is_quiet(0.3)


async def test_spot_alone_is_not_read_for_the_sake_of_prices() -> None:
    times = replace(TIMES, prices=0.05)
    async with venue_with(flat_wallet()) as venue, watching(venue, times=times, account_type="spot") as watch:
        await watch.hint()
        await watch.balance()
        await asyncio.sleep(0.1)
        while not await watch.is_quiet(0):
            await watch.hint()
        assert await watch.is_quiet(0.3)


async def test_two_users_get_hints_for_their_own_wallets_alone() -> None:
    mine = flat_wallet()
    async with venue_with(mine) as venue, watching(venue) as my_watch, watching(venue, OTHER_ROW) as their_watch:
        await my_watch.hint()
        await their_watch.hint()
        venue.push.fail(PushFault(replay=True))
        for _ in range(5):
            venue.trade(mine, PROFIT)
        await my_watch.hint()
        assert await their_watch.is_quiet()


class TestListenKeys:
    """A listen key lives for an hour. It is renewed in time, and another one is asked for if it has ended."""

    async def test_a_key_is_renewed_before_its_time_is_over_and_the_stream_goes_on(self) -> None:
        wallet = flat_wallet()
        async with venue_with(wallet) as venue, watching(venue, times=replace(TIMES, renewal=0.05)) as watch:
            await watch.hint()
            keys = {name: key.ends for name, key in venue.listen_keys.items()}
            async with asyncio.timeout(5):
                while len(keys_asked_for(venue)) < 6:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert venue.listen_keys.keys() == keys.keys()
            assert all(venue.listen_keys[name].ends > ends for name, ends in keys.items())
            venue.trade(wallet, PROFIT)
            await watch.hint()
            assert await watch.is_quiet(0)
            assert venue.push.opened == 2

    async def test_a_key_that_the_venue_ends_is_replaced_and_what_came_meanwhile_is_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service_aster.push._LASTING", 0.0)
        wallet = flat_wallet()
        async with venue_with(wallet) as venue, watching(venue) as watch:
            await watch.hint()
            venue.expire(next(iter(venue.listen_keys)))
            await watch.hint()
            await until_sockets(venue, 2)
            venue.trade(wallet, PROFIT)
            await watch.hint()
            venue.deposit(wallet, PROFIT)
            await watch.hint()
            # The first two, and one or both of them again with another key.
            assert venue.push.opened > 2

    async def test_a_key_that_ends_unnoticed_is_found_when_it_is_renewed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exchange_service_aster.push._LASTING", 0.0)
        wallet = flat_wallet()
        async with venue_with(wallet) as venue, watching(venue, times=replace(TIMES, renewal=0.3)) as watch:
            await watch.hint()
            venue.push.fail(PushFault(silent=True))
            venue.expire(next(iter(venue.listen_keys)))
            venue.push.recover()
            await watch.hint()
            venue.trade(wallet, PROFIT)
            await watch.hint()
            assert venue.push.opened > 2

    async def test_keys_that_end_as_soon_as_they_are_made_end_the_watch(self) -> None:
        async with venue_with(flat_wallet()) as venue, watching(venue) as watch:
            await watch.hint()
            venue.expire(next(iter(venue.listen_keys)))
            assert isinstance(await watch.error(), VenueUnavailable)

    async def test_a_renewal_that_fails_ends_the_watch(self) -> None:
        async with venue_with(flat_wallet()) as venue, watching(venue, times=replace(TIMES, renewal=0.1)) as watch:
            await watch.hint()
            venue.fail(Fault.html(502))
            assert isinstance(await watch.error(), VenueUnavailable)
            await until_sockets(venue, 0)

    async def test_sockets_are_replaced_before_their_day_is_over(self) -> None:
        wallet = flat_wallet()
        async with venue_with(wallet) as venue, watching(venue, times=replace(TIMES, life=0.3, prices=0.1)) as watch:
            await watch.hint()
            await watch.balance()
            async with asyncio.timeout(5):
                while venue.push.opened < 4:
                    await watch.hint()
            # The keys are the same ones.
            assert len(venue.listen_keys) == 2

    async def test_a_clock_that_is_wrong_is_measured_for_a_key_too(self) -> None:
        async with venue_with(flat_wallet()) as venue:
            venue.clock_offset = 60.0
            async with watching(venue) as watch:
                await watch.hint()
            assert len(venue.listen_keys) == 2

    async def test_an_agent_that_aster_does_not_know_is_refused(self) -> None:
        async with venue_with(flat_wallet()) as venue:
            venue.wallets[WALLET].agents.clear()
            async with watching(venue) as watch:
                assert isinstance(await watch.error(), CredentialRejected)

    @pytest.mark.parametrize(
        "fault",
        [PushFault(refused=503), PushFault(refused=401), PushFault(refused=302)],
        ids=["outage", "refused", "redirect"],
    )
    async def test_a_key_is_in_no_error_and_in_no_log(self, fault: PushFault, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            async with venue_with(flat_wallet()) as venue:
                async with watching(venue) as watch:
                    await watch.hint()
                    venue.push.drop_all()
                    errors = [await watch.error()]
                venue.push.fail(fault)
                async with watching(venue) as watch:
                    errors.append(await watch.error())
                keys = list(venue.listen_keys)
        shown = [str(error) + repr(vars(error)) + "".join(traceback.format_exception(error)) for error in errors]
        logged = [logging.Formatter().format(record) for record in caplog.records]
        assert len(keys) == 2
        assert not [text for text in (*shown, *logged) if any(key in text for key in keys)]

    async def test_a_key_that_could_change_the_address_is_malformed_and_not_shown(self) -> None:
        for key in ("", "../../fapi/v1/order", "a b", "a?b", "a#b", "k" * 257, 7, None):
            with pytest.raises(VenueMalformed) as malformed:
                parse.listen_key({"listenKey": key})
            assert "order" not in str(malformed.value)

    async def test_keys_are_asked_for_one_after_the_other_over_all_users(self) -> None:
        async with venue_with(flat_wallet()) as venue, shared_state() as state:
            calls = [venue_call(ASTER, override=venue.url, plugin_state=state, **row) for row in (AGENT_ROW, OTHER_ROW)]
            async with calls[0] as first, calls[1] as second:
                watches = [Watch(first), Watch(second)]
                loop = asyncio.get_running_loop()
                began = loop.time()
                running = [asyncio.create_task(watch.run(replace(TIMES, openings=0.1))) for watch in watches]
                for watch in watches:
                    await watch.hint()
                # Four streams: the last one begins after three pauses.
                assert loop.time() - began >= 0.3
                for task in running:
                    task.cancel()
                await asyncio.wait(running)

    async def test_while_aster_limits_one_account_no_other_asks_for_a_key(self) -> None:
        async with venue_with(flat_wallet()) as venue, shared_state() as state:
            venue.fail(Fault(status=418, body=b"{}", headers={"Retry-After": "120"}, path="/fapi/v3/listenKey"))
            for row in (AGENT_ROW, OTHER_ROW):
                async with venue_call(ASTER, override=venue.url, plugin_state=state, **row) as call:
                    with pytest.raises(VenueRateLimited) as limited:
                        await anext(watch_account(call, TIMES))
                assert limited.value.given_delay == pytest.approx(120, abs=5)
            assert len(keys_asked_for(venue)) == 1


@asynccontextmanager
async def shared_state() -> AsyncIterator[State]:
    state = State()
    try:
        yield state
    finally:
        await state.close()


async def test_a_dropped_stream_ends_the_watch_and_with_it_the_other_one() -> None:
    async with venue_with(flat_wallet()) as venue, watching(venue) as watch:
        await watch.hint()
        venue.push.clients[0].drop()
        assert isinstance(await watch.error(), VenueUnavailable)
        await until_sockets(venue, 0)


async def test_a_connection_that_answers_no_ping_ends_the_watch() -> None:
    async with venue_with(flat_wallet()) as venue, watching(venue, times=replace(TIMES, pings=0.6)) as watch:
        await watch.hint()
        venue.push.fail(PushFault(half_open=True))
        assert isinstance(await watch.error(), VenueTimeout)


async def test_a_message_that_is_too_large_ends_the_watch() -> None:
    wallet = flat_wallet()
    async with venue_with(wallet) as venue, watching(venue) as watch:
        await watch.hint()
        venue.push.fail(PushFault.oversized())
        venue.trade(wallet, PROFIT)
        assert isinstance(await watch.error(), VenueMalformed)


async def test_nonsense_is_passed_over_and_ends_the_watch_if_nothing_else_comes() -> None:
    wallet = flat_wallet()
    async with venue_with(wallet) as venue, watching(venue) as watch:
        await watch.hint()
        venue.push.fail(PushFault.nonsense())
        venue.trade(wallet, PROFIT)
        await watch.hint()
        venue.push.recover()
        for _ in range(20):
            venue.push.clients[0].send("<html>gateway</html>")
        assert isinstance(await watch.error(), VenueMalformed)


async def test_closing_the_watch_closes_its_sockets_and_leaves_no_task() -> None:
    async with venue_with(flat_wallet()) as venue:
        async with watching(venue) as watch:
            await watch.hint()
        await until_sockets(venue, 0)
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().endswith("of Aster")]
    assert left == []


class TestEvents:
    """An event, as Aster sends it."""

    @pytest.mark.parametrize(
        ("name", "meaning"),
        [
            ("account_update", StreamEvent.CHANGED),
            ("margin_call", StreamEvent.CHANGED),
            ("outbound_account_position", StreamEvent.CHANGED),
            ("listen_key_expired", StreamEvent.EXPIRED),
        ],
    )
    def test_each_known_event_has_its_meaning(self, name: str, meaning: StreamEvent) -> None:
        assert parse.stream_event(parse_json(read_payload(PAYLOADS / f"{name}.json"))) is meaning

    def test_an_order_binds_what_was_available_and_an_unknown_event_is_passed_over(self) -> None:
        assert parse.stream_event({"e": "ORDER_TRADE_UPDATE"}) is StreamEvent.CHANGED
        assert parse.stream_event({"e": "new in 2030"}) is StreamEvent.OTHER

    @pytest.mark.parametrize("message", [None, [], {}, {"e": 7}, {"e": ""}, "ACCOUNT_UPDATE"])
    def test_a_message_that_names_no_event_is_malformed(self, message: Any) -> None:
        with pytest.raises(VenueMalformed):
            parse.stream_event(message)

    def test_the_answer_has_the_listen_key(self) -> None:
        assert parse.listen_key(parse_json(read_payload(PAYLOADS / "listen_key.json"))) == "c0ffee00" * 8


class TestPrices:
    """Whether prices alone move the figures of the futures account."""

    def moves(self, **changes: Any) -> bool:
        answer = parse_json(read_payload(PAYLOADS / "account.json"))
        for entry in (answer, *answer["assets"]):
            for member in ("totalPositionInitialMargin", "totalUnrealizedProfit"):
                entry.pop(member, None)
            for member in ("positionInitialMargin", "unrealizedProfit"):
                entry.pop(member, None)
        answer.update({name: value for name, value in changes.items() if name.startswith("total")})
        answer["assets"][0].update({name: value for name, value in changes.items() if not name.startswith("total")})
        account = parse.futures_account(answer, WALLET)
        assert isinstance(account, VenueAccount)
        return parse.moves_with_prices(answer, account)

    def test_a_wallet_without_positions_stands_still(self) -> None:
        assert not self.moves()
        assert not self.moves(totalUnrealizedProfit="0.00000000", positionInitialMargin="0", unrealizedProfit="")

    @pytest.mark.parametrize(
        "member", ["totalPositionInitialMargin", "totalUnrealizedProfit", "positionInitialMargin", "unrealizedProfit"]
    )
    def test_a_margin_or_profit_of_positions_moves_and_so_does_one_that_cannot_be_read(self, member: str) -> None:
        assert self.moves(**{member: "0.00000001"})
        # The account's own profit is read as a figure, too.
        assert member == "totalUnrealizedProfit" or self.moves(**{member: "many"})

    def test_assets_that_count_beside_usdt_move_the_total(self) -> None:
        assert self.moves(totalWalletBalance="99999.00000000")
