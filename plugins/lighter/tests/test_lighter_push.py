"""What Lighter pushes becomes the balance that a read gives, or a hint; and every way in which a push breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest
from exchange_service_lighter import LIGHTER, fetch_balance, push
from exchange_service_lighter.push import LighterLanguage, watch
from exchange_service_lighter.simulator import (
    LighterSimulator,
    SimulatedAccount,
    SimulatedAsset,
    SimulatedPosition,
)

from exchange_service.plugin_api import (
    Balance,
    Changed,
    NotSupported,
    State,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import venue_call
from exchange_service.testing.push import PushFault

WALLET = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
OTHER_WALLET = "0x035605fc2f24d65300227189025e90a0d947f16c"
MASTER, SUB, OTHER, POOL = 61, 281474976700001, 62, 281474976710654
# Seconds within which something that comes has come.
SOON = 5.0


class Quick(LighterLanguage):
    """The language with less patience."""

    silence = 0.6
    keep_alive_every = 0.2


class Hasty(LighterLanguage):
    """The language without pings of its own, which soon calls a connection silent."""

    silence = 0.4
    ping = 0.1
    keep_alive_every = 0.0


@asynccontextmanager
async def venue() -> AsyncIterator[LighterSimulator]:
    """A wallet with a master account and a sub-account, and another user's account."""
    simulator = LighterSimulator()
    simulator.add(
        SimulatedAccount(
            MASTER, WALLET, collateral=Decimal(1000), assets=[SimulatedAsset("USDC", 3, "40.000000", "15.500000")]
        ),
        SimulatedAccount(SUB, WALLET, kind=1, name="Hedge"),
        SimulatedAccount(OTHER, OTHER_WALLET, collateral=Decimal("77.7")),
    )
    async with simulator:
        yield simulator


def calling(simulator: LighterSimulator, plugin_state: State | None = None, **metadata: Any) -> Any:
    metadata = metadata or {"wallet_address": WALLET}
    return venue_call(LIGHTER, override=simulator.url, metadata=metadata, timeout=600.0, plugin_state=plugin_state)


@dataclass
class Watching:
    """A watch, and the call that it belongs to."""

    call: VenueCall
    items: AsyncGenerator[Balance | Changed, None]

    async def next(self) -> Balance | Changed:
        async with asyncio.timeout(SOON):
            return await anext(self.items)

    async def balance(self) -> Balance:
        item = await self.next()
        assert isinstance(item, Balance)
        return item

    async def collect(self, balances: list[Any]) -> None:
        """Append every balance that comes."""
        async for item in self.items:
            if isinstance(item, Balance):
                balances.append(item)

    async def error(self) -> VenueError:
        """What ends the watch, whatever it yields before."""
        try:
            while True:
                await self.next()
        except VenueError as error:
            return error


@asynccontextmanager
async def watching(
    simulator: LighterSimulator,
    language: type[LighterLanguage] = LighterLanguage,
    plugin_state: State | None = None,
    **metadata: Any,
) -> AsyncIterator[Watching]:
    """A watch of an account that has been read."""
    async with calling(simulator, plugin_state, **metadata) as call:
        await fetch_balance(call)
        async with aclosing(watch(call, language)) as items:
            yield Watching(call, items)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something at the venue, which tells nobody of it."""
    async with asyncio.timeout(10 * SOON):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def read(simulator: LighterSimulator, **metadata: Any) -> Balance:
    async with calling(simulator, **metadata) as call:
        return await fetch_balance(call)


def collateral(balance: Balance) -> dict[str, Decimal | None]:
    return {part.id: part.assets[0].total for part in balance.venue_accounts if part.type == "perpetual"}


def bitcoin(size: str = "0.5", mark: str = "100", **changes: Any) -> SimulatedPosition:
    return SimulatedPosition(1, "BTC", Decimal(size), Decimal(100), Decimal(mark), **changes)


class TestWholes:
    """Each change is a whole balance, the same as a read gives at that moment."""

    async def test_a_watch_begins_with_what_a_read_gives(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            assert await watched.balance() == await read(simulator)

    async def test_a_watch_of_one_account_follows_that_account(self) -> None:
        async with venue() as simulator, watching(simulator, account_index=MASTER) as watched:
            assert await watched.balance() == await read(simulator, account_index=MASTER)
            assert simulator.push.clients[0].topics == {f"user_stats:{MASTER}", f"account_all:{MASTER}"}

    async def test_it_waits_for_the_first_read(self) -> None:
        async with venue() as simulator, calling(simulator) as call, aclosing(watch(call)) as items:
            first = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0.05)
            assert not first.done()
            assert simulator.push.opened == 0
            balance = await fetch_balance(call)
            assert await asyncio.wait_for(first, SOON) == balance

    @pytest.mark.parametrize(
        "change",
        [
            lambda account: setattr(account, "collateral", Decimal("1000.25")),
            lambda account: setattr(account.assets[0], "locked", "39.000000"),
            lambda account: setattr(account.assets[0], "balance", "50.000000"),
            lambda account: account.assets.append(SimulatedAsset("ETH", 1, "0.50000000", "0.10000000")),
            lambda account: account.assets.insert(0, SimulatedAsset("ETH", 1, "0.50000000", "0.10000000")),
            lambda account: account.positions.append(bitcoin(mark="90")),
            lambda account: account.positions.append(bitcoin("-0.5", mark="90")),
        ],
        ids=["collateral", "locked", "spot", "new asset", "new first asset", "long", "short"],
    )
    async def test_a_change_is_pushed_as_a_read_shows_it(self, change: Callable[[SimulatedAccount], None]) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            before = await watched.balance()
            change(simulator.accounts[MASTER])
            simulator.publish(MASTER)
            after = await watched.balance()
            assert after != before
            shown = await read(simulator)
            assert {part.identity: set(part.assets) for part in after.venue_accounts} == {
                part.identity: set(part.assets) for part in shown.venue_accounts
            }
            assert (after.summary, after.notes) == (shown.summary, shown.notes)

    async def test_prices_move_the_figures_of_open_positions_and_a_close_ends_them(self) -> None:
        async with venue() as simulator:
            account = simulator.accounts[MASTER]
            account.positions = [bitcoin(), SimulatedPosition(0, "ETH", Decimal(-2), Decimal(10), Decimal(10))]
            async with watching(simulator) as watched:
                assert await watched.balance() == await read(simulator)
                # Lighter pushes no profit of a position that was not traded.
                account.positions[0].mark = Decimal(123)
                account.positions[1].mark = Decimal(9)
                simulator.publish(MASTER)
                assert await watched.balance() == await read(simulator)
                account.positions = [replace(account.positions[0], size=Decimal(0))]
                simulator.publish(MASTER)
                assert await watched.balance() == await read(simulator)

    async def test_an_empty_sub_account_appears_when_it_is_funded(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            assert collateral(await watched.balance()).keys() == {str(MASTER)}
            simulator.accounts[SUB].collateral = Decimal(60)
            simulator.publish(SUB)
            assert await watched.balance() == await read(simulator)

    async def test_a_trade_of_many_messages_is_one_balance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # On a busy machine the messages come apart.
        monkeypatch.setattr(push, "_SETTLING", 1.0)
        async with venue() as simulator, watching(simulator) as watched:
            await watched.balance()
            for step in range(30):
                simulator.accounts[MASTER].collateral += 1
                simulator.accounts[MASTER].assets[0].balance = f"{step}.000000"
                simulator.publish(MASTER)
            simulator.accounts[MASTER].collateral += 1
            simulator.publish(MASTER)
            assert await watched.balance() == await read(simulator)

    async def test_a_message_older_than_the_last_changes_nothing(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            await watched.balance()
            simulator.push.fail(PushFault(replay=True))
            for amount in (1, 2, 3):
                simulator.accounts[MASTER].collateral = Decimal(amount)
                simulator.publish(MASTER)
            seen = [collateral(await watched.balance())[str(MASTER)]]
            while seen[-1] != 3:
                seen.append(collateral(await watched.balance())[str(MASTER)])
            assert seen == sorted(seen)


class TestHints:
    """What the messages do not tell is asked for."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda account: setattr(account, "mode", 1),
            lambda account: account.positions.append(bitcoin(allocated=Decimal(10))),
            lambda account: account.shares.update({POOL: "100.000000"}),
            lambda account: setattr(account, "collateral", Decimal(0)) or account.positions.append(bitcoin()),
        ],
        ids=["unified", "isolated", "pool", "nothing available"],
    )
    async def test_what_is_not_pushed_is_a_hint(self, change: Callable[[SimulatedAccount], None]) -> None:
        async with venue() as simulator, watching(simulator, account_index=MASTER) as watched:
            await watched.balance()
            change(simulator.accounts[MASTER])
            simulator.publish(MASTER)
            assert await watched.next() == Changed()

    async def test_a_read_after_the_hint_makes_the_pool_known(self) -> None:
        async with venue() as simulator, watching(simulator, account_index=MASTER) as watched:
            await watched.balance()
            simulator.accounts[MASTER].shares = {POOL: "100.000000"}
            simulator.publish(MASTER)
            assert await watched.next() == Changed()
            await fetch_balance(watched.call)
            simulator.accounts[MASTER].collateral += 5
            simulator.publish(MASTER)
            assert await watched.balance() == await read(simulator, account_index=MASTER)

    async def test_what_is_paid_out_of_staking_is_a_hint(self) -> None:
        async with venue() as simulator:
            simulator.accounts[MASTER].unlocks = [(2, "20")]
            async with watching(simulator) as watched:
                assert await watched.next() == Changed()
                simulator.accounts[MASTER].unlocks = []
                simulator.accounts[MASTER].assets.append(SimulatedAsset("LIT", 2, "20.00000000", "0.00000000"))
                simulator.publish(MASTER)
                assert await watched.next() == Changed()

    async def test_what_leaves_a_wallet_may_lie_in_a_new_account_which_a_read_finds_and_the_watch_then_follows(
        self,
    ) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            await watched.balance()
            simulator.accounts[MASTER].collateral -= 100
            simulator.add(SimulatedAccount(SUB + 1, WALLET, kind=1, collateral=Decimal(100)))
            simulator.publish(MASTER)
            assert collateral(await watched.balance()) == {str(MASTER): Decimal(900)}
            assert await watched.next() == Changed()
            found = await fetch_balance(watched.call)
            assert await watched.balance() == found
            simulator.accounts[SUB + 1].collateral += 1
            simulator.publish(SUB + 1)
            assert await watched.balance() == await read(simulator)

    async def test_a_move_between_two_accounts_of_the_wallet_is_no_loss(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            await watched.balance()
            simulator.accounts[MASTER].collateral -= 100
            simulator.accounts[SUB].collateral += 100
            simulator.publish(MASTER, SUB)
            assert await watched.balance() == await read(simulator)
            simulator.accounts[SUB].collateral += 1
            simulator.publish(SUB)
            assert await watched.balance() == await read(simulator)

    async def test_an_account_that_could_not_be_read_is_asked_for(self) -> None:
        async with venue() as simulator:
            simulator.accounts[SUB].code = 20500
            async with watching(simulator) as watched:
                assert await watched.next() == Changed()

    async def test_prices_are_read_now_and_then_while_positions_are_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(push, "_SHORTEST_PRICED", 0.05)
        monkeypatch.setattr(push, "_EACH_PRICED", 0.05)
        async with venue() as simulator:
            simulator.accounts[OTHER].positions = [bitcoin()]
            async with watching(simulator, account_index=OTHER) as open_one, watching(simulator) as flat:
                await open_one.balance()
                assert [await open_one.next() for _ in range(2)] == [Changed(), Changed()]
                await flat.balance()
                quiet = asyncio.ensure_future(anext(flat.items))
                await asyncio.sleep(0.2)
                assert not quiet.done()
                quiet.cancel()
                await asyncio.wait({quiet})

    def test_many_accounts_with_positions_are_left_to_the_services_slow_reads(self) -> None:
        priced = push._Priced()
        pauses = []
        with ExitStack() as watched:
            for _ in range(160):
                pauses.append(priced.pause())
                watched.enter_context(priced.counted())
        assert pauses[0] is not None
        assert 8 <= pauses[0] <= 12
        assert pauses[100] is not None
        assert 160 <= pauses[100] <= 240
        assert pauses[159] is None


class TestSeveralUsers:
    """One connection carries all, and nobody sees another's."""

    @pytest.mark.parametrize(
        "fault",
        [
            PushFault(to_everybody=True),
            PushFault(to_everybody=True, shuffled=3),
            PushFault(to_everybody=True, shuffled=4, replay=True),
        ],
        ids=["to everybody", "shuffled", "shuffled and replayed"],
    )
    async def test_two_users_on_one_connection_get_their_own_amounts(self, fault: PushFault) -> None:
        state = State()
        async with (
            venue() as simulator,
            watching(simulator, plugin_state=state) as one,
            watching(simulator, plugin_state=state, account_index=OTHER) as other,
        ):
            await one.balance()
            await other.balance()
            assert len(simulator.push.clients) == 1
            simulator.push.fail(fault)
            shown: tuple[list[Any], list[Any]] = ([], [])
            collecting = [asyncio.ensure_future(one.collect(shown[0])), asyncio.ensure_future(other.collect(shown[1]))]
            step = 0
            while min(map(len, shown)) < 5:
                # Amounts of the first user are even, of the other one odd.
                step += 2
                simulator.accounts[MASTER].collateral = Decimal(2000 + step)
                simulator.accounts[OTHER].collateral = Decimal(2001 + step)
                simulator.publish(OTHER, MASTER)
                await asyncio.sleep(0.002)
            for task, items, odd in zip(collecting, shown, (0, 1), strict=True):
                task.cancel()
                assert {int(total or 0) % 2 for item in items for total in collateral(item).values()} == {odd}
            await asyncio.wait(collecting)
            await close_all(one, other)
        await state.close()

    async def test_one_users_nonsense_is_no_one_elses(self) -> None:
        state = State()
        async with (
            venue() as simulator,
            watching(simulator, plugin_state=state) as one,
            watching(simulator, plugin_state=state, account_index=OTHER) as other,
        ):
            await one.balance()
            await other.balance()
            broken = {"channel": f"user_stats:{OTHER}", "type": "update/user_stats", "stats": {"collateral": "a lot"}}
            simulator.push.publish(f"user_stats:{OTHER}", broken)
            assert isinstance(await other.error(), VenueMalformed)
            simulator.accounts[MASTER].collateral += 1
            simulator.publish(MASTER)
            assert await one.balance() == await read(simulator)
            await close_all(one, other)
        await state.close()

    async def test_a_channel_that_needs_a_token_ends_its_account_alone(self) -> None:
        state = State()
        async with (
            venue() as simulator,
            watching(simulator, plugin_state=state) as one,
            watching(simulator, plugin_state=state, account_index=OTHER) as other,
        ):
            await one.balance()
            simulator.channels.private.add("account_all")
            assert isinstance(await other.error(), NotSupported)
            simulator.accounts[MASTER].collateral += 1
            simulator.publish(MASTER)
            assert await one.balance() == await read(simulator)
            await close_all(one, other)
        await state.close()


async def close_all(*watches: Watching) -> None:
    for watched in watches:
        await watched.items.aclose()


class TestTrouble:
    """How a push breaks, and what it becomes."""

    async def test_messages_that_mean_nothing_are_passed_over(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            await watched.balance()
            for message in ({"type": "update/unknown", "channel": "unknown:1"}, {"type": "pong"}, {"type": 7}):
                simulator.push.publish(f"user_stats:{MASTER}", message)
            other = {"channel": f"user_stats:{OTHER}", "account": MASTER, "type": "update/user_stats", "stats": {}}
            simulator.push.publish(f"user_stats:{MASTER}", other)
            simulator.push.fail(PushFault.nonsense())
            simulator.accounts[MASTER].collateral += 1
            simulator.publish(MASTER)
            assert await watched.balance() == await read(simulator)

    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            (PushFault(silent=True), VenueTimeout),
            (PushFault(half_open=True), VenueError),
            (PushFault.oversized(), VenueMalformed),
        ],
        ids=["silent", "half open", "oversized"],
    )
    async def test_a_connection_that_fails_ends_the_watch(self, fault: PushFault, expected: type[VenueError]) -> None:
        async with venue() as simulator, watching(simulator, Hasty) as watched:
            await watched.balance()
            simulator.push.fail(fault)
            simulator.accounts[MASTER].collateral += 1
            simulator.publish(MASTER)
            assert isinstance(await watched.error(), expected)

    async def test_a_refused_connection_is_an_error(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            simulator.push.fail(PushFault(refused=503))
            assert isinstance(await watched.error(), VenueUnavailable)

    async def test_after_a_drop_there_is_no_value_until_everything_has_come_again(self) -> None:
        async with venue() as simulator, calling(simulator) as call:
            await fetch_balance(call)
            first = Watching(call, watch(call))
            await first.balance()
            simulator.push.drop_all()
            assert isinstance(await first.error(), VenueUnavailable)
            simulator.accounts[MASTER].collateral += 5
            simulator.channels.slow = True
            async with aclosing(watch(call)) as items:
                again = asyncio.ensure_future(anext(items))
                await until(lambda: simulator.channels.waiting == 4)
                assert not again.done()
                simulator.channels.acknowledge()
                assert await asyncio.wait_for(again, SOON) == await read(simulator)

    async def test_a_shutdown_is_announced_and_waited_for(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            await watched.balance()
            simulator.channels.shut_down(close_in_ms=9000)
            error = await watched.error()
            assert (type(error), error.retry_after) == (VenueUnavailable, 10.0)

    async def test_an_account_that_lighter_does_not_know_is_refused_in_time(self) -> None:
        class Impatient(LighterLanguage):
            acknowledging_limit = 0.2

        async with venue() as simulator, watching(simulator, Impatient) as watched:
            del simulator.accounts[SUB]
            assert isinstance(await watched.error(), VenueTimeout)

    async def test_a_wallet_with_an_account_of_an_unknown_kind_is_not_pushed(self) -> None:
        async with venue() as simulator, calling(simulator) as call:
            simulator.accounts[SUB].kind = 7
            await fetch_balance(call)
            async with aclosing(watch(call)) as items:
                with pytest.raises(NotSupported):
                    await anext(items)


class TestManners:
    """What a connection says, and what it leaves."""

    async def test_pings_are_answered_and_sent(self) -> None:
        async with venue() as simulator, watching(simulator, Quick) as watched:
            await watched.balance()
            simulator.channels.ping()
            said = simulator.push.clients[0].received
            await until(lambda: {"type": "pong"} in said and said.count({"type": "ping"}) >= 4)
            # A quiet account stays connected: Lighter's pongs are messages.
            assert not simulator.push.clients[0].closed

    async def test_the_end_of_a_watch_ends_its_subscriptions_and_leaves_no_task(self) -> None:
        before = asyncio.all_tasks()
        async with venue() as simulator:
            async with watching(simulator) as watched:
                await watched.balance()
                client = simulator.push.clients[0]
                await watched.items.aclose()
                await until(lambda: not client.topics)
            assert simulator.channels.refused == {}
        assert asyncio.all_tasks() == before

    async def test_a_connection_is_read_only(self) -> None:
        async with venue() as simulator, watching(simulator) as watched:
            await watched.balance()
            opened = [request for request in simulator.requests if request.path == "/stream"]
            assert [request.target for request in opened] == ["/stream?readonly=true"]
            assert {frame["type"] for frame in simulator.push.clients[0].received} == {"subscribe"}

    @pytest.mark.parametrize("deployment", ["lighter", "robinhood"])
    def test_each_deployment_has_its_own_address(self, deployment: str) -> None:
        name = {"lighter": "push", "robinhood": "robinhood push"}[deployment]
        for environment in LIGHTER.environments:
            reads = environment.urls[{"lighter": "api", "robinhood": "robinhood"}[deployment]]
            assert environment.urls[name] == reads.replace("https://", "wss://") + "/stream"

    async def test_many_accounts_wait_for_slow_acknowledgements_and_fill_two_connections(self) -> None:
        """300 accounts have 600 subscriptions: more than one connection carries, and than may wait at once."""
        simulator = LighterSimulator()
        simulator.add(*(SimulatedAccount(index, WALLET, collateral=Decimal(index)) for index in range(1, 301)))
        simulator.channels.slow = True
        simulator.channels.limits.messages = 10_000
        unhurried = replace(LIGHTER, push=replace(LIGHTER.push, messages=None))
        state = State()
        async with simulator, calling(simulator, plugin_state=state) as call:
            shared = replace(call, exchange=unhurried)
            watches = [one_of_many(shared, index) for index in range(1, 301)]
            firsts = [asyncio.ensure_future(anext(items)) for items in watches]
            await until(lambda: simulator.channels.acknowledge() >= 0 and all(first.done() for first in firsts))
            totals = [collateral(await first) for first in firsts]  # type: ignore[arg-type]
            assert totals == [{str(index): Decimal(index)} for index in range(1, 301)]
            assert [len(client.topics) for client in simulator.push.clients] == [500, 100]
            assert simulator.channels.refused == {}
            for items in watches:
                await items.aclose()
        await state.close()


def one_of_many(call: VenueCall, index: int) -> AsyncGenerator[Balance | Changed, None]:
    """A watch of one account that has been read."""
    credential = replace(call.credential, metadata={"account_index": index})
    own = replace(call, credential=credential, account_state=State())

    async def watched() -> AsyncGenerator[Balance | Changed, None]:
        await fetch_balance(own)
        async with aclosing(watch(own)) as items:
            async for item in items:
                yield item

    return watched()
