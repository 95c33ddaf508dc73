"""What exchange_service.proto promises of a stream, checked on the events that readers of every kind receive."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from exchange_service.balances.service import BalanceResult
from exchange_service.errors import CredentialMissing, CredentialRejected, ServiceError, VenueUnavailable
from exchange_service.model import Account
from exchange_service.streams.accounts import AccountDirectory, FollowedAccounts, Selector
from exchange_service.streams.clock import Clock
from exchange_service.streams.feed import Feed
from exchange_service.streams.feeds import Feeds
from exchange_service.streams.mailbox import Mailbox
from exchange_service.streams.subscription import Subscription
from exchange_service.v1.exchange_service_pb2 import StreamBalancesResponse
from exchange_service.wire.balances import fetched_balance
from exchange_service.wire.delivery import Delivery, PollingReason
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance, store_balance
from tests.harness import ScriptedPlugin, holding, registry_of

ACCOUNT = Account("alice", "fakex")
REGISTRY = registry_of(ScriptedPlugin())
BEGIN = 1_800_000_000.0
HEARTBEAT = 15.0


class NoWait:
    """A feed's source that has every read follow at once; the reads themselves wait for the test."""

    delivery = Delivery(PollingReason.NO_PUSH, 0.0)

    def __init__(self) -> None:
        self.waits = asyncio.Event()

    async def wait(self, result: BalanceResult | None, error: ServiceError | None) -> bool:
        self.waits.set()
        return True

    def read_now(self) -> None:
        """Every read follows at once."""

    def close(self) -> None:
        """There is nothing to release."""


@dataclass
class Reader:
    """One subscriber: what they have, and a check of every event against it."""

    subscription: Subscription
    mailbox: Mailbox
    scene: Scene
    # What they brought.
    known: int
    version: int
    # Whether the last event of the account is an error.
    has_error: bool
    log: list[str] = field(default_factory=list)

    async def read(self) -> str:
        """Take the next event that is there, which is a heartbeat if there is nothing else."""
        following = asyncio.ensure_future(self.subscription.next_event())
        # Two iterations of the loop, in which it takes what is there, or begins to wait.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not following.done():
            self.scene.now += HEARTBEAT + 1
            self.mailbox.wake()
        event = StreamBalancesResponse.FromString(await following)
        kind: str = event.WhichOneof("event")
        getattr(self, f"check_{kind}")(getattr(event, kind))
        self.log.append(kind)
        return kind

    def check_balance(self, event: Any) -> None:
        assert event.balance.version >= max(self.known, self.version)
        self.version, self.has_error = event.balance.version, False

    def check_account_error(self, event: Any) -> None:
        assert event.last_version >= self.known
        self.has_error = True

    def check_heartbeat(self, event: Any) -> None:
        (state,) = event.accounts
        # It names what the reader has: no balance that is still to come, and none that another replica has.
        assert state.version == self.version
        if state.HasField("error"):
            assert self.has_error
        else:
            assert state.catching_up or not self.has_error
        assert state.catching_up or self.scene.version >= self.known
        if state.HasField("age"):
            # Never younger than the last answer that held this version.
            held = self.scene.fetch_times[self.version]
            assert state.age.ToTimedelta().total_seconds() >= self.scene.wall() - held - 0.2


@dataclass
class Scene:
    """An account, its feed, and a venue whose answers the test decides."""

    now: float = 0.0
    version: int = 0
    readers: list[Reader] = field(default_factory=list)
    fetch_times: dict[int, float] = field(default_factory=dict)
    stored: StoredBalance | None = None

    def __post_init__(self) -> None:
        self.source = NoWait()
        self.answers: asyncio.Queue[Callable[[int], BalanceResult]] = asyncio.Queue()
        self.clock = Clock(self.wall, lambda: self.now)
        self.feeds = Feeds(
            lambda account, listing: Feed(account, self.next_answer, self.source, within_grace=lambda _: True)
        )
        self.totals = itertools.count(1)

    def wall(self) -> float:
        return BEGIN + self.now

    async def next_answer(self, current: StoredBalance | None, ask_venue: bool, known_version: int) -> BalanceResult:
        answer = await self.answers.get()
        return answer(known_version)

    async def answer(self, answer: Callable[[int], BalanceResult]) -> None:
        """Let the feed read this, and wait until it has."""
        self.source.waits.clear()
        self.answers.put_nowait(answer)
        await self.source.waits.wait()

    def store(self, known_version: int, *, changed: bool) -> StoredBalance:
        """The next balance of the venue, with a version as the cache's writer makes it."""
        total = next(self.totals) if changed or self.stored is None else None
        data = fetched_balance(holding(("BTC", str(total)))) if total is not None else None
        if data is not None:
            self.stored = store_balance(ACCOUNT, data, self.wall(), self.stored, known_version)
        assert self.stored is not None
        if data is None:
            self.stored = StoredBalance(ACCOUNT, self.stored.data, self.wall(), self.stored.version)
        self.version = self.stored.version
        self.fetch_times[self.version] = self.stored.fetch_time
        return self.stored


Step = Callable[[Scene], Coroutine[Any, Any, None]]


def good(*, changed: bool, stale: ServiceError | None = None, asked_in: float | None = None) -> Step:
    async def step(scene: Scene) -> None:
        def answer(known_version: int) -> BalanceResult:
            must_change = changed or scene.version < known_version
            stored = scene.store(known_version, changed=must_change)
            return BalanceResult(stored, Source.VENUE, 0.0, stale, "key", asked_in)

        await scene.answer(answer)

    return step


def raced(scene: Scene) -> Coroutine[Any, Any, None]:
    """A read that was under way when a subscriber came with a newer version."""

    def answer(_: int) -> BalanceResult:
        return BalanceResult(scene.store(0, changed=True), Source.VENUE, 0.0, None, "key")

    return scene.answer(answer)


def failing(error: ServiceError) -> Step:
    async def step(scene: Scene) -> None:
        def answer(_: int) -> BalanceResult:
            if isinstance(error, CredentialMissing):
                scene.version, scene.stored = 0, None
            raise error

        await scene.answer(answer)

    return step


def late() -> ServiceError:
    error = VenueUnavailable("Our requests are used up.")
    error.late = True
    return error


def passing(seconds: float) -> Step:
    async def step(scene: Scene) -> None:
        scene.now += seconds

    return step


def reading(which: int, events: int) -> Step:
    async def step(scene: Scene) -> None:
        reader = scene.readers[which % len(scene.readers)]
        for _ in range(events):
            await reader.read()

    return step


def draining(which: int) -> Step:
    async def step(scene: Scene) -> None:
        await read_everything(scene, scene.readers[which % len(scene.readers)])

    return step


def joining(min_interval: float, ahead: int | None, error: bool) -> Step:
    """A reader comes: with a version that is so far ahead of this replica's, or None for no version at all."""

    async def step(scene: Scene) -> None:
        await join(scene, min_interval, 0 if ahead is None else max(0, scene.version + ahead), error)

    return step


async def no_accounts(user_id: str) -> list[Account]:
    return []


async def join(scene: Scene, min_interval: float, known: int, error: bool) -> None:
    mailbox = Mailbox(scene.clock, min_interval)
    directory = AccountDirectory(REGISTRY, no_accounts)
    accounts = FollowedAccounts("alice", directory, scene.feeds, mailbox)
    subscription = Subscription(mailbox, accounts, scene.clock, lifetime=1e9, heartbeat_interval=HEARTBEAT)
    await subscription.open([Selector("fakex", known_version=known, unconfirmed=error)])
    reader = Reader(subscription, mailbox, scene, known, known, error)
    if known or error:
        assert await reader.read() == "heartbeat"
    scene.readers.append(reader)


GONE = failing(CredentialMissing("Gone."))
DOWN = failing(VenueUnavailable("It is down."))
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.sampled_from(
        [
            good(changed=True),
            good(changed=False),
            good(changed=True, stale=VenueUnavailable("It is down.")),
            good(changed=False, stale=VenueUnavailable("It is down.")),
            good(changed=True, stale=late()),
            good(changed=False, stale=late()),
            good(changed=False, stale=CredentialRejected("Refused."), asked_in=2.0),
            raced,
            raced,
            DOWN,
            failing(CredentialRejected("Refused.")),
            GONE,
            failing(late()),
        ]
    ),
    st.builds(passing, st.sampled_from([0.05, 3.0, 20.0])),
    st.builds(reading, st.integers(0, 3), st.integers(1, 3)),
    st.builds(draining, st.integers(0, 3)),
    st.builds(joining, st.sampled_from([0.0, 10.0]), st.sampled_from([None, -1, 0, 1, 60_000_000]), st.booleans()),
)


async def play(steps: list[Step]) -> None:
    scene = Scene()
    await join(scene, 0.0, 0, False)
    await join(scene, 10.0, 0, False)
    try:
        for step in steps:
            await step(scene)
        # The first of these reads was under way before the last reader came.
        await good(changed=False)(scene)
        await good(changed=False)(scene)
        for reader in scene.readers:
            await read_everything(scene, reader)
            assert (reader.version, reader.has_error) == (scene.version, False)
    finally:
        for reader in scene.readers:
            reader.subscription.close()
        await scene.feeds.close()


async def read_everything(scene: Scene, reader: Reader) -> None:
    """Read until nothing is left. The reader then knows of the account's error, or has its newest balance."""
    scene.now += 100
    while True:
        kind = await reader.read()
        snapshot = reader.subscription.snapshot()
        if kind == "heartbeat" and not snapshot.pending and not snapshot.held:
            break
    feed = scene.feeds.snapshot()[ACCOUNT]
    if feed.error is not None:
        assert reader.has_error
    elif feed.version >= max(1, reader.known):
        assert (reader.version, reader.has_error) == (feed.version, False)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=25))
# What an unlucky run may miss: an unread error, an older read than a reader that has come since, and a recovery that is
# held back or late.
@example([GONE, GONE, draining(0)])
@example([good(changed=True), joining(0.0, 60_000_000, False), raced, draining(2)])
@example([good(changed=True), draining(1), DOWN, reading(1, 1), good(changed=True), reading(1, 2)])
@example([good(changed=True), draining(0), DOWN, reading(0, 1), good(changed=True, stale=late()), reading(0, 2)])
def test_whatever_happens_each_reader_is_told_the_truth_in_order(steps: list[Step]) -> None:
    asyncio.run(play(steps))
