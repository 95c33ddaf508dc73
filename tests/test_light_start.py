"""What the serving process has not imported until it is needed."""

from __future__ import annotations

import json
import os
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
            for status in (await client.list_plugins()).plugins:
                if status.own_process:
                    print(status.plugin.name, "in a process of its own:", status.processes[0].process_id > 0)
        await service.stop()

asyncio.run(main(sys.argv[1]))
"""


def run(folder: Path, **variables: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, f"sqlite:///{folder / 'service.db'}"]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_ccxt_is_never_imported_by_the_service_because_its_plugin_has_a_process_of_its_own(tmp_path: Path) -> None:
    assert run(tmp_path)[-2:] == ["True False False", "ccxt_generic in a process of its own: True"]


def test_where_the_operator_wants_it_in_the_service_ccxt_is_imported_with_the_first_ccxt_balance(
    tmp_path: Path,
) -> None:
    processes = json.dumps({"ccxt_generic": "in-process"})
    assert run(tmp_path, EXCHANGE_SERVICE_PLUGIN_PROCESSES=processes)[-1] == "True False True"
