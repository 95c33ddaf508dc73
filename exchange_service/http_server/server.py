"""Listens for HTTP in the service's own event loop: uvicorn's protocol, with sockets and limits of our own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import structlog
from uvicorn.config import Config
from uvicorn.server import ServerState

from exchange_service.grpc_server.direct import DirectCalls
from exchange_service.grpc_server.server import BindError
from exchange_service.http_server.connect import ConnectMethods
from exchange_service.http_server.connection import Connection
from exchange_service.http_server.guards import ASGIApp, Guards, WebOptions
from exchange_service.observability.tracebacks import raised_at

log = structlog.get_logger(__name__)

_BACKLOG = 512
# Seconds: for a TLS handshake, and the pause after the system has refused to open another connection.
_HANDSHAKE_LIMIT, _PAUSE = 10.0, 0.5
# Seconds that the last bytes of ended responses have at the end.
_LAST_BYTES = 0.1
# Seconds that a peer has for reading why its stream has ended.
_TO_READ_WHY = 5.0
# Seconds after which a peer that does not answer at all is given up, and those after which a silent one is asked.
_GONE_AFTER, _ASK_AFTER, _ASK_EVERY = 40, 20, 5


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """What the server is given: `tls` returns the context for a new connection (None: no TLS), `write_timeout` and
    `idle` are in seconds."""

    web: WebOptions = field(default_factory=WebOptions)
    tls: Callable[[], ssl.SSLContext] | None = None
    connections: int = 1000
    idle: float = 60.0
    write_timeout: float = 30.0
    pages: ASGIApp | None = None


class HttpServer:
    """A listening server; `address` has the port in use."""

    def __init__(self, listener: socket.socket, address: str, calls: DirectCalls, options: HttpOptions) -> None:
        self.address = address
        self._listener = listener
        self._options = options
        app: Any = Guards(calls, ConnectMethods(calls), options.web, options.pages)
        self._config = _config(app, options.idle)
        self._state = ServerState()
        self._opening: set[asyncio.Task[None]] = set()
        self._work = [asyncio.create_task(self._accept()), asyncio.create_task(self._tell_the_time())]

    @property
    def connections(self) -> int:
        """The connections that are open now."""
        return len(self._state.connections) + len(self._opening)

    async def stop(self, grace: float) -> None:
        """Accept no new connections, and close each after its response, or after `grace` seconds."""
        await _end(*self._work, *self._opening)
        self._listener.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=grace)
        await _end(*self._state.tasks)
        if self._state.connections:
            # What was written last is on its way.
            await asyncio.sleep(_LAST_BYTES)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # No file is left: it may be free soon.
                log.warning("http.not_accepted", error=error.strerror)
                await asyncio.sleep(_PAUSE)
                continue
            if self.connections >= self._options.connections:
                connection.close()
                continue
            task = asyncio.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        _notice_gone_peers(connection)
        tls = self._options.tls
        limit = None if tls is None else _HANDSHAKE_LIMIT
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=None if tls is None else tls(), ssl_handshake_timeout=limit
            )
        except (OSError, asyncio.CancelledError):
            # A peer that leaves, or does not speak TLS, is not worth a line.
            connection.close()
        except Exception as error:
            connection.close()
            log.error("http.failed", error=type(error).__name__, at=raised_at(error))

    def _protocol(self) -> Connection:
        protocol = Connection(config=self._config, server_state=self._state, app_state={})
        protocol.write_limit = self._options.write_timeout + _TO_READ_WHY
        return protocol

    async def _tell_the_time(self) -> None:
        """Keep the header Date right."""
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            await asyncio.sleep(1.0)


def _config(app: Any, idle: float) -> Config:
    config = Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        # Its lines are about what peers send, and have tracebacks; ours are written by the guards.
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=round(idle),
        h11_max_incomplete_event_size=16 * 1024,
    )
    config.load()
    return config


def listen_http(address: str, calls: DirectCalls, options: HttpOptions) -> HttpServer:
    """Start to listen on `address` for these calls. Raises BindError if that fails."""
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((name, int(port)))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or type(error).__name__
        raise BindError(f"Cannot listen on {address} for HTTP: {reason}. Set http_address to another one.") from None
    listener.setblocking(False)
    return HttpServer(listener, f"{host}:{listener.getsockname()[1]}", calls, options)


def _notice_gone_peers(connection: socket.socket) -> None:
    """Have the system end a connection whose peer has vanished without a word."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not every system has these.
    for name, value in (
        ("TCP_KEEPIDLE", _ASK_AFTER),
        ("TCP_KEEPINTVL", _ASK_EVERY),
        ("TCP_USER_TIMEOUT", _GONE_AFTER * 1000),
    ):
        if hasattr(socket, name):
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
