"""The faults of the replicas' processes, of what the system gives them, and of their clients."""

from __future__ import annotations

import asyncio
import itertools
import resource
import signal
import sqlite3
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.names import environment
from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import Keyset, new_keyset, parse_keyset
from exchange_service.credentials.sql import open_store
from exchange_service.errors import ServiceError, StoreUnavailable
from exchange_service.model import Account, Credential
from tests.chaos.accounts import EXCHANGE, secret_of, user_name
from tests.chaos.crowd import Crowd
from tests.chaos.faults import fault
from tests.chaos.faults.ways import repeated
from tests.chaos.replicas import Replica
from tests.harness import eventually

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

HOUR = 3600.0
# Users that nobody else asks for, each used once.
_own_users = itertools.count(40_000)
_HOOKS = Path(__file__).parent.parent / "hooks"
# Seconds that another replica may take when the one that asked the venue has gone: a lease, a fetch, and some more.
_TAKEOVER = 8.0


@fault("replica-killed")
@asynccontextmanager
async def killed(rig: Rig) -> AsyncIterator[None]:
    """SIGKILL of a replica. It is started again at the end."""
    await rig.replicas[1].kill()
    try:
        yield
    finally:
        await rig.restart_replica(1)


@fault("replicas-killed")
@asynccontextmanager
async def all_killed(rig: Rig) -> AsyncIterator[None]:
    """SIGKILL of both replicas, which start again at once."""
    await asyncio.gather(*(replica.kill() for replica in rig.replicas))
    await asyncio.gather(*(replica.start() for replica in rig.replicas))
    yield


@fault("replica-frozen")
@asynccontextmanager
async def frozen(rig: Rig) -> AsyncIterator[None]:
    """SIGSTOP of a replica: its connections stay open, and nothing answers."""
    rig.replicas[1].freeze()
    try:
        yield
    finally:
        rig.replicas[1].thaw()


@asynccontextmanager
async def stuttering(send: Callable[[signal.Signals], None]) -> AsyncIterator[None]:
    """A process that gets SIGSTOP for 0.3 of each 0.4 seconds inside the block."""

    async def stutter() -> None:
        send(signal.SIGSTOP)
        await asyncio.sleep(0.3)
        send(signal.SIGCONT)

    try:
        async with repeated(stutter, 0.1):
            yield
    finally:
        send(signal.SIGCONT)


@fault("replica-stutters")
@asynccontextmanager
async def stutters(rig: Rig) -> AsyncIterator[None]:
    """A replica gets a quarter of the time."""
    async with stuttering(rig.replicas[1].signal):
        yield


# A replica takes a lease over while it may still wait for the venue, so that has to be longer than a lease.
@fault("lease-holder-killed", settings={"venue_timeout": "8"})
@asynccontextmanager
async def lease_holder_killed(rig: Rig) -> AsyncIterator[None]:
    """SIGKILL of a replica that has asked the venue and has no answer yet: the other one takes the lease over."""
    user = next(_own_users)
    await rig.store([user])
    asked = await rig.venue.met("slow")
    await rig.venue.set_mode("slow", users=[user], seconds=3.0)
    first = asyncio.create_task(rig.replicas[0].ask(user))
    try:

        async def waits() -> bool:
            return await rig.venue.met("slow") > asked

        await eventually(waits, "a request of the replica")
        await rig.replicas[0].kill()
        await rig.venue.set_mode("well")
        began = time.monotonic()
        reply = await rig.replicas[1].ask(user)
        assert not isinstance(reply, ServiceError), f"the other replica answered: {reply}"
        assert time.monotonic() - began < _TAKEOVER, "the lease of a killed replica was not taken over in time"
        yield
    finally:
        await asyncio.wait({first})
        await rig.venue.set_mode("well")
        await rig.restart_replica(0)


@fault("rolling-restart", least=6.0)
@asynccontextmanager
async def rolling_restart(rig: Rig) -> AsyncIterator[None]:
    """SIGTERM of one replica after the other, each of which is back before the next one goes."""
    for replica in rig.replicas:
        code = await replica.stop()
        assert code == 0, f"replica {replica.number} ended with {code}"
        await replica.start()
    yield


def _enter_clock(name: str, seconds: float) -> None:
    @fault(name, own_rig=True)
    @asynccontextmanager
    async def put(rig: Rig) -> AsyncIterator[None]:
        """One replica's wall clock jumps while it runs, and jumps back at the end."""
        file = rig.folder / "clock"
        file.write_bytes(struct.pack("d", 0.0))
        hooked = ("env", f"PYTHONPATH={_HOOKS}", f"CHAOS_CLOCK={file}")
        await rig.restart_replica(1, prefix=hooked)
        _set_clock(file, seconds)
        try:
            yield
        finally:
            _set_clock(file, 0.0)


def _set_clock(file: Path, seconds: float) -> None:
    """Move the clock of the process that has mapped this file."""
    with file.open("r+b") as clock:
        clock.write(struct.pack("d", seconds))


_enter_clock("clock-ahead", HOUR)
_enter_clock("clock-behind", -HOUR)


@fault("second-process")
@asynccontextmanager
async def second_process(rig: Rig) -> AsyncIterator[None]:
    """Another process is started at a replica's address: it ends, and takes no connection."""
    second = Replica(2, rig.folder, rig.replicas[0].settings)
    second.address = rig.replicas[0].address
    await second.start(wait=False)
    try:
        async with asyncio.timeout(30):
            code = await second.ended()
        assert code != 0, "a second process serves at the same address"
        yield
    finally:
        if second.running:
            await second.kill()


@fault("wrong-key", own_rig=True)
@asynccontextmanager
async def wrong_key(rig: Rig) -> AsyncIterator[None]:
    """One replica has another keyset than the one that sealed what is stored."""
    replica = rig.replicas[1]
    right = replica.settings["keyset"]
    await replica.stop()
    replica.settings["keyset"] = new_keyset().as_text()
    await replica.start(wait=False)
    try:
        yield
        reply = await rig.replicas[0].ask(0)
        assert not isinstance(reply, ServiceError), f"the replica with the right keyset answered: {reply}"
    finally:
        replica.settings["keyset"] = right
        await rig.restart_replica(1)


@fault("key-rotation", own_rig=True, least=12.0)
@asynccontextmanager
async def key_rotation(rig: Rig) -> AsyncIterator[None]:
    """A new key is added, seals, and the old one goes after all values were sealed again: all without a restart."""
    old = parse_keyset(rig.replicas[0].settings["keyset"])
    file = rig.folder / "keyset"
    _write_keys(file, old)
    for replica in rig.replicas:
        del replica.settings["keyset"]
        replica.settings["keyset_file"] = str(file)
        await rig.restart_replica(replica.number)
    both = old.with_new_key(primary=False)
    (new,) = both.keys.keys() - old.keys.keys()
    for keyset in (both, both.with_primary(new)):
        _write_keys(file, keyset)
        await asyncio.sleep(_KEYS_SEEN)
    await _rewrap(rig.replicas[0].settings)
    _write_keys(file, both.with_primary(new).without(old.primary))
    yield


# Seconds after which each replica has read a changed keyset.
_KEYS_SEEN = 2.5


def _write_keys(file: Path, keyset: Keyset) -> None:
    """Replace the file at once, as the service's own commands do."""
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(keyset.as_text())
    new.replace(file)


async def _rewrap(settings: Mapping[str, str]) -> None:
    """`credentials rewrap` with these settings. AssertionError if it fails."""
    variables = {f"EXCHANGE_SERVICE_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exchange_service", "credentials", "rewrap"),
        env=environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text, _ = await process.communicate()
    assert process.returncode == 0, f"rewrap failed: {text.decode()[-500:]}"


@asynccontextmanager
async def limited(pid: int, kind: int, soft: int) -> AsyncIterator[None]:
    """A running process with this limit inside the block."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


@fault("files-exhausted")
@asynccontextmanager
async def files_exhausted(rig: Rig) -> AsyncIterator[None]:
    """A replica may open twelve more files, and sixty new clients come. When they have left, others are served."""
    replica = rig.replicas[1]
    files = psutil.Process(replica.pid).num_fds()
    async with limited(replica.pid, resource.RLIMIT_NOFILE, files + 12):
        async with Crowd(rig, "connections", 60, replicas=[1]) as crowd:
            yield
            result = await crowd.leave()
        assert result.served < 60, "the limit was not met"

        async def serves() -> bool:
            return not isinstance(await replica.ask(0), ServiceError)

        await eventually(serves, "the service of a new client, after the others have left,")


@fault("memory-limited", own_rig=True, least=8.0)
@asynccontextmanager
async def memory_limited(rig: Rig) -> AsyncIterator[None]:
    """A replica may have 64 MB of address space more than it uses, and 3,000 streams come. It refuses some, and lives.

    The limit is there from the start, so that the replica can know it, and is lowered to what it then uses.
    """
    most = psutil.Process(rig.replicas[1].pid).memory_info().vms + 64_000_000
    await rig.restart_replica(1, prefix=("prlimit", f"--as={most}"))
    # Until its clients are back.
    await asyncio.sleep(2.0)
    replica = rig.replicas[1]
    used = psutil.Process(replica.pid).memory_info().vms
    try:
        async with limited(replica.pid, resource.RLIMIT_AS, min(most, used + 64_000_000)):
            async with Crowd(rig, "streams", 3000, replicas=[1]) as crowd:
                yield
                result = await crowd.leave()
            assert replica.running, "the replica ended at its memory limit"
            other = {reason for reason in result.failures if not reason.endswith("SERVICE_OVERLOADED")}
            assert not other, f"streams ended otherwise than refused: {result.failures}"
            assert result.failures, "the limit was not met"
    finally:
        if not replica.running:
            await replica.start()


@fault("disk-full")
@asynccontextmanager
async def disk_full(rig: Rig) -> AsyncIterator[None]:
    """No replica can write to a file any more: its log, above all."""
    sizes = {replica: replica.log.stat().st_size for replica in rig.replicas}
    one, other = (limited(replica.pid, resource.RLIMIT_FSIZE, 1) for replica in rig.replicas)
    async with one, other:
        yield
        for replica, size in sizes.items():
            assert replica.log.stat().st_size == size, "a replica could write"


@fault("sqlite-locked")
@asynccontextmanager
async def sqlite_locked(rig: Rig) -> AsyncIterator[None]:
    """A replica of its own with SQLite, which is locked: what is known is served, the rest fails in time."""
    file = rig.folder / "own.db"
    settings = rig.replicas[0].settings | {"database_url": f"sqlite:///{file}", "cache_url": "memory://"}
    known, unknown = next(_own_users), next(_own_users)
    await _store_in_sqlite(settings, known, unknown)
    replica = Replica(2, rig.folder, settings)
    await replica.start()
    try:
        assert not isinstance(await replica.ask(known), ServiceError), "the replica does not serve"
        async with _locked(file):
            await _ask_while_locked(replica, known, unknown)
            yield
        reply = await replica.ask(unknown)
        assert not isinstance(reply, ServiceError), f"after the lock: {reply}"
    finally:
        await replica.stop()


async def _store_in_sqlite(settings: Mapping[str, str], *users: int) -> None:
    keys = GivenKeys(settings["keyset"])
    store = await open_store(settings["database_url"], settings["hash_key"].encode(), keys=keys)
    try:
        for user in users:
            await store.put(Account(user_name(user), EXCHANGE), Credential.from_texts({"api_key": secret_of(user)}))
    finally:
        await store.close()


@asynccontextmanager
async def _locked(file: Path) -> AsyncIterator[None]:
    """The database of this file, locked by another connection."""
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=5)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


async def _ask_while_locked(replica: Replica, known: int, unknown: int) -> None:
    reply = await replica.ask(known)
    assert not isinstance(reply, ServiceError), f"what is known fails while the store is locked: {reply}"
    reply = await replica.ask(unknown)
    # A lock for writers alone leaves readers alone.
    assert not isinstance(reply, ServiceError) or isinstance(reply, StoreUnavailable), (
        f"not the store's reason: {reply}"
    )


@fault("subscribers-frozen")
@asynccontextmanager
async def subscribers_frozen(rig: Rig) -> AsyncIterator[None]:
    """Fifty more subscribers are frozen with their process, and then killed."""
    async with Crowd(rig, "streams", 50) as crowd:
        crowd.freeze()
        yield


@fault("subscribers-slow")
@asynccontextmanager
async def subscribers_slow(rig: Rig) -> AsyncIterator[None]:
    """A hundred more subscribers read one event in three seconds."""
    async with Crowd(rig, "slow streams", 100) as crowd:
        yield
        result = await crowd.leave()
    assert not result.failures, f"slow subscribers lost their streams: {result.failures}"


@fault("subscribers-vanish")
@asynccontextmanager
async def subscribers_vanish(rig: Rig) -> AsyncIterator[None]:
    """Three hundred subscribers come and their process is killed, twice."""
    for _ in range(2):
        async with Crowd(rig, "streams", 300) as crowd:
            await crowd.kill()
    yield


@fault("crowd-returns")
@asynccontextmanager
async def crowd_returns(rig: Rig) -> AsyncIterator[None]:
    """Five hundred subscribers leave and are back at once."""
    async with Crowd(rig, "streams", 500) as crowd:
        await crowd.again()
        yield
        result = await crowd.leave()
    assert result.served == 1000, f"not all of a crowd that returned were served: {result}"


@fault("crowd-cold")
@asynccontextmanager
async def crowd_cold(rig: Rig) -> AsyncIterator[None]:
    """Six hundred callers at two replicas ask for one account that nobody has asked for: the venue is asked once."""
    user = next(_own_users)
    await rig.store([user])
    async with Crowd(rig, "calls", 600, user=user) as crowd:
        result = await crowd.leave()
    asked = sum(answer.user == user_name(user) for answer in rig.venue.answers)
    assert result.served == 600, f"not all were served: {result}"
    assert asked == 1, f"the venue was asked {asked} times"
    assert len(result.versions) == 1, f"there are the versions {result.versions}"
    yield


@fault("clients-flood")
@asynccontextmanager
async def clients_flood(rig: Rig) -> AsyncIterator[None]:
    """Sixty clients call one replica without a pause."""
    async with Crowd(rig, "flood", 60, replicas=[0]) as crowd:
        yield
        result = await crowd.leave()
    assert result.served > 100, f"the flood was not served: {result}"


def _plugin_processes(replica: Replica) -> list[psutil.Process]:
    """The processes that run a replica's plugins. AssertionError if there is no such process."""
    below = psutil.Process(replica.pid).children(recursive=True)
    found = [process for process in below if not process.children()]
    assert found, "the replica has no plugin process"
    return found


# OANDA's plugin, which runs in the service's own process unless told otherwise.
_OWN_PROCESS = {"plugin_processes": '{"oanda": "own-process"}'}


@fault("plugin-killed", settings=_OWN_PROCESS)
@asynccontextmanager
async def plugin_killed(rig: Rig) -> AsyncIterator[None]:
    """SIGKILL of a plugin's process, which is started again."""
    for process in _plugin_processes(rig.replicas[1]):
        process.kill()
    yield


@fault("plugin-frozen", settings=_OWN_PROCESS)
@asynccontextmanager
async def plugin_frozen(rig: Rig) -> AsyncIterator[None]:
    """SIGSTOP of a plugin's process, until the service ends it or the fault does."""
    processes = _plugin_processes(rig.replicas[1])
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@fault("plugin-stutters", settings=_OWN_PROCESS)
@asynccontextmanager
async def plugin_stutters(rig: Rig) -> AsyncIterator[None]:
    """A plugin's process gets a quarter of the time, as if its code blocked its loop again and again."""
    (process,) = _plugin_processes(rig.replicas[1])

    def send(number: signal.Signals) -> None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)

    async with stuttering(send):
        yield
