"""All that a fault is caused in: a Redis and a PostgreSQL behind proxies, the venue, two replicas, and the clients.

async with Rig(seed=1) as rig:
    rig.redis.freeze()                              # the server itself
    rig.redis_proxies[1].weather = Weather(...)     # the way of one replica to it
    await rig.venue.set_mode("broken")
    await rig.replicas[0].kill()
    await rig.restart_replica(0)
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import redis.asyncio as redis_client
from sqlalchemy import make_url

from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import new_keyset
from exchange_service.credentials.sql import open_store
from exchange_service.errors import StoreUnavailable
from exchange_service.model import Account, Credential
from tests.chaos.accounts import CANARY, EXCHANGE, REGULAR, secret_of, user_name
from tests.chaos.allowances import lag_of_load
from tests.chaos.checker import is_bad
from tests.chaos.history import Footprint, History, Lag, Mark, Record, Reply, Sighting, read
from tests.chaos.line_process import LineProcess
from tests.chaos.proxy import Proxy
from tests.chaos.replicas import Replica
from tests.chaos.venue import Venue
from tests.servers import PostgresServer, RedisServer

REPLICAS = 2
# Seconds, as in `checker.Expectation`.
TTL, GRACE, INTERVAL, VENUE_TIMEOUT = 2.0, 12.0, 1.0, 1.6
# What the clients may ask for in one fault, how many are stored at the same time, and how often each is tried.
NEW_A_FAULT, _STORING, _ATTEMPTS = 40, 4, 5
# Seconds without a bad call after which all is well, and how long to wait for them.
QUIET, WELL_LIMIT = 1.8, 12.0
# How a secret may be spelled.
_SPELLINGS = (CANARY, CANARY.replace("-", ""))


class Rig:
    """See the module. `settings` are those of the replicas that differ from the usual ones."""

    def __init__(self, *, seed: int = 0, settings: Mapping[str, str] | None = None) -> None:
        self.seed = seed
        self.replicas: list[Replica] = []
        self.redis_proxies: list[Proxy] = []
        self.postgres_proxies: list[Proxy] = []
        self.folder = Path(tempfile.mkdtemp(prefix="exchange-service-chaos-"))
        self.redis = RedisServer()
        self.postgres: PostgresServer
        self.venue: Venue
        # What the nemesis and the faults' own clients have to say; the others write to files.
        self.records: list[Record] = []
        self._changed = dict(settings or {})
        self._stack = AsyncExitStack()
        self._keys = new_keyset().as_text()
        self._hash_key = secrets.token_hex(16)
        self._stored = 0
        self._clients: LineProcess
        self._seen: list[Record] = []
        self._offset = 0

    async def __aenter__(self) -> Rig:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        await asyncio.to_thread(self.redis.start)
        self._stack.callback(self.redis.__exit__)
        self.postgres = await asyncio.to_thread(PostgresServer)
        self._stack.callback(self.postgres.close)
        self.venue = await self._stack.enter_async_context(Venue(self.folder))
        for _ in range(REPLICAS):
            self.redis_proxies.append(await self._proxy(("127.0.0.1", self.redis.port)))
            self.postgres_proxies.append(await self._proxy(self.postgres_socket))
        await self._store(REGULAR)
        self.replicas = [Replica(number, self.folder, self._settings(number)) for number in range(REPLICAS)]
        self._stack.push_async_callback(self._end_replicas)
        await asyncio.gather(*(replica.start() for replica in self.replicas))
        await self._start_clients()
        watching = asyncio.create_task(self._watch_loop())
        self._stack.callback(watching.cancel)

    async def _proxy(self, upstream: tuple[str, int] | Path) -> Proxy:
        return await self._stack.enter_async_context(Proxy(upstream, seed=self.seed))

    @property
    def postgres_socket(self) -> Path:
        """The socket of PostgreSQL itself."""
        return Path(str(make_url(self.postgres.url).query["host"])) / ".s.PGSQL.5432"

    def _settings(self, number: int) -> dict[str, str]:
        """The settings of a replica by name."""
        usual = {
            "cache_url": f"redis://127.0.0.1:{self.redis_proxies[number].port}/0",
            "database_url": f"postgresql://postgres@127.0.0.1:{self.postgres_proxies[number].port}/postgres",
            "keyset": self._keys,
            "allow_plaintext": "false",
            "hash_key": self._hash_key,
            "replicas": str(REPLICAS),
            "max_age": str(TTL),
            "stale_grace": str(GRACE),
            "venue_timeout": str(VENUE_TIMEOUT),
            "poll_interval": str(INTERVAL),
            "poll_interval_still": str(INTERVAL),
            "heartbeat_interval": "1",
            "shutdown_delay": "0",
            "shutdown_grace": "1",
            "venue_urls": json.dumps(dict(self.venue.addresses)),
            "log_format": "json",
        }
        return usual | self._changed

    async def restart_replica(self, number: int, **options: object) -> None:
        """Start a replica again at the same address; a running one is ended in order first. See `Replica.start`."""
        replica = self.replicas[number]
        if replica.running:
            await replica.stop()
        await replica.start(**options)  # type: ignore[arg-type]

    async def _end_replicas(self) -> None:
        for replica in self.replicas:
            replica.thaw()
        running = [replica for replica in self.replicas if replica.running]
        await asyncio.gather(*(replica.stop() for replica in running))

    async def store(self, users: Sequence[int], exchange: str = EXCHANGE) -> None:
        """Store sealed credentials of these users."""
        store = await open_store(self.postgres.url, self._hash_key.encode(), keys=GivenKeys(self._keys))
        slots = asyncio.Semaphore(_STORING)

        async def put(number: int) -> None:
            account = Account(user_name(number), exchange)
            for left in reversed(range(_ATTEMPTS)):
                async with slots:
                    try:
                        await store.put(account, Credential.from_texts({"api_key": secret_of(number)}))
                        return
                    except StoreUnavailable:
                        # A busy machine is slow.
                        if not left:
                            raise

        try:
            await asyncio.gather(*(put(number) for number in users))
        finally:
            await store.close()

    async def _store(self, count: int) -> None:
        await self.store(range(self._stored, self._stored + count))
        self._stored += count

    async def _start_clients(self) -> None:
        self._file.touch()
        addresses = [replica.address for replica in self.replicas]
        self._clients = LineProcess("tests.chaos.clients", str(self._file), str(self.seed), EXCHANGE, *addresses)
        await self._clients.start(answers=False)
        self._stack.push_async_callback(self._clients.end, 10.0)

    @property
    def _file(self) -> Path:
        return self.folder / "clients"

    async def new_accounts(self, count: int = NEW_A_FAULT) -> None:
        """Store accounts that nobody has asked for, and let the clients ask for them."""
        await self._store(count)
        self._clients.tell(json.dumps({"new": self._stored - REGULAR}))

    async def _watch_loop(self) -> None:
        """Write how late this process is: the proxies are late with it."""
        while True:
            wanted = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            late = max(time.monotonic() - wanted, lag_of_load())
            if late > 0.02:
                self.records.append(Lag(time.monotonic(), round(late, 3), "rig"))

    def mark(self, name: str, fault: str = "") -> float:
        """Set a mark. Returns its time."""
        self.records.append(Mark(name, time.monotonic(), fault))
        return self.records[-1].time  # type: ignore[union-attr]

    def forget(self) -> None:
        """Begin a new history: what was seen until now belongs to the fault before."""
        self._read()
        self._seen.clear()
        self.records.clear()

    def _read(self) -> list[Record]:
        records, self._offset = read(self._file, self._offset)
        self._seen += records
        return self._seen

    def replies(self, since: float) -> list[Reply]:
        """The clients' calls that began after that time."""
        return [one for one in self._read() if isinstance(one, Reply) and one.begin >= since]

    async def until_well(self, since: float, limit: float = WELL_LIMIT) -> bool:
        """Wait until every replica has served for a while without a bad call. Returns whether that came."""
        patience = time.monotonic() + limit
        while time.monotonic() < patience:
            await asyncio.sleep(0.2)
            now = time.monotonic()
            replies = self.replies(since)
            last_bad = max((reply.end for reply in replies if is_bad(reply)), default=since)
            served = {reply.replica for reply in replies if reply.ok and reply.end > now - QUIET}
            if now - last_bad > QUIET and len(served) == REPLICAS:
                return True
        return False

    async def footprints(self, when: str) -> list[Footprint]:
        """What the replicas hold. A replica that does not answer is left out."""
        results = await asyncio.gather(
            *(replica.footprint(when) for replica in self.replicas if replica.running),  # type: ignore[arg-type]
            return_exceptions=True,
        )
        return [one for one in results if isinstance(one, Footprint)]

    async def history(self) -> History:
        """All that was seen since `forget`, and what the venue has ever answered."""
        records = [*self._read(), *self.records]
        sightings = [*self._in_texts(records), *self._in_logs(), *await self._in_redis()]
        return History.of([*records, *self.venue.answers, *sightings])

    def _in_texts(self, records: Sequence[Record]) -> Iterator[Sighting]:
        for record in records:
            text = getattr(record, "message", "")
            yield from _sightings(f"what {type(record).__name__} said", text)

    def _in_logs(self) -> Iterator[Sighting]:
        for replica in self.replicas:
            yield from _sightings(replica.log.name, replica.log.read_text(errors="replace"))

    async def _in_redis(self) -> list[Sighting]:
        found: list[Sighting] = []
        client = redis_client.Redis(port=self.redis.port, socket_timeout=5)
        try:
            async for key in client.scan_iter(count=500):
                # A dump would be compressed.
                string = await client.type(key) == b"string"
                value = (await client.get(key) if string else await client.dump(key)) or b""
                found += _sightings("Redis", f"{key!r} {value!r}")
        finally:
            await client.aclose()
        return found


def _sightings(place: str, text: str) -> list[Sighting]:
    for spelling in _SPELLINGS:
        if (position := text.find(spelling)) >= 0:
            return [Sighting(place, text[max(0, position - 80) : position + 10])]
    return []
