"""The ways out through the whole service: plugins in processes of their own, CCXT, pushes, refusals and lists."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet
from exchange_service_oanda.simulator import OandaSimulator
from structlog.testing import capture_logs

from benchmarks import pushing_plugin
from benchmarks.pushing_plugin import FEW, MOST
from benchmarks.pushing_venue import PushingVenue
from exchange_service.errors import AddressNotAllowed, VenueUnavailable
from exchange_service.testing import Fault
from tests.e2e.test_pushed_ccxt import next_rows
from tests.e2e.test_pushes import PUSHED, until_delivered
from tests.harness import USER, ScriptedPlugin, raising, registry_of, serving, streaming
from tests.venue_proxies import ConnectProxy, SocksProxy

PASSWORD = "correct-horse-battery-staple"
LOGIN = ("desk", PASSWORD)
# From where the proxies connect.
FAR = "127.0.0.9"


class _Sources:
    """Keeps from which addresses a simulator was asked, and for which account."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, set[str | None]] = {}

    def account_of(self, request: web.Request, body: bytes) -> str:
        account: str = super().account_of(request, body)  # type: ignore[misc]
        self.sources.setdefault(account, set()).add(request.remote)
        return account


class Binance(_Sources, BinanceSimulator):
    """Binance, which keeps who asked."""


class Oanda(_Sources, OandaSimulator):
    """OANDA, which keeps who asked."""


@pytest.mark.threat("T97")
async def test_all_that_ccxt_sends_from_its_process_goes_through_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_PASSWORD", PASSWORD)
    async with Binance() as venue, SocksProxy(login=LOGIN) as proxy:
        proxy.local_address = FAR
        wallet = SimulatedWallet("alicekey", "alicesecret", {"BTC": ("1.5", "0")})
        venue.add_wallet(wallet)
        way = {"proxy": proxy.url, "user": "desk", "password": {"env": "FAR_PASSWORD"}, "address": "203.0.113.7"}
        egress = {"ways": {"far": way}, "venues": {"binance": ["far"]}}
        calm = {"poll_interval": 60.0, "heartbeat_interval": 0.1, "stale_grace": 0.0}
        with capture_logs() as lines:
            async with serving(tmp_path, venue_urls={"binance": venue.url}, egress=egress, **calm) as running:
                await running.store("binance", api_key="alicekey", api_secret="alicesecret")
                async with streaming(running, "binance") as stream:
                    assert await next_rows(stream) == {"BTC": "1.5"}
                    await until_delivered(stream, PUSHED)
                    wallet.spot["BTC"] = ("0.75", "0")
                    venue.announce(wallet, "BTC")
                    assert await next_rows(stream) == {"BTC": "0.75"}
                # Lists of markets, the account and its socket.
                assert {request.path for request in venue.requests} >= {"/api/v3/exchangeInfo", "/api/v3/account"}
                assert {source for sources in venue.sources.values() for source in sources} == {FAR}
                proxy.local_address = "127.0.0.1"
                venue.fail(Fault(status=403, body=b'{"code":-1011,"msg":"This IP cannot access this route."}'))
                with pytest.raises(AddressNotAllowed, match=r"This service calls from 203\.0\.113\.7\."):
                    await running.client.get_balance(USER, "binance", max_age=0)
                venue.recover()
                await proxy.stop()
                with pytest.raises(VenueUnavailable, match="cannot be reached: the proxy far cannot be reached"):
                    await running.client.get_balance(USER, "binance", max_age=0)
                assert PASSWORD not in repr(running.service.settings)
    assert PASSWORD not in str(lines)
    assert {host for host, _ in proxy.asked} == {"127.0.0.1"}


async def test_each_account_of_a_plugin_in_its_process_is_asked_from_its_own_address(tmp_path: Path) -> None:
    async with Oanda() as venue, ConnectProxy() as proxy:
        proxy.local_address = FAR
        row = venue.demo_credential("moving")
        assert row is not None
        egress = {
            "ways": {
                "second": {"local_address": "127.0.0.2", "address": "203.0.113.2"},
                "third": {"local_address": "127.0.0.3", "address": "203.0.113.3"},
                "far": {"proxy": proxy.url, "address": "203.0.113.9"},
            },
            "venues": {"oanda": ["second", "third"]},
            "pinned": {"bob": {"oanda": "third"}, "carol": {"oanda": "far"}},
        }
        options = {"venue_urls": {"oanda": venue.url}, "plugin_processes": {"oanda": "own-process"}}
        # Alice's by her hash, which is the same everywhere.
        expected = {"alice": "127.0.0.2", "bob": "127.0.0.3", "carol": FAR}
        async with serving(
            tmp_path, egress=egress, outgoing_address="198.51.100.1", manage_accounts=True, **options
        ) as running:
            for user, address in expected.items():
                venue.sources.clear()
                # Tried from the address that it will be read from.
                await running.client.connect_account(user, "oanda", {"api_key": row["api_key"]})
                await running.client.get_balance(user, "oanda", max_age=0)
                seen = {source for sources in venue.sources.values() for source in sources}
                assert seen == {address}
                (account,) = (await running.client.list_accounts(user)).accounts
                assert account.outgoing_address == f"203.0.113.{address[-1]}"
            assert (await running.client.list_accounts("bob")).outgoing_address == "198.51.100.1"
            listed = {entry.id: entry for entry in (await running.client.list_exchanges()).exchanges}
            assert list(listed["oanda"].outgoing_addresses) == ["203.0.113.2", "203.0.113.3"]
            assert listed["oanda"].ip_whitelist.endswith("This service calls from 203.0.113.2, 203.0.113.3.")
            assert listed["tradier"].ip_whitelist.endswith("This service calls from 198.51.100.1.")


async def test_a_refusal_names_the_address_of_the_accounts_own_way(tmp_path: Path) -> None:
    plugin = ScriptedPlugin(answer=raising(AddressNotAllowed("Fakex refuses the address.")))
    egress = {
        "ways": {"second": {"local_address": "127.0.0.2", "address": "203.0.113.2"}},
        "pinned": {"bob": {"fakex": "second"}},
    }
    options: dict[str, Any] = {"egress": egress, "outgoing_address": "198.51.100.1"}
    async with serving(tmp_path, registry=registry_of(plugin), **options) as running:
        for user, address in (("alice", "198.51.100.1"), ("bob", "203.0.113.2")):
            await running.store(user=user)
            with pytest.raises(AddressNotAllowed, match=f"This service calls from {address}."):
                await running.client.get_balance(user, "fakex")
    assert [call.way for call in plugin.calls] == ["", "203.0.113.2"]


async def test_each_address_has_its_own_room_for_pushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A silent push makes room for another.
    monkeypatch.setattr(pushing_plugin.Language, "silence", 60.0)
    async with PushingVenue() as venue, AsyncExitStack() as stack:
        ways = {name: {"local_address": f"127.0.0.{last}"} for name, last in (("a", 2), ("b", 3))}
        users = [f"user{number}" for number in range(MOST + 2)]
        # One more than there is room for at the address a, and one at b.
        pinned = {user: {FEW: "b" if user == users[-1] else "a"} for user in users}
        options: dict[str, Any] = {"venue_urls": {FEW: venue.url}, "egress": {"ways": ways, "pinned": pinned}}
        running = await stack.enter_async_context(
            serving(tmp_path, registry=registry_of(pushing_plugin), heartbeat_interval=0.1, **options)
        )
        for user in users:
            await running.store(FEW, user=user, api_key=f"key-of-{user}")
            stream = await stack.enter_async_context(streaming(running, FEW, user=user))
            await until_delivered(stream, "NO_ROOM" if user == users[-2] else PUSHED)
