"""The commands in an environment whose encoding lacks a letter: it is printed or escaped, and nothing fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exchange_service.errors import VenueUnavailable
from tests.harness import USER, ScriptedPlugin, holding, listing, registry_of, returning, serving

# Binance lists a coin of this name.
ASSET = "币安人生"
OTHER = "𝔸"
ESCAPED = json.dumps(ASSET)[1:-1]
ENVIRONMENTS = {
    "LANG=C": {"LANG": "C"},
    "LC_ALL=C": {"LC_ALL": "C"},
    "plain ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII by Python's own variable": {"LANG": "C.UTF-8", "PYTHONIOENCODING": "ascii"},
    "Latin-1": {"LANG": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
    "UTF-8": {"LANG": "C.UTF-8"},
}


def call(home: Path, variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    plain = {"PATH": os.environ["PATH"], "HOME": str(home)}
    database = {"EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{home / 'service.db'}"}
    return subprocess.run(
        [sys.executable, "-m", "exchange_service", *arguments],
        env=plain | database | variables,
        capture_output=True,
        timeout=60,
    )


def shows(output: bytes, text: str) -> bool:
    return text.encode() in output or json.dumps(text)[1:-1].encode() in output


@pytest.mark.parametrize("name", ENVIRONMENTS)
async def test_an_asset_of_any_letters_is_shown_by_every_command(name: str, tmp_path: Path) -> None:
    plugin = ScriptedPlugin(listing(name=ASSET), answer=returning(holding((ASSET, "1.5"), (OTHER, "2"))))
    async with serving(tmp_path, registry=registry_of(plugin)) as running:
        await running.store()

        async def run(*arguments: str) -> bytes:
            address = running.service.address
            done = await asyncio.to_thread(call, tmp_path, ENVIRONMENTS[name], *arguments, "--address", address)
            assert done.returncode == 0, done.stderr
            return done.stdout

        for output in ("table", "json"):
            shown = await run("balance", "-u", USER, "-e", "fakex", "-o", output)
            assert shows(shown, ASSET), shown
            assert shows(shown, OTHER), shown
            if output == "json":
                (account,) = json.loads(shown.decode())["balance"]["venue_accounts"]
                assert {row["asset"] for row in account["assets"]} == {ASSET, OTHER}
            assert shows(await run("exchanges", "-o", output), ASSET)
        assert shows(await run("watch", "-u", USER, "-o", "jsonl", "--events", "1"), ASSET)


@pytest.mark.parametrize("name", ENVIRONMENTS)
async def test_an_error_and_an_argument_of_any_letters_are_shown(name: str, tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=_failing))) as running:
        await running.store(user=ASSET)
        for output in ("table", "json"):
            arguments = ("balance", "-u", ASSET, "-e", "fakex", "-o", output, "--address", running.service.address)
            done = await asyncio.to_thread(call, tmp_path, ENVIRONMENTS[name], *arguments)
            assert done.returncode == 5, done.stderr
            assert shows(done.stderr, ASSET)
            assert b"Traceback" not in done.stderr


async def _failing(_: object) -> None:
    raise VenueUnavailable(f"{ASSET} cannot be read.")
