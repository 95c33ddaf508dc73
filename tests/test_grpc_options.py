"""The options of gRPC: each exists in the installed grpcio; pings end no connection, and private calls use no proxy."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import grpc
import pytest

from exchange_service.addresses import is_loopback, is_private
from exchange_service.client import ExchangeServiceClient, ServiceUnreachable
from exchange_service.errors import ServiceError
from exchange_service.pytest_plugin import SWEEP
from exchange_service.v1 import exchange_service_pb2, exchange_service_pb2_grpc
from tests.harness import USER, ScriptedPlugin, registry_of, serving

# What is written like an option and is a package.
_MODULES = ("grpc.aio", "grpc.health.v1")
ROOT = Path(__file__).parent.parent
_OPTION = re.compile(r"grpc\.[a-z0-9_.]+\Z")


def used_options() -> Iterator[tuple[str, str]]:
    """Each option of gRPC that our code and documents give to a server or a channel, and the file."""
    for folder in ("exchange_service", "plugins", "benchmarks", "deploy", "tests", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
                    name = node.elts[0].value
                    if isinstance(name, str) and _OPTION.match(name) and name not in _MODULES:
                        yield name, str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name in re.findall(r"[\"'`(](grpc\.[a-z0-9_.]+)[\"'`]", path.read_text()):
            if name not in _MODULES:
                yield name, str(path.relative_to(ROOT))


def known_options() -> set[str]:
    """Every name of this form in gRPC's own library: it holds each option as a text of its own."""
    spec = find_spec("grpc._cython.cygrpc")
    assert spec is not None
    assert spec.origin is not None
    texts = re.findall(rb"grpc\.[a-z0-9_.]+(?=\0)", Path(spec.origin).read_bytes())
    return {text.decode() for text in texts}


def test_every_option_exists_in_the_installed_grpc(record_property: Callable[[str, object], None]) -> None:
    used, known = set(used_options()), known_options()
    assert "grpc.max_receive_message_length" in known
    assert "grpc.http2.min_recv_ping_interval_without_data_ms" not in known
    wrong = sorted((name, file) for name, file in used if name not in known)
    names = sorted({name for name, _ in used})
    assert len(names) > 15
    record_property(SWEEP, ["options of gRPC", names, len(used), 0, len(wrong)])
    assert wrong == []


async def test_a_client_that_pings_while_nothing_is_sent_is_not_cut_off(tmp_path: Path) -> None:
    often = [
        ("grpc.keepalive_time_ms", 700),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), heartbeat_interval=3600) as running:
        await running.store()
        async with grpc.aio.insecure_channel(running.service.address, options=often) as channel:
            request = exchange_service_pb2.StreamBalancesRequest(user_id=USER)
            call = exchange_service_pb2_grpc.ExchangeServiceStub(channel).StreamBalances(request)
            assert (await call.read()).HasField("balance")

            async def end() -> None:
                while await call.read() is not grpc.aio.EOF:
                    pass

            # Two pings too early are forgiven, the third ends the connection with "too_many_pings".
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end(), 4.0)
            assert call.cancelled() or not call.done() or call.code() is grpc.StatusCode.CANCELLED


PRIVATE = [
    *("127.0.0.1:50051", "localhost:50051", "[::1]:50051", "unix:/run/x.sock", "10.1.2.3:50051", "192.168.0.9:1"),
    *("172.16.0.1:1", "[fd00::1]:50051", "169.254.1.1:1", "exchange-service:50051", "dns:///exchange-service:50051"),
    *("balances.prod.svc.cluster.local:1", "box.local:1", "db.internal:1", "ipv4:127.0.0.1:50051,127.0.0.1:50052"),
    *("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv6:[::1]:1,[fd00::2]:1", "dns:///10.1.2.3:50051"),
]
PUBLIC = [
    *("8.8.8.8:443", "balances.example.com:443", "dns:///balances.example.com:443", "[2001:4860::1]:443"),
    *("ipv4:10.0.0.1:1,8.8.8.8:1", "127.example.com:1", "localhost.example.com:1", "172.32.0.1:1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_private(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not_private(address: str) -> None:
    assert not is_private(address)
    assert not is_loopback(address)


def test_a_loopback_address_is_on_this_machine_alone() -> None:
    here = {address for address in PRIVATE if is_loopback(address)}
    assert here == {
        *("127.0.0.1:50051", "localhost:50051", "[::1]:50051", "unix:/run/x.sock"),
        "ipv4:127.0.0.1:50051,127.0.0.1:50052",
    }


@pytest.mark.parametrize(("address", "asked"), [("10.255.255.254:9", False), ("8.8.8.8:9", True)])
async def test_only_a_call_to_a_public_address_goes_to_the_proxy(
    address: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readline()).startswith(b"CONNECT"):
            reached.set()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    async with ExchangeServiceClient(address, timeout=1.0) as client:
        with pytest.raises((ServiceUnreachable, ServiceError)):
            await client.get_balance("alice", "oanda")
    assert reached.is_set() is asked
    server.close()
