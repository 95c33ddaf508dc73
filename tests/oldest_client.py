"""Run by an interpreter with the oldest promised grpcio and protobuf: every call of the client, once."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys

from exchange_service.client import ExchangeServiceClient
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
    versions = [importlib.metadata.version(name) for name in ("grpcio", "protobuf")]
    print(*versions, len(exchanges), balance.balance.summary.currency, reason)


asyncio.run(main(sys.argv[1]))
