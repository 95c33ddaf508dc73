"""The commands of docs/web-application.md: an account from empty to repaired by curl alone, without the console."""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Callable
from pathlib import Path

import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from tests.harness import PATIENCE, serving
from tests.web import address_of

PAGE = Path(__file__).parents[2] / "docs" / "web-application.md"
_BLOCK = re.compile(r"<!-- by curl: (?P<when>[^>]+) -->\n```console\n(?P<text>.*?)```", re.DOTALL)
_ADDRESS = "127.0.0.1:50052"
QUICK = {"poll_interval": 0.2, "poll_interval_still": 0.2, "heartbeat_interval": 0.2}


def blocks() -> list[tuple[str, list[tuple[str, str]]]]:
    """The blocks of the page: when each is run, and its commands with the output that the page shows."""
    found = []
    for match in _BLOCK.finditer(PAGE.read_text()):
        parts = re.split(r"^\$ ", match["text"], flags=re.MULTILINE)[1:]
        found.append((match["when"], [_command(part) for part in parts]))
    return found


def _command(part: str) -> tuple[str, str]:
    lines = part.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
    return "\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])


def pattern(shown: str) -> str:
    """What output has to match: digits may differ, and "…" stands for what the page leaves out."""
    parts = [re.sub(r"\d+", r"\\d+", re.escape(part)) for part in shown.strip().split("…")]
    return ".*".join(parts)


async def run(prelude: str, command: str) -> str:
    """Run a command in bash, after the definitions of the prelude; returns what it prints."""
    arguments = ("bash", "-c", f"{prelude}\n{command}")
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=STDOUT)
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate()
    return output.decode().strip()


async def test_an_account_goes_from_empty_to_repaired_by_the_commands_of_the_page(tmp_path: Path) -> None:
    assert shutil.which("curl"), "There is no curl here; on Debian: apt-get install curl."
    account = SimulatedAccount("101-004-7654321-001")
    async with OandaSimulator() as oanda:
        oanda.add_token("demo-moving-token", account)
        events: dict[str, Callable[[], object]] = {
            "first": lambda: None,
            "the key is deleted at the venue": oanda.tokens.clear,
            "there is a new key": lambda: oanda.add_token("demo-empty-token", account),
        }
        urls = {"oanda": oanda.url}
        options = {"http_address": "127.0.0.1:0", "manage_accounts": True, "venue_urls": urls, **QUICK}
        async with serving(tmp_path, **options) as running:
            (_, definitions), *rest = blocks()
            prelude = "\n".join(command for command, _ in definitions).replace(_ADDRESS, address_of(running))
            assert [when for when, _ in rest] == list(events)
            for when, commands in rest:
                events[when]()
                for command, shown in commands:
                    output = await run(prelude, command)
                    assert re.fullmatch(pattern(shown), output, re.DOTALL), f"{command}\n{output}"


@pytest.mark.parametrize(
    ("shown", "output"), [('{"a":"1.5"}', '{"a":"27.25"}'), ('{"a":…,"b":2}', '{"a":{"c":[]},"b":3}'), ("", "")]
)
def test_output_is_compared_without_what_differs_from_run_to_run(shown: str, output: str) -> None:
    assert re.fullmatch(pattern(shown), output)
    assert not re.fullmatch(pattern(shown), output + "x")
