"""How often an identity may call, counted in windows; with a Redis all replicas count together.

Each process counts for itself and refuses without asking anybody. What it counts up to it takes from Redis in small
lots, so that most calls wait for nobody; where Redis does not answer, its own count is all there is.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from exchange_service.errors import CallerRateLimited
from exchange_service.identity import Identity, Kind

# The share of a window's allowance that a process takes at once.
_LOTS = 20
_MAX_WINDOWS = 50_000


class Action(Enum):
    """What is counted. Opening a stream is none of the calls: after a restart a service opens thousands at once."""

    CALL = "calls a second"
    OPENING = "new streams a second"
    REFRESH = "forced refreshes a minute"

    @property
    def window(self) -> int:
        """In windows of how many seconds."""
        return 60 if self is Action.REFRESH else 1


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an identity of one kind may do: calls a second, forced refreshes a minute, streams open at once."""

    calls: int
    refreshes: int
    streams: int

    def of(self, action: Action) -> int:
        """How many in a window. All streams that may be open may be opened at once."""
        if action is Action.OPENING:
            return max(self.calls, self.streams)
        return self.calls if action is Action.CALL else self.refreshes


class SharedCount(Protocol):
    """What all replicas have counted."""

    async def take(self, key: str, action: Action, limit: int, count: int) -> bool | None:
        """Take `count` of the window's `limit`; False where they are not left, None where nobody knows."""

    async def close(self) -> None:
        """Release what it holds."""


@dataclass(slots=True)
class _Window:
    """What this process has given out of an identity's allowance; times are the event loop's. `asks`: from when on
    it is worth asking for more."""

    ends: float
    granted: int = 0
    used: int = 0
    asks: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quotas:
    """Counts what identities do. `shared` is None where there is one process only."""

    def __init__(
        self, allowances: Mapping[Kind, Allowance], *, shared: SharedCount | None = None, hash_key: bytes = b""
    ) -> None:
        self._allowances = dict(allowances)
        self._shared = shared
        self._hash_key = hash_key
        self._windows: OrderedDict[tuple[Action, str], _Window] = OrderedDict()
        self._streams: dict[str, int] = {}

    def take_local(self, identity: Identity, action: Action) -> bool:
        """Count it where that needs no question and there is room; False where `take` is to be asked."""
        if self._allowances.get(identity.kind) is None:
            return True
        window = self._windows.get((action, identity.name))
        if window is None or window.used >= window.granted or asyncio.get_running_loop().time() >= window.ends:
            return False
        window.used += 1
        return True

    async def take(self, identity: Identity, action: Action) -> None:
        """Count it, or raise CallerRateLimited with the time until there may be more."""
        allowance = self._allowances.get(identity.kind)
        if allowance is None:
            return
        limit = allowance.of(action)
        window, clock = self._window(identity, action), asyncio.get_running_loop().time
        if window.used >= window.granted and clock() >= window.asks:
            async with window.asking:
                if window.used >= window.granted and clock() >= window.asks:
                    # No other call has asked while this one waited for its turn.
                    await self._grant(window, identity, action, limit)
        if window.used >= window.granted:
            left = max(0.05, min(window.ends, window.asks) - clock())
            raise CallerRateLimited(f"This caller may have {limit} {action.value}.", retry_after=left)
        window.used += 1

    def _window(self, identity: Identity, action: Action) -> _Window:
        key = (action, identity.name)
        now = asyncio.get_running_loop().time()
        window = self._windows.get(key)
        if window is None or now >= window.ends:
            self._windows[key] = window = _Window(now + action.window)
            self._windows.move_to_end(key)
            while len(self._windows) > _MAX_WINDOWS:
                self._windows.popitem(last=False)
        return window

    async def _grant(self, window: _Window, identity: Identity, action: Action, limit: int) -> None:
        """Take a lot of what all replicas may give out; all of it where this process counts alone."""
        lot = max(1, limit // _LOTS)
        taken = None
        if self._shared is not None:
            taken = await self._shared.take(self._key(identity), action, limit, lot)
        if taken is None:
            window.granted = limit
        elif taken:
            # Never more than the whole, also where the lots come from two of Redis's windows.
            window.granted = min(limit, window.granted + lot)
        else:
            # Redis's window is another than this one, and may end at any moment.
            window.asks = asyncio.get_running_loop().time() + action.window / _LOTS
        if window.granted >= limit:
            window.asks = window.ends

    def _key(self, identity: Identity) -> str:
        """It names nobody, as the keys of kept balances."""
        return hmac.new(self._hash_key, identity.name.encode(), hashlib.sha256).hexdigest()

    def open_stream(self, identity: Identity) -> Callable[[], None]:
        """Count an open stream of this process, or raise CallerRateLimited; what it gives ends the counting."""
        allowance, name = self._allowances.get(identity.kind), identity.name
        held = self._streams.get(name, 0)
        if allowance is not None and held >= allowance.streams:
            raise CallerRateLimited(
                f"This caller may have {allowance.streams} streams open at once.",
                advice="Close one before opening another.",
            )
        self._streams[name] = held + 1
        return lambda: self._close_stream(name)

    def _close_stream(self, name: str) -> None:
        self._streams[name] -= 1
        if not self._streams[name]:
            del self._streams[name]

    async def close(self) -> None:
        """Release the shared count."""
        if self._shared is not None:
            await self._shared.close()
