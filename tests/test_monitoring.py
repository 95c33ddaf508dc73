"""The dashboard and the rules of alerts name what a service really shows, and each alert has its paragraph."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from typer.testing import CliRunner

from exchange_service.cli import app
from exchange_service.errors import leaves
from exchange_service.monitoring.alerts import alert_rules
from exchange_service.monitoring.dashboard import dashboard, expressions
from exchange_service.observability.families import SECTIONS
from tests.harness import ScriptedPlugin, registry_of, serving
from tests.test_metrics import read

ROOT = Path(__file__).parent.parent
# What Prometheus itself adds to a target.
OF_PROMETHEUS = {"up": set[str]()}
TARGET = {"job", "instance"}
ENDS = ("", "_bucket", "_count", "_sum")
# Grafana fills these in.
VARIABLES = {"$__rate_interval": "5m", "$job": "exchange-service", "$instance": ".*"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(alert_rules())["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    """Every expression of the alerts and of the dashboard."""
    filled = []
    for query in expressions():
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        filled.append(query)
    return [*(rule["expr"] for rule in rules()), *filled]


def selectors(node: Any) -> Iterator[Any]:
    """The selectors of metrics within a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (below := getattr(node, name, None)) is not None:
            yield from selectors(below)
    for below in getattr(node, "args", None) or ():
        yield from selectors(below)


def labels_by_name() -> dict[str, set[str]]:
    """The labels of each metric of the service, by the names of its series."""
    families = [family for section in SECTIONS.values() for family in section]
    return {
        family.shown_name + end: {*family.labels, *(("le",) if end == "_bucket" else ())}
        for family in families
        for end in (ENDS if family.kind == "histogram" else ("",))
    }


@pytest.mark.parametrize("query", queries())
def test_every_query_can_be_parsed_and_selects_what_there_is(query: str) -> None:
    known = labels_by_name() | {name: set() for name in ("process_open_fds", "process_max_fds")}
    known |= {name: set() for name in ("process_cpu_seconds_total", "process_resident_memory_bytes")} | OF_PROMETHEUS
    reasons = {leaf.reason for leaf in leaves()} | {"OK"}
    found = list(selectors(promql_parser.parse(query)))
    assert found
    for selector in found:
        assert selector.name in known
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[selector.name] | TARGET
            if matcher.name == "reason":
                assert set(matcher.value.split("|")) <= reasons


async def test_every_metric_that_is_selected_is_in_the_scrape(tmp_path: Path) -> None:
    async with serving(
        tmp_path, registry=registry_of(ScriptedPlugin()), metrics_address="127.0.0.1:0", memory_limit=4000
    ) as running:
        await running.store()
        await running.client.get_balance("alice", "fakex")
        text = read(running.service.metrics_address)
    shown = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    wanted = {selector.name for query in queries() for selector in selectors(promql_parser.parse(query))}
    missing = {name for name in wanted if not any(name.removesuffix(end) in shown for end in ENDS)}
    # Prometheus's own, and those of a Redis and of a certificate, which this service has not.
    assert missing - {"up"} <= {"exchange_service_redis_available", "exchange_service_certificate_days_left"}


def test_every_alert_has_a_paragraph_in_the_runbook_and_names_it() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith((".", ":"))


class TestCommands:
    def test_another_job_and_the_place_of_the_runbook_are_in_every_rule(self) -> None:
        arguments = ["operate", "alerts", "--job", "balances", "--runbook", "https://wiki.example/runbook"]
        printed = CliRunner().invoke(app, arguments).stdout
        assert 'job="balances"' in printed
        assert 'exchange-service"' not in printed
        (first, *_) = yaml.safe_load(printed)["groups"][0]["rules"]
        assert first["annotations"]["runbook"] == "https://wiki.example/runbook#exchangeservicedown"

    def test_the_dashboard_is_json_whose_panels_do_not_overlap(self) -> None:
        printed = json.loads(CliRunner().invoke(app, ["operate", "dashboard", "--job", "balances"]).stdout)
        assert printed == dashboard("balances")
        assert len({panel["id"] for panel in printed["panels"]}) == len(printed["panels"])
        cells = [
            (panel["gridPos"]["x"] + across, panel["gridPos"]["y"] + down)
            for panel in printed["panels"]
            for across in range(panel["gridPos"]["w"])
            for down in range(panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(across for across, _ in cells) < 24

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["dashboard", "--job", 'a"} or up'], "cannot be the name of a job"),
            (["alerts", "--job", ""], "cannot be the name of a job"),
            (["alerts", "--runbook", "a b#c"], "cannot be the address of the runbook"),
        ],
    )
    def test_what_would_break_a_rule_is_refused_with_a_sentence(self, arguments: list[str], said: str) -> None:
        done = CliRunner().invoke(app, ["operate", *arguments])
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stdout == ""
