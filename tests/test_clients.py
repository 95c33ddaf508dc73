"""Clients that are not ours: the oldest runtimes, and a program that has the protos alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from exchange_service_oanda.simulator import OandaSimulator

from exchange_service.app import Service, start_service
from exchange_service.model import Account, Credential
from exchange_service.settings import Settings

ROOT = Path(__file__).parent.parent
OLDEST = ROOT / ".venv-oldest" / "bin" / "python"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A service with OANDA's simulator behind it, and one stored account."""
    async with OandaSimulator() as venue:
        settings = Settings(
            address="127.0.0.1:0", database_url=f"sqlite:///{tmp_path / 'service.db'}", venue_urls={"oanda": venue.url}
        )
        service = await start_service(settings)
        row = venue.demo_credential("moving")
        assert row is not None
        await service.store.put(Account("demo", "oanda"), Credential.from_texts(row))
        yield service
        await service.stop()


async def run_client(*command: str, path: Path) -> str:
    """Run a client in a process of its own and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode == 0, err.decode()[-2000:]
    return out.decode()


async def test_the_client_runs_on_the_oldest_grpcio_and_protobuf(service: Service) -> None:
    assert OLDEST.exists(), "run `make test`, which installs the oldest runtime into .venv-oldest"
    printed = await run_client(str(OLDEST), str(ROOT / "tests" / "oldest_client.py"), service.address, path=ROOT)
    grpcio, protobuf, count, currency, reason = printed.split()
    assert (grpcio, protobuf, currency, reason) == ("1.72.2", "6.31.1", "EUR", "EXCHANGE_UNKNOWN")
    assert int(count) > 100


async def test_a_program_that_has_the_protos_alone_can_call_everything(service: Service, tmp_path: Path) -> None:
    generated = tmp_path / "generated"
    generated.mkdir()
    protos = sorted(str(path) for path in (ROOT / "protos").rglob("*.proto"))
    await run_client(
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}"),
        *(f"--python_out={generated}", f"--grpc_python_out={generated}", *protos),
        path=generated,
    )
    # Without these two the installed package would be found in place of the fresh one.
    for folder in ("exchange_service", "exchange_service/v1"):
        (generated / folder / "__init__.py").touch()
    program = (
        "import sys, grpc\n"
        "from exchange_service.v1 import exchange_service_pb2 as m, exchange_service_pb2_grpc as g\n"
        f"assert m.__file__.startswith({str(generated)!r}), m.__file__\n"
        "stub = g.ExchangeServiceStub(grpc.insecure_channel(sys.argv[1]))\n"
        "ids = [e.id for e in stub.ListExchanges(m.ListExchangesRequest()).exchanges]\n"
        "balance = stub.GetBalance(m.GetBalanceRequest(user_id='demo', exchange_id='oanda')).balance\n"
        "event = next(iter(stub.StreamBalances(m.StreamBalancesRequest(user_id='demo'))))\n"
        "print(len(ids), 'oanda' in ids, balance.venue_accounts[0].assets[0].total, event.WhichOneof('event'))\n"
    )
    printed = await run_client(sys.executable, "-c", program, service.address, path=generated)
    count, listed, total, event = printed.split()
    assert int(count) > 100
    assert (listed, total, event) == ("True", "25310.4426", "balance")
