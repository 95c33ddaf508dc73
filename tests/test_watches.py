"""Plugins whose generators of pushes misbehave: the account is polled, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from exchange_service.balances import watches
from exchange_service.plugin_api import Balance, Capabilities, Changed, VenueAccount, VenueCall, hookimpl
from exchange_service.plugin_host.server import PluginServer
from tests.e2e.test_pushes import PUSHED, next_amount, until_delivered
from tests.harness import (
    ScriptedPlugin,
    Stream,
    eventually,
    holding,
    listing,
    registry_of,
    serving,
    streaming,
    until,
)
from tests.test_plugin_host import install, process_of, processes

QUICK: dict[str, Any] = {"heartbeat_interval": 0.1, "poll_interval": 0.3, "poll_interval_still": 0.3}
Watching = Callable[[VenueCall], AsyncGenerator[Any, None]]


class WatchedPlugin(ScriptedPlugin):
    """Each read finds one more; pushes come as the test says."""

    def __init__(self, watching: Watching) -> None:
        super().__init__(listing("fakex", capabilities=Capabilities(sandbox=False, push=True)), answer=self.count)
        self.watching = watching

    async def count(self, _: VenueCall) -> Balance:
        return holding(("BTC", str(len(self.calls))))

    @hookimpl
    async def watch_balance(self, call: VenueCall) -> AsyncGenerator[Any, None]:
        async with aclosing(self.watching(call)) as items:
            async for item in items:
                yield item


class Lethal(Balance):
    """A balance that ends the program when it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name == "venue_accounts":
            raise SystemExit(3)
        return super().__getattribute__(name)


async def yields_nonsense(_: VenueCall) -> AsyncGenerator[Any, None]:
    yield 7
    await asyncio.sleep(60)


async def yields_a_lethal_balance(_: VenueCall) -> AsyncGenerator[Any, None]:
    yield Lethal((VenueAccount(id="1", type="spot"),))
    await asyncio.sleep(60)


async def exits(_: VenueCall) -> AsyncGenerator[Any, None]:
    yield Changed()
    raise SystemExit(3)


async def ends(_: VenueCall) -> AsyncGenerator[Any, None]:
    yield Changed()


async def ends_at_once(_: VenueCall) -> AsyncGenerator[Any, None]:
    return
    yield


async def cancels_itself(_: VenueCall) -> AsyncGenerator[Any, None]:
    yield Changed()
    raise asyncio.CancelledError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "_SHORTEST_PAUSE", 0.3)
    monkeypatch.setattr(watches, "_LONGEST_PAUSE", 0.3)


async def next_count(stream: Stream) -> int:
    return int(await next_amount(stream))


def running_watches() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("watch ")]


@pytest.mark.parametrize(
    "watching",
    [yields_nonsense, yields_a_lethal_balance, exits, ends, ends_at_once, cancels_itself],
)
async def test_an_account_whose_generator_breaks_is_polled(watching: Watching, tmp_path: Path) -> None:
    plugin = WatchedPlugin(watching)
    async with serving(tmp_path, registry=registry_of(plugin), **QUICK) as running:
        await running.store("fakex")
        async with streaming(running, "fakex") as stream:
            await until_delivered(stream, "BROKEN")
            calls = len(plugin.calls)
            while await next_count(stream) <= calls:
                pass
        await until(lambda: not running_watches(), "the end of what the plugin runs")


@pytest.mark.parametrize("item", [Changed(), holding(("BTC", "1.5"))], ids=["hints", "wholes"])
async def test_a_generator_that_never_waits_slows_nobody_and_ends_with_its_stream(item: Any, tmp_path: Path) -> None:
    count = 0

    async def spins(_: VenueCall) -> AsyncGenerator[Any, None]:
        nonlocal count
        while True:
            count += 1
            yield item

    async with serving(tmp_path, registry=registry_of(WatchedPlugin(spins)), **QUICK) as running:
        await running.store("fakex")
        followed = time.monotonic()
        async with streaming(running, "fakex") as stream:
            await until_delivered(stream, PUSHED)
            began, before, processor = time.monotonic(), count, time.process_time()
            for _ in range(20):
                await running.client.list_exchanges()
            assert time.monotonic() - began < 3
            await asyncio.sleep(0.5)
            seconds = time.monotonic() - began
            # It may not have more than a part of the processor.
            assert (time.process_time() - processor) / seconds < 0.8
            assert (count - before) / seconds < 6000
            # And of what it yields, few are looked at.
            looked_at = re.search(rb'pushes_total{exchange="fakex",kind="\w+"} (\d+)', running.service.metrics.text())
            assert looked_at is not None
            assert int(looked_at[1]) < 20 * (time.monotonic() - followed) + 2
        await until(lambda: not running_watches(), "its end")


async def test_a_generator_that_ignores_its_cancellation_is_left_at_what_it_yields_next(tmp_path: Path) -> None:
    cancelled = 0

    async def stubborn(_: VenueCall) -> AsyncGenerator[Any, None]:
        nonlocal cancelled
        while True:
            yield Changed()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1

    async with serving(tmp_path, registry=registry_of(WatchedPlugin(stubborn)), **QUICK) as running:
        await running.store("fakex")
        async with streaming(running, "fakex") as stream:
            await until_delivered(stream, PUSHED)
        await until(lambda: cancelled and not running_watches(), "its end")


# A plugin that pushes, and does what the stored metadata say.
GUEST = """
import asyncio, os
from decimal import Decimal
from exchange_service.plugin_api import *

LISTING = ExchangeMetadata(
    id="guest", name="Guest", asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
    environments=(Environment("production", {"api": "https://guest.example"}),),
    capabilities=Capabilities(sandbox=False, push=True),
)
count = 0


def held(amount):
    rows = (AssetBalance("BTC", total=Decimal(amount)),)
    return Balance((VenueAccount(id="1", type="spot", assets=rows),))


@hookimpl
def exchange_manifest():
    return Manifest(1, (LISTING,))


@hookimpl
async def fetch_balance(call):
    return held(count)


@hookimpl
async def watch_balance(call):
    global count
    pause = float(call.credential.metadata.get("pause", "0.05"))
    while True:
        count += 1
        yield held(count)
        await asyncio.sleep(pause)
"""


@pytest.fixture
def guest(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(folder, "guest", GUEST)
    monkeypatch.syspath_prepend(str(folder))
    return folder


async def test_a_plugin_in_a_process_of_its_own_pushes_and_goes_on_after_its_death(guest: Path, tmp_path: Path) -> None:
    async with serving(tmp_path, **(QUICK | {"poll_interval": 2.0})) as running:
        await running.store("guest")
        async with streaming(running, "guest") as stream:
            since = (await until_delivered(stream, PUSHED)).since_time.ToNanoseconds()
            while await next_count(stream) < 40:
                pass
            os.kill((await process_of(running)).process_id, signal.SIGKILL)
            while (delivery := await until_delivered(stream, PUSHED)).since_time.ToNanoseconds() == since:
                pass
            assert delivery.since_time.ToNanoseconds() > since
            # Its count began again with it.
            while await next_count(stream) > 20:
                pass
    await until(lambda: not processes(), "the end of its process")


async def test_a_flood_of_a_plugins_process_keeps_pace_and_waits_nowhere(guest: Path, tmp_path: Path) -> None:
    async with serving(tmp_path, **QUICK) as running:
        await running.store("guest", metadata={"pause": "0.0005"})

        async def is_pushed() -> bool:
            reply = await running.client.get_balance("alice", "guest", max_age=5)
            return bool(reply.freshness.delivery.mode == 1)

        async with streaming(running, "guest") as stream:
            await until_delivered(stream, PUSHED)
            await eventually(is_pushed, "a push")
            counted: list[tuple[float, int]] = []
            began = time.monotonic()
            while time.monotonic() - began < 2:
                counted.append((time.monotonic(), await next_count(stream)))
        # At most twenty a second, and they keep pace with what the plugin counts: none waits on its way.
        assert len(counted) < 60
        rate = (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
        assert rate > 100


# What a plugin has done to the process that runs it: it ends each account's messages at once, without an error.
WITHOUT_A_WORD = (
    GUEST
    + """

async def end_at_once(self, request):
    global count
    count += 1
    return
    yield


from exchange_service.plugin_host.server import PluginServer
PluginServer.watch_balance = end_at_once
"""
)


async def test_a_plugins_process_that_ends_its_messages_without_a_word_is_asked_again_after_a_pause(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("site")
    install(folder, "guest", WITHOUT_A_WORD)
    monkeypatch.syspath_prepend(str(folder))
    # The plugin is loaded in this process too.
    monkeypatch.setattr(PluginServer, "watch_balance", PluginServer.watch_balance)
    async with serving(tmp_path, **QUICK) as running:
        await running.store("guest")
        async with streaming(running, "guest") as stream:
            await until_delivered(stream, "BROKEN")
            asked = await next_count(stream)
            assert await next_count(stream) - asked < 10
    await until(lambda: not processes(), "the end of its process")
