"""What promtool shows each rule: series in its own notation, a value a minute, and the minutes when it fires or not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeline:
    """Series by their values; `alert` fires at the minute `fires` and not yet at `quiet`. `labels` are what it says of
    where, beside the severity."""

    alert: str
    series: dict[str, str]
    fires: int
    quiet: int
    labels: dict[str, str]


JOB = {"job": "exchange-service"}
HERE = JOB | {"instance": "a:9464"}
VENUE = JOB | {"exchange": "oanda"}


def _of(name: str, **labels: str) -> str:
    """A series of the service's own metrics."""
    return _raw(f"exchange_service_{name}", **labels)


def _raw(name: str, **labels: str) -> str:
    texts = ", ".join(f'{label}="{value}"' for label, value in (HERE | labels).items())
    return f"{name}{{{texts}}}"


def _failures(reason: str, values: str) -> dict[str, str]:
    return {_of("call_failures_total", reason=reason): values}


def _fetches(reason: str, values: str) -> dict[str, str]:
    return {_of("venue_fetches_total", exchange="oanda", reason=reason): values}


def _calls(values: str) -> dict[str, str]:
    return {_of("call_seconds_count", method="GetBalance", code="OK"): values}


def _buckets(name: str, below: float, above: float, **labels: str) -> dict[str, str]:
    """A histogram whose values all lie between two bounds, sixty a minute."""
    return {
        _of(f"{name}_bucket", le=str(below), **labels): "0+0x60",
        _of(f"{name}_bucket", le=str(above), **labels): "0+60x60",
        _of(f"{name}_bucket", le="+Inf", **labels): "0+60x60",
    }


TIMELINES = (
    Timeline("ExchangeServiceDown", {_raw("up"): "1x4 0x10"}, 7, 5, HERE),
    Timeline("ExchangeServiceMissing", {_raw("up"): "1x2 stale _x30"}, 10, 5, JOB),
    Timeline("ExchangeServiceNotServing", {_of("serving"): "1x4 0x10"}, 8, 6, HERE),
    Timeline("ExchangeServiceStoreAway", _failures("STORE_UNAVAILABLE", "0x4 1+1x20"), 8, 5, JOB),
    Timeline("ExchangeServiceRedisAway", {_of("redis_available"): "1x4 0x10"}, 8, 6, HERE),
    Timeline("ExchangeServiceOverloaded", _failures("SERVICE_OVERLOADED", "0x4 1+1x20"), 8, 5, JOB),
    Timeline("ExchangeServiceFails", _failures("SERVICE_FAILED", "0x4 1x20"), 6, 4, JOB),
    Timeline("ExchangeServiceTooSlow", _failures("DEADLINE_PASSED", "0+6x60") | _calls("0+100x60"), 20, 3, JOB),
    Timeline("ExchangeServiceLoopStalls", _buckets("event_loop_stall_seconds", 0.2, 0.5), 20, 3, HERE),
    Timeline("ExchangeServiceMemoryLow", {_of("memory_left_bytes"): "80000000x4 60000000x20"}, 11, 8, HERE),
    Timeline(
        "ExchangeServiceFilesLow",
        {_raw("process_open_fds"): "70x4 90x20", _raw("process_max_fds"): "100x30"},
        *(11, 8, HERE),
    ),
    Timeline(
        "ExchangeServiceCertificateEnds",
        {_of("certificate_days_left", file="tls_certificate"): "15x4 13x20"},
        *(11, 8, HERE | {"file": "tls_certificate"}),
    ),
    Timeline(
        "ExchangeServiceCertificateEndsSoon",
        {_of("certificate_days_left", file="tls_certificate"): "4x4 2x20"},
        *(11, 8, HERE | {"file": "tls_certificate"}),
    ),
    Timeline("ExchangeServiceCallersUnknown", _failures("CALLER_UNKNOWN", "0+11x60") | _calls("0+100x60"), 20, 3, JOB),
    Timeline(
        "ExchangeServiceCredentialsUnreadable",
        {_of("credentials_opened_total", reason="CREDENTIAL_UNREADABLE"): "0x4 1x20"},
        *(6, 4, JOB),
    ),
    Timeline(
        "ExchangeServiceVenueAway",
        # Open and half-open in turn are one trouble.
        {
            _of("venue_breaker", exchange="oanda", environment="production", state="open"): "_x4 1x3 stale 1x20",
            _of("venue_breaker", exchange="oanda", environment="production", state="half-open"): "_x8 1 stale",
        },
        *(12, 8, VENUE | {"environment": "production"}),
    ),
    Timeline("ExchangeServiceVenueFails", _fetches("VENUE_TIMEOUT", "0+6x60") | _fetches("OK", "0+4x60"), 20, 3, VENUE),
    Timeline("ExchangeServiceVenueMalformed", _fetches("VENUE_MALFORMED", "0x4 1+1x20"), 9, 5, VENUE),
    Timeline("ExchangeServiceVenueLimitsUs", _fetches("VENUE_RATE_LIMITED", "0x4 1+1x20"), 12, 6, VENUE),
    Timeline(
        "ExchangeServiceVenueBudgetSpent",
        {_of("venue_budget_left", exchange="oanda", scope="address"): "0.05x60"} | _fetches("OK", "0+1x60"),
        *(14, 8, VENUE | {"scope": "address"}),
    ),
    Timeline("ExchangeServiceVenueSlow", _buckets("venue_fetch_seconds", 2.5, 5.0, exchange="oanda"), 20, 3, VENUE),
    Timeline("ExchangeServiceClockSkew", _fetches("CLOCK_SKEW", "0x4 1x20"), 6, 4, JOB),
    Timeline(
        "ExchangeServiceLastGood",
        {
            _of("balance_reads_total", source="last-good"): "0+30x60",
            _of("balance_reads_total", source="cache"): "0+70x60",
        },
        *(20, 3, JOB),
    ),
    Timeline("ExchangeServiceStreamsOld", _buckets("stream_value_age_seconds", 60.0, 120.0), 20, 3, JOB),
    Timeline(
        "ExchangeServicePushesMissed", {_of("push_differences_total", exchange="oanda"): "0x4 1+1x60"}, 9, 5, VENUE
    ),
    Timeline(
        "ExchangeServicePushesBreak",
        {_of("push_breaks_total", exchange="oanda", reason="VENUE_UNAVAILABLE"): "0x4 5+5x60"},
        *(10, 6, VENUE),
    ),
    Timeline("ExchangeServicePluginFails", _failures("PLUGIN_FAILED", "0x4 1+1x20"), 9, 5, JOB),
    Timeline(
        "ExchangeServicePluginRestarts",
        {_of("plugin_process_restarts_total", plugin="acme", process="1"): "0x4 1+1x20"},
        *(9, 5, HERE | {"plugin": "acme"}),
    ),
)
