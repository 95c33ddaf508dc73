"""A rolling restart loses no call of a client with the retry policy of docs/operations.md: behind round robin, and
behind nginx (where there is one: `EXCHANGE_SERVICE_TEST_NGINX` or the path)."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange_service.v1 import exchange_service_pb2_grpc
from exchange_service.v1.exchange_service_pb2 import ListExchangesRequest
from tests.engines import NATIVE
from tests.test_runtime import address_of, started

ROOT = Path(__file__).parent.parent.parent
# Seconds between the start of a replica and the end of the next one.
PAUSE = 2.0
NGINX = os.environ.get("EXCHANGE_SERVICE_TEST_NGINX") or shutil.which("nginx")
PROXY = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    upstream replicas {{ {servers} }}
    server {{
        listen 127.0.0.1:{port} http2;
        location / {{ grpc_pass grpc://replicas; }}
    }}
}}
"""


def documented_service_config() -> Any:
    """The service config of the example for several replicas."""
    text = (ROOT / "docs" / "operations.md").read_text()
    code = re.search(r"<!-- runs against two replicas -->\n```python\n(.*?)```", text, re.DOTALL)
    assert code
    values: dict[str, Any] = {}
    for node in ast.parse(code[1]).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("UNARY", "SERVICE_CONFIG"):
                exec(compile(ast.Module([node], []), "operations.md", "exec"), values)
    return values["SERVICE_CONFIG"]


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def replica(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    folder.mkdir(exist_ok=True)
    arguments = ("serve", "--address", f"127.0.0.1:{port}", "--shutdown-delay", "1")
    with started(folder, *arguments) as process:
        yield process


async def serves(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until the replica on this port heeds signals and says SERVING."""
    assert await asyncio.to_thread(address_of, process) == f"127.0.0.1:{port}"
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)


@asynccontextmanager
async def calling(address: str, config: Any) -> AsyncIterator[tuple[list[str], list[int]]]:
    """Four callers with the documented policy, who call all the time: the failures, and how many calls were served."""
    failures: list[str] = []
    served = [0]
    options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if NATIVE:
        # It refuses the authority that gRPC makes of several addresses.
        options.append(("grpc.default_authority", "exchange-service"))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub: Any = exchange_service_pb2_grpc.ExchangeServiceStub(channel)

        async def call() -> None:
            while True:
                try:
                    await stub.ListExchanges(ListExchangesRequest(page_size=1), timeout=10)
                    served[0] += 1
                except grpc.aio.AioRpcError as error:
                    failures.append(f"{error.code().name} {error.details()}")
                await asyncio.sleep(0.002)

        calls = [asyncio.create_task(call()) for _ in range(4)]
        try:
            yield failures, served
        finally:
            for task in calls:
                task.cancel()
            await asyncio.wait(calls)


@contextmanager
def proxy(folder: Path, ports: list[int]) -> Iterator[str]:
    """The address at which nginx leads to these, once it listens."""
    (port,) = free_ports(1)
    servers = " ".join(f"server 127.0.0.1:{one} fail_timeout=1s;" for one in ports)
    config = folder / "nginx.conf"
    config.write_text(PROXY.format(folder=folder, servers=servers, port=port))
    assert NGINX
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("way", ["round robin", "nginx"])
async def test_a_rolling_restart_loses_no_call(tmp_path: Path, way: str) -> None:
    if way == "nginx" and NGINX is None:
        pytest.skip("there is no nginx on this machine; `make nginx` installs one")
    ports = free_ports(2)
    with ExitStack() as stack:
        processes = [stack.enter_context(replica(tmp_path / str(port), port)) for port in ports]
        await asyncio.gather(*map(serves, ports, processes))
        config = documented_service_config()
        address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        if way == "nginx":
            address = stack.enter_context(proxy(tmp_path, ports))
            # These are for clients that know the replicas themselves.
            config = {name: config[name] for name in config.keys() - {"loadBalancingConfig", "healthCheckConfig"}}
        async with calling(address, config) as (failures, served):
            for port, process in zip(ports, processes, strict=True):
                while served[0] < 50:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 20) == 0
                await serves(port, stack.enter_context(replica(tmp_path / str(port), port)))
                # The pause that the page asks for: clients find the replica again.
                await asyncio.sleep(PAUSE)
                served[0] = 0
        assert sorted(set(failures)) == []
