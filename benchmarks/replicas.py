"""Three replicas on one Redis, one of them killed half-way: how often the venue is asked, and how long callers wait."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import psutil

from benchmarks.crowd import Crowd, Replica, longest_wait
from benchmarks.lines import Line, bounded
from benchmarks.names import user
from benchmarks.serving import Bed, bed, serving
from exchange_service.balances.leases import LEASE
from tests.servers import RedisServer

DEFAULT_SECONDS = 60.0
REPLICAS = 3
ACCOUNTS = 20
CALLERS, SUBSCRIBERS = 500, 1000
# Seconds. Two cores can do this much: 250 calls and 500 messages a second.
INTERVAL, PAUSE = 2.0, 2.0
# The pause before a feed's next read differs by a tenth.
_JITTER = 0.1
# Seconds that the venue takes: long enough to kill a replica that has asked and has no answer yet.
_VENUE_SECONDS = 0.1
# All other settings are the defaults: callers accept balances up to 30 s old, so only feeds ask the venue.
_SETTINGS = {"poll_interval": f"{INTERVAL:g}", "poll_interval_still": f"{INTERVAL:g}", "replicas": f"{REPLICAS}"}
# One lease and one interval, at its longest, with the venue's own time.
_LONGEST_WAIT = LEASE + INTERVAL * (1 + _JITTER) + _VENUE_SECONDS
# Seconds after the opening in which nothing is measured.
_SETTLING = 3.0
# A refresh that follows sooner, as a part of the interval, is the second one of that interval.
_TOO_SOON = 0.5


@dataclass(frozen=True, slots=True)
class VenueRequest:
    """A request to the venue: the user, the process, and the time in seconds since the epoch."""

    user: str
    pid: int
    time: float


@dataclass(frozen=True, slots=True)
class Refreshes:
    """How often the venue was asked in an account's interval. `twice` counts requests that came too soon after another
    one. Those right after a takeover from the killed replica are counted in `in_takeover` instead."""

    mean: float
    worst: float
    twice: int
    in_takeover: int


def venue_requests(text: str) -> list[VenueRequest]:
    """The requests in the venue's log, without an unfinished last line."""
    rows = (line.split() for line in text.splitlines(keepends=True) if line.endswith("\n"))
    return [VenueRequest(name, int(pid), float(moment)) for name, pid, moment in rows]


def refreshes(asked: Iterable[VenueRequest], seconds: float, interval: float, killed: tuple[int, float]) -> Refreshes:
    """The refreshes in `seconds` by the venue's log; `killed` is the process that was killed, and when."""
    by_account: Mapping[str, list[VenueRequest]] = defaultdict(list)
    for one in asked:
        by_account[one.user].append(one)
    counts = [len(those) for those in by_account.values()]
    intervals = seconds / interval
    twice, in_takeover = 0, 0
    pid, moment = killed
    for those in by_account.values():
        before = [one for one in those if one.time <= moment]
        after = those[len(before) : len(before) + 1]
        taken_over = after if before and before[-1].pid == pid else []
        for first, second in itertools.pairwise(those):
            if second.time - first.time >= interval * _TOO_SOON:
                continue
            if first in taken_over:
                in_takeover += 1
            else:
                twice += 1
            sys.stderr.write(
                f"{first.user}: asked by {first.pid} and {second.time - first.time:.3f} s later by {second.pid},"
                f" {second.time - moment:+.2f} s from the kill of {pid}\n"
            )
    mean = sum(counts) / max(1, len(counts)) / intervals
    return Refreshes(mean, max(counts, default=0) / intervals, twice, in_takeover)


async def replicas(seconds: float, engine: str) -> list[Line]:
    """Refreshes an account and interval, waits, versions and failures, in so many seconds with a kill in the middle."""
    async with bed(ACCOUNTS) as made, AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer())
        venue = {"BENCHMARK_VENUE_SECONDS": f"{_VENUE_SECONDS:g}"}
        services = [
            await stack.enter_async_context(
                serving(made, venue=venue, cache_url=server.url, engine=engine, **_SETTINGS)
            )
            for _ in range(REPLICAS)
        ]
        by_pid = {service.pid: Replica(service.port) for service in services}
        crowd = Crowd(list(by_pid.values()), made.metadata, ACCOUNTS, PAUSE)
        stack.push_async_callback(crowd.close)
        await crowd.open(CALLERS, SUBSCRIBERS)
        await asyncio.sleep(_SETTLING)
        crowd.forget_waits()
        began = time.time()
        await asyncio.sleep(seconds / 2)
        undisturbed = longest_wait(crowd.subscribers)
        crowd.forget_waits()
        killed = await _kill_asking_replica(made, by_pid)
        await asyncio.sleep(max(seconds / 2, LEASE * 2 + INTERVAL))
        ended = time.time()
        asked = [one for one in venue_requests(made.venue_log.read_text()) if began <= one.time <= ended]
        _print_waits(crowd, asked, killed)
        found = refreshes(asked, ended - began, INTERVAL, killed)
        return _refresh_lines(found) + _crowd_lines(crowd, undisturbed, ended - began)


async def _kill_asking_replica(made: Bed, by_pid: Mapping[int, Replica]) -> tuple[int, float]:
    """Kill the replica that feeds the first account at the worst moment: it holds the lease, has asked the venue and$
    has no answer yet. Returns its process id and the time."""
    read = len(made.venue_log.read_bytes())
    async with asyncio.timeout(LEASE + 3 * INTERVAL):
        while True:
            new = venue_requests(made.venue_log.read_bytes()[read:].decode())
            asking = [one for one in new if one.user == user(0)]
            if asking:
                break
            await asyncio.sleep(0.002)
    pid = asking[-1].pid
    by_pid[pid].lives = False
    os.kill(pid, signal.SIGKILL)
    return pid, time.time()


def _print_waits(crowd: Crowd, asked: Sequence[VenueRequest], killed: tuple[int, float]) -> None:
    """Print when the venue was asked again for accounts of the killed replica, and how long subscribers waited."""
    pid, moment = killed
    load = psutil.getloadavg()[0]
    sys.stderr.write(f"replicas: load {load:.1f}, process {pid} killed while it asked for {user(0)}\n")
    for number in range(ACCOUNTS):
        before = [one for one in asked if one.user == user(number) and one.time <= moment]
        after = [one for one in asked if one.user == user(number) and one.time > moment]
        if before and after and before[-1].pid == pid:
            waits = [one for one in crowd.subscribers if one.account == number]
            stayed, moved = ([one for one in waits if one.moved is moved] for moved in (False, True))
            sys.stderr.write(
                f"  {user(number)}: last asked for at {before[-1].time - moment:+.2f} s, again at"
                f" {after[0].time - moment:+.2f} s; longest wait {longest_wait(stayed):.2f} s,"
                f" of the subscribers that moved {longest_wait(moved):.2f} s\n"
            )


def _refresh_lines(found: Refreshes) -> list[Line]:
    """The lines of the venue's own counters. One more refresh than intervals is a takeover's."""
    most = 1 + _JITTER
    what = f"{CALLERS} callers, {SUBSCRIBERS:,} subscribers, {REPLICAS} replicas: refreshes"
    fits = 1 - 2 * _JITTER <= found.mean <= most
    return [
        Line("replicas/refreshes", what, found.mean, 1, "", "1 an interval", fits),
        Line(
            "replicas/worst",
            "  of the account with the most",
            found.worst,
            1,
            "",
            "1 an interval",
            found.worst <= most,
        ),
        Line(
            "replicas/twice", "  two in one interval, the takeover aside", found.twice, 0, "", "none", found.twice == 0
        ),
        Line("replicas/takeover", "  two in one interval, in the takeover", found.in_takeover, 0, "", "", None),
    ]


def _crowd_lines(crowd: Crowd, undisturbed: float, seconds: float) -> list[Line]:
    """The lines of what callers and subscribers saw."""
    limit = _LONGEST_WAIT
    stayed, moved = ([one for one in crowd.subscribers if one.moved is moved] for moved in (False, True))
    lost = SUBSCRIBERS - sum(time.time() - one.arrived < limit for one in crowd.subscribers)
    return [
        bounded("replicas/undisturbed", "longest wait for an update, all replicas alive", "s", undisturbed, limit),
        bounded("replicas/wait", "  one killed, at the other replicas", "s", longest_wait(stayed), limit),
        bounded("replicas/moved", "  one killed, its own subscribers", "s", longest_wait(moved), limit),
        Line("replicas/came back", "subscribers without updates in the end", lost, 0, "", "none", lost == 0),
        Line("replicas/back", "versions that went back", crowd.went_back, 0, "", "none", crowd.went_back == 0),
        Line(
            "replicas/troubles", "errors that subscribers received", crowd.troubles, 0, "", "none", not crowd.troubles
        ),
        Line(
            "replicas/ended", "streams that ended at the living replicas", crowd.ended, 0, "", "none", not crowd.ended
        ),
        Line(
            "replicas/failed", "calls that failed at the living replicas", crowd.failed, 0, "", "none", not crowd.failed
        ),
        Line("replicas/calls", "calls that were answered", crowd.answered / seconds, 0, "a second", "", None),
    ]
