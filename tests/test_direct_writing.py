"""Streams whose messages are written without waking their tasks, where the transport can send at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.errors import ShuttingDown, SubscriberTooSlow
from exchange_service.grpc_server import turns
from exchange_service.grpc_server.turns import Deliveries
from exchange_service.grpc_server.write_limit import WriteLimit
from exchange_service.streams.clock import Clock
from exchange_service.streams.mailbox import Mailbox, MailboxSlot
from exchange_service.streams.subscription import Subscription
from exchange_service.streams.update import ErrorUpdate
from tests.harness import until

HEARTBEAT = b"heartbeat"


def balance(version: int) -> Any:
    """A balance whose event is its version."""
    told = str(version).encode()
    return SimpleNamespace(version=version, stale=None, replaces=None, fetch_time=0.0, event=lambda _: told)


@dataclass
class Transport:
    """A transport with room for so many messages; `written` are those that it took, `direct` how many of them were
    written without a wait."""

    room: int = 1_000
    written: list[bytes] = field(default_factory=list)
    direct: int = 0
    has_room: asyncio.Event = field(default_factory=asyncio.Event)

    def try_write(self, message: bytes) -> bool:
        if self.room == 0:
            return False
        self._take(message)
        self.direct += 1
        return True

    async def write(self, message: bytes) -> None:
        while self.room == 0:
            self.has_room.clear()
            await self.has_room.wait()
        self._take(message)

    def read(self, messages: int) -> None:
        """The subscriber reads so many."""
        self.room += messages
        self.has_room.set()

    def _take(self, message: bytes) -> None:
        self.room -= 1
        self.written.append(message)


@dataclass
class DirectStream:
    """One stream as the servicer runs it, with accounts that the test fills."""

    transport: Transport
    now: float = 0.0
    min_interval: float = 0.0
    write_seconds: float = 60.0
    # How often the task that reads the stream asked for an event.
    asked: int = 0

    def __post_init__(self) -> None:
        clock = Clock(wall=lambda: self.now, monotonic=lambda: self.now)
        self.mailbox = Mailbox(clock, self.min_interval)
        accounts = cast("Any", SimpleNamespace(heartbeat=lambda _: HEARTBEAT, refresh=_nothing, close=_nothing))
        self.subscription = Subscription(self.mailbox, accounts, clock, lifetime=1e6, heartbeat_interval=100.0)
        self.deliveries = Deliveries()

    def slot(self) -> MailboxSlot:
        return self.mailbox.add_slot()

    async def run(self) -> None:
        writer = WriteLimit(self.write_seconds).writer(cast("Any", self.transport))
        self.subscription.write_directly(writer.try_write, self.deliveries.soon)
        while True:
            self.asked += 1
            await writer.write(await self.subscription.next_event())


def _nothing() -> None:
    return None


async def settled() -> None:
    """Let everything happen that needs no time."""
    for _ in range(8):
        await asyncio.sleep(0)


async def begun(stream: DirectStream) -> asyncio.Task[None]:
    task = asyncio.create_task(stream.run())
    await settled()
    return task


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def test_a_message_that_can_be_sent_at_once_does_not_wake_the_streams_task() -> None:
    stream = DirectStream(Transport())
    task, slot = await begun(stream), stream.slot()
    for version in range(1, 6):
        slot.put_balance(balance(version))
        await settled()
    assert stream.transport.written == [b"1", b"2", b"3", b"4", b"5"]
    assert (stream.transport.direct, stream.asked) == (5, 1)
    await ended(task)


async def test_changes_before_its_turn_come_as_one_which_is_the_latest() -> None:
    stream = DirectStream(Transport())
    task, slot = await begun(stream), stream.slot()
    slot.put_balance(balance(1))
    slot.put_balance(balance(2))
    await settled()
    assert stream.transport.written == [b"2"]
    await ended(task)


async def test_a_balance_and_the_error_behind_it_stay_in_order() -> None:
    stream = DirectStream(Transport())
    task, slot = await begun(stream), stream.slot()
    slot.put_balance(balance(1))
    slot.put_error(ErrorUpdate(ShuttingDown("For the test."), b"error"))
    await settled()
    assert stream.transport.written == [b"1", b"error"]
    assert stream.transport.direct == 2
    await ended(task)


async def test_what_a_slow_subscriber_has_no_room_for_is_written_by_its_task_and_then_only_the_latest() -> None:
    stream = DirectStream(Transport(room=1))
    task, slot = await begun(stream), stream.slot()
    for version in range(1, 10):
        slot.put_balance(balance(version))
        await settled()
    assert stream.transport.written == [b"1"]
    stream.transport.read(5)
    await settled()
    assert stream.transport.written == [b"1", b"2", b"9"]
    # From then on it is as quick as ever.
    slot.put_balance(balance(10))
    await settled()
    assert stream.transport.written[3:] == [b"10"]
    assert stream.transport.direct == 2
    await ended(task)


async def test_a_subscriber_without_room_is_ended_when_the_write_takes_too_long() -> None:
    stream = DirectStream(Transport(room=0), write_seconds=0.01)
    task, slot = await begun(stream), stream.slot()
    slot.put_balance(balance(1))
    with pytest.raises(SubscriberTooSlow):
        await task


async def test_a_balance_is_held_back_for_its_interval_and_then_written_directly() -> None:
    stream = DirectStream(Transport(), min_interval=0.05)
    task, slot = await begun(stream), stream.slot()
    slot.put_balance(balance(1))
    await settled()
    slot.put_balance(balance(2))
    await settled()
    slot.put_balance(balance(3))
    await settled()
    assert stream.transport.written == [b"1"]
    stream.now = 0.05
    await until(lambda: stream.transport.written[1:] == [b"3"], "the balance that was held back")
    assert stream.asked == 1
    await ended(task)


async def test_a_heartbeat_comes_when_it_is_due_and_does_not_wake_the_streams_task() -> None:
    stream = DirectStream(Transport())
    task, slot = await begun(stream), stream.slot()
    stream.now = 100.0
    slot.put_balance(balance(1))
    await settled()
    assert stream.transport.written == [HEARTBEAT, b"1"]
    assert stream.asked == 1
    await ended(task)


async def test_a_stream_that_ends_writes_nothing_more() -> None:
    stream = DirectStream(Transport())
    task, slot = await begun(stream), stream.slot()
    slot.put_balance(balance(1))
    stream.subscription.end(ShuttingDown("For the test."))
    with pytest.raises(ShuttingDown):
        await task
    slot.put_balance(balance(2))
    stream.subscription.close()
    await settled()
    assert stream.transport.written == []


async def test_an_event_that_cannot_be_made_ends_its_stream_and_no_other() -> None:
    broken, whole = DirectStream(Transport()), DirectStream(Transport())
    whole.deliveries = broken.deliveries
    failing, going = await begun(broken), await begun(whole)
    update = balance(1)
    update.event = lambda _: {}["missing"]
    broken.slot().put_balance(update)
    whole.slot().put_balance(balance(1))
    with pytest.raises(KeyError):
        await failing
    assert whole.transport.written == [b"1"]
    await ended(going)


async def test_a_thousand_streams_are_written_to_in_turn_in_rounds_that_end_when_their_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = [0.0]
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: time[0]))
    order, rounds = list[int](), [0]

    class Numbered:
        def __init__(self, number: int) -> None:
            self._number = number

        def deliver(self) -> None:
            time[0] += turns._DELIVERING / 10
            order.append(self._number)
            rounds[-1] += 1

    deliveries = Deliveries()
    for number in range(1000):
        deliveries.soon(Numbered(number))
    while len(order) < 1000:
        await asyncio.sleep(0)
        rounds.append(0)
    assert order == list(range(1000))
    assert max(rounds) <= 11


ACTIONS = st.one_of(
    st.tuples(st.just("balance"), st.integers(0, 2)),
    st.tuples(st.just("error"), st.integers(0, 2)),
    st.tuples(st.just("read"), st.integers(1, 3)),
    st.tuples(st.just("time"), st.integers(1, 120)),
    st.tuples(st.just("rounds"), st.integers(1, 4)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([0.0, 5.0]), st.integers(0, 3))
def test_whatever_the_subscriber_reads_no_version_goes_back_and_the_last_state_arrives(
    actions: list[tuple[str, int]], min_interval: float, room: int
) -> None:
    asyncio.run(_play(actions, min_interval, room))


async def _play(actions: list[tuple[str, int]], min_interval: float, room: int) -> None:
    stream = DirectStream(Transport(room=room), min_interval=min_interval)
    task, slots = await begun(stream), [stream.slot() for _ in range(3)]
    last = [b""] * 3
    for number, (action, argument) in enumerate(actions, start=1):
        if action == "balance":
            last[argument] = f"{argument}:{number}".encode()
            update = balance(number)
            update.event = lambda _, told=last[argument]: told
            slots[argument].put_balance(update)
        elif action == "error":
            last[argument] = f"{argument}:{number} error".encode()
            slots[argument].put_error(ErrorUpdate(ShuttingDown("For the test."), last[argument]))
        elif action == "read":
            stream.transport.read(argument)
        elif action == "time":
            stream.now += argument
        else:
            for _ in range(argument):
                await asyncio.sleep(0)
    stream.transport.read(1_000)
    await settled()
    stream.now += 10.0
    stream.mailbox._on_timer()
    await settled()
    await ended(task)
    for account in range(3):
        events = [event for event in stream.transport.written if event.startswith(f"{account}:".encode())]
        versions = [int(event.split()[0].partition(b":")[2]) for event in events if not event.endswith(b"error")]
        assert versions == sorted(set(versions))
        assert events[-1:] == ([last[account]] if last[account] else [])
