"""A rolling restart loses no call of a client: by round robin, and behind nginx and Envoy with the files of deploy/
(where there is one: `EXCHANGE_SERVICE_TEST_NGINX`, `EXCHANGE_SERVICE_TEST_ENVOY` or the path).
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import signal
import subprocess
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
from tests.proxies import WAYS, proxy
from tests.proxies import free_ports as free_ports
from tests.test_runtime import address_of, started

ROOT = Path(__file__).parent.parent.parent
# Seconds between the start of a replica and the end of the next one.
PAUSE = 2.0


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


@pytest.mark.parametrize("way", WAYS)
async def test_a_rolling_restart_loses_no_call(tmp_path: Path, way: str) -> None:
    ports = free_ports(2)
    with ExitStack() as stack:
        processes = [stack.enter_context(replica(tmp_path / str(port), port)) for port in ports]
        await asyncio.gather(*map(serves, ports, processes))
        config = documented_service_config()
        addresses = [f"127.0.0.1:{port}" for port in ports]
        address = "ipv4:" + ",".join(addresses)
        if way != "round robin":
            address = stack.enter_context(proxy(way, tmp_path / way, addresses)).address
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
