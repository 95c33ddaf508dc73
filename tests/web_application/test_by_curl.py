"""The commands of docs/web-application.md: an account from empty to repaired by curl alone, without the console."""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from exchange_service.cli.demo import running_demo
from tests.harness import PATIENCE, settings_for

PAGE = Path(__file__).parents[2] / "docs" / "web-application.md"
_BLOCK = re.compile(r"<!-- by curl -->\n```console\n(?P<text>.*?)```", re.DOTALL)
# Where `make run` serves, and has the site of the simulated venues.
_SERVICE, _SITE = "127.0.0.1:50052", "http://127.0.0.1:50053"
QUICK = {"poll_interval": 0.2, "poll_interval_still": 0.2, "heartbeat_interval": 0.2}


def blocks() -> list[list[tuple[str, str]]]:
    """The commands of each block of the page, with the output that the page shows."""
    texts = [match["text"] for match in _BLOCK.finditer(PAGE.read_text())]
    return [[_command(part) for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]] for text in texts]


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
    definitions, *rest = blocks()
    assert len(rest) == 3
    settings = settings_for(tmp_path, http_address="127.0.0.1:0", manage_accounts=True, **QUICK)
    async with running_demo(settings) as demo:
        prelude = "\n".join(command for command, _ in definitions).replace(_SERVICE, demo.service.web.address)
        for command, shown in (line for block in rest for line in block):
            output = await run(prelude, command.replace(_SITE, demo.site.url))
            assert re.fullmatch(pattern(shown), output, re.DOTALL), f"{command}\n{output}"


@pytest.mark.parametrize(
    ("shown", "output"), [('{"a":"1.5"}', '{"a":"27.25"}'), ('{"a":…,"b":2}', '{"a":{"c":[]},"b":3}'), ("", "")]
)
def test_output_is_compared_without_what_differs_from_run_to_run(shown: str, output: str) -> None:
    assert re.fullmatch(pattern(shown), output)
    assert not re.fullmatch(pattern(shown), output + "x")
