"""The service's metrics by name: what each is, its labels, and which of its series exist before anything has happened.

`Metrics.collect` shows these families and no others, and docs/metrics.md is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "exchange_service_"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `name` has no prefix, and for a counter no "_total"; `text` is a sentence for operators."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    # The unit of its value, "1" for a share or a mark; empty for a number of what the text names.
    unit: str = ""
    # Which series exist from the start. Empty: of a family with labels each appears when there is something to show, of
    # another the one is there.
    from_start: str = ""

    @property
    def full_name(self) -> str:
        """The name as the library takes it."""
        return PREFIX + self.name

    @property
    def shown_name(self) -> str:
        """The name as Prometheus has it; of a histogram without "_bucket", "_sum" and "_count"."""
        return self.full_name + ("_total" if self.kind == COUNTER else "")


_FIRST_FETCH = "from an exchange's first fetch on"
_FIRST_PUSH = "from an exchange's first push or break on"

BUILD_INFO = Family(
    "build_info",
    GAUGE,
    "Always 1; the labels name the versions of the service and of Python, and the engine that serves gRPC.",
    ("version", "python", "engine"),
    "1",
    "yes",
)
SERVING = Family(
    "serving", GAUGE, "1 while the service says SERVING to health checks, else 0.", unit="1", from_start="yes"
)
REDIS_AVAILABLE = Family(
    "redis_available",
    GAUGE,
    "1 while the replica asks its Redis, 0 after it failed several times in a row; only with a Redis in cache_url.",
    unit="1",
    from_start="with a Redis",
)
CALL_SECONDS = Family(
    "call_seconds",
    HISTOGRAM,
    "Calls that ended, by method and status: their number and duration; of a stream its lifetime.",
    ("method", "code"),
    "seconds",
    "each method of the service with `OK`",
)
CALL_FAILURES = Family(
    "call_failures",
    COUNTER,
    "Failed calls by their reason, see docs/errors.md.",
    ("reason",),
    from_start="every reason",
)
BALANCE_READS = Family(
    "balance_reads",
    COUNTER,
    "Balances returned to callers, by where they came from: cache, last-good or venue.",
    ("source",),
    from_start="all three",
)
CACHE_READS = Family(
    "cache_reads",
    COUNTER,
    "Balances looked for in the cache, by where they were: process, shared or nowhere.",
    ("kind",),
    from_start="all three",
)
VENUE_FETCHES = Family(
    "venue_fetches",
    COUNTER,
    "Balances fetched from venues, by the reason of the failure; OK for those that came, CANCELLED for those that no"
    " caller waited for any more.",
    ("exchange", "reason"),
    from_start=f"{_FIRST_FETCH}: `OK` and what a venue or plugin in trouble leads to",
)
VENUE_FETCH_SECONDS = Family(
    "venue_fetch_seconds", HISTOGRAM, "Duration of these fetches, failed ones included.", ("exchange",), "seconds"
)
VENUE_RETRIES = Family(
    "venue_retries", COUNTER, "Failed requests to venues that were sent again.", ("exchange",), from_start=_FIRST_FETCH
)
VENUE_REFUSALS = Family(
    "venue_refusals",
    COUNTER,
    "Requests that were not sent, to spare the venue or the service; polls that are late are among them.",
    ("reason",),
    from_start="the reasons for which the service itself does so",
)
VENUE_BUDGET_LEFT = Family(
    "venue_budget_left",
    GAUGE,
    "Unused share of a venue's limit, 0 to 1, of the last request that counted against it.",
    ("exchange", "scope"),
    "1",
)
VENUE_BREAKER = Family(
    "venue_breaker",
    GAUGE,
    "1 for the present state of the circuit breaker of all accounts of a venue: closed, open or half-open. `way` is "
    "the outgoing way that it is about, and empty for a venue that has one.",
    ("exchange", "environment", "way", "state"),
    "1",
)
CREDENTIALS_OPENED = Family(
    "credentials_opened",
    COUNTER,
    "Stored credentials that were opened: OK, or the reason of the failure; the log has each.",
    ("reason",),
    from_start="`OK` and the reasons of a store or key that does not serve",
)
STREAM_MESSAGES = Family("stream_messages", COUNTER, "Messages written to streams.")
STREAM_VALUE_AGE = Family(
    "stream_value_age_seconds",
    HISTOGRAM,
    "Age of balances, since the venue's answer, when they became events of streams.",
    unit="seconds",
)
PUSHES = Family(
    "pushes",
    COUNTER,
    "What venues pushed, of each account: whole balances and hints.",
    ("exchange", "kind"),
    from_start=_FIRST_PUSH,
)
PUSH_BREAKS = Family(
    "push_breaks",
    COUNTER,
    "Pushes of an account that ended or did not begin, by reason.",
    ("exchange", "reason"),
    from_start=f"{_FIRST_PUSH}: what a venue or plugin in trouble leads to",
)
PUSH_DIFFERENCES = Family(
    "push_differences",
    COUNTER,
    "Slow reads that found other totals than the pushes had brought.",
    ("exchange",),
    from_start=_FIRST_PUSH,
)
PUSH_DELAY = Family(
    "push_delay_seconds",
    HISTOGRAM,
    "From the arrival of a pushed balance until it is in the cache and handed to the subscribers.",
    unit="seconds",
)
PUSH_ACCOUNTS = Family(
    "push_accounts",
    GAUGE,
    "Followed accounts of venues that push: pushed, or why they are polled: starting, broken, no-room or refused.",
    ("exchange", "delivery"),
)
PUSH_CONNECTIONS_OPENED = Family(
    "push_connections_opened",
    COUNTER,
    "Connections opened for pushes, in plugins' processes too; what it has beyond those that are open are reconnects.",
    ("exchange",),
)
PUSH_CONNECTIONS_OPEN = Family(
    "push_connections_open", GAUGE, "Connections that are open for pushes, in plugins' processes too.", ("exchange",)
)
PUSH_SUBSCRIPTIONS_OPEN = Family(
    "push_subscriptions_open",
    GAUGE,
    "Subscriptions on these connections; those of CCXT's classes do not tell theirs.",
    ("exchange",),
)
CALLS_OPEN = Family("calls_open", GAUGE, "Calls that run now, streams included.")
STREAMS_OPEN = Family("streams_open", GAUGE, "Subscriptions of streams that are open now.")
FEEDS_OPEN = Family("feeds_open", GAUGE, "Accounts that are followed for streams now.")
FETCHES_OPEN = Family("fetches_open", GAUGE, "Fetches from venues that run now.")
EVENT_LOOP_STALL = Family(
    "event_loop_stall_seconds",
    HISTOGRAM,
    "How late the event loop ran a timer, measured ten times a second.",
    unit="seconds",
)
MEMORY_LEFT = Family(
    "memory_left_bytes",
    GAUGE,
    "Memory that is left before new streams are refused; only where there is a limit.",
    unit="bytes",
    from_start="where there is a limit",
)
CERTIFICATE_DAYS_LEFT = Family(
    "certificate_days_left",
    GAUGE,
    "Days until the certificate in tls_certificate or tls_client_ca ends; below zero once it has ended.",
    ("file",),
    "days",
    "each file that is set",
)
PROCESS_RUNNING = Family(
    "plugin_process_running",
    GAUGE,
    "1 for a plugin's process that runs, 0 for one that has not been needed yet, or has ended.",
    ("plugin", "process"),
    "1",
    "each process of each plugin that runs in its own",
)
PROCESS_MEMORY = Family(
    "plugin_process_memory_bytes",
    GAUGE,
    "Memory of a plugin's process.",
    ("plugin", "process"),
    "bytes",
    "as `plugin_process_running`",
)
PROCESS_RESTARTS = Family(
    "plugin_process_restarts",
    COUNTER,
    "Restarts of a plugin's process.",
    ("plugin", "process"),
    from_start="as `plugin_process_running`",
)

# Gauges of the present state, by the name under which `Metrics.watch` is told.
WATCHED: Mapping[Family, str] = {
    CALLS_OPEN: "calls",
    STREAMS_OPEN: "streams",
    FEEDS_OPEN: "feeds",
    FETCHES_OPEN: "fetches",
    SERVING: "serving",
    REDIS_AVAILABLE: "redis",
}

# All families, by the headings of the page.
SECTIONS: Mapping[str, tuple[Family, ...]] = {
    "The service": (BUILD_INFO, SERVING, REDIS_AVAILABLE, EVENT_LOOP_STALL, MEMORY_LEFT, CERTIFICATE_DAYS_LEFT),
    "Calls": (CALL_SECONDS, CALL_FAILURES, CALLS_OPEN, BALANCE_READS, CACHE_READS),
    "Venues": (
        VENUE_FETCHES,
        VENUE_FETCH_SECONDS,
        FETCHES_OPEN,
        VENUE_RETRIES,
        VENUE_REFUSALS,
        VENUE_BUDGET_LEFT,
        VENUE_BREAKER,
        CREDENTIALS_OPENED,
    ),
    "Streams": (STREAMS_OPEN, FEEDS_OPEN, STREAM_MESSAGES, STREAM_VALUE_AGE),
    "Pushes": (
        PUSHES,
        PUSH_BREAKS,
        PUSH_DIFFERENCES,
        PUSH_DELAY,
        PUSH_ACCOUNTS,
        PUSH_CONNECTIONS_OPEN,
        PUSH_CONNECTIONS_OPENED,
        PUSH_SUBSCRIPTIONS_OPEN,
    ),
    "Plugins' processes": (PROCESS_RUNNING, PROCESS_MEMORY, PROCESS_RESTARTS),
}

# The reasons of fetches and pushes that operators watch: a venue or a plugin in trouble, and a refused key.
TROUBLE = (
    "VENUE_RATE_LIMITED",
    "VENUE_UNAVAILABLE",
    "VENUE_MAINTENANCE",
    "VENUE_TIMEOUT",
    "VENUE_MALFORMED",
    "CREDENTIAL_REJECTED",
    "PLUGIN_FAILED",
    "PLUGIN_UNAVAILABLE",
)
# Why the service itself does not send a request.
REFUSALS = ("VENUE_RATE_LIMITED", "VENUE_UNAVAILABLE", "VENUE_MAINTENANCE", "SERVICE_OVERLOADED")
# Why a stored credential cannot be opened.
NOT_OPENED = ("CREDENTIAL_MISSING", "CREDENTIAL_INVALID", "CREDENTIAL_UNREADABLE", "STORE_UNAVAILABLE")
