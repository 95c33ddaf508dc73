"""The dashboard, for Grafana: rows of panels, each with its queries, made into the file that Grafana imports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exchange_service.monitoring.alerts import JOB, check_job

# Grafana's grid is 24 units wide.
_WIDTH, _HEIGHT = 8, 8
# What selects the replicas in each query: both are variables at the top of the dashboard.
_WHERE = '{job="$job", instance=~"$instance"'
# Labels that follow `@` in a query.
_LABELS = re.compile(r'\w+!?="[^"]*"(, \w+!?="[^"]*")*')
# Version of Grafana's form of a dashboard, which Grafana 10 and later read and bring up to date by themselves.
_SCHEMA = 39


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: its title, what it tells, the unit in Grafana's words, and its queries with the legend of each. In a
    query `@` stands before the labels of a selector, or alone for a selector without any."""

    title: str
    text: str
    unit: str
    queries: Sequence[tuple[str, str]]


def _quantile(share: float, metric: str, by: str = "", selector: str = "@") -> str:
    labels = f"le, {by}" if by else "le"
    rate = f"rate(exchange_service_{metric}_bucket{selector}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate}))"


def _rate(metric: str, by: str = "", selector: str = "@") -> str:
    rate = f"rate(exchange_service_{metric}{selector}[$__rate_interval])"
    return f"sum by ({by}) ({rate})" if by else f"sum({rate})"


_ROWS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Callers",
        (
            Panel(
                "Calls",
                "Calls that ended, by method and status. A stream counts when it ends.",
                "reqps",
                ((_rate("call_seconds_count", "method, code"), "{{method}} {{code}}"),),
            ),
            Panel(
                "Failures",
                "Failed calls by reason: docs/errors.md tells who acts.",
                "reqps",
                ((_rate("call_failures_total", "reason"), "{{reason}}"),),
            ),
            Panel(
                "Duration of GetBalance",
                "Successful calls. A warm one takes less than a millisecond, a cold one as long as its venue.",
                "s",
                tuple(
                    (_quantile(share, "call_seconds", selector='@method="GetBalance", code="OK"'), name)
                    for share, name in ((0.5, "median"), (0.99, "99th percentile"))
                ),
            ),
            Panel(
                "Balances by source",
                "From the cache, from the venue, or the last good one in place of a venue that fails.",
                "reqps",
                ((_rate("balance_reads_total", "source"), "{{source}}"),),
            ),
            Panel(
                "Open now",
                "Calls (streams included), streams, followed accounts, and fetches from venues.",
                "short",
                tuple(
                    (f"sum(exchange_service_{word}_open@)", word) for word in ("calls", "streams", "feeds", "fetches")
                ),
            ),
            Panel(
                "Stream messages and the age of their balances",
                "Messages a second, and the age of balances when they became events.",
                "short",
                (
                    (_rate("stream_messages_total"), "messages a second"),
                    (_quantile(0.9, "stream_value_age_seconds"), "age in seconds, 90th percentile"),
                ),
            ),
        ),
    ),
    (
        "Venues",
        (
            Panel(
                "Fetches",
                "Balances fetched from venues, by exchange.",
                "reqps",
                ((_rate("venue_fetches_total", "exchange"), "{{exchange}}"),),
            ),
            Panel(
                "Failed fetches",
                "By exchange and reason.",
                "reqps",
                ((_rate("venue_fetches_total", "exchange, reason", '@reason!="OK"'), "{{exchange}} {{reason}}"),),
            ),
            Panel(
                "Duration of fetches",
                "90th percentile by exchange.",
                "s",
                ((_quantile(0.9, "venue_fetch_seconds", "exchange"), "{{exchange}}"),),
            ),
            Panel(
                "Unused share of limits",
                "The least over all keys and replicas, by exchange and by what the limit counts.",
                "percentunit",
                (("min by (exchange, scope) (exchange_service_venue_budget_left@)", "{{exchange}} {{scope}}"),),
            ),
            Panel(
                "Open breakers",
                "1 while the breaker of all accounts of a venue is not closed.",
                "short",
                (
                    (
                        'max by (exchange, environment, way) (exchange_service_venue_breaker@state!="closed")',
                        "{{exchange}} {{environment}} {{way}}",
                    ),
                ),
            ),
            Panel(
                "Requests not sent, and retries",
                "To spare a venue or the service, by reason; and requests that were sent again.",
                "reqps",
                (
                    (_rate("venue_refusals_total", "reason"), "not sent: {{reason}}"),
                    (_rate("venue_retries_total", "exchange"), "again: {{exchange}}"),
                ),
            ),
        ),
    ),
    (
        "Pushes",
        (
            Panel(
                "Followed accounts",
                "Of venues that push: pushed, or why they are polled.",
                "short",
                (("sum by (exchange, delivery) (exchange_service_push_accounts@)", "{{exchange}} {{delivery}}"),),
            ),
            Panel(
                "Pushes, breaks, differences",
                "A difference is a change that the pushes have missed.",
                "reqps",
                (
                    (_rate("pushes_total", "exchange"), "pushes {{exchange}}"),
                    (_rate("push_breaks_total", "exchange, reason"), "broken {{exchange}} {{reason}}"),
                    (_rate("push_differences_total", "exchange"), "missed {{exchange}}"),
                ),
            ),
            Panel(
                "From a push until it is stored",
                "99th percentile.",
                "s",
                ((_quantile(0.99, "push_delay_seconds"), "99th percentile"),),
            ),
        ),
    ),
    (
        "Replicas",
        (
            Panel(
                "State",
                "1: the replica serves, and reaches its Redis.",
                "short",
                (
                    ("exchange_service_serving@", "{{instance}} serves"),
                    ("exchange_service_redis_available@", "{{instance}} Redis"),
                ),
            ),
            Panel(
                "Stalls of the event loop",
                "How late timers run, 99th percentile.",
                "s",
                ((_quantile(0.99, "event_loop_stall_seconds", "instance"), "{{instance}}"),),
            ),
            Panel(
                "Processor",
                "Seconds of processor a second: a replica has one core at most.",
                "short",
                (("rate(process_cpu_seconds_total@[$__rate_interval])", "{{instance}}"),),
            ),
            Panel(
                "Memory",
                "Of the serving process and of plugins' processes, and what is left before streams are refused.",
                "bytes",
                (
                    ("process_resident_memory_bytes@", "{{instance}}"),
                    (
                        "sum by (instance, plugin) (exchange_service_plugin_process_memory_bytes@)",
                        "{{instance}} {{plugin}}",
                    ),
                    ("exchange_service_memory_left_bytes@", "{{instance}} left"),
                ),
            ),
            Panel(
                "Open files",
                "The share of the process's limit.",
                "percentunit",
                (("process_open_fds@ / process_max_fds@", "{{instance}}"),),
            ),
            Panel(
                "Versions, certificates, restarts of plugins' processes",
                "Days until a certificate ends, and restarts.",
                "short",
                (
                    ("sum by (version) (exchange_service_build_info@)", "replicas of {{version}}"),
                    ("min by (file) (exchange_service_certificate_days_left@)", "{{file}}, days"),
                    (
                        "sum by (plugin) (increase(exchange_service_plugin_process_restarts_total@[$__rate_interval]))",
                        "restarts of {{plugin}}",
                    ),
                ),
            ),
        ),
    ),
)


def dashboard(job: str = JOB) -> dict[str, Any]:
    """The dashboard as Grafana imports it. It asks for the data source, the job (at first `job`) and the instances by
    variables at its top. Raises ValueError for a wrong `job`."""
    return {
        "title": "exchange-service",
        "uid": "exchange-service",
        "tags": ["exchange-service"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables(check_job(job))},
        "panels": list(_panels()),
    }


def expressions() -> Iterator[str]:
    """Every query of the dashboard, with Grafana's variables in it."""
    for _, panels in _ROWS:
        for panel in panels:
            yield from (_selected(query) for query, _ in panel.queries)


def _variables(job: str) -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    jobs = "label_values(exchange_service_build_info, job)"
    instances = 'label_values(exchange_service_build_info{job="$job"}, instance)'
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "job",
            "label": "Job",
            "type": "query",
            "datasource": source,
            "query": jobs,
            "refresh": 2,
            "current": {"text": job, "value": job},
        },
        {
            "name": "instance",
            "label": "Replica",
            "type": "query",
            "datasource": source,
            "query": instances,
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _panels() -> Iterator[dict[str, Any]]:
    number = y = 0
    for title, panels in _ROWS:
        number += 1
        grid = {"x": 0, "y": y, "w": 24, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        y += 1
        for position, panel in enumerate(panels):
            number += 1
            down, across = divmod(position, 24 // _WIDTH)
            grid = {"x": across * _WIDTH, "y": y + down * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield _panel(panel, number, grid)
        y += -(-len(panels) // (24 // _WIDTH)) * _HEIGHT


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "gridPos": grid,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": _selected(query), "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _selected(query: str) -> str:
    """The query with its selectors: `@` becomes the labels of the variables, before those that follow it."""
    parts = query.split("@")
    text = parts[0]
    for part in parts[1:]:
        labels = _labels_of(part)
        text += f"{_WHERE}, {labels}}}{part[len(labels) :]}" if labels else f"{_WHERE}}}{part}"
    return text


def _labels_of(part: str) -> str:
    """The labels at the beginning, such as `method="GetBalance", code="OK"`; empty if there are none."""
    match = _LABELS.match(part)
    return match[0] if match else ""
