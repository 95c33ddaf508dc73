"""The simulator judges a request as Hyperliquid does, and shows the demo's situations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, ClassVar

import aiohttp
import pytest
from exchange_service_hyperliquid import HYPERLIQUID, fetch_balance
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, SimulatedWallet

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    CredentialInvalid,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.testing import venue_call
from exchange_service.testing.venue import TROUBLES

ADDRESS = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"


Simulator = HyperliquidSimulator
Opener = Callable[..., Awaitable[aiohttp.ClientWebSocketResponse]]


@pytest.fixture
async def simulator() -> AsyncIterator[HyperliquidSimulator]:
    async with HyperliquidSimulator() as simulator:
        yield simulator


@pytest.fixture
async def opened(simulator: HyperliquidSimulator) -> AsyncIterator[Opener]:
    """Opens a connection, whose greeting is read if it is `greeted`."""
    async with aiohttp.ClientSession() as session:

        async def open_one(*, greeted: bool = False) -> aiohttp.ClientWebSocketResponse:
            socket = await session.ws_connect(simulator.url + "/ws")
            if greeted:
                await socket.receive_str(timeout=5.0)
            return socket

        yield open_one


async def post(simulator: HyperliquidSimulator, body: bytes, content_type: str = "application/json") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session:
        headers = {"Content-Type": content_type}
        async with session.post(simulator.url + "/info", data=body, headers=headers) as response:
            return response.status, await response.text()


def row(simulator: HyperliquidSimulator, situation: str) -> Mapping[str, Any]:
    credential = simulator.demo_credential(situation)
    assert credential is not None
    metadata: Mapping[str, Any] = credential["extra_metadata"]
    return metadata


async def read(simulator: HyperliquidSimulator, metadata: Mapping[str, Any], timeout: float = 5.0) -> Balance:
    async with venue_call(HYPERLIQUID, override=simulator.url, metadata=metadata, timeout=timeout) as call:
        return await fetch_balance(call)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type": "nonsense", "user": "' + ADDRESS.encode() + b'"}',
        b'{"type": ["spotClearinghouseState"], "user": "' + ADDRESS.encode() + b'"}',
        b'{"type": "spotClearinghouseState"}',
        b'{"type": "spotClearinghouseState", "user": "0x12"}',
        b'{"type": "spotClearinghouseState", "user": 7}',
    ],
)
async def test_an_unreadable_question_is_refused_in_plain_text(body: bytes) -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        status, text = await post(simulator, body)
    assert status == 422
    assert text == "Failed to deserialize the JSON body into the target type"


async def test_a_question_that_is_not_called_json_is_refused() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        status, _ = await post(simulator, b'{"type": "perpDexs"}', "text/plain")
    assert status == 415


async def test_a_request_belongs_to_the_address_in_its_body() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        body = '{"type": "spotClearinghouseState", "user": "' + ADDRESS.replace("c", "C") + '"}'
        assert await post(simulator, body.encode()) == (200, '{"balances": []}')
        assert [request.account for request in simulator.requests] == [ADDRESS]


@pytest.mark.parametrize("mode", ["disabled", "default", "dexAbstraction", "unifiedAccount", "portfolioMargin"])
async def test_only_a_unified_wallet_has_the_amount_after_maintenance(mode: str) -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        simulator.add_wallet(ADDRESS, SimulatedWallet(mode=mode))
        _, text = await post(simulator, b'{"type": "spotClearinghouseState", "user": "' + ADDRESS.encode() + b'"}')
    assert ("tokenToAvailableAfterMaintenance" in text) == (mode in ("unifiedAccount", "portfolioMargin"))


async def test_the_moving_wallet_moves_and_stays_consistent() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        metadata = row(simulator, "moving")
        before = (await read(simulator, metadata)).venue_accounts[0].summary
        simulator.move()
        after = (await read(simulator, metadata)).venue_accounts[0].summary
    assert before is not None
    assert after is not None
    assert (before.equity, before.available, before.margin_used, before.unrealised_pnl) == (
        Decimal("8420.118264"),
        Decimal("7611.904113"),
        Decimal("802.5"),
        Decimal("321.5"),
    )
    assert before.equity is not None
    assert after.equity is not None
    assert before.unrealised_pnl is not None
    assert after.unrealised_pnl is not None
    assert after.equity != before.equity
    assert after.equity - after.unrealised_pnl == before.equity - before.unrealised_pnl


async def test_each_situation_is_what_its_name_says() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        assert simulator.demo_credential("refused") is None
        empty = await read(simulator, row(simulator, "empty"))
        assert all(asset.is_zero() for _, asset in empty.rows())
        with pytest.raises(VenueRateLimited) as limited:
            await read(simulator, row(simulator, "limited"))
        assert limited.value.retry_after == 30
        partly = await read(simulator, row(simulator, "partly"))
        assert [type(account.error) for account in partly.venue_accounts if account.error] == [CredentialInvalid]
        # The limit of one account does not apply to another.
        assert (await read(simulator, row(simulator, "moving"))).summary is not None


async def test_each_trouble_is_what_its_name_says() -> None:
    expected = {
        "wrong key": None,
        "missing right": None,
        "wrong environment": AccountUnknown,
        "unknown account": AccountUnknown,
        "rate limit": VenueRateLimited,
        "outage": VenueUnavailable,
    }
    assert set(expected) == set(TROUBLES)
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        good = row(simulator, "moving")
        rows = {trouble: simulator.troubled_credential(trouble) for trouble in TROUBLES}
        assert len({str(credential) for credential in rows.values() if credential}) == 4
        for trouble, error in expected.items():
            credential = rows[trouble]
            assert (credential is None) == (error is None)
            if credential is not None and error is not None:
                with pytest.raises(error):
                    await read(simulator, credential["extra_metadata"])
        # The trouble of one account does not affect another.
        assert (await read(simulator, good)).summary is not None


async def test_a_rate_limit_is_answered_without_a_message_and_without_a_delay() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        credential = simulator.troubled_credential("rate limit")
        assert credential is not None
        user = credential["extra_metadata"]["wallet_address"]
        body = '{"type": "spotClearinghouseState", "user": "' + user + '"}'
        assert await post(simulator, body.encode()) == (429, "null")
        with pytest.raises(VenueRateLimited) as limited:
            await read(simulator, credential["extra_metadata"])
    assert limited.value.retry_after == 10


async def test_the_stale_wallet_answers_once() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        metadata = row(simulator, "stale")
        async with venue_call(HYPERLIQUID, override=simulator.url, metadata=metadata) as call:
            assert (await fetch_balance(call)).summary is not None
            with pytest.raises(VenueUnavailable):
                await fetch_balance(call)


async def test_reads_that_weigh_too_much_in_a_minute_are_refused() -> None:
    async with HyperliquidSimulator() as simulator:
        simulator.add_wallet(ADDRESS)
        role = f'{{"type": "userRole", "user": "{ADDRESS}"}}'.encode()
        state = f'{{"type": "spotClearinghouseState", "user": "{ADDRESS}"}}'.encode()
        assert {(await post(simulator, role))[0] for _ in range(20)} == {200}
        assert simulator.weight == 1200
        assert await post(simulator, state) == (429, "null")
        simulator.lift_limits()
        assert (await post(simulator, state))[0] == 200


class TestSocket:
    """The socket answers as Hyperliquid's does."""

    SPOT: ClassVar[dict[str, Any]] = {"type": "spotState", "user": ADDRESS}

    async def ask(self, socket: aiohttp.ClientWebSocketResponse, method: str, subscription: Any = None) -> Any:
        """What the venue answers."""
        await socket.send_json({"method": method, **({"subscription": subscription} if subscription else {})})
        return await socket.receive_json(timeout=5.0)

    async def test_it_greets_in_plain_text_and_answers_pings(self, opened: Opener, simulator: Simulator) -> None:
        socket = await opened()
        assert await socket.receive_str(timeout=5.0) == "Websocket connection established."
        assert await self.ask(socket, "ping") == {"channel": "pong"}

    async def test_a_subscription_is_acknowledged_and_the_present_state_follows(
        self, opened: Opener, simulator: Simulator
    ) -> None:
        simulator.add_wallet(ADDRESS, SimulatedWallet(spot=[("USDC", 0, "7.5", "0.0")]))
        socket = await opened(greeted=True)
        acknowledged = await self.ask(socket, "subscribe", {"type": "spotState", "user": "0x" + ADDRESS[2:].upper()})
        assert acknowledged["channel"] == "subscriptionResponse"
        assert acknowledged["data"]["subscription"]["user"] == ADDRESS
        state = await socket.receive_json(timeout=5.0)
        assert (state["channel"], state["data"]["user"]) == ("spotState", ADDRESS)
        assert [row["total"] for row in state["data"]["spotState"]["balances"]] == ["7.5"]
        again = await self.ask(socket, "subscribe", self.SPOT)
        assert again["channel"] == "error"
        assert again["data"].startswith("Already subscribed: {")
        assert (await self.ask(socket, "unsubscribe", self.SPOT))["data"]["method"] == "unsubscribe"
        assert (await self.ask(socket, "unsubscribe", self.SPOT))["data"].startswith("Already unsubscribed: {")

    @pytest.mark.parametrize(
        "subscription",
        [
            {"type": "spotState"},
            {"type": "spotState", "user": "0x12"},
            {"type": "clearinghouseState", "user": ADDRESS, "dex": "gone"},
            {"type": "nonsense", "user": ADDRESS},
            [7],
        ],
    )
    async def test_an_invalid_subscription_is_quoted(
        self, subscription: Any, opened: Opener, simulator: Simulator
    ) -> None:
        answer = await self.ask(await opened(greeted=True), "subscribe", subscription)
        assert answer == {"channel": "error", "data": f"Invalid subscription {json.dumps(subscription)}"}

    async def test_it_pushes_ten_addresses_on_all_connections_together(
        self, opened: Opener, simulator: Simulator
    ) -> None:
        first, second = await opened(greeted=True), await opened(greeted=True)
        for number in range(10):
            socket = (first, second)[number % 2]
            await self.ask(socket, "subscribe", {"type": "spotState", "user": f"0x{number:040x}"})
            await socket.receive_json(timeout=5.0)
        assert len(simulator.followed()) == 10
        full = {"channel": "error", "data": "Cannot track more than 10 total users."}
        assert await self.ask(first, "subscribe", self.SPOT) == full
        # Another state of a known address does not count.
        dex = {"type": "clearinghouseState", "user": f"0x{1:040x}", "dex": "xyz"}
        assert (await self.ask(first, "subscribe", dex))["channel"] == "subscriptionResponse"
        simulator.lift_limits()
        await first.receive_json(timeout=5.0)
        assert (await self.ask(first, "subscribe", self.SPOT))["channel"] == "subscriptionResponse"

    async def test_it_keeps_to_its_limits_of_subscriptions_and_messages(
        self, opened: Opener, simulator: Simulator
    ) -> None:
        simulator.dexs = {f"dex{number}": 0 for number in range(1000)}
        socket = await opened(greeted=True)
        for dex in simulator.dexs:
            await socket.send_json(
                {"method": "subscribe", "subscription": {"type": "clearinghouseState", "user": ADDRESS, "dex": dex}}
            )
        for _ in range(2000):
            await socket.receive(timeout=5.0)
        assert (await self.ask(socket, "subscribe", self.SPOT))["data"].startswith("Cannot subscribe to more than 1000")
        for _ in range(999):
            await socket.send_json({"method": "ping"})
            await socket.receive(timeout=5.0)
        assert (await self.ask(socket, "ping"))["data"].startswith("Cannot send more than 2000 messages")

    async def test_the_eleventh_connection_is_refused(self, opened: Opener, simulator: Simulator) -> None:
        sockets = [await opened(greeted=True) for _ in range(10)]
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await opened()
        assert not any(socket.closed for socket in sockets)

    async def test_a_connection_without_a_word_is_closed(self, opened: Opener, simulator: Simulator) -> None:
        simulator.idle_limit = 0.1
        socket = await opened(greeted=True)
        assert (await socket.receive(timeout=5.0)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
