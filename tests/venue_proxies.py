"""Proxies on loopback that keep what they saw: HTTP's CONNECT, and SOCKS5."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
from collections.abc import Mapping
from typing import Self

# SOCKS5's numbers (RFC 1928 and 1929).
_NO_AUTHENTICATION, _PASSWORD, _NOTHING_ACCEPTABLE = 0, 2, 0xFF
_BY_IPV4, _BY_NAME, _BY_IPV6 = 1, 3, 4
_FORBIDDEN, _HOST_UNREACHABLE = 2, 4

# Host and port by a host's name, and user and password.
Names = Mapping[str, tuple[str, int]]
Login = tuple[str, str]


class LoopbackProxy:
    """Connects to what it is asked for, unless `refusal` says otherwise. `names` are the addresses of hosts that it
    knows; `asked` are the host and port of each connection, `passed` what callers sent through it, and `opened` counts
    the connections to the proxy. `login` is what it asks for."""

    scheme = ""

    def __init__(self, names: Names | None = None, login: Login | None = None) -> None:
        self.names = dict(names or {})
        self.login = login
        self.refusal = 0
        self.silent = False
        # From which address it connects; empty: the system's choice.
        self.local_address = ""
        self.asked: list[tuple[str, int]] = []
        self.passed = b""
        self.opened = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """As an operator writes it."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End, with all connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self._open.add(writer)
        try:
            if self.silent:
                await reader.read()
            target = await self._greet(reader, writer)
            if target is not None:
                await self._pass_on(reader, writer, *target)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _greet(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        raise NotImplementedError

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.asked.append((host, port))
        where = self.names.get(host, (host, port))
        local = (self.local_address, 0) if self.local_address else None
        return await asyncio.open_connection(*where, local_addr=local)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        to_reader: asyncio.StreamReader,
        to_writer: asyncio.StreamWriter,
    ) -> None:
        self._open.add(to_writer)
        back = asyncio.create_task(_copy(to_reader, writer))
        try:
            while data := await reader.read(65536):
                self.passed += data
                to_writer.write(data)
        finally:
            self._open.discard(to_writer)
            to_writer.close()
            back.cancel()
            await asyncio.wait({back})


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


class ConnectProxy(LoopbackProxy):
    """An HTTP proxy that knows CONNECT. `answer` is sent in place of a good one; `heads` are what callers greeted
    with."""

    scheme = "http"

    def __init__(self, names: Names | None = None, login: Login | None = None) -> None:
        super().__init__(names, login)
        self.answer = b""
        self.heads: list[bytes] = []

    async def _greet(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        if self.answer or method != "CONNECT":
            writer.write(self.answer or b"HTTP/1.1 405 Only CONNECT\r\n\r\n")
            return None
        if self.login is not None:
            known = base64.b64encode(":".join(self.login).encode())
            if b"proxy-authorization: basic " + known.lower() not in head.lower():
                writer.write(b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\n\r\n")
                return None
        if self.refusal:
            writer.write(f"HTTP/1.1 {self.refusal} No\r\nContent-Length: 14\r\n\r\n".encode() + b'{"balance": 1}')
            return None
        host, _, port = target.rpartition(":")
        try:
            opened = await self._connect(host.strip("[]"), int(port))
        except OSError:
            writer.write(b"HTTP/1.1 502 Not reached\r\n\r\n")
            return None
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        return opened


class SocksProxy(LoopbackProxy):
    """A SOCKS5 proxy; `by_name` says for each connection whether the host came as a name."""

    scheme = "socks5"

    def __init__(self, names: Names | None = None, login: Login | None = None) -> None:
        super().__init__(names, login)
        self.by_name: list[bool] = []

    async def _greet(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        wanted = _NO_AUTHENTICATION if self.login is None else _PASSWORD
        writer.write(bytes([5, wanted if wanted in methods else _NOTHING_ACCEPTABLE]))
        if wanted not in methods or (self.login is not None and not await self._log_in(reader, writer)):
            return None
        _, _, _, kind = await reader.readexactly(4)
        self.by_name.append(kind == _BY_NAME)
        host = await _read_host(reader, kind)
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        reply, opened = self.refusal, None
        if not reply:
            try:
                opened = await self._connect(host, port)
            except OSError:
                reply = _HOST_UNREACHABLE
        writer.write(bytes([5, reply, 0, _BY_IPV4, 127, 0, 0, 1, 0, 0]))
        return opened

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        _, length = await reader.readexactly(2)
        user = await reader.readexactly(length)
        (length,) = await reader.readexactly(1)
        right = (user.decode(), (await reader.readexactly(length)).decode()) == self.login
        writer.write(bytes([1, 0 if right else 1]))
        return right


async def _read_host(reader: asyncio.StreamReader, kind: int) -> str:
    if kind == _BY_NAME:
        (length,) = await reader.readexactly(1)
        return (await reader.readexactly(length)).decode()
    family, size = (socket.AF_INET, 4) if kind == _BY_IPV4 else (socket.AF_INET6, 16)
    return socket.inet_ntop(family, await reader.readexactly(size))
