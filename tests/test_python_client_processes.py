"""The Python clients and what is around them: their signatures, event loops, and processes that fork."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from typing import Any

import pytest

from exchange_service.client import AsyncClient, Client
from tests.client_peer import answering

# Parents that use a client, or only make it, before they fork; the child calls by the same client.
FORK = """
import asyncio, os, signal, sys
from exchange_service.client import AsyncClient, Client
address, kind, used = sys.argv[1:]
make = Client if kind == "sync" else AsyncClient
client = make(address)
def call():
    if kind == "sync":
        return client.get_balance("alice", "oanda")
    return asyncio.run(client.get_balance("alice", "oanda"))
if used != "made":
    call()
if used == "closed":
    asyncio.run(client.close())
    client = make(address)
parents = client.channel if kind == "sync" and used == "used" else None
child = os.fork()
if not child:
    signal.alarm(15)
    try:
        call()
        # Older releases of grpcio cannot go on with the parent's.
        if parents is not None and client.channel is parents:
            print("by the parent's channel")
    except RuntimeError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
_, status = os.waitpid(child, 0)
call()
print(os.waitstatus_to_exitcode(status))
"""


def methods_of(kind: type[Any]) -> dict[str, inspect.Signature]:
    """The public methods, with what a caller sees of each; awaitable things stand for what they give."""
    found = {"__init__": inspect.signature(kind.__init__)}
    for name, _ in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_"):
            found[name] = inspect.signature(getattr(kind, name))
    return {name: plain(signature) for name, signature in found.items()}


def plain(signature: inspect.Signature) -> inspect.Signature:
    """A signature without the words for async."""

    def text(annotation: Any) -> Any:
        plain_text = str(annotation).replace("Async", "")
        # The last part is what is returned to a generator's end, which an async one has not.
        return plain_text.replace(", None, None]", ", None]") if isinstance(annotation, str) else annotation

    parameters = [one.replace(annotation=text(one.annotation)) for one in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=text(signature.return_annotation))


def test_both_clients_have_the_same_methods_parameters_and_types() -> None:
    here, there = methods_of(AsyncClient), methods_of(Client)
    assert len(here) >= 13
    assert here == there


@pytest.mark.parametrize(
    ("kind", "used", "told"),
    [
        ("sync", "made", ""),
        ("async", "made", ""),
        ("sync", "used", ""),
        ("async", "closed", ""),
        # The child of a parent that uses grpc.aio would wait for ever, or crash.
        ("async", "used", "was forked while an AsyncClient was open"),
    ],
)
async def test_a_client_of_before_a_fork_calls_in_the_child_or_says_why_not(kind: str, used: str, told: str) -> None:
    async with answering() as peer:
        command = (sys.executable, "-W", "ignore", "-c", FORK, peer.address, kind, used)
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 30)
    printed = out.decode().strip()
    assert printed.endswith("0"), err.decode()[-2000:]
    assert (told in printed) if told else (printed == "0")


def test_an_async_client_is_made_outside_of_a_loop_and_serves_one_after_another() -> None:
    client = AsyncClient("127.0.0.1:9", timeout=5)

    async def health() -> str:
        async with answering() as peer:
            other = AsyncClient(peer.address)
            return await other.health()

    async def fails() -> None:
        with pytest.raises(Exception, match="did not answer"):
            await client.health()

    for _ in range(2):
        assert asyncio.run(health()) == "SERVING"
        asyncio.run(fails())
