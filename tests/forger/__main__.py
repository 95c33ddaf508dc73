"""Writes to the Redis at a URL for some seconds, whatever it finds there; prints what it wrote as JSON.

python -m tests.forger URL SECONDS SEED USERS, where USERS are the names of balances with their users, as JSON
"""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import redis

from exchange_service.cache.sealing import CacheSeal
from exchange_service.v1 import balance_pb2

HUGE = 60 * 1024 * 1024


class Forger:
    """Knows everything but the hash key: every name and every value that was ever there."""

    def __init__(self, url: str, seed: int, users: dict[str, str]) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=30)
        self._random = random.Random(seed)
        self._seal = CacheSeal(b"a key of the forger's own")
        self._users = users
        self._seen: list[bytes] = []
        self._names: set[bytes] = set()
        self._messages: list[bytes] = []
        self.written: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Write until the time is over. A huge value takes Redis itself half a second, so there is one in a while."""
        listener = self._listener()
        ends, next_huge = time.monotonic() + seconds, time.monotonic() + 1.0
        common = [
            self._garbage,
            self._old,
            self._foreign,
            *[self._sealed] * 4,
            *[self._flipped] * 2,
            self._counter,
            self._kind,
            self._forever,
        ]
        rare = [self._expiry, self._removal, self._message, self._long]
        while time.monotonic() < ends:
            try:
                while (received := listener.get_message(timeout=0)) is not None:
                    if len(received["data"]) < 1000:
                        self._messages = [*self._messages[-200:], received["data"]]
            except (redis.TimeoutError, redis.ConnectionError):
                # It came upon a huge message of its own.
                listener = self._listener()
            # Also those of what it has removed itself, or what was there for a moment.
            self._names.update(self._redis.scan_iter(count=1000))
            names = sorted(self._names)
            huge = bool(names) and time.monotonic() >= next_huge
            if huge:
                next_huge = time.monotonic() + 5.0
            for name in self._random.sample(names, min(len(names), 40)):
                work: Callable[[bytes], None] = self._random.choice(common if self._random.random() < 0.8 else rare)
                self._do(self._huge if huge else work, name)
                huge = False
            self._do(self._message, b"")

    def _listener(self) -> redis.client.PubSub:
        listener = self._redis.pubsub(ignore_subscribe_messages=True)
        listener.psubscribe("*")
        return listener

    def _do(self, work: Callable[[bytes], None], name: bytes) -> None:
        # Another value may have come in between, or one of another kind.
        with suppress(redis.ResponseError, redis.TimeoutError):
            value = self._redis.getrange(name, 0, 10_000)
            self._seen = [*self._seen[-500:], value]
        with suppress(redis.ResponseError, redis.TimeoutError):
            work(name)
            self.written[work.__name__.strip("_")] += 1

    def _garbage(self, name: bytes) -> None:
        self._redis.set(name, self._random.randbytes(self._random.choice((0, 1, 20, 60, 300, 5000))), px=30_000)

    def _old(self, name: bytes) -> None:
        """A value of before, perhaps of this name."""
        if self._seen:
            self._redis.set(name, self._random.choice(self._seen))

    def _foreign(self, name: bytes) -> None:
        """Another name's value."""
        other = self._redis.randomkey()
        if other is not None:
            self._redis.set(name, self._redis.getrange(other, 0, 10_000))

    def _sealed(self, name: bytes) -> None:
        """Sealed well, with another key: a balance that no venue has given, of now, of the past or of the future."""
        since = time.time() + self._often(0.0, -1e6, -65.0, 1e6, 1e9)
        user = self._users.get(name.decode())
        payload = self._balance(user) if user is not None else self._random.randbytes(40)
        self._redis.set(name, self._seal.seal(name.decode(), payload, since, self._random.choice((60.0, 1e6))))

    def _balance(self, user: str) -> bytes:
        now = time.time()
        version = int(self._often((now + 60) * 1e6, 0, 2**62))
        message = balance_pb2.Balance(user_id=user, exchange_id="fakex", environment="production", version=version)
        message.fetch_time.FromSeconds(int(now + self._often(0.0, -1e6, 1e6)))
        message.venue_accounts.add(id="1", type="spot").assets.add(asset="BTC", total="999")
        return struct.pack(">cQd", b"\x03", version, self._often(0.0, 86_400.0)) + message.SerializeToString()

    def _flipped(self, name: bytes) -> None:
        """The value that is there, or one of before, with a bit or a few of them changed."""
        value = bytearray(self._seen[-1] or self._random.choice(self._seen))
        for _ in range(self._random.choice((1, 1, 1, 5)) if value else 0):
            value[self._random.randrange(len(value))] ^= 1 << self._random.randrange(8)
        self._redis.set(name, bytes(value), keepttl=True)

    def _often(self, usual: float, *others: float) -> float:
        """The first of them, but for one time in four."""
        return usual if self._random.random() < 0.75 else self._random.choice(others)

    def _counter(self, name: bytes) -> None:
        self._redis.set(name, self._random.choice((-(2**60), 0, 10**9, 2**62)))

    def _kind(self, name: bytes) -> None:
        self._redis.delete(name)
        self._redis.rpush(name, *[b"x"] * self._random.choice((1, 1000)))

    def _forever(self, name: bytes) -> None:
        self._redis.persist(name)

    def _expiry(self, name: bytes) -> None:
        self._redis.pexpire(name, self._random.choice((1, 1000, 10**9)))

    def _removal(self, name: bytes) -> None:
        self._redis.delete(name)

    def _long(self, name: bytes) -> None:
        self._redis.set(name, bytes(self._random.choice((10_000, 1_000_000, 2_000_000, 3_000_000))))

    def _huge(self, name: bytes) -> None:
        self._redis.set(name, bytes(HUGE))

    def _message(self, name: bytes) -> None:
        channels = self._redis.pubsub_channels()
        if channels:
            messages = [
                self._random.randbytes(40),
                self._seal.seal("x", b"b" * 80, time.time(), 9),
                *self._messages[-3:],
                *[bytes((message[0] ^ 1, *message[1:])) for message in self._messages[-1:] if message],
            ]
            if self._random.random() < 0.02:
                messages = [bytes(self._random.choice((50_000, 1_000_000, 8_000_000)))]
            self._redis.publish(self._random.choice(channels), self._random.choice(messages))


def main() -> None:
    """Write, and say what was written."""
    url, seconds, seed, users = sys.argv[1:]
    forger = Forger(url, int(seed), json.loads(users))
    forger.run(float(seconds))
    print(json.dumps(forger.written))


if __name__ == "__main__":
    main()
