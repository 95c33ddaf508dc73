"""clients/typescript at two replicas, of which one is restarted, killed or frozen under its calls and streams."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_hyperliquid.simulator import HyperliquidSimulator
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.sql import open_store
from exchange_service.model import Account, Credential
from exchange_service.testing import Fault
from tests.chaos.replicas import Replica
from tests.e2e.test_rolling_restart import free_ports
from tests.harness import PATIENCE, USER, ScriptedPlugin, eventually, holding, registry_of, returning, serving
from tests.identities import Authority
from tests.servers import RedisServer
from tests.typescript.program import Program, program, run_example

TOKEN = "the-users-own-token"
# Seconds between two changes at the venue.
STEP = 0.15
EVERYTHING: list[dict[str, Any]] = []
# As a caller may spell it.
OANDA_ALONE = [{"exchangeId": "OANDA"}]


@dataclass(slots=True)
class Scene:
    """Two replicas on one Redis and one database, with two simulated venues."""

    replicas: list[Replica]
    oanda: OandaSimulator
    hyperliquid: HyperliquidSimulator
    account: SimulatedAccount

    @property
    def addresses(self) -> list[str]:
        return [replica.address for replica in self.replicas]

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """The balances change all the time within the block; OANDA's only grows."""

        async def change() -> None:
            while True:
                self.account.balance += Decimal("0.0001")
                self.hyperliquid.move()
                await asyncio.sleep(STEP)

        task = asyncio.create_task(change())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def balance(self) -> Any:
        """What a second client gets now."""
        async with ExchangeServiceClient(self.addresses[0]) as client:
            return (await client.get_balance(USER, "oanda", max_age=0)).balance


@asynccontextmanager
async def two_replicas(folder: Path, **changes: str) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        oanda = await stack.enter_async_context(OandaSimulator())
        hyperliquid = await stack.enter_async_context(HyperliquidSimulator())
        account = SimulatedAccount("101-004-7654321-001")
        oanda.add_token(TOKEN, account)
        settings = {
            "database_url": f"sqlite:///{folder / 'credentials.db'}",
            "cache_url": redis.url,
            "hash_key": secrets.token_hex(16),
            "replicas": "2",
            "poll_interval": "0.3",
            "poll_interval_still": "0.3",
            "heartbeat_interval": "0.5",
            "push": "false",
            "venue_urls": json.dumps({"oanda": oanda.url, "hyperliquid": hyperliquid.url}),
        } | changes
        await store(settings, hyperliquid)
        replicas = [Replica(number, folder, settings) for number in range(2)]
        for replica in replicas:
            stack.push_async_callback(end, replica)
        await asyncio.gather(*(replica.start() for replica in replicas))
        yield Scene(replicas, oanda, hyperliquid, account)


async def store(settings: dict[str, str], hyperliquid: HyperliquidSimulator) -> None:
    """Store the user's two credentials, as `credentials add` does."""
    row = hyperliquid.demo_credential("moving")
    assert row is not None
    opened = await open_store(settings["database_url"], settings["hash_key"].encode())
    try:
        await opened.put(Account(USER, "oanda"), Credential.from_texts({"api_key": TOKEN}, None))
        await opened.put(Account(USER, "hyperliquid"), Credential.from_texts(row, row["extra_metadata"]))
    finally:
        await opened.close()


async def end(replica: Replica) -> None:
    if replica.running:
        replica.thaw()
        await replica.kill()


@pytest.fixture
async def node() -> AsyncIterator[Program]:
    async with program() as made:
        yield made


def total(balance: dict[str, Any]) -> Decimal:
    return Decimal(balance["summary"]["total"])


def of_oanda(event: dict[str, Any]) -> bool:
    return bool(event["value"]["balance"]["exchangeId"] == "oanda")


def check_history(events: list[dict[str, Any]]) -> None:
    """No account's version goes back, also not over an interruption; OANDA's figure, which only grows, neither. What
    follows an interruption begins with a heartbeat that knows what was seen."""
    versions: dict[str, int] = defaultdict(int)
    newest, resumes = Decimal(0), False
    for event in events:
        if event["event"] == "reconnecting":
            resumes = True
        elif event["event"] == "heartbeat":
            for state in event["value"]["accounts"]:
                assert int(state.get("version", 0)) >= versions[state["exchangeId"]]
        elif event["event"] == "balance":
            assert not resumes, "a stream that resumes begins with a heartbeat"
            balance = event["value"]["balance"]
            assert int(balance["version"]) > versions[balance["exchangeId"]]
            versions[balance["exchangeId"]] = int(balance["version"])
            if of_oanda(event):
                assert total(balance) >= newest
                newest = total(balance)
        resumes = resumes and event["event"] != "heartbeat"


@pytest.mark.parametrize("accounts", [EVERYTHING, OANDA_ALONE], ids=["all accounts", "one account"])
async def test_a_stream_goes_on_where_it_was_while_replicas_restart_and_crash(
    tmp_path: Path, node: Program, accounts: list[dict[str, Any]]
) -> None:
    async with two_replicas(tmp_path) as scene:
        await node.create(scene.addresses)
        async with scene.changing():
            await node.act("follow", request={"userId": USER, "accounts": accounts})
            await node.event("balance", of_oanda)
            for way in ("stop", "kill"):
                for replica in scene.replicas:
                    await getattr(replica, way)()
                    await node.event("balance", of_oanda)
                    await replica.start()
                    newest = await node.event("balance", of_oanda)
        expected = await scene.balance()
        assert Decimal(expected.summary.total) == scene.account.balance
        # The last balance may be the one that came after the last start.
        while total(newest["value"]["balance"]) != scene.account.balance:
            newest = await node.event("balance", of_oanda)
        check_history(node.events)
        reasons = [event["error"]["reason"] for event in node.events if event["event"] == "reconnecting"]
        # Whichever of the two it was at, the stream has lost it both ways.
        assert set(reasons) == {"SHUTTING_DOWN", "UNREACHABLE"}
        exchanges = {event["value"]["balance"]["exchangeId"] for event in node.events if event["event"] == "balance"}
        assert exchanges == ({"oanda"} if accounts else {"oanda", "hyperliquid"})
        assert max(node.versions(lambda balance: balance["exchangeId"] == "oanda")) == expected.version


async def test_a_balance_that_was_not_confirmed_is_sent_again_after_a_restart(tmp_path: Path, node: Program) -> None:
    async with two_replicas(tmp_path) as scene:
        await node.create(scene.addresses)
        await node.act("follow", request={"userId": USER, "accounts": OANDA_ALONE})
        first = await node.event("balance")
        tokens = dict(scene.oanda.tokens)
        scene.oanda.tokens.clear()
        await node.event("accountError")
        for replica in scene.replicas:
            await replica.stop()
            await replica.start()
        await node.event("reconnecting")
        scene.oanda.tokens.update(tokens)
        again = await node.event("balance")
        assert total(again["value"]["balance"]) == total(first["value"]["balance"])


async def test_a_replica_that_hangs_is_noticed_and_left(tmp_path: Path, node: Program) -> None:
    async with two_replicas(tmp_path) as scene:
        await node.create(scene.addresses, pingIntervalMs=600, pingTimeoutMs=600)
        # The stream comes to stand at one of the two while the other is not there.
        await scene.replicas[1].stop()
        await node.act("follow", request={"userId": USER, "accounts": OANDA_ALONE})
        await node.event("balance")
        await scene.replicas[1].start()
        scene.replicas[0].freeze()
        lost = await node.event("reconnecting")
        assert lost["error"]["reason"] == "UNREACHABLE"
        async with scene.changing():
            await node.event("balance")
        check_history(node.events)


async def test_a_rolling_restart_loses_no_call(tmp_path: Path) -> None:
    async with two_replicas(tmp_path, shutdown_delay="1") as scene:
        calling = asyncio.create_task(run_example("steady", "20", *scene.addresses, seconds=6 * PATIENCE))
        await asyncio.sleep(2)
        for replica in scene.replicas:
            await replica.stop()
            await replica.start()
            # The pause that docs/operations.md asks for.
            await asyncio.sleep(2)
        assert not calling.done()
        code, output = await calling
    assert (code, output.splitlines()[-1]) == (0, "calls 400 failed 0"), output


async def test_a_replica_that_dies_costs_no_call(tmp_path: Path, node: Program) -> None:
    async with two_replicas(tmp_path) as scene:
        await node.create(scene.addresses)
        request = {"userId": USER, "exchangeId": "oanda"}
        assert (await node.act("calls", count=20, request=request))["outcomes"] == {"OK": 20}
        calling = asyncio.create_task(node.act("calls", count=2000, request=request))
        await asyncio.sleep(0.2)
        await scene.replicas[0].kill()
        assert (await calling)["outcomes"] == {"OK": 2000}
        await scene.replicas[0].start()
        # At once after the start, while the other one ends.
        await scene.replicas[1].kill()
        assert (await node.act("calls", count=200, request=request))["outcomes"] == {"OK": 200}


async def test_a_replica_that_dies_under_many_calls_costs_none_of_them(tmp_path: Path, node: Program) -> None:
    async with two_replicas(tmp_path) as scene:
        await node.create(scene.addresses)
        request = {"userId": USER, "exchangeId": "oanda", "maxAge": {"seconds": 0}}
        assert (await node.act("calls", count=2, request=request))["outcomes"] == {"OK": 2}
        # All of them wait for the venue while one replica dies.
        slow = scene.oanda.fail(Fault(delay=2.0, pass_on=True, times=None))
        calling = asyncio.create_task(node.act("calls", count=90, request=request, together=True))
        await asyncio.sleep(1.0)
        await scene.replicas[1].kill()
        scene.oanda.recover(slow)
        assert (await calling)["outcomes"] == {"OK": 90}


@asynccontextmanager
async def telling_services(folder: Path, addresses: Sequence[str], **changes: Any) -> AsyncIterator[None]:
    """Services at these addresses, each of which tells by the amount that it gives which of them it is: 1, 2, ..."""
    async with AsyncExitStack() as stack:
        for number, address in enumerate(addresses, start=1):
            own = folder / str(number)
            own.mkdir()
            plugin = ScriptedPlugin(answer=returning(holding(("BTC", str(number)))))
            options = {"address": address} | changes
            running = await stack.enter_async_context(serving(own, registry=registry_of(plugin), **options))
            await running.store()
        yield


async def who_answers(node: Program, calls: int) -> list[str]:
    """Which services answer these calls, sorted."""
    replies = [(await node.balance(USER, "fakex"))["reply"] for _ in range(calls)]
    return sorted(reply["balance"]["venueAccounts"][0]["assets"][0]["total"] for reply in replies)


async def test_replicas_are_called_in_turn(tmp_path: Path, node: Program) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    async with telling_services(tmp_path, addresses):
        await node.create(addresses)
        # The first call may come before both are connected.
        await who_answers(node, 2)
        assert await who_answers(node, 8) == ["1"] * 4 + ["2"] * 4


async def test_a_name_stands_for_all_of_its_addresses_and_is_looked_up_again(tmp_path: Path, node: Program) -> None:
    authority = Authority.create(tmp_path)
    certificate, key = authority.sign("service", "balances.test")
    (port,) = free_ports(1)
    addresses = [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
    async with telling_services(tmp_path, addresses, tls_certificate=certificate, tls_key=key):
        await node.create(f"dns:///balances.test:{port}", tlsCa=authority.file.read_text())
        unknown = (await node.balance(USER, "fakex"))["error"]
        assert unknown["reason"] == "UNREACHABLE"
        assert "ENOTFOUND" in unknown["message"]
        await node.act("names", names={"balances.test": ["127.0.0.1"]})

        async def is_found() -> bool:
            return "reply" in await node.balance(USER, "fakex")

        await eventually(is_found, "the name")

        async def answer(expected: set[str]) -> bool:
            return set(await who_answers(node, 4)) == expected

        await eventually(lambda: answer({"1"}), "the first address")
        await node.act("names", names={"balances.test": ["127.0.0.1", "127.0.0.2"]})
        await eventually(lambda: answer({"1", "2"}), "the second address")
        await node.act("names", names={"balances.test": ["127.0.0.2"]})
        await eventually(lambda: answer({"2"}), "the end of the first address")
        # What is known is used while the name cannot be looked up.
        await node.act("names", names={})
        await asyncio.sleep(6)
        assert await who_answers(node, 4) == ["2"] * 4
