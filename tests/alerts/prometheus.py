"""A real Prometheus on loopback, whose rules may live faster than ours: each span of time divided by `SCALE`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from exchange_service.monitoring.alerts import alert_rules
from tests.servers import START_LIMIT

# Half a minute of the rules is a second of the tests.
SCALE = 30
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SPAN = re.compile(r"(?<=\[)(\d+)([smh])(?=\])")


def program(name: str) -> str:
    """Where `prometheus` or `promtool` is: named by the environment, else on the path."""
    found = os.environ.get(f"EXCHANGE_SERVICE_TEST_{name.upper()}") or shutil.which(name)
    assert found, f"there is no {name}: `make test-alerts` installs it, or says what to do"
    return found


def quickened(rules: str, scale: int) -> dict[str, Any]:
    """The rules as Prometheus reads them, with every span divided by `scale`."""

    def shorter(match: re.Match[str]) -> str:
        return f"{int(match[1]) * _SECONDS[match[2]] * 1000 // scale}ms"

    read: dict[str, Any] = yaml.safe_load(rules)
    for group in read["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _SPAN.sub(shorter, rule["expr"])
            if "for" in rule:
                rule["for"] = shorter(re.fullmatch(r"(\d+)([smh])", rule["for"]))  # type: ignore[arg-type]
    return read


class Prometheus:
    """A running one. `fired` are the alerts that have been firing so far, by job."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.fired: dict[str, set[str]] = {}

    async def firing(self) -> Sequence[Mapping[str, Any]]:
        """The alerts that fire now."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._url}/api/v1/alerts") as reply:
            alerts = (await reply.json())["data"]["alerts"]
        return [alert for alert in alerts if alert["state"] == "firing"]

    async def watch(self) -> None:
        """Note what fires, until cancelled."""
        while True:
            for alert in await self.firing():
                self.fired.setdefault(alert["labels"]["job"], set()).add(alert["labels"]["alertname"])
            await asyncio.sleep(0.2)

    async def ask(self, query: str) -> Any:
        """What an instant query gives."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._url}/api/v1/query", params={"query": query}) as reply,
        ):
            return (await reply.json())["data"]["result"]


@asynccontextmanager
async def running_prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], *, scale: int = SCALE
) -> AsyncIterator[Prometheus]:
    """One that scrapes the targets of each job, and evaluates our rules for each job."""
    address = f"127.0.0.1:{free_port()}"
    process = _start(folder, targets, address, scale)
    try:
        await _until_ready(process, f"http://{address}/-/ready")
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait()


def _start(folder: Path, targets: Mapping[str, Sequence[str]], address: str, scale: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    files = []
    for job in targets:
        files.append(f"rules-{job}.json")
        rules = quickened(alert_rules(job), scale)
        for group in rules["groups"]:
            group["name"] = f"{job} {group['name']}"
        (folder / files[-1]).write_text(json.dumps(rules))
    interval = f"{max(15000 // scale, 1000)}ms"
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
        "rule_files": files,
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
            for job, addresses in targets.items()
            if addresses
        ],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))
    return subprocess.Popen(
        [
            program("prometheus"),
            *(f"--config.file={folder / 'prometheus.json'}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address={address}", "--log.level=warn"),
        ],
        stdout=subprocess.DEVNULL,
    )


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def _until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_LIMIT):
        while True:
            assert process.poll() is None, "Prometheus ended; its words are above"
            try:
                async with session.get(url) as reply:
                    if reply.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
