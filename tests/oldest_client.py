"""Makes every call of the client once. Run by an interpreter with the oldest supported grpcio and protobuf."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys

from exchange_service.client import AsyncClient, Client, ExchangeServiceClient, Reconnecting
from exchange_service.errors import ExchangeUnknown


async def main(address: str) -> None:
    async with ExchangeServiceClient(address) as client:
        exchanges = await client.all_exchanges()
        plugins = (await client.list_plugins()).plugins
        assert plugins
        balance = await client.get_balance("demo", "oanda", max_age=5)
        async for event in client.stream_balances("demo"):
            if event.HasField("balance"):
                break
        try:
            await client.get_balance("demo", "nowhere")
        except ExchangeUnknown as error:
            reason = error.reason
    async with AsyncClient(address.split(",")) as client:
        assert await client.health() == "SERVING"
        (event,) = await client.balances("demo")
        assert event.balance.version == balance.balance.version
        # A user without accounts is told so at once.
        async for first in client.stream_balances("nobody"):
            assert not isinstance(first, Reconnecting)
            assert first.HasField("heartbeat")
            break
    await asyncio.to_thread(call_without_asyncio, address, balance.balance.version)
    versions = [importlib.metadata.version(name) for name in ("grpcio", "protobuf")]
    print(*versions, len(exchanges), balance.balance.summary.currency, reason)


def call_without_asyncio(address: str, version: int) -> None:
    with Client([address, address]) as client:
        assert client.health() == "SERVING"
        (event,) = client.balances("demo")
        assert event.balance.version == version
        assert client.list_exchanges(page_size=1).exchanges
        assert next(client.stream_balances("nobody")).HasField("heartbeat")
        try:
            client.get_balance("demo", "nowhere")
        except ExchangeUnknown:
            return
        raise AssertionError("an unknown exchange is an error")


asyncio.run(main(sys.argv[1]))
