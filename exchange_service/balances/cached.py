"""Kept balances: copies in this process, the cache that replicas share, and who asks the venue for all of them.

A copy in the process is as good as the cache's as long as it is fresh, so that the cache is asked once per update and
not once per call. What another replica has written is told by a hint, which drops the copy and wakes who waits; a hint
that is lost costs nothing but time, because everybody looks again by the clock.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from exchange_service.cache import Cache, Lease
from exchange_service.errors import ServiceError
from exchange_service.model import Account
from exchange_service.wire.balances import StoredBalance, decode_stored, read_stored_fault, stored_fault

# Copies in the process, and their bytes; the one unused longest goes first.
_MOST_COPIES = 20_000
_MOST_BYTES = 32 * 1024 * 1024
# Seconds for which a failed attempt to read an account is told to the replicas that waited for it.
_FAULT_TTL = 2.0
# The first byte of a hint: what has changed.
_BALANCE, _CREDENTIAL = b"b", b"c"


class CachedBalances:
    """Balances by key, for `ttl` seconds, shared by all replicas on one cache."""

    def __init__(self, cache: Cache, ttl: float) -> None:
        self._cache = cache
        self._ttl = ttl
        self._copies: OrderedDict[str, StoredBalance] = OrderedDict()
        self._bytes = 0
        self._waiting: dict[str, set[asyncio.Event]] = {}
        # Called with the mark of an account whose credential has changed.
        self.on_credential: Callable[[bytes], None] = lambda _: None
        cache.add_listener(self._heard)

    @property
    def shared(self) -> bool:
        """Whether there may be other replicas who keep theirs here."""
        return self._cache.shared

    def copy(self, key: str) -> StoredBalance | None:
        """What this process has, perhaps too old."""
        found = self._copies.get(key)
        if found is not None:
            self._copies.move_to_end(key)
        return found

    async def read(self, key: str, account: Account) -> StoredBalance | None:
        """What the cache has; what is damaged or another account's counts as missing."""
        raw = await self._cache.get(key)
        if raw is None:
            self._forget(key)
            return None
        stored = decode_stored(account, raw)
        if stored is None:
            # Foreign or damaged: never to be met again.
            self._forget(key)
            await self._cache.delete(key)
            return None
        newer = self._copies.get(key)
        if newer is not None and newer.version > stored.version:
            # What the cache has was written by one whose turn was over.
            return newer
        self._remember(key, stored)
        return stored

    async def write(self, key: str, stored: StoredBalance) -> None:
        """Keep a balance, and let every replica know."""
        self._remember(key, stored)
        self.wake(key)
        await self._cache.set(key, stored.encoded(), self._ttl)
        await self._cache.publish(_BALANCE + key.encode())

    async def failed(self, key: str, error: ServiceError) -> None:
        """Let the replicas that wait for this account know that it could not be read."""
        await self._cache.set(f"fault:{key}", stored_fault(error), _FAULT_TTL)
        await self._cache.publish(_BALANCE + key.encode())

    async def gave_up(self, key: str) -> None:
        """Let the replicas that wait for this account know that nothing comes."""
        await self._cache.publish(_BALANCE + key.encode())

    async def fault(self, key: str) -> ServiceError | None:
        """Why the account could not be read by another replica just now, if it could not."""
        raw = await self._cache.get(f"fault:{key}")
        return read_stored_fault(raw) if raw is not None else None

    async def turn(self, key: str, seconds: float) -> Lease | None:
        """The right to ask the venue for this account; None while another replica does."""
        return await self._cache.lease(f"turn:{key}", seconds)

    @contextmanager
    def changes(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set when the account's balance has changed, or may have."""
        event = asyncio.Event()
        self.add_listener(key, event)
        try:
            yield event
        finally:
            self.remove_listener(key, event)

    def add_listener(self, key: str, event: asyncio.Event) -> None:
        """Set `event` whenever the balance at `key` changes, or may have."""
        self._waiting.setdefault(key, set()).add(event)

    def remove_listener(self, key: str, event: asyncio.Event) -> None:
        """Undo `add_listener`."""
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.discard(event)
            if not waiting:
                del self._waiting[key]

    async def credential_changed(self, mark: bytes) -> None:
        """Tell every other replica that an account's credential has changed."""
        await publish_credential_change(self._cache, mark)

    def _remember(self, key: str, stored: StoredBalance) -> None:
        self._forget(key)
        self._copies[key] = stored
        self._bytes += len(stored.data)
        while len(self._copies) > _MOST_COPIES or self._bytes > _MOST_BYTES:
            self._forget(next(iter(self._copies)))

    def _forget(self, key: str) -> None:
        gone = self._copies.pop(key, None)
        if gone is not None:
            self._bytes -= len(gone.data)

    def _heard(self, message: bytes | None) -> None:
        if message is None:
            # Something may have been missed: everybody looks again, each in his own time.
            self._copies.clear()
            self._bytes = 0
        elif message.startswith(_BALANCE):
            key = message[1:].decode(errors="replace")
            self._forget(key)
            self.wake(key)
        elif message.startswith(_CREDENTIAL):
            self.on_credential(message[1:])

    def wake(self, key: str) -> None:
        """Have everybody look who waits for the balance at `key`."""
        for event in self._waiting.get(key, ()):
            event.set()


async def publish_credential_change(cache: Cache, mark: bytes) -> None:
    """Tell every replica on this cache that the credential of the account with this mark has changed or gone."""
    await cache.publish(_CREDENTIAL + mark)


@asynccontextmanager
async def lease_held(turn: Lease, seconds: float) -> AsyncIterator[None]:
    """Hold a turn for as long as this lasts, and let it go; a holder that has died loses it after `seconds`."""
    renewing = asyncio.create_task(_renew(turn, seconds), name="renewal of a turn") if turn.shared else None
    try:
        yield
    finally:
        if renewing is not None:
            renewing.cancel()
        await turn.release()


async def _renew(turn: Lease, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds * 0.4)
        await turn.renew()
