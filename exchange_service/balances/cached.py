"""Cached balances: copies in this process over the cache that replicas share.

A local copy is as good as the cache's while it is fresh, so the cache is read once per update and not once per call.
When another replica writes, an invalidation drops the local copy and wakes everything that waits for the balance. A
lost invalidation costs time and nothing else, because every waiter also looks again by the clock. While none arrives, a
copy needs a look at the cache every second.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from cachetools import LRUCache

from exchange_service import clock
from exchange_service.cache import Cache, Lease
from exchange_service.credentials import credential_id, user_hash
from exchange_service.errors import ServiceError
from exchange_service.model import Account
from exchange_service.recently_used import RecentlyUsed
from exchange_service.wire.delivery import Delivery, read_delivery
from exchange_service.wire.stored import StoredBalance, StoredBounds, decode_error, decode_stored, encode_error

# Bytes of local copies, with an estimate of what each costs beside its message: at most 20,000 of them.
_MOST_BYTES = 32 * 1024 * 1024
_COPY_BYTES = 1_600
# While no messages arrive: seconds for which a copy serves without a look at the cache, and for how many it is known.
_LOOK_EVERY = 1.0
_MOST_LOOKS = 20_000
# After messages were missed all listeners are woken, so many at once and with so many seconds between, because each
# reads the cache.
_WOKEN_AT_ONCE, _WAKE_PAUSE = 20, 0.02
# Seconds for which a failed attempt to read an account is passed on to the replicas that waited for it.
_ERROR_TTL = 2.0
# Seconds for which a replica's word on how changes reach it is kept; it tells each change at once.
_DELIVERY_TTL = 86_400.0
# The first byte of an invalidation: what has changed.
_BALANCE, _CREDENTIAL, _USER, _PUSH, _REPLACEMENT = b"b", b"c", b"u", b"p", b"r"


class CachedBalances:
    """Balances by key, for `ttl` seconds, shared by all replicas on one cache.

    A balance that a feed is to read again only after more than `longest_pause` seconds is not believed. `now` is in
    seconds since the epoch.
    """

    def __init__(
        self, cache: Cache, ttl: float, *, longest_pause: float, now: Callable[[], float] = clock.wall
    ) -> None:
        self._cache = cache
        self._ttl = ttl
        self._bounds = StoredBounds(longest_pause, now)
        self._copies: RecentlyUsed[str, StoredBalance] = RecentlyUsed(_MOST_BYTES, getsizeof=_size)
        # Copies that no call gets as fresh ones any more, because the cache may hold something newer. It may also hold
        # something older, or nothing, as after a restart: versions must not go back, and the last good balance must
        # outlive the cache.
        self._outdated: RecentlyUsed[str, StoredBalance] = RecentlyUsed(_MOST_BYTES, getsizeof=_size)
        # When the cache was last read for a copy, while no messages arrive.
        self._looked: LRUCache[str, float] = LRUCache(_MOST_LOOKS)
        # Reads of the cache that are in progress.
        self._readings: dict[str, asyncio.Future[StoredBalance | None]] = {}
        self._listeners: dict[str, set[asyncio.Event]] = {}
        # Called with the credential id of an account whose credential has changed.
        self.on_credential: Callable[[bytes], None] = lambda _: None
        # Called with the credential id of an account whose plugin has replaced a token in it.
        self.on_replacement: Callable[[bytes], None] = lambda _: None
        # Called with the hash of a user of whom a credential was stored or removed.
        self.on_user: Callable[[bytes], None] = lambda _: None
        cache.add_listener(self._on_message)

    @property
    def shared(self) -> bool:
        """Whether other replicas may use the same cache now."""
        return self._cache.shared

    @property
    def reliable(self) -> bool:
        """Whether the cache has answered every call lately."""
        return self._cache.reliable

    def get_local(self, key: str) -> StoredBalance | None:
        """This process's copy, perhaps too old; None if the cache has to be looked at first."""
        copy = self._copies.get(key)
        if copy is None or self._cache.hears or time.monotonic() - self._looked.get(key, 0.0) < _LOOK_EVERY:
            return copy
        return None

    def last_good(self, key: str) -> StoredBalance | None:
        """The newest balance that this process has seen, whatever the cache holds: perhaps too old, and fresh only if
        `get_local` returns it too."""
        return self._copies.get(key) or self._outdated.get(key)

    def drop_local(self, key: str) -> None:
        """Forget this process's copy, which is of no use any more."""
        self._copies.pop(key, None)
        self._outdated.pop(key, None)

    def _doubt_local(self, key: str) -> None:
        """The next read of this balance asks the cache; the copy stays as the last good one."""
        copy = self._copies.pop(key, None)
        if copy is not None:
            self._outdated[key] = copy

    async def read(self, key: str, account: Account) -> StoredBalance | None:
        """The cache's balance; the local copy if the cache has none and has failed lately. One that is damaged or is
        another account's counts as missing, and is deleted."""
        with self._asking(key):
            return await self._read(key, account)

    async def _read(self, key: str, account: Account) -> StoredBalance | None:
        before = self._copies.get(key)
        raw = await self._cache.get(key)
        self._note_look(key)
        if raw is None:
            copy = self._copies.get(key)
            if copy is not before:
                # Written by this process after the cache was asked.
                return copy
            if not self._cache.reliable:
                # Silence says nothing, and must not send everybody to the venues.
                return self._copies.get(key)
            self._doubt_local(key)
            return None
        stored = decode_stored(account, raw, self._bounds, self.last_good(key))
        if stored is None:
            self._doubt_local(key)
            await self._cache.delete(key)
            return None
        return self._keep_newer(key, stored)

    async def read_together(self, key: str, account: Account) -> StoredBalance | None:
        """As `read`, in one read for all callers that ask while it lasts: a crowd must not take every connection to the
        cache. What other replicas wrote meanwhile may be missing."""
        stored = await asyncio.shield(self._read_once(key, account))
        # A fetch of this process may have ended between the read and now.
        return stored or self.get_local(key)

    def look(self, key: str, account: Account) -> asyncio.Future[StoredBalance | None] | None:
        """The read that `read_together` waits for. None if it would bring nothing: no other replica can have written,
        or this process has a copy, if only an old one."""
        if not self._cache.shared or self.get_local(key) is not None:
            return None
        return self._read_once(key, account)

    def _read_once(self, key: str, account: Account) -> asyncio.Future[StoredBalance | None]:
        """The read in progress, or one that begins now."""
        reading = self._readings.get(key)
        if reading is None:
            reading = self._readings[key] = asyncio.ensure_future(self.read(key, account))
            reading.add_done_callback(partial(self._on_reading_done, key))
        return reading

    def _on_reading_done(self, key: str, reading: asyncio.Future[StoredBalance | None]) -> None:
        if self._readings.get(key) is reading:
            del self._readings[key]
        if not reading.cancelled():
            # Read, or asyncio would log it where nobody waits any more.
            reading.exception()

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """The cache's answer to what is asked in this block is doubted at its end if another replica has written
        meanwhile: the message that tells so may overtake an answer from before."""
        with self.changes(key) as changed:
            yield
        if changed.is_set():
            self._doubt_local(key)

    def _note_look(self, key: str) -> None:
        if not self._cache.hears:
            self._looked[key] = time.monotonic()

    def _keep_newer(self, key: str, stored: StoredBalance) -> StoredBalance:
        """Keep what the cache holds as the local copy, and return it; or the local copy if its version is higher, as
        when a replica whose lease was over has written last."""
        copy = self._copies.get(key) or self._outdated.pop(key, None)
        newer = copy if copy is not None and copy.version > stored.version else stored
        self._copies[key] = newer
        return newer

    async def write(
        self, key: str, stored: StoredBalance, *, replacing: StoredBalance | None
    ) -> tuple[bool, StoredBalance | None]:
        """Store a balance in the place of `replacing`, and notify every replica.

        Returns whether it was written. If the cache holds another version than `replacing` it was not, and the second
        part is what the cache holds. If this process has come to know a higher version meanwhile, that is the second
        part: the lower one must not be seen.
        """
        with self._asking(key):
            written, present = await self._write(key, stored, replacing)
        if written:
            self.notify(key)
            await self._cache.publish(_BALANCE + key.encode())
        return written, present

    async def _write(
        self, key: str, stored: StoredBalance, replacing: StoredBalance | None
    ) -> tuple[bool, StoredBalance | None]:
        expected = replacing.header_prefix if replacing is not None else b""
        raw = await self._cache.compare_and_set(key, stored.encode(), self._ttl, expected=expected)
        if raw is not None:
            present = decode_stored(stored.account, raw, self._bounds)
            if present is not None:
                self._keep_newer(key, present)
            elif raw:
                # Damaged, or another account's.
                await self._cache.delete(key)
            return False, present
        newest = self.last_good(key)
        if newest is not None and newest.version > stored.version:
            return False, newest
        self._outdated.pop(key, None)
        self._copies[key] = stored
        self._note_look(key)
        return True, stored

    async def publish_error(self, key: str, error: ServiceError) -> None:
        """Tell the replicas that wait for this balance why it could not be read."""
        await self._cache.set(f"error:{key}", encode_error(error), _ERROR_TTL)
        await self._cache.publish(_BALANCE + key.encode())

    async def publish_abandoned(self, key: str) -> None:
        """Tell the replicas that wait for this balance that no answer comes."""
        await self._cache.publish(_BALANCE + key.encode())

    async def cached_error(self, key: str, venue: str) -> ServiceError | None:
        """Why another replica could not read the balance just now, told of `venue`; None if it did not say."""
        raw = await self._cache.get(f"error:{key}")
        return decode_error(raw, venue) if raw is not None else None

    async def lease(self, key: str, seconds: float) -> Lease | None:
        """The right to ask the venue for this balance; None while another replica has it."""
        return await self._cache.lease(f"lease:{key}", seconds)

    async def push_lease(self, key: str, seconds: float) -> Lease | None:
        """The right to follow the venue's pushes of this balance; None while another replica has it."""
        return await self._cache.lease(f"push:{key}", seconds)

    async def slot_lease(self, name: str, seconds: float) -> Lease | None:
        """The right to one of the accounts that a venue pushes at once; None while another replica has it."""
        return await self._cache.lease(f"push-slot:{name}", seconds)

    async def tell_delivery(self, key: str, delivery: Delivery) -> None:
        """Tell the other replicas how changes of this balance reach the one that follows its pushes."""
        await self._cache.set(f"delivery:{key}", delivery.record(), _DELIVERY_TTL)
        await self.publish_push(key)

    async def publish_push(self, key: str) -> None:
        """Tell the other replicas to look who follows this balance's pushes, and how."""
        await self._cache.publish(_PUSH + key.encode())

    async def told_delivery(self, key: str) -> Delivery | None:
        """What another replica has told last; None if it has not."""
        record = await self._cache.get(f"delivery:{key}")
        return read_delivery(record) if record is not None else None

    def push_changes(self, key: str) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when another replica calls `publish_push`, or may have."""
        return self.changes(_push_name(key))

    def changes(self, key: str) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when the balance has changed, or may have."""
        return _Listening(self, key)

    def add_listener(self, key: str, event: asyncio.Event) -> None:
        """Set `event` whenever the balance at `key` changes, or may have."""
        self._listeners.setdefault(key, set()).add(event)

    def remove_listener(self, key: str, event: asyncio.Event) -> None:
        """Undo `add_listener`."""
        listeners = self._listeners.get(key)
        if listeners is not None:
            listeners.discard(event)
            if not listeners:
                del self._listeners[key]

    def notify(self, key: str) -> None:
        """Wake everything that waits for the balance at `key`."""
        for event in self._listeners.get(key, ()):
            event.set()

    async def publish_credential_change(self, hash_key: bytes, account: Account) -> None:
        """Tell every other replica that an account's credential was stored, has changed or has gone."""
        await publish_credential_change(self._cache, hash_key, account)

    async def publish_replacement(self, hash_key: bytes, account: Account) -> None:
        """Tell every other replica that a plugin has replaced a token in this account's credential."""
        await self._cache.publish(_REPLACEMENT + credential_id(hash_key, account))

    def _on_message(self, message: bytes | None) -> None:
        if message is None:
            # Something may have been missed: the next read of each balance asks the cache again.
            self._outdated.update(self._copies)
            self._copies.clear()
            self._readings.clear()
            self._wake(deque(self._listeners))
        elif message.startswith(_BALANCE):
            key = message[1:].decode(errors="replace")
            self._doubt_local(key)
            # Who is woken must not be given what was asked for before.
            self._readings.pop(key, None)
            self.notify(key)
        elif message.startswith(_PUSH):
            self.notify(_push_name(message[1:].decode(errors="replace")))
        elif message.startswith(_CREDENTIAL):
            self.on_credential(message[1:])
        elif message.startswith(_REPLACEMENT):
            self.on_replacement(message[1:])
        elif message.startswith(_USER):
            self.on_user(message[1:])

    def _wake(self, keys: deque[str]) -> None:
        """Wake everything that waits for these balances, some of them now."""
        for _ in range(min(len(keys), _WOKEN_AT_ONCE)):
            self.notify(keys.popleft())
        if keys:
            asyncio.get_running_loop().call_later(_WAKE_PAUSE, self._wake, keys)


class _Listening(AbstractContextManager[asyncio.Event]):
    """See `CachedBalances.changes`. A class, because each fetch enters several: a generator takes twice as long."""

    def __init__(self, cached: CachedBalances, key: str) -> None:
        self._cached, self._key, self._event = cached, key, asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        self._cached.add_listener(self._key, self._event)
        return self._event

    def __exit__(self, *_: object) -> None:
        self._cached.remove_listener(self._key, self._event)


async def publish_credential_change(cache: Cache, hash_key: bytes, account: Account) -> None:
    """Tell every replica on this cache that the account's credential was stored, has changed or has gone."""
    await cache.publish(_CREDENTIAL + credential_id(hash_key, account))
    await cache.publish(_USER + user_hash(hash_key, account.user_id))


def _push_name(key: str) -> str:
    """What a listener to the pushes of the balance at `key` is registered at."""
    return f"push:{key}"


def _size(stored: StoredBalance) -> int:
    return _COPY_BYTES + len(stored.data)
