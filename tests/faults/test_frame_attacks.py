"""Plugins that write on their process's connection to the service themselves, or do not read from it: each loses its
process, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from exchange_service.errors import PluginFailed, PluginUnavailable, VenueTimeout
from exchange_service.plugin_host.frames import Kind, write_frame
from tests.harness import PATIENCE, Running, eventually, serving, until
from tests.test_plugin_host import install, process_of
from tests.test_process_connection import HEALTH, begin, called, reply

# A plugin that finds its process's connection, and does there what its user's credential says.
EVIL = """
import asyncio, gc, os, threading
from decimal import Decimal

from exchange_service.plugin_api import *

NAME = "{name}"


def announce(length, kind, number):
    return length.to_bytes(4, "big") + bytes([kind]) + number.to_bytes(8, "big")


def closes(connection):
    connection.abort()


def floods(connection):
    # Blocking and in a thread: as fast as the service reads.
    descriptor = os.dup(connection.get_extra_info("socket").fileno())
    os.set_blocking(descriptor, True)

    def write():
        while True:
            os.write(descriptor, announce(3, 6, 1) * 10_000)

    threading.Thread(target=write, daemon=True).start()


def drips(connection):
    connection.write(announce(1_000_000, 7, 1))

    def drip():
        connection.write(b".")
        asyncio.get_running_loop().call_later(0.005, drip)

    drip()


def deaf(connection):
    connection.pause_reading()


@hookimpl
def exchange_manifest():
    return Manifest(1, (ExchangeMetadata(
        id=NAME, name=NAME.title(), asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
        environments=(Environment("production", {{"api": "https://guest.example"}}),),
        capabilities=Capabilities(balance=True, sandbox=False),
    ),))


@hookimpl
async def fetch_balance(call):
    deed = call.credential.metadata.get("deed")
    if deed:
        (connection,) = [item for item in gc.get_objects() if type(item).__name__ == "ServiceConnection"]
        globals()[deed](connection._transport)
        await asyncio.sleep(60)
    return Balance((VenueAccount(id="1", type="spot", assets=(AssetBalance("BTC", total=Decimal("1.5")),)),))
"""
# Each deed, and how its process is said to have ended.
ENDS = {
    "floods": r"It sent something that it may not send: an answer that was not asked for \(ITEM\).",
    "closes": "Its connection broke.",
    "drips": "It did not answer any more: the plugin blocked its event loop.",
    "deaf": "It did not answer any more: the plugin blocked its event loop.",
}
KEY = "the-key-of-the-evil-one-7f3a"
# Seconds that the service's event loop may stand still, on a busy machine too.
LONGEST_DELAY = 1.0


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("site")
    for name in ("quiet", *ENDS):
        install(folder, name, EVIL.format(name=name))
    monkeypatch.syspath_prepend(str(folder))


@asynccontextmanager
async def neighbour(running: Running) -> AsyncIterator[list[float]]:
    """Calls of another plugin without a pause; how long the loop stood still."""
    delays = [0.0]

    async def look() -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.02)
            delays.append(loop.time() - before - 0.02)

    async def ask() -> None:
        while True:
            await running.client.get_balance("alice", "quiet", max_age=0)
            await asyncio.sleep(0.1)

    await eventually(lambda: serves(running, "quiet"), "the neighbour")
    tasks = [asyncio.create_task(look()), asyncio.create_task(ask())]
    try:
        yield delays
        assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def serves(running: Running, exchange_id: str) -> bool:
    try:
        await running.client.get_balance("alice", exchange_id, max_age=0)
    except PluginUnavailable:
        return False
    return True


async def does_its_deed(running: Running, deed: str) -> None:
    """Its caller gets an error that names the plugin, its process is replaced, and serves again."""
    await eventually(lambda: serves(running, deed), f"{deed} before")
    # One that does not read keeps its calls' deadlines itself, and so they end as its venue's.
    with pytest.raises((PluginUnavailable, PluginFailed, VenueTimeout)) as caught:
        await running.client.get_balance("evil", deed)
    assert KEY not in str(caught.value)

    async def replaced() -> bool:
        return (await process_of(running, deed)).restart_count > 0

    await eventually(replaced, f"the end of {deed}")
    assert re.fullmatch(ENDS[deed], (await process_of(running, deed)).last_end)
    await eventually(lambda: serves(running, deed), f"{deed} afterwards")


@pytest.mark.timeout(180)
@pytest.mark.threat("T12")
@pytest.mark.threat("T90")
async def test_a_plugin_that_writes_on_its_connection_itself_or_does_not_read_loses_its_process_alone(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange_service.plugin_host.restart_policy.OVERDUE_ANSWER_LIMIT", 1.0)
    monkeypatch.setattr("exchange_service.plugin_host.restart_policy.ANSWER_LIMIT", 5.0)
    async with serving(tmp_path, venue_timeout=3.0) as running:
        for name in ("quiet", *ENDS):
            await running.store(name)
            await running.store(name, user="evil", api_key=KEY, metadata={"deed": name})
        async with neighbour(running) as delays:
            memory = psutil.Process(os.getpid()).memory_info().rss
            await asyncio.gather(*(does_its_deed(running, deed) for deed in ENDS))
            assert psutil.Process(os.getpid()).memory_info().rss - memory < 150 * 1024 * 1024
        assert max(delays) < LONGEST_DELAY


@pytest.mark.threat("T90", attack=True)
async def test_a_process_fills_the_memory_with_a_message_that_it_announces_unless_that_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = {}
    for bounded in (False, True):
        with monkeypatch.context() as patch:
            if not bounded:
                patch.setattr("exchange_service.plugin_host.frames.MAX_BODY", 2**32)
            async with called() as (end, raw):
                raw.send_raw(b"\xff\xff\xff\xff" + write_frame(Kind.REPLY, 1)[4:] + bytes(16 * 1024 * 1024))
                await until(lambda end=end: end.ended or len(end._reader) > 16 * 1024 * 1024, "the bytes")
                held[bounded] = len(end._reader)
    assert held[False] > 16 * 1024 * 1024
    assert held[True] < 1024 * 1024


@pytest.mark.threat("T90", attack=True)
async def test_frames_without_an_end_keep_the_loop_busy_unless_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = {}
    for in_turns in (False, True):
        with monkeypatch.context() as patch:
            if not in_turns:
                patch.setattr("exchange_service.plugin_host.frame_port._FRAMES_A_TURN", 10**9)
            async with called() as (end, _):
                calls = [begin(end.call("CheckHealth", HEALTH, PATIENCE)) for _ in range(500)]
                await asyncio.sleep(0)
                end.data_received(b"".join(map(reply, range(1, 501))))
                await asyncio.sleep(0)
                done[in_turns] = sum(call.done() for call in calls)
                await asyncio.wait(calls)
    assert done[False] == 500
    assert done[True] < 250
