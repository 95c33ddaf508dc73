"""The demo: an account at each venue that has a simulator, all of them moving, and every situation shown."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from exchange_service.cli.demo import MAIN_USER, Demo, running_demo, user_of
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError
from exchange_service.grpc_server.server import BindError
from exchange_service.model import SECRET_FIELDS, Account, Credential
from exchange_service.testing.venue import SITUATIONS
from exchange_service.v1.balance_pb2 import DELIVERY_MODE_PUSHED
from tests.harness import PATIENCE, settings_for

CUSTOM = {
    "alpaca",
    "aster",
    "hyperliquid",
    "krakenfutures",
    "lighter",
    "oanda",
    "tastytrade",
    "tradier",
    "tradier_options",
}
THROUGH_CCXT = {"apex", "binance", "coinbase"}


async def versions_until_all_moved(demo: Demo) -> dict[str, set[int]]:
    seen: dict[str, set[int]] = {}
    async with ExchangeServiceClient(demo.service.address) as client, asyncio.timeout(2 * PATIENCE):
        async for event in client.stream_balances(MAIN_USER):
            if event.HasField("balance"):
                balance = event.balance.balance
                assert not event.balance.freshness.HasField("stale")
                assert all(not account.HasField("error") for account in balance.venue_accounts)
                seen.setdefault(balance.exchange_id, set()).add(balance.version)
            assert not event.HasField("account_error"), event.account_error
            if seen.keys() >= CUSTOM | THROUGH_CCXT and all(len(versions) > 1 for versions in seen.values()):
                break
    return seen


async def test_a_watch_of_the_demos_user_shows_every_venue_moving(tmp_path: Path) -> None:
    async with running_demo(settings_for(tmp_path, poll_interval=0.5)) as demo:
        seen = await versions_until_all_moved(demo)
    assert seen.keys() == CUSTOM | THROUGH_CCXT


def count_pushes(demo: Demo) -> dict[str, float]:
    """How many pushes the service has counted, by exchange."""
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(demo.service.metrics.text().decode()):
        for sample in family.samples:
            if sample.name == "exchange_service_pushes_total":
                counts[sample.labels["exchange"]] = counts.get(sample.labels["exchange"], 0.0) + sample.value
    return counts


async def test_where_a_venue_pushes_the_demo_pushes_too(tmp_path: Path) -> None:
    async with running_demo(settings_for(tmp_path, heartbeat_interval=0.2)) as demo:
        listings = demo.service.registry.listings
        pushing = {name for name in demo.venues if listings[name].metadata.capabilities.push}
        assert pushing == CUSTOM - {"tradier_options"} | {"binance"}
        pushed: set[str] = set()
        async with ExchangeServiceClient(demo.service.address) as client, asyncio.timeout(2 * PATIENCE):
            async for event in client.stream_balances(MAIN_USER):
                pushed |= {
                    state.exchange_id
                    for state in event.heartbeat.accounts
                    if state.delivery.mode == DELIVERY_MODE_PUSHED
                }
                counts = count_pushes(demo)
                # The first says that the subscription stands; the next is a change.
                if pushed == pushing and all(counts.get(name, 0.0) > 1 for name in pushing):
                    break


async def test_each_situation_has_its_own_user(tmp_path: Path) -> None:
    async with running_demo(settings_for(tmp_path)) as demo:
        assert demo.users.keys() == {user_of(situation) for situation in SITUATIONS}
        assert set(demo.users[MAIN_USER]) == CUSTOM | THROUGH_CCXT


async def act(demo: Demo, path: str, **headers: str) -> tuple[int, str]:
    """Ask the site of the demo's venues: the status and the text of its answer."""
    async with ClientSession() as session, session.post(f"{demo.site.url}/{path}", headers=headers) as answer:
        return answer.status, await answer.text()


async def reason_of(demo: Demo, user: str, exchange_id: str) -> str:
    """Why the balance cannot be read now; empty if it can be."""
    async with ExchangeServiceClient(demo.service.address) as client:
        try:
            await client.get_balance(user, exchange_id, max_age=0)
        except ServiceError as error:
            return type(error).__name__
    return ""


async def test_a_key_is_deleted_and_a_venue_fails_and_recovers_from_outside(tmp_path: Path) -> None:
    async with running_demo(settings_for(tmp_path, stale_grace=0)) as demo:
        store = demo.service.store
        for exchange_id in demo.users[MAIN_USER]:
            assert await reason_of(demo, MAIN_USER, exchange_id) == "", exchange_id
        for exchange_id in demo.users[user_of("refused")]:
            assert "refuses its first key" in (await act(demo, f"{exchange_id}/revoke"))[1]
            account = Account(MAIN_USER, exchange_id)
            assert await reason_of(demo, MAIN_USER, exchange_id) == "CredentialRejected", exchange_id
            await act(demo, f"{exchange_id}/mend")
            # As if the user had typed it again.
            typed = demo.site.keys[exchange_id][0]
            metadata = {name: value for name, value in typed.items() if name not in SECRET_FIELDS}
            await store.put(account, Credential.from_texts(typed, metadata))
            assert await reason_of(demo, MAIN_USER, exchange_id) == "", exchange_id
        await act(demo, "lighter/fail")
        assert await reason_of(demo, MAIN_USER, "lighter") == "VenueUnavailable"
        assert "needs no key" in (await act(demo, "lighter/revoke"))[1]


async def test_no_web_page_breaks_the_demos_venues(tmp_path: Path) -> None:
    async with running_demo(settings_for(tmp_path)) as demo:
        assert (await act(demo, "oanda/revoke", Origin="https://elsewhere.example"))[0] == 403
        assert (await act(demo, "oanda/revoke", Host="elsewhere.example"))[0] == 403
        assert (await act(demo, "oanda/burn"))[0] == 404
        assert await reason_of(demo, MAIN_USER, "oanda") == ""


async def test_only_if_its_port_is_taken_the_demo_serves_browsers_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = settings_for(tmp_path, http_address=address, console=True)
        with pytest.raises(BindError, match="for HTTP"):
            async with running_demo(settings):
                pass
        monkeypatch.setattr("exchange_service.cli.demo.HTTP_ADDRESS", address)
        async with running_demo(settings) as demo:
            assert demo.service.web.address not in ("", address)
