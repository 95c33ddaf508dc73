"""Clients in other environments: on the oldest runtimes, and a program that has only the protos."""

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


async def test_a_program_that_has_only_the_protos_calls_everything_and_reads_errors(
    service: Service, tmp_path: Path
) -> None:
    generated = tmp_path / "generated"
    generated.mkdir()
    protos = sorted(str(path) for path in (ROOT / "protos").rglob("*.proto"))
    await run_client(
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}"),
        *(f"--python_out={generated}", f"--grpc_python_out={generated}", *protos),
        path=generated,
    )
    # Without these files the installed package would be found in place of the fresh one.
    for folder in ("", "v1", "operator", "operator/v1"):
        (generated / "exchange_service" / folder / "__init__.py").touch()
    program = (
        "import sys, grpc\n"
        "from exchange_service.v1 import exchange_service_pb2 as m, exchange_service_pb2_grpc as g\n"
        "from exchange_service.operator.v1 import plugin_service_pb2 as om, plugin_service_pb2_grpc as og\n"
        "from google.rpc import error_details_pb2, status_pb2\n"
        "for module in (m, om, error_details_pb2, status_pb2):\n"
        f"    assert module.__file__.startswith({str(generated)!r}), module.__file__\n"
        "channel = grpc.insecure_channel(sys.argv[1])\n"
        "stub = g.ExchangeServiceStub(channel)\n"
        "ids = [e.id for e in stub.ListExchanges(m.ListExchangesRequest()).exchanges]\n"
        "balance = stub.GetBalance(m.GetBalanceRequest(user_id='demo', exchange_id='oanda')).balance\n"
        "event = next(iter(stub.StreamBalances(m.StreamBalancesRequest(user_id='demo'))))\n"
        "plugins = og.PluginServiceStub(channel).ListPlugins(om.ListPluginsRequest()).plugins\n"
        "try:\n"
        "    stub.GetBalance(m.GetBalanceRequest(user_id='demo', exchange_id='nowhere'))\n"
        "except grpc.RpcError as error:\n"
        "    trailers = dict(tuple(error.trailing_metadata()))\n"
        "    status = status_pb2.Status.FromString(trailers['grpc-status-details-bin'])\n"
        "    reason = error_details_pb2.ErrorInfo.FromString(status.details[0].value).reason\n"
        "print(len(ids), 'oanda' in ids, balance.venue_accounts[0].assets[0].total, event.WhichOneof('event'),\n"
        "      'oanda' in [status.plugin.name for status in plugins], reason)\n"
    )
    printed = await run_client(sys.executable, "-c", program, service.address, path=generated)
    count, *rest = printed.split()
    assert int(count) > 100
    assert rest == ["True", "25310.4426", "balance", "True", "EXCHANGE_UNKNOWN"]
