"""What the service counts of itself, for Prometheus.

One `Metrics` belongs to one service; nothing is global. Counting costs a fraction of a microsecond, so that every call
can be counted: it adds to plain numbers, which are made into the library's families when somebody reads them. All
methods are for the event loop's thread; `text` may be called from any.

No label holds what a caller or a venue chose: exchanges are those of the catalogue, reasons those of the error tree,
and of other words at most `MAX_WORDS` are told apart. Whatever else comes is counted under "other".
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from exchange_service.errors import leaves

OTHER = "other"
# What a fetch or a call is counted under that went well.
WELL = "OK"
# What a fetch is counted under that nobody waited for any more.
CANCELLED = "CANCELLED"
MAX_WORDS = 32
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}\Z")

# Upper bounds in seconds: a kept balance takes less than a millisecond, a venue up to its timeout.
_DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STALLS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_AGES = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
# Seconds between two looks at whether the event loop comes round in time.
_TICK = 0.1

_Labels = tuple[str, ...]


@dataclass(slots=True)
class _Spread:
    """How often values fell below each of these bounds, and their sum."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.total += value
        self.counts[bisect_left(self.bounds, value)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """As the library wants them: bound and count of everything below."""
        found, below = [], 0
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts), strict=True):
            below += count
            found.append(("+Inf" if bound == float("inf") else repr(bound), float(below)))
        return found


@dataclass(frozen=True, slots=True)
class ProcessOfPlugin:
    """One process that runs a plugin: `memory` is in bytes."""

    plugin: str
    number: int
    running: bool
    memory: int
    restarts: int


class Metrics:
    """The counts of one service. `exchanges` has the ids that may become labels, as they are now."""

    def __init__(self, exchanges: Callable[[], Container[str]] = tuple) -> None:
        self._exchanges = exchanges
        self._reasons = frozenset((*(leaf.reason for leaf in leaves()), CANCELLED))
        self._words: dict[str, str] = {}
        self._calls: dict[_Labels, _Spread] = defaultdict(lambda: _Spread(_DURATIONS))
        self._fetches: dict[_Labels, int] = defaultdict(int)
        self._fetch_times: dict[_Labels, _Spread] = defaultdict(lambda: _Spread(_DURATIONS))
        self._lag = _Spread(_AGES)
        self._stalls = _Spread(_STALLS)
        self._failures: dict[_Labels, int] = defaultdict(int)
        self._reads: dict[_Labels, int] = defaultdict(int)
        self._cache_reads: dict[_Labels, int] = defaultdict(int)
        self._written: dict[_Labels, int] = defaultdict(int, {(): 0})
        self._retries: dict[_Labels, int] = defaultdict(int)
        self._refused: dict[_Labels, int] = defaultdict(int)
        self._credentials: dict[_Labels, int] = defaultdict(int)
        self._budgets: dict[_Labels, float] = {}
        self._breakers: dict[_Labels, str] = {}
        self._watched: dict[str, Callable[[], int]] = {}
        self._levels: dict[str, int] = {}
        self._processes: Callable[[], Iterable[ProcessOfPlugin]] = tuple
        self._processes_seen: tuple[ProcessOfPlugin, ...] = ()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(self)

    # What happens

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call has ended: `method` is one of our service's, `code` the status by its name, such as "OK"."""
        self._calls[method, code].add(seconds)

    def call_failed(self, reason: str) -> None:
        """A call was told this reason of the error tree."""
        self._failures[(self._reason(reason),)] += 1

    def fetch_ended(self, exchange: str, reason: str, seconds: float) -> None:
        """A venue was asked for a balance: `reason` of the error tree, or "" for a good answer."""
        exchange = self._exchange(exchange)
        self._fetches[exchange, self._reason(reason)] += 1
        self._fetch_times[(exchange,)].add(seconds)

    def balance_read(self, source: str) -> None:
        """A caller was given a balance: "cache", "last-good" or "venue"."""
        self._reads[(self._word(source),)] += 1

    def cache_read(self, kind: str) -> None:
        """The cache was asked for a balance, and where it was: "process", "redis" or "nowhere"."""
        self._cache_reads[(self._word(kind),)] += 1

    def budget_left(self, exchange: str, scope: str, share: float) -> None:
        """Which share of a venue's request budget is left now, 0 to 1; `scope` says what the budget is of, such as
        "address" or "account" and never which one."""
        self._budgets[self._exchange(exchange), self._word(scope)] = share

    def breaker(self, exchange: str, environment: str, state: str) -> None:
        """A breaker is now "closed", "open" or "half-open"."""
        self._breakers[self._exchange(exchange), self._word(environment)] = self._word(state)

    def retried(self, exchange: str) -> None:
        """A venue was asked once more after a failure."""
        self._retries[(self._exchange(exchange),)] += 1

    def refused(self, reason: str) -> None:
        """A venue was not asked, to spare it or us: a reason of the error tree, or a word such as "budget"."""
        self._refused[(reason if reason in self._reasons else self._word(reason),)] += 1

    def event_written(self) -> None:
        """A message went out on a stream."""
        self._written[()] += 1

    def value_handed_out(self, age: float) -> None:
        """A stream was given a balance that the venue had answered `age` seconds ago."""
        self._lag.add(age)

    def credential_opened(self, reason: str = "") -> None:
        """A stored credential was opened, or could not be for this reason of the error tree."""
        self._credentials[(self._reason(reason),)] += 1

    def stalled(self, seconds: float) -> None:
        """The event loop came round this much too late."""
        self._stalls.add(seconds)

    # What is the case

    def watch(self, name: str, read: Callable[[], int]) -> None:
        """Ask `read` for how many there are whenever somebody looks: "calls", "feeds" or "streams"."""
        self._watched[name] = read

    def watch_processes(self, read: Callable[[], Iterable[ProcessOfPlugin]]) -> None:
        """The same for the processes that run plugins."""
        self._processes = read

    def refresh(self) -> None:
        """Look at what is watched; in the event loop's thread."""
        self._levels = {name: read() for name, read in self._watched.items()}
        self._processes_seen = tuple(self._processes())

    async def run(self) -> None:
        """Measure how late the event loop comes round, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK
            await asyncio.sleep(_TICK)
            self.stalled(max(0.0, loop.time() - due))

    # What is shown

    def text(self) -> bytes:
        """Everything in Prometheus's text format, with what is watched as it was at the last `refresh`."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """For the library: everything as its families."""
        name = "exchange_service_"
        yield _spreads(name + "call_seconds", "Calls by method and status.", ("method", "code"), self._calls)
        yield _counts(name + "call_failures", "Failed calls by reason.", ("reason",), self._failures)
        yield _counts(name + "venue_fetches", "Balances asked of venues.", ("exchange", "reason"), self._fetches)
        yield _spreads(name + "venue_fetch_seconds", "How long that took.", ("exchange",), self._fetch_times)
        yield _counts(name + "balance_reads", "Balances given to callers, by source.", ("source",), self._reads)
        yield _counts(name + "cache_reads", "Balances looked for in the cache.", ("kind",), self._cache_reads)
        yield _counts(name + "venue_retries", "Venues asked once more.", ("exchange",), self._retries)
        yield _counts(name + "venue_refusals", "Venues not asked, to spare them.", ("reason",), self._refused)
        yield _counts(name + "stream_messages", "Messages written to streams.", (), self._written)
        yield _counts(name + "credentials_opened", "Stored credentials opened.", ("reason",), self._credentials)
        yield _spreads(name + "stream_value_age_seconds", "Age of balances as streamed.", (), {(): self._lag})
        yield _spreads(name + "event_loop_stall_seconds", "How late the event loop came.", (), {(): self._stalls})
        yield from self._gauges(name)

    def _gauges(self, name: str) -> Iterator[Metric]:
        budgets = GaugeMetricFamily(
            name + "venue_budget_left", "Share of a venue's request budget.", labels=("exchange", "scope")
        )
        for labels, share in list(self._budgets.items()):
            budgets.add_metric(labels, share)
        yield budgets
        breakers = GaugeMetricFamily(
            name + "venue_breaker",
            "1 for the state that a venue's breaker is in.",
            labels=("exchange", "environment", "state"),
        )
        for labels, state in list(self._breakers.items()):
            breakers.add_metric((*labels, state), 1.0)
        yield breakers
        for watched, count in self._levels.items():
            yield GaugeMetricFamily(f"{name}{watched}_open", f"How many {watched} are open now.", value=count)
        yield from _of_processes(name + "plugin_process_", self._processes_seen)

    def _exchange(self, exchange: str) -> str:
        return exchange if exchange in self._exchanges() else OTHER

    def _reason(self, reason: str) -> str:
        if not reason:
            return WELL
        return reason if reason in self._reasons else OTHER

    def _word(self, word: str) -> str:
        """The word as a label may have it; the first few are taken as they are."""
        known = self._words.get(word)
        if known is not None:
            return known
        if len(self._words) >= MAX_WORDS or not _WORD.match(word):
            return OTHER
        return self._words.setdefault(word, word)


def _spreads(name: str, text: str, labels: Sequence[str], spreads: Mapping[_Labels, _Spread]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, spread in list(spreads.items()):
        family.add_metric(values, buckets=spread.buckets(), sum_value=spread.total)
    return family


def _counts(name: str, text: str, labels: Sequence[str], counts: Mapping[_Labels, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in list(counts.items()):
        family.add_metric(values, count)
    return family


def _of_processes(name: str, processes: Iterable[ProcessOfPlugin]) -> Iterator[Metric]:
    labels = ("plugin", "process")
    running = GaugeMetricFamily(name + "running", "Whether a plugin's process runs.", labels=labels)
    memory = GaugeMetricFamily(name + "memory_bytes", "Its memory.", labels=labels)
    restarts = CounterMetricFamily(name + "restarts", "How often it was started anew.", labels=labels)
    for process in processes:
        values = (process.plugin, str(process.number))
        running.add_metric(values, float(process.running))
        memory.add_metric(values, process.memory)
        restarts.add_metric(values, process.restarts)
    yield from (running, memory, restarts)
