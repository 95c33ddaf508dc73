"""The service's metrics, for Prometheus.

A `Metrics` belongs to one service; nothing is global. Counting takes a fraction of a microsecond: it adds to plain
numbers, which become the library's families only when metrics are read. Call the methods in the event loop's thread;
`text` may be called from any thread.

No label holds a text that a caller or a venue chose. Exchanges are those of the catalogue, reasons those of the error
tree, and at most `MAX_WORDS` other words become labels; everything else is counted under "other".
"""

from __future__ import annotations

import asyncio
import platform
import re
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from exchange_service import __version__
from exchange_service.errors import leaves
from exchange_service.observability import families
from exchange_service.observability.families import Family

OTHER = "other"
# The reason of a fetch or call that succeeded.
WELL = "OK"
# The reason of a fetch that was cancelled, because no caller waited for it any more.
CANCELLED = "CANCELLED"
MAX_WORDS = 32
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}\Z")

# Upper bounds in seconds: a cached balance takes less than a millisecond, a venue up to its timeout.
_DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STALLS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_AGES = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
# Seconds between two measurements of the event loop's delay.
_TICK = 0.1

_Labels = tuple[str, ...]


@dataclass(slots=True)
class _Histogram:
    """How many values were at most each of these bounds, and the sum of all."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.total += value
        self.counts[bisect_left(self.bounds, value)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """The library's buckets: each bound with the number of all values up to it."""
        buckets, below = [], 0
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts), strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(below)))
        return buckets


@dataclass(frozen=True, slots=True)
class ProcessOfPlugin:
    """One process that runs a plugin, the `number`-th of that plugin; `memory` is in bytes."""

    plugin: str
    number: int
    running: bool
    memory: int
    restarts: int


@dataclass(frozen=True, slots=True)
class PushConnections:
    """The connections for one exchange's pushes: those that are `open` with their `subscriptions`, and how many were
    `opened` so far."""

    open: int
    subscriptions: int
    opened: int


@dataclass(frozen=True, slots=True)
class Build:
    """What serves: the `engine` of gRPC, and the versions of the service and of Python."""

    engine: str = ""
    version: str = __version__
    python: str = platform.python_version()


class Metrics:
    """The metrics of one service. `exchanges` returns the ids that may become labels at present.

    `Metrics()` is cheap, and counts every exchange under "other": use it where no one reads the metrics.
    """

    def __init__(self, exchanges: Callable[[], Container[str]] = tuple, build: Build | None = None) -> None:
        self._exchanges = exchanges
        self._build = build or Build()
        self._reasons = frozenset((*(leaf.reason for leaf in leaves()), CANCELLED))
        self._words: dict[str, str] = {}
        self._calls: dict[_Labels, _Histogram] = defaultdict(lambda: _Histogram(_DURATIONS))
        self._fetches: dict[_Labels, int] = defaultdict(int)
        self._fetch_times: dict[_Labels, _Histogram] = defaultdict(lambda: _Histogram(_DURATIONS))
        self._stream_ages = _Histogram(_AGES)
        self._stalls = _Histogram(_STALLS)
        # What may be counted is there at zero: a counter that appears with its first event hides that event from rates.
        self._failures = _at_zero(leaf.reason for leaf in leaves())
        self._reads = _at_zero(self._word(source) for source in ("cache", "last-good", "venue"))
        self._cache_reads = _at_zero(self._word(kind) for kind in ("process", "shared", "nowhere"))
        self._written: dict[_Labels, int] = defaultdict(int, {(): 0})
        self._retries: dict[_Labels, int] = defaultdict(int)
        self._refused = _at_zero(families.REFUSALS)
        self._credentials = _at_zero((WELL, *families.NOT_OPENED))
        self._budgets: dict[_Labels, float] = {}
        self._breakers: dict[_Labels, str] = {}
        self._certificates: dict[str, float] = {}
        self._pushes: dict[_Labels, int] = defaultdict(int)
        self._push_breaks: dict[_Labels, int] = defaultdict(int)
        self._push_differences: dict[_Labels, int] = defaultdict(int)
        self._push_delays = _Histogram(_DELAYS)
        self._read_followed: Callable[[], Mapping[tuple[str, str], int]] = dict
        self._followed: dict[_Labels, int] = {}
        self._read_connections: Callable[[], Iterable[tuple[str, PushConnections]]] = tuple
        self._connections: dict[_Labels, PushConnections] = {}
        self._watched: dict[str, Callable[[], int]] = {}
        self._levels: dict[str, int] = {}
        self._processes: Callable[[], Iterable[ProcessOfPlugin]] = tuple
        self._processes_seen: tuple[ProcessOfPlugin, ...] = ()
        self._read_memory: Callable[[], int | None] = lambda: None
        self._memory_left: int | None = None

    @cached_property
    def registry(self) -> CollectorRegistry:
        """The library's registry of these metrics and the process's own; made when metrics are first read."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(self)
        return registry

    # Events

    def method_served(self, method: str) -> None:
        """A method that is served, so that its calls are shown before the first one."""
        self._calls[method, WELL]

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call ended: `method` is its name without the service, `code` the name of its status, such as "OK"."""
        self._calls[method, code].add(seconds)

    def call_failed(self, reason: str) -> None:
        """A call failed with this reason of the error tree."""
        self._failures[(self._reason(reason),)] += 1

    def fetch_ended(self, exchange: str, reason: str, seconds: float) -> None:
        """A fetch of a balance from a venue ended: with a `reason` of the error tree, or "" if it succeeded."""
        exchange = self._exchange(exchange)
        if (exchange,) not in self._fetch_times:
            self._retries[(exchange,)] += 0
            for known in (WELL, *families.TROUBLE):
                self._fetches[exchange, known] += 0
        self._fetches[exchange, self._reason(reason)] += 1
        self._fetch_times[(exchange,)].add(seconds)

    def balance_read(self, source: str) -> None:
        """A balance was returned to a caller; `source` is "cache", "last-good" or "venue"."""
        self._reads[(self._word(source),)] += 1

    def cache_read(self, kind: str) -> None:
        """A balance was looked for in the cache; `kind` is where it was: "process", "shared" or "nowhere"."""
        self._cache_reads[(self._word(kind),)] += 1

    def balance_at_hand(self) -> None:
        """As `cache_read` and `balance_read` of a balance from the memory of the process, in less time."""
        process, cache = self._at_hand
        self._cache_reads[process] += 1
        self._reads[cache] += 1

    @cached_property
    def _at_hand(self) -> tuple[_Labels, _Labels]:
        return (self._word("process"),), (self._word("cache"),)

    def budget_left(self, exchange: str, scope: str, share: float) -> None:
        """The unused `share` of a venue's limit, 0 to 1. `scope` is what the limit counts by, "address" or "key"; it
        never says which."""
        self._budgets[self._exchange(exchange), self._word(scope)] = share

    def breaker(self, exchange: str, environment: str, state: str, way: str = "") -> None:
        """A venue's circuit breaker changed to `state`: "closed", "open" or "half-open". `way` is the outgoing way that
        it is about, if the venue has several."""
        of = self._exchange(exchange), self._word(environment), self._word(way) if way else ""
        self._breakers[of] = self._word(state)

    def retried(self, exchange: str) -> None:
        """A failed request to a venue was sent again."""
        self._retries[(self._exchange(exchange),)] += 1

    def refused(self, reason: str) -> None:
        """A request was not sent, to spare the venue or the service; `reason` is one of the error tree."""
        self._refused[(reason if reason in self._reasons else self._word(reason),)] += 1

    def event_written(self) -> None:
        """A message was written to a stream."""
        self._written[()] += 1

    def value_handed_out(self, age: float) -> None:
        """A balance became an event for streams, `age` seconds after the venue's answer."""
        self._stream_ages.add(age)

    def credential_opened(self, reason: str = "") -> None:
        """A stored credential was opened, or could not be opened for this `reason` of the error tree."""
        self._credentials[(self._reason(reason),)] += 1

    def certificates(self, ends: dict[str, float]) -> None:
        """When the server's certificates end, in seconds since the epoch, by the setting that names the file."""
        self._certificates = ends

    def push_came(self, exchange: str, kind: str) -> None:
        """A venue pushed something of an account: a "whole" balance or a "hint"."""
        self._pushes[self._known_to_push(exchange), self._word(kind)] += 1

    def push_stored(self, seconds: float) -> None:
        """A pushed balance was handed to the subscribers and the cache so many seconds after it came."""
        self._push_delays.add(seconds)

    def push_broken(self, exchange: str, reason: str) -> None:
        """The push of an account ended, or did not come to stand, for this reason of the error tree."""
        self._push_breaks[self._known_to_push(exchange), self._reason(reason)] += 1

    def push_difference(self, exchange: str) -> None:
        """A reconciling read found other totals than the pushes had brought."""
        self._push_differences[(self._known_to_push(exchange),)] += 1

    # The event loop

    def stalled(self, seconds: float) -> None:
        """The event loop ran a timer so many seconds late."""
        self._stalls.add(seconds)

    async def run(self) -> None:
        """Measure how late the event loop runs timers, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK
            await asyncio.sleep(_TICK)
            self.stalled(max(0.0, loop.time() - due))

    # Present state

    def watch(self, name: str, read: Callable[[], int]) -> None:
        """Show the number that `read` returns, as of each `refresh`, for a `name` such as "calls"."""
        self._watched[name] = read

    def watch_processes(self, read: Callable[[], Iterable[ProcessOfPlugin]]) -> None:
        """Show the processes of plugins that `read` returns, as of each `refresh`."""
        self._processes = read

    def watch_memory(self, read: Callable[[], int | None]) -> None:
        """Show the bytes of memory that `read` says are left, as of each `refresh`; None if there is no limit."""
        self._read_memory = read

    def watch_pushes(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Show how many accounts are pushed, and polled for each reason, by exchange, as of each `refresh`."""
        self._read_followed = read

    def watch_connections(self, read: Callable[[], Iterable[tuple[str, PushConnections]]]) -> None:
        """Show the connections for pushes that `read` returns, with the exchange's id, as of each `refresh`; those of
        one exchange are added up."""
        self._read_connections = read

    def refresh(self) -> None:
        """Read the present state of all that is watched. Call it in the event loop's thread."""
        followed: dict[_Labels, int] = defaultdict(int)
        for (exchange, word), count in self._read_followed().items():
            followed[self._exchange(exchange), self._word(word)] += count
        self._followed = followed
        self._connections = self._add_up_connections()
        self._memory_left = self._read_memory()
        self._levels = {name: read() for name, read in self._watched.items()}
        self._processes_seen = tuple(self._processes())

    def _add_up_connections(self) -> dict[_Labels, PushConnections]:
        connections: dict[_Labels, PushConnections] = {}
        for exchange, more in self._read_connections():
            before = connections.get((self._exchange(exchange),), PushConnections(0, 0, 0))
            connections[(self._exchange(exchange),)] = PushConnections(
                before.open + more.open, before.subscriptions + more.subscriptions, before.opened + more.opened
            )
        return connections

    # Output

    def text(self) -> bytes:
        """All metrics in Prometheus's text format; the present state is that of the last `refresh`."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics as families of the library, which calls this; each has a row in `families.SECTIONS`."""
        yield _gauges(families.BUILD_INFO, {(self._build.version, self._build.python, self._build.engine): 1.0})
        yield _histograms(families.CALL_SECONDS, self._calls)
        yield _counts(families.CALL_FAILURES, self._failures)
        yield _counts(families.BALANCE_READS, self._reads)
        yield _counts(families.CACHE_READS, self._cache_reads)
        yield _counts(families.VENUE_FETCHES, self._fetches)
        yield _histograms(families.VENUE_FETCH_SECONDS, self._fetch_times)
        yield _counts(families.VENUE_RETRIES, self._retries)
        yield _counts(families.VENUE_REFUSALS, self._refused)
        yield _gauges(families.VENUE_BUDGET_LEFT, self._budgets)
        yield _gauges(families.VENUE_BREAKER, {(*of, state): 1.0 for of, state in list(self._breakers.items())})
        yield _counts(families.CREDENTIALS_OPENED, self._credentials)
        yield _counts(families.STREAM_MESSAGES, self._written)
        yield _histograms(families.STREAM_VALUE_AGE, {(): self._stream_ages})
        yield from self._push_families()
        yield from self._state_families()

    def _push_families(self) -> Iterator[Metric]:
        yield _counts(families.PUSHES, self._pushes)
        yield _counts(families.PUSH_BREAKS, self._push_breaks)
        yield _counts(families.PUSH_DIFFERENCES, self._push_differences)
        yield _histograms(families.PUSH_DELAY, {(): self._push_delays})
        yield _gauges(families.PUSH_ACCOUNTS, self._followed)
        connections = self._connections.items()
        yield _counts(families.PUSH_CONNECTIONS_OPENED, {of: figures.opened for of, figures in connections})
        yield _gauges(families.PUSH_CONNECTIONS_OPEN, {of: figures.open for of, figures in connections})
        yield _gauges(families.PUSH_SUBSCRIPTIONS_OPEN, {of: figures.subscriptions for of, figures in connections})

    def _state_families(self) -> Iterator[Metric]:
        for family, watched in families.WATCHED.items():
            yield _gauges(family, {(): self._levels[watched]} if watched in self._levels else {})
        yield _histograms(families.EVENT_LOOP_STALL, {(): self._stalls})
        yield _gauges(families.MEMORY_LEFT, {} if self._memory_left is None else {(): self._memory_left})
        now = time.time()
        days: dict[_Labels, float] = {(file,): (end - now) / 86400 for file, end in self._certificates.items()}
        yield _gauges(families.CERTIFICATE_DAYS_LEFT, days)
        processes = {(process.plugin, str(process.number)): process for process in self._processes_seen}
        yield _gauges(families.PROCESS_RUNNING, {of: float(process.running) for of, process in processes.items()})
        yield _gauges(families.PROCESS_MEMORY, {of: process.memory for of, process in processes.items()})
        yield _counts(families.PROCESS_RESTARTS, {of: process.restarts for of, process in processes.items()})

    def _exchange(self, exchange: str) -> str:
        return exchange if exchange in self._exchanges() else OTHER

    def _known_to_push(self, exchange: str) -> str:
        """The exchange as a label; with the first event of its pushes, all that may follow is there at zero."""
        exchange = self._exchange(exchange)
        if (exchange,) not in self._push_differences:
            self._push_differences[(exchange,)] = 0
            for kind in ("whole", "hint"):
                self._pushes[exchange, self._word(kind)] += 0
            for reason in families.TROUBLE:
                self._push_breaks[exchange, reason] += 0
        return exchange

    def _reason(self, reason: str) -> str:
        if not reason:
            return WELL
        return reason if reason in self._reasons else OTHER

    def _word(self, word: str) -> str:
        """The word as a label: itself if it is one of the first `MAX_WORDS`, else "other"."""
        known = self._words.get(word)
        if known is not None:
            return known
        if len(self._words) >= MAX_WORDS or not _WORD.match(word):
            return OTHER
        return self._words.setdefault(word, word)


def _at_zero(words: Iterable[str]) -> dict[_Labels, int]:
    return defaultdict(int, {(word,): 0 for word in words})


def _histograms(family: Family, histograms: Mapping[_Labels, _Histogram]) -> Metric:
    shown = HistogramMetricFamily(family.full_name, family.text, labels=family.labels)
    for values, histogram in list(histograms.items()):
        shown.add_metric(values, buckets=histogram.buckets(), sum_value=histogram.total)
    return shown


def _counts(family: Family, counts: Mapping[_Labels, int]) -> Metric:
    shown = CounterMetricFamily(family.full_name, family.text, labels=family.labels)
    for values, count in list(counts.items()):
        shown.add_metric(values, count)
    return shown


def _gauges(family: Family, figures: Mapping[_Labels, float]) -> Metric:
    shown = GaugeMetricFamily(family.full_name, family.text, labels=family.labels)
    for values, figure in list(figures.items()):
        shown.add_metric(values, figure)
    return shown
