"""How often an identity may call, counted in windows; with a Redis all replicas count together.

Each process counts for itself and refuses without asking Redis. It reserves permits in Redis in small batches, so that
most calls do not wait. If Redis does not answer, the process grants the whole allowance by its own count.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from exchange_service.errors import CallerRateLimited
from exchange_service.identity import Identity, Kind, Scope
from exchange_service.recently_used import RecentlyUsed

# A process prefetches one part in so many of a window's permits at once.
BATCHES = 20
_MAX_WINDOWS = 50_000


class Action(StrEnum):
    """What is counted. Opening a stream does not count as a call: after its restart a service opens thousands at
    once. It counts once for each account that it selects."""

    CALL = "calls a second"
    OPENING = "new streams a second"
    REFRESH = "forced refreshes a minute"
    CHANGE = "account changes a minute"
    # Of one account and not of a caller.
    TRY = "refused attempts for this account a minute"

    @property
    def window(self) -> int:
        """The length of the action's windows in seconds."""
        return 60 if self in (Action.REFRESH, Action.CHANGE, Action.TRY) else 1


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an identity of one kind may do: calls a second, forced refreshes a minute, streams open at once, and
    accounts that are connected, checked or removed in a minute."""

    calls: int
    refreshes: int
    streams: int
    changes: int = 20

    def of(self, action: Action) -> int:
        """The number of permits in a window. All streams that may be open at once may also be opened at once."""
        if action is Action.OPENING:
            return max(self.calls, self.streams)
        if action in (Action.CHANGE, Action.TRY):
            return self.changes
        return self.calls if action is Action.CALL else self.refreshes


class QuotaStore(Protocol):
    """The permits that all replicas share."""

    async def take(self, key: str, action: Action, limit: int, count: int) -> bool | None:
        """Take `count` of the window's `limit` permits; False if they are not left, None if the store does not
        answer."""


@dataclass(slots=True)
class _Window:
    """The permits that this process has for one identity and action, and how many are used. Times are the event loop's;
    more permits are not requested before `request_after`."""

    ends: float
    granted: int = 0
    used: int = 0
    request_after: float = 0.0
    # Whether a stream's selectors were counted in it.
    selected: bool = False
    requesting: asyncio.Lock = field(default_factory=asyncio.Lock)


def _refusal(window: _Window, action: Action, limit: int) -> CallerRateLimited:
    left = max(0.05, min(window.ends, window.request_after) - asyncio.get_running_loop().time())
    return CallerRateLimited(f"This caller may have {limit} {action.value}.", retry_after=left)


class Quotas:
    """Counts what identities do. `shared` is None if there is only one process."""

    def __init__(
        self, allowances: Mapping[Kind, Allowance], *, shared: QuotaStore | None = None, hash_key: bytes = b""
    ) -> None:
        self._allowances = dict(allowances)
        self._shared = shared
        self._hash_key = hash_key
        self._windows: RecentlyUsed[tuple[Action, str], _Window] = RecentlyUsed(_MAX_WINDOWS)
        self._streams: dict[str, int] = {}

    def take_local(self, identity: Identity, action: Action, now: float) -> bool:
        """Count the action if this process has a permit for it; False if `take` must decide. `now` is the event loop's
        time."""
        if self._allowances.get(identity.kind) is None:
            return True
        window = self._windows.get((action, identity.name))
        if window is None or window.used >= window.granted or now >= window.ends:
            return False
        window.used += 1
        return True

    async def take(self, identity: Identity, action: Action) -> None:
        """Count the action. Raises CallerRateLimited with the time until more permits are possible."""
        allowance = self._allowances.get(identity.kind)
        if allowance is None:
            return
        limit, window = allowance.of(action), self._window(identity, action)
        await self._prefetch(window, identity, action, limit, 1)
        if window.used >= window.granted:
            raise _refusal(window, action, limit)
        window.used += 1

    def give_back(self, identity: Identity, action: Action) -> None:
        """Take back an action that was counted and not done. If its window has ended meanwhile, the one after it has
        one action more."""
        window = self._windows.get((action, identity.name))
        if window is not None and window.used:
            window.used -= 1

    async def take_selectors(self, identity: Identity, count: int) -> None:
        """Count what a stream selects beyond its first account. Raises CallerRateLimited as `take`.

        The first stream of a window is never refused, whatever it selects: several that are opened at once would else
        refuse each other, again and again."""
        allowance = self._allowances.get(identity.kind)
        if allowance is None:
            return
        action = Action.OPENING
        limit, window = allowance.of(action), self._window(identity, action)
        # More than a window has take all of it but one, which the call that brings them has taken already.
        count = min(count, limit - 1)
        await self._prefetch(window, identity, action, limit, count)
        if window.selected and window.used + count > window.granted:
            raise _refusal(window, action, limit)
        window.selected = True
        window.used = min(window.used + count, window.granted)

    def _window(self, identity: Identity, action: Action) -> _Window:
        key = (action, identity.name)
        now = asyncio.get_running_loop().time()
        window = self._windows.get(key)
        if window is None or now >= window.ends:
            self._windows[key] = window = _Window(now + action.window)
        return window

    async def _prefetch(self, window: _Window, identity: Identity, action: Action, limit: int, count: int) -> None:
        """Let the window have permits for `count` more, if there are as many."""
        clock = asyncio.get_running_loop().time
        if window.used + count > window.granted and clock() >= window.request_after:
            async with window.requesting:
                # Another call may have requested permits while this one waited for the lock.
                if window.used + count > window.granted and clock() >= window.request_after:
                    await self._request(window, identity, action, limit, window.used + count - window.granted)

    async def _request(self, window: _Window, identity: Identity, action: Action, limit: int, least: int) -> None:
        """Prefetch a batch of the permits that replicas share, `least` or more; grant the whole limit if this process
        counts alone."""
        batch = max(least, limit // BATCHES)
        taken = None
        if self._shared is not None:
            taken = await self._shared.take(self._key(identity), action, limit, batch)
        if taken is None:
            window.granted = limit
        elif taken:
            # Never more than the limit, also if the batches come from two of Redis's windows.
            window.granted = min(limit, window.granted + batch)
        else:
            # Redis's window is not the same as this one, and may end at any moment.
            window.request_after = asyncio.get_running_loop().time() + action.window / BATCHES
        if window.granted >= limit:
            window.request_after = window.ends

    def _key(self, identity: Identity) -> str:
        """A keyed hash: keys in Redis must not reveal identities."""
        return hmac.new(self._hash_key, identity.name.encode(), hashlib.sha256).hexdigest()

    def open_stream(self, identity: Identity) -> Callable[[], None]:
        """Count an open stream of this process, or raise CallerRateLimited; the returned function releases it."""
        allowance, name = self._allowances.get(identity.kind), identity.name
        count = self._streams.get(name, 0)
        if allowance is not None and count >= allowance.streams:
            raise CallerRateLimited(
                f"This caller may have {allowance.streams} streams open at once.",
                advice="Close one before opening another.",
            )
        self._streams[name] = count + 1
        return lambda: self._close_stream(name)

    def _close_stream(self, name: str) -> None:
        self._streams[name] -= 1
        if not self._streams[name]:
            del self._streams[name]


class AccountAttempts:
    """How often a venue may refuse one account's credential, for all callers together: venues lock accounts after a
    few wrong keys.

    An attempt is counted before it begins, and taken back if the venue did not refuse.
    """

    def __init__(self, limit: int, shared: QuotaStore | None, hash_key: bytes) -> None:
        """`limit` is the number of refused attempts in a minute."""
        self._quotas = Quotas({Kind.USER: Allowance(limit, limit, limit, limit)}, shared=shared, hash_key=hash_key)

    async def take(self, account: str) -> None:
        """Count an attempt for the account that this text names. Raises CallerRateLimited with the delay."""
        await self._quotas.take(_as_identity(account), Action.TRY)

    def give_back(self, account: str) -> None:
        """The venue did not refuse the attempt."""
        self._quotas.give_back(_as_identity(account), Action.TRY)


def _as_identity(account: str) -> Identity:
    return Identity(f"account {account}", Kind.USER, Scope())
