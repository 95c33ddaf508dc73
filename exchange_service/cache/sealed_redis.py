"""Sealed values in Redis: the one way by which the service reads and writes what it believes there.

Anybody who can write to Redis can delete a value or put an older one back until its time is over, and no more. Bytes
that are not ours count as missing, whatever they are: another kind of value, damaged ones, or too many of them, which
are never sent here. Nothing is ever counted or compared in Redis itself: a new value takes the place of exactly the one
that was read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import structlog
from redis.exceptions import ResponseError

from exchange_service import clock
from exchange_service.cache.redis_link import NoAnswer, RedisLink
from exchange_service.cache.sealing import HEAD, CacheSeal, Opened

T = TypeVar("T")

log = structlog.get_logger(__name__)

# The largest value: a balance as large as a reply can be, and some more.
_MOST_STORED = 2 * 1024 * 1024 + 4096
# One plain command reads values up to this length, as nearly all are, and costs less than a script.
_SHORT = 32 * 1024
# Seconds after which Redis is asked again what time it is there.
_CLOCK_EVERY = 10.0
# Times that a value is compared and written again because another replica was faster.
_MOST_TRIES = 16
# Of them those without a pause before, and what the pause grows by, in seconds.
_AT_ONCE = 3
_CONFLICT_PAUSE = 0.003
# Seconds after which no more is tried: that others write is no failure of Redis.
_PATIENCE = 0.15
# Seconds for which a message is believed, and for which it is remembered at least: it is believed once.
_MESSAGE_SECONDS = 10.0
_REMEMBERED = 20.0

# What is stored in the place of a value: the payload, and the seconds for which it is kept. None leaves what is there.
Replacement: TypeAlias = tuple[bytes, float] | None
# Gets what is there, or None if that is nothing of ours, and the time in Redis in seconds since the epoch.
Decide: TypeAlias = Callable[[Opened | None, float], Replacement]

# The values at KEYS, each False if it is missing, of another kind, or longer than ARGV[1].
_READ = """
local values = {}
for place, name in ipairs(KEYS) do
  values[place] = false
  if redis.call('TYPE', name).ok == 'string' and redis.call('STRLEN', name) <= tonumber(ARGV[1]) then
    values[place] = redis.call('GET', name)
  end
end
return values
"""
# Writes ARGV[2] for ARGV[3] milliseconds if the value begins with ARGV[1]; with an empty ARGV[1] if there is no value
# that could be ours: none, one of another kind, or one longer than ARGV[4]. Else returns the value.
_REPLACE = """
local stored = ''
if redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('STRLEN', KEYS[1]) <= tonumber(ARGV[4]) then
  stored = redis.call('GET', KEYS[1])
end
if #ARGV[1] == 0 then
  if #stored > 0 then return stored end
elseif string.sub(stored, 1, #ARGV[1]) ~= ARGV[1] then
  return stored
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
"""
# Removes the value if it begins with ARGV[1].
_REMOVE = """
if redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then
  return redis.call('UNLINK', KEYS[1])
end
return 0
"""


class Conflict(NoAnswer):
    """Others kept writing to the same name."""

    def __init__(self) -> None:
        super().__init__("Conflict")


class SealedRedis:
    """Payloads by key, each sealed for its name and for a time. Every method raises NoAnswer while Redis does not
    answer."""

    def __init__(self, link: RedisLink, hash_key: bytes, *, prefix: str) -> None:
        self.link = link
        self._redis = link.redis
        self._seal = CacheSeal(hash_key)
        self._prefix = f"{prefix}{self._seal.fingerprint}:"
        self._read = link.redis.register_script(_READ)
        self._replace = link.redis.register_script(_REPLACE)
        self._remove = link.redis.register_script(_REMOVE)
        # What Redis's clock is ahead of the event loop's, and when that was asked.
        self._clock_ahead = 0.0
        self._clock_asked = float("-inf")
        self._asking = asyncio.Lock()
        # Seconds by which this process's clock is ahead of Redis's, as far as is known, and whether that was logged.
        self.clock_difference = 0.0
        self._difference_logged = False
        # What the messages that were opened lately began with, since when these are gathered, and those from before.
        self._opened_messages: set[bytes] = set()
        self._opened_before: set[bytes] = set()
        self._opened_since = float("-inf")

    def name(self, key: str) -> str:
        """The name in Redis of the value at `key`, or of a channel."""
        return self._prefix + key

    async def get(self, key: str) -> bytes | None:
        """The payload at `key`; None if there is nothing of ours."""
        name = self.name(key)
        read = self._read_one
        if self._knows_the_time():
            value = await self.link.read(lambda: self._read_short(name))
            if value is not None:
                opened = self._open(name, value, asyncio.get_running_loop().time() + self._clock_ahead)
                return opened.payload if opened is not None else None
            read = self._read_long
        opened = await self.link.call(lambda: self._get(name, read))
        return opened.payload if opened is not None else None

    async def _get(self, name: str, read: Callable[[str], Awaitable[bytes]]) -> Opened | None:
        now = await self._now()
        return self._open(name, await read(name), now)

    async def get_all(self, keys: Sequence[str]) -> list[Opened | None]:
        """What is at each of these keys; None if there is nothing of ours, or nothing short: one answer brings them
        all."""
        names = [self.name(key) for key in keys]

        async def read() -> list[Opened | None]:
            now = await self._now()
            values = await self._read(names, (_SHORT,))
            return [self._open(name, value, now) for name, value in zip(names, values, strict=True)]

        return await self.link.call(read)

    async def set(self, key: str, payload: bytes, seconds: float) -> None:
        """Keep `payload` at `key` for so long, whatever is there."""
        name = self.name(key)

        async def write() -> None:
            sealed = self._seal.seal(name, payload, await self._now(), seconds)
            await self._redis.set(name, sealed, px=_milliseconds(seconds))

        await self.link.call(write)

    async def delete(self, key: str) -> None:
        """Remove what is at `key`."""
        await self.link.call(lambda: self._redis.unlink(self.name(key)))

    async def update(self, key: str, decide: Decide, *, new: bool = False) -> bytes:
        """Put what `decide` returns in the place of what is at `key`.

        `decide` is called again if another value was written meanwhile. `new` says that probably nothing is stored.
        Returns what the written value begins with, for `renew` and `remove`; empty if nothing was written. Raises
        Conflict if others keep writing.
        """
        return await self.link.call(lambda: self._update(self.name(key), decide, new=new))

    async def _update(self, name: str, decide: Decide, *, new: bool) -> bytes:
        began, now = asyncio.get_running_loop().time(), await self._now()
        seen = b"" if new else await self._read_one(name)
        for attempt in range(_MOST_TRIES):
            replacement = decide(self._open(name, seen, now), now)
            if replacement is None:
                return b""
            sealed = self._seal.seal(name, replacement[0], now, replacement[1])
            stored = await self._replace([name], (seen[:HEAD], sealed, _milliseconds(replacement[1]), _MOST_STORED))
            if stored is None:
                return sealed[:HEAD]
            # Once more at once, before it is out of date; if many write at the same time, each when it draws the lot.
            seen = stored
            if asyncio.get_running_loop().time() - began > _PATIENCE:
                break
            if attempt >= _AT_ONCE:
                await asyncio.sleep(random.uniform(0, _CONFLICT_PAUSE * attempt))  # noqa: S311
                seen = await self._read_one(name)
            now = await self._now()
        raise Conflict

    async def _read_one(self, name: str) -> bytes:
        """The bytes at `name`; none if they cannot be ours."""
        value = await self._read_short(name)
        return value if value is not None else await self._read_long(name)

    async def _read_long(self, name: str) -> bytes:
        (value,) = await self._read([name], (_MOST_STORED,))
        return value if isinstance(value, bytes) else b""

    async def _read_short(self, name: str) -> bytes | None:
        """The bytes at `name`; None if there are more than `_SHORT`, or it has to be read by the script."""
        try:
            value = await self.link.pipeline.ask("GETRANGE", name, 0, _SHORT)
        except ResponseError:
            # Another kind of value, or an error that the script will meet as well.
            return None
        return value if isinstance(value, bytes) and len(value) <= _SHORT else None

    async def renew(self, key: str, head: bytes, payload: bytes, seconds: float) -> bytes:
        """Keep `payload` at `key` for so long from now on, if the value there begins with `head`. Returns what it
        begins with then; empty if another value is there."""
        name = self.name(key)

        async def run() -> bytes:
            sealed = self._seal.seal(name, payload, await self._now(), seconds)
            stored = await self._replace([name], (head, sealed, _milliseconds(seconds), _MOST_STORED))
            return sealed[:HEAD] if stored is None else b""

        return await self.link.call(run)

    async def remove(self, key: str, head: bytes) -> None:
        """Remove the value at `key` if it begins with `head`."""
        await self.link.call(lambda: self._remove([self.name(key)], (head,)))

    async def remove_payload(self, key: str, payload: bytes) -> None:
        """Remove the value at `key` if `payload` is what it holds."""
        name = self.name(key)

        async def run() -> None:
            value = await self._read_one(name)
            opened = self._open(name, value, await self._now())
            if opened is not None and opened.payload == payload:
                await self._remove([name], (value[:HEAD],))

        await self.link.call(run)

    async def publish(self, channel: str, message: bytes) -> None:
        """Send `message` to all who listen at `channel`."""
        name = self.name(channel)

        async def send() -> None:
            now = await self._now()
            await self._redis.publish(name, self._seal.seal(name, message, now, _MESSAGE_SECONDS))

        await self.link.call(send)

    def open_message(self, channel: str, data: bytes) -> bytes | None:
        """The message that `publish` sent; None for any other bytes, or if it was sent too long ago or has come before:
        somebody repeats it. Call `ask_the_time` before, and now and then."""
        now = asyncio.get_running_loop().time()
        opened = self._seal.open(self.name(channel), data, now + self._clock_ahead)
        return opened.payload if opened is not None and self._is_first(data[:HEAD], now) else None

    def _is_first(self, head: bytes, now: float) -> bool:
        """Whether no message that began with it has come lately; remembers it."""
        if now - self._opened_since > _REMEMBERED:
            self._opened_before, self._opened_messages, self._opened_since = self._opened_messages, set(), now
        if head in self._opened_messages or head in self._opened_before:
            return False
        self._opened_messages.add(head)
        return True

    async def ask_the_time(self) -> None:
        """Ask Redis for its time if that was not done lately."""
        await self.link.call(self._now)

    def _open(self, name: str, value: object, now: float) -> Opened | None:
        return self._seal.open(name, value, now) if isinstance(value, bytes) else None

    async def _now(self) -> float:
        """The time in Redis, in seconds since the epoch: one clock for all replicas."""
        if not self._knows_the_time():
            await self._ask_the_clock()
        return asyncio.get_running_loop().time() + self._clock_ahead

    def _knows_the_time(self) -> bool:
        """Whether Redis was asked for its time lately."""
        return asyncio.get_running_loop().time() - self._clock_asked <= _CLOCK_EVERY

    async def _ask_the_clock(self) -> None:
        """Ask Redis for its time, once for all who need it."""
        loop_time = asyncio.get_running_loop().time
        # Who knows it well enough does not wait for another one to ask.
        if not (self._asking.locked() and self._clock_asked > float("-inf")):
            async with self._asking:
                if loop_time() - self._clock_asked > _CLOCK_EVERY:
                    seconds, microseconds = await self._redis.time()
                    self._clock_asked = loop_time()
                    self._clock_ahead = seconds + microseconds / 1e6 - self._clock_asked
                    self._compare_clocks()

    def _compare_clocks(self) -> None:
        """Log once if this process's clock differs from Redis's. Its own is not set by it: Redis may be anybody's."""
        self.clock_difference = clock.wall() - self._clock_asked - self._clock_ahead
        if abs(self.clock_difference) > clock.TOLERANCE and not self._difference_logged:
            self._difference_logged = True
            log.warning(
                "clock.differs_from_redis",
                seconds=round(self.clock_difference, 1),
                effect="ages of balances that replicas share may be wrong by as much",
            )


async def answered(call: Awaitable[T]) -> T | None:
    """The result of the call; None while Redis does not answer."""
    try:
        return await call
    except NoAnswer:
        return None


def _milliseconds(seconds: float) -> int:
    """A time to live as Redis takes it: whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))
