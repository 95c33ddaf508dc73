"""Each alert fires in its trouble and for no other, none does in a quiet demo, and promtool finds them in order.

`make test-alerts` runs these with a real Prometheus. With EXCHANGE_SERVICE_QUIET_SECONDS=600 the demo is watched for
ten minutes with the rules as they are; by default for half a minute with rules that live thirty times faster.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml

from exchange_service.client import ExchangeServiceClient
from exchange_service.monitoring.alerts import alert_rules
from tests.alerts.prometheus import SCALE, Prometheus, free_port, program, running_prometheus
from tests.alerts.timelines import TIMELINES
from tests.alerts.troubles import TROUBLES, Trouble, beside, until_scraped
from tests.test_runtime import started

pytestmark = pytest.mark.timeout(1200)
# Seconds for an alert to fire: the longest wait is for a balance that is a minute old.
PATIENCE = 150.0
QUIET_SECONDS = float(os.environ.get("EXCHANGE_SERVICE_QUIET_SECONDS", "0"))


def names() -> set[str]:
    groups = yaml.safe_load(alert_rules())["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def test_promtool_finds_the_rules_in_order(tmp_path: Path) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(alert_rules())
    done = subprocess.run([program("promtool"), "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(names())} rules found" in done.stdout


def test_every_alert_has_a_trouble_and_a_timeline() -> None:
    assert set().union(*(trouble.alerts for trouble in TROUBLES)) == names()
    assert {timeline.alert for timeline in TIMELINES} == names()


def test_each_rule_fires_after_its_time_and_not_before(tmp_path: Path) -> None:
    read = yaml.safe_load(alert_rules())
    rules = {rule["alert"]: rule for group in read["groups"] for rule in group["rules"]}
    for rule in rules.values():
        # promtool compares every word of them.
        del rule["annotations"]
    (tmp_path / "alerts.yaml").write_text(json.dumps(read))
    tests = []
    for timeline in TIMELINES:
        labels = timeline.labels | rules[timeline.alert]["labels"]
        series = [{"series": name, "values": values} for name, values in timeline.series.items()]
        fires = {"eval_time": f"{timeline.fires}m", "alertname": timeline.alert, "exp_alerts": [{"exp_labels": labels}]}
        quiet = {"eval_time": f"{timeline.quiet}m", "alertname": timeline.alert, "exp_alerts": []}
        tests.append({"interval": "1m", "input_series": series, "alert_rule_test": [quiet, fires]})
    file = tmp_path / "tests.json"
    file.write_text(json.dumps({"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_each_alert_fires_in_its_trouble_and_no_other_does(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        targets = {}
        for trouble in TROUBLES:
            folder = tmp_path / trouble.name
            folder.mkdir()
            targets[trouble.name] = await stack.enter_async_context(trouble.make(folder))
        prometheus = await stack.enter_async_context(running_prometheus(tmp_path / "prometheus", targets))
        await stack.enter_async_context(beside(prometheus.watch()))
        began, told = time.monotonic(), set()
        while waiting := [trouble for trouble in TROUBLES if missing(prometheus, trouble)]:
            for trouble in TROUBLES:
                if trouble not in waiting and trouble.name not in told:
                    told.add(trouble.name)
                    print(f"{time.monotonic() - began:6.1f} s  {trouble.name}: {', '.join(sorted(trouble.alerts))}")
            late = {trouble.name: missing(prometheus, trouble) for trouble in waiting}
            assert time.monotonic() - began < PATIENCE, f"did not fire: {late}"
            await asyncio.sleep(0.5)
        others = {trouble.name: too_many(prometheus, trouble) for trouble in TROUBLES}
    assert {name: alerts for name, alerts in others.items() if alerts} == {}


def missing(prometheus: Prometheus, trouble: Trouble) -> set[str]:
    return trouble.alerts - prometheus.fired.get(trouble.name, set())


def too_many(prometheus: Prometheus, trouble: Trouble) -> set[str]:
    # All of them share one event loop, which is late for all when one is busy.
    return prometheus.fired.get(trouble.name, set()) - trouble.alerts - trouble.also - {"ExchangeServiceLoopStalls"}


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """The addresses of a demo's calls and metrics."""
    ports = [free_port(), free_port()]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    arguments = ("demo", "--address", addresses[0], "--metrics-address", addresses[1], "--http-address", "127.0.0.1:0")
    with started(tmp_path, *arguments):
        await until_scraped(addresses[1])
        yield addresses[0], addresses[1]


async def test_normal_traffic_of_the_demo_fires_no_alert(demo: tuple[str, str], tmp_path: Path) -> None:
    address, metrics = demo
    seconds, scale = (QUIET_SECONDS, 1) if QUIET_SECONDS else (30.0, SCALE)
    async with (
        ExchangeServiceClient(address) as client,
        running_prometheus(tmp_path / "prometheus", {"demo": [metrics]}, scale=scale) as prometheus,
        beside(prometheus.watch()),
        beside(follow(client)),
        beside(read_all(client)),
    ):
        await asyncio.sleep(seconds)
        calls = await prometheus.ask("sum(exchange_service_call_seconds_count)")
        messages = await prometheus.ask("sum(exchange_service_stream_messages_total)")
    print(f"{seconds:.0f} s: {calls[0]['value'][1]} calls, {messages[0]['value'][1]} messages of streams")
    assert int(calls[0]["value"][1]) > seconds
    assert prometheus.fired == {}


async def follow(client: ExchangeServiceClient) -> None:
    async for _ in client.stream_balances("demo", resume=True):
        pass


async def read_all(client: ExchangeServiceClient) -> None:
    """Read every account of the demo's main user again and again, from the cache or the venue, as programs do."""
    exchanges = [account.exchange_id for account in await accounts(client)]
    while True:
        for exchange in exchanges:
            await client.get_balance("demo", exchange)
            await client.list_exchanges(search=exchange)
            await asyncio.sleep(0.1)


async def accounts(client: ExchangeServiceClient) -> list[object]:
    async for event in client.stream_balances("demo"):
        if event.HasField("heartbeat") and event.heartbeat.accounts:
            return list(event.heartbeat.accounts)
    raise AssertionError("the stream ended")
