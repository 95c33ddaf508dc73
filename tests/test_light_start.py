"""What the serving process has not imported until it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys

async def main(database):
    from exchange_service.app import start_service
    from exchange_service.client import ExchangeServiceClient
    from exchange_service.model import Account, Credential
    from exchange_service.settings import Settings
    from exchange_service_ccxt_generic.simulator import BinanceSimulator
    from exchange_service_oanda.simulator import OandaSimulator

    async with OandaSimulator() as oanda, BinanceSimulator() as binance:
        urls = {"oanda": oanda.url, "binance": binance.url}
        service = await start_service(Settings(address="127.0.0.1:0", database_url=database, venue_urls=urls))
        for name, venue in (("oanda", oanda), ("binance", binance)):
            await service.store.put(Account("demo", name), Credential.from_texts(venue.demo_credential("moving")))
        async with ExchangeServiceClient(service.address) as client:
            listed = len((await client.list_exchanges()).exchanges)
            await client.get_balance("demo", "oanda")
            before = "ccxt" in sys.modules
            await client.get_balance("demo", "binance")
            print(listed > 100, before, "ccxt" in sys.modules)
        await service.stop()

asyncio.run(main(sys.argv[1]))
"""


def test_ccxt_is_imported_with_the_first_ccxt_balance_and_not_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, f"sqlite:///{tmp_path / 'service.db'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "True False True"
