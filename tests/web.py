"""What tests of the HTTP server share: a service that has one, calls by the Connect protocol, and raw connections."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from google.rpc import error_details_pb2

from tests.harness import PATIENCE, Running, ScriptedPlugin, registry_of, serving

EXCHANGES = "/exchange_service.v1.ExchangeService/"
GET, LIST, STREAM = EXCHANGES + "GetBalance", EXCHANGES + "ListExchanges", EXCHANGES + "StreamBalances"
ASK = {"userId": "alice", "exchangeId": "fakex"}
_DETAILS = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
}


@asynccontextmanager
async def web_service(folder: Path, plugin: ScriptedPlugin | None = None, **changes: Any) -> AsyncIterator[Running]:
    """A service with an HTTP server on a free port of loopback, and alice's credential."""
    options = {"http_address": "127.0.0.1:0"} | changes
    async with serving(folder, registry=registry_of(plugin or ScriptedPlugin()), **options) as running:
        await running.store()
        yield running


def address_of(running: Running) -> str:
    """Host and port of the HTTP server."""
    return running.service.web.address


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return reason_of(self.json)


def details_of(error: Mapping[str, Any]) -> list[Any]:
    """The details of a Connect error."""
    return [
        _DETAILS[detail["type"]].FromString(base64.b64decode(detail["value"] + "==")) for detail in error["details"]
    ]


def reason_of(error: Mapping[str, Any]) -> str:
    """The reason in a Connect error's ErrorInfo."""
    (info,) = (detail for detail in details_of(error) if isinstance(detail, error_details_pb2.ErrorInfo))
    assert info.domain == "exchange-service"
    return str(info.reason)


async def ask(running: Running, path: str = GET, body: Any = None, *, method: str = "POST", **headers: str) -> Answer:
    """One request with a client of the field; `body` is sent as it is if it is bytes, else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(ASK if body is None else body).encode()
    named = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        url = f"http://{address_of(running)}{path}"
        async with session.request(method, url, data=data if method != "GET" else None, headers=named) as response:
            return Answer(response.status, response.headers, await response.read())


def envelope(data: bytes, flags: int = 0) -> bytes:
    """A message of a stream as the Connect protocol frames it."""
    return struct.pack(">BI", flags, len(data)) + data


class WebStream:
    """An open stream of JSON messages."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[int, Any]:
        """The next message's flags and content."""
        async with asyncio.timeout(PATIENCE):
            flags, length = struct.unpack(">BI", await self.response.content.readexactly(5))
            return flags, json.loads(await self.response.content.readexactly(length))

    async def end(self) -> Any:
        """What the stream ends with."""
        while True:
            flags, content = await self.next()
            if flags & 2:
                return content


@asynccontextmanager
async def web_stream(running: Running, body: Any = None, **headers: str) -> AsyncIterator[WebStream]:
    """A stream of alice's balances."""
    data = envelope(json.dumps({"userId": "alice"} if body is None else body).encode())
    named = {"content-type": "application/connect+json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    url = f"http://{address_of(running)}{STREAM}"
    async with aiohttp.ClientSession() as session, session.post(url, data=data, headers=named) as response:
        yield WebStream(response)


async def send_raw(running: Running, data: bytes, *, end: bool = False) -> bytes:
    """What comes back for these bytes until the server closes the connection."""
    reader, writer = await connect_raw(running)
    writer.write(data)
    if end:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def connect_raw(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of its own."""
    host, _, port = address_of(running).rpartition(":")
    return await asyncio.open_connection(host, int(port))


def raw_request(
    path: str = GET, body: bytes = json.dumps(ASK).encode(), *headers: str, version: str = "1.1", method: str = "POST"
) -> bytes:
    """The bytes of a request; `headers` replace the usual ones of the same name."""
    usual = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in usual.items() if not any(h.startswith(name + ":") for h in headers)]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, *headers, "", ""]).encode("latin-1") + body
