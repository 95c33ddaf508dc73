"""The part of the contract about a listing that pushes: what a watch yields, and how it ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from exchange_service.plugin_api import AssetBalance, Balance, Changed, Http, Socket, VenueCall, VenueError
from exchange_service.testing.balance_contract import figures
from exchange_service.testing.calling_contract import GRACE, CallingContract
from exchange_service.testing.push import PushFault
from exchange_service.testing.venue import DemoVenue, Fault, LoopbackVenue

# Seconds that a pushed change may take, and without an item after which nothing more is expected.
_IN_TIME = 5.0
_QUIET = 0.1
# Seconds of silence of a venue after which the suite's `call.http` says so.
_SILENCE = 0.5
# Changes of a flood, and seconds of processor for which nothing else may have its turn meanwhile.
_FLOOD = 300
_LONGEST_TURN = 0.5


class PushContract(CallingContract):
    """Follows an account as the service does, and lets the venue's pushes break. A class whose listing does not push
    has none of these tests."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "plugin" in vars(cls) and not _pushes(cls.plugin, cls.exchange_id):
            for name in _tests():
                setattr(cls, name, None)

    def change(self, venue: Any) -> None:
        """Change the figures of the good account, so that the venue pushes. A `DemoVenue` moves."""
        assert isinstance(venue, DemoVenue), "override `change`: this simulator does not play in the demo"
        for _ in range(venue.moves_to_a_push):
            venue.move()

    @pytest.mark.asyncio
    async def test_a_watch_begins_once_it_stands(self) -> None:
        async with self._open_venue() as (venue, row), self._follow(venue, row) as watch:
            balance = await watch.first()
            if isinstance(balance, Changed):
                balance = await self._fetch(watch.call)
            self._assert_well_formed(balance)

    @pytest.mark.asyncio
    async def test_a_change_is_pushed_as_it_is_read(self) -> None:
        async with self._open_venue() as (venue, row), self._follow(venue, row) as watch:
            before = await self._begin(watch)
            self.change(venue)
            await self._assert_arrives(watch, before)

    @pytest.mark.asyncio
    async def test_a_watch_that_is_closed_leaves_nothing_behind(self) -> None:
        async with self._open_venue() as (venue, row), self._watched_call(venue, row) as call:
            await self._fetch(call)
            watch = self._load_hooks().watch_balance(call=call)
            async with asyncio.timeout(_IN_TIME + GRACE):
                await anext(watch)
                await watch.aclose()
                await call.account_state.close()
                await call.plugin_state.close()
            await _wait_until(lambda: not venue.push.clients, "a socket is open after a watch has been closed")

    @pytest.mark.asyncio
    @pytest.mark.parametrize("opening", [True, False], ids=["while it opens", "while it follows"])
    async def test_a_cancelled_watch_ends_at_once(self, opening: bool) -> None:
        async with self._open_venue() as (venue, row), self._follow(venue, row) as watch:
            if opening:
                before = len(venue.requests)
                venue.fail(Fault(silent=True))
                await _wait_until(lambda: len(venue.requests) > before, "a watch sends no request")
            else:
                await watch.first()
            watch.task.cancel()
            done, _ = await asyncio.wait({watch.task}, timeout=GRACE)
            assert done, "a watch does not end when it is cancelled"
            assert watch.task.cancelled(), f"a cancelled watch ended with {watch.task.exception()!r}"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("how", ["drop", "oversized", "silent"])
    async def test_a_push_that_breaks_ends_the_watch_in_time(self, how: str) -> None:
        async with self._open_venue() as (venue, row), self._follow(venue, row, silence=_SILENCE) as watch:
            await self._begin(watch)
            if how == "silent" and not watch.http.opened:
                # It opens its connections by a library's own means, and watches them by these.
                return
            if how == "drop":
                venue.push.drop_all()
            else:
                venue.push.fail(PushFault.oversized() if how == "oversized" else PushFault(silent=True))
                self.change(venue)
            error = await watch.ends(f"after this fault of its pushes: {how}")
            self._assert_safe_to_show(error, venue)
            assert error.transient, f"a push that broke ({how}) became {type(error).__name__}"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("status", [401, 429, 503])
    async def test_a_refused_push_is_an_error_of_the_venue(self, status: int) -> None:
        async with self._open_venue() as (venue, row), self._follow(venue, row) as watch:
            venue.push.fail(PushFault(refused=status))
            self._assert_safe_to_show(await watch.ends(f"at a refused push (HTTP {status})"), venue)

    @pytest.mark.asyncio
    async def test_nonsense_among_the_pushes_is_never_a_balance(self) -> None:
        async with self._open_venue() as (venue, row), self._follow(venue, row) as watch:
            before = await self._begin(watch)
            venue.push.fail(PushFault.nonsense())
            self.change(venue)
            await watch.settle()
            # And once more with nothing behind it.
            for client in venue.push.clients:
                for noise in venue.push.fault.before:
                    client.send(noise)
            await watch.settle()
            if watch.error is not None:
                self._assert_safe_to_show(watch.error, venue)
            assert watch.items or watch.error, "after nonsense among its pushes a watch goes on and yields nothing"
            _assert_only(watch.balances, [before, await self._fetch(watch.call)], "nonsense among its pushes")

    @pytest.mark.asyncio
    @pytest.mark.parametrize("shared", [True, False], ids=["one connection", "two connections"])
    async def test_what_another_account_is_pushed_never_reaches_this_one(self, shared: bool) -> None:
        async with self._open_venue() as (venue, row):
            other_row = venue.other_credential() if isinstance(venue, DemoVenue) else None
            if other_row is None:
                # The simulator has no second account.
                return
            async with self._follow(venue, row) as watch:
                beside = watch.call if shared else None
                async with self._follow(venue, other_row, beside=beside) as other:
                    await self._mix_up(venue, watch, other)

    async def _mix_up(self, venue: LoopbackVenue, watch: _Watch, other: _Watch) -> None:
        read = [await self._begin(watch)], [await self._begin(other)]
        venue.push.fail(PushFault(to_everybody=True, replay=True))
        for _ in range(3):
            self.change(venue)
            read[0].append(await self._fetch(watch.call))
            read[1].append(await self._fetch(other.call))
        await watch.settle()
        await other.settle()
        _assert_only(watch.balances, read[0], "another account's pushes")
        _assert_only(other.balances, read[1], "another account's pushes")

    @pytest.mark.asyncio
    async def test_a_flood_ends_in_the_last_figures_and_lets_others_go_on(self) -> None:
        async with self._open_venue() as (venue, row), self._follow(venue, row) as watch:
            before = await self._begin(watch)
            turns = asyncio.create_task(_longest_turn())
            try:
                for _ in range(_FLOOD):
                    self.change(venue)
                await self._assert_arrives(watch, before)
            finally:
                longest = await _stop(turns)
            assert longest < _LONGEST_TURN, f"a flood of pushes holds the event loop for {longest:.1f} s"

    @pytest.mark.asyncio
    async def test_following_never_blocks_the_event_loop(self) -> None:
        blockbuster = pytest.importorskip("blockbuster", reason="blockbuster is not installed: pip install blockbuster")
        async with self._open_venue() as (venue, row), self._follow(venue, row) as watch:
            with blockbuster.blockbuster_ctx([self.plugin]):
                before = await self._begin(watch)
                self.change(venue)
                await self._assert_arrives(watch, before)

    async def _begin(self, watch: _Watch) -> Balance:
        """What the account holds once the watch stands, read as the service reads it then."""
        await watch.first()
        before = await self._fetch(watch.call)
        await watch.settle()
        watch.items.clear()
        return before

    async def _assert_arrives(self, watch: _Watch, before: Balance) -> None:
        """Wait until the watch has yielded a hint, or the figures as they are read now."""
        after = figures(await self._fetch(watch.call))
        assert after != figures(before), "`change` changes no figure of the good account"
        found = lambda item: isinstance(item, Changed) or figures(item) == after  # noqa: E731
        await watch.wait_for(found, "a change is not pushed, or as other figures than those that are read")

    @asynccontextmanager
    async def _watched_call(self, venue: LoopbackVenue, row: Mapping[str, Any]) -> AsyncIterator[VenueCall]:
        # A watch has no deadline.
        async with self._open_call(venue, row, timeout=60.0) as call:
            yield replace(call, deadline=math.inf)

    @asynccontextmanager
    async def _follow(
        self,
        venue: LoopbackVenue,
        row: Mapping[str, Any],
        *,
        silence: float = math.inf,
        beside: VenueCall | None = None,
    ) -> AsyncIterator[_Watch]:
        """A watch that runs from the next turn of the loop on; as in the service, the account has been read before.
        `beside` is a call whose account has the same plugin state."""
        async with self._watched_call(venue, row) as call:
            http = _ImpatientHttp(call.http, silence)
            shared = call.plugin_state if beside is None else beside.plugin_state
            watch = _Watch(replace(call, http=http, plugin_state=shared), http)
            await self._fetch(watch.call)
            watch.task = asyncio.create_task(watch.run(self._load_hooks()), name="the suite's watch")
            try:
                yield watch
            finally:
                watch.task.cancel()
                await asyncio.wait({watch.task}, timeout=GRACE)
                assert watch.task.done(), "a watch does not end when it is closed"
                if not watch.task.cancelled():
                    watch.task.result()


class _ImpatientHttp:
    """A session that takes a venue for silent after `silence` seconds, if the plugin would wait longer."""

    def __init__(self, http: Http, silence: float) -> None:
        self._http = http
        self._silence = silence
        # Whether the plugin has opened a connection for pushes by it.
        self.opened = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._http, name)

    def websocket(self, url: str, *, silence: float = 60.0, **options: Any) -> AbstractAsyncContextManager[Socket]:
        self.opened = True
        return self._http.websocket(url, silence=min(silence, self._silence), **options)

    def lines(
        self, url: str, *, silence: float = 60.0, **options: Any
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        self.opened = True
        return self._http.lines(url, silence=min(silence, self._silence), **options)


class _Watch:
    """A watch that runs, and what it has yielded."""

    def __init__(self, call: VenueCall, http: _ImpatientHttp) -> None:
        self.call = call
        self.http = http
        self.task: asyncio.Task[None]
        self.items: list[Balance | Changed] = []
        self.error: VenueError | None = None
        self._news = asyncio.Event()

    @property
    def balances(self) -> list[Balance]:
        """The whole balances that it has yielded."""
        return [item for item in self.items if isinstance(item, Balance)]

    async def run(self, hooks: Any) -> None:
        """Follow to the end. Any exception but a VenueError fails the test."""
        try:
            async with aclosing(hooks.watch_balance(call=self.call)) as watch:
                async for item in watch:
                    kind = type(item).__name__
                    assert isinstance(item, Balance | Changed), f"watch_balance yielded {kind}, not Balance or Changed"
                    self.items.append(item)
                    self._news.set()
        except VenueError as error:
            self.error = error
        finally:
            self._news.set()

    async def first(self) -> Balance | Changed:
        """What it yields first."""
        await self.wait_for(
            lambda item: True,
            "a watch yields nothing: nothing acknowledges its subscription, or no state of it is whole",
        )
        return self.items[0]

    async def wait_for(self, found: Callable[[Any], bool], otherwise: str) -> None:
        """Return when it has yielded an item like this."""
        end = time.monotonic() + _IN_TIME + GRACE
        while not any(found(item) for item in self.items):
            if self.task.done():
                # An exception that the suite does not expect of a watch is raised here as it is.
                self.task.result()
                raise AssertionError(f"a watch ended with {self.error!r}" if self.error else "a watch just ended")
            assert time.monotonic() < end, f"{otherwise}: it yielded {len(self.items)} items"
            self._news.clear()
            await _wait_for(self._news, _QUIET)

    async def settle(self) -> None:
        """Return when nothing more comes."""
        end = time.monotonic() + _IN_TIME
        self._news.clear()
        while not self.task.done() and await _wait_for(self._news, _QUIET):
            assert time.monotonic() < end, "a watch goes on to yield although nothing changes"
            self._news.clear()

    async def ends(self, when: str) -> VenueError:
        """The VenueError that it ends with."""
        await asyncio.wait({self.task}, timeout=_IN_TIME + GRACE)
        assert self.task.done(), f"a watch goes on {when}"
        self.task.result()
        assert self.error is not None, f"a watch just ended {when}: it must raise a VenueError"
        return self.error


def _pushes(plugin: Any, exchange_id: str) -> bool:
    """Whether the listing says that it pushes; true if that cannot be known, so that the tests tell why."""
    try:
        listed = {exchange.id: exchange for exchange in plugin.exchange_manifest().exchanges}
        return bool(listed[exchange_id].capabilities.push)
    # Whatever a plugin's manifest may raise.
    except Exception:
        return True


def _tests() -> Iterator[str]:
    return (name for name in vars(PushContract) if name.startswith("test_"))


def _assert_only(balances: list[Balance], read: list[Balance], when: str) -> None:
    """Check that each row that was pushed is one that was read at some time, and that none lacks that was always read.
    Between two messages of one change some rows are new already, and others not yet."""
    known = {row for balance in read for row in _rows(balance)}
    always = set.intersection(*({_name(row) for row in _rows(balance)} for balance in read))
    for balance in balances:
        rows = set(_rows(balance))
        assert rows <= known, f"{when} became a balance that was never read: {rows - known}"
        lost = always - {_name(row) for row in rows}
        assert not lost, f"{when} became a balance that lacks {lost}"


def _rows(balance: Balance) -> Iterator[tuple[Any, AssetBalance]]:
    return ((account.identity, row) for account, row in balance.rows())


def _name(row: tuple[Any, AssetBalance]) -> tuple[Any, ...]:
    identity, asset = row
    return identity, *asset.identity


async def _longest_turn() -> float:
    """The most seconds of processor between two turns of the event loop, until it is cancelled."""
    longest, last = 0.0, time.thread_time()
    try:
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
            await asyncio.sleep(0.001)
            last = time.thread_time()
    except asyncio.CancelledError:
        return longest


async def _stop(task: asyncio.Task[float]) -> float:
    task.cancel()
    return await task


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event comes within the time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    for _ in range(300):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(otherwise)
