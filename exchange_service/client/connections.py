"""The channels of a client: made at the first call, as many as the open calls need, and for each process its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from exchange_service.accounts.v1 import account_service_pb2_grpc
from exchange_service.client.endpoint import ChannelOptions, Endpoint, endpoint_of
from exchange_service.client.security import Metadata, Pem, channel_credentials, require_safe
from exchange_service.operator.v1 import plugin_service_pb2_grpc
from exchange_service.v1 import exchange_service_pb2_grpc

# A server lets each connection have so many calls and streams open at the same time, and gRPC lets further ones wait
# without a word. This service's limit is 250; proxies often have 100 or 128.
CALLS_A_CONNECTION = 100


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a client's channels and calls are made of. `timeout` is in seconds."""

    endpoint: Endpoint
    credentials: Any = field(repr=False)
    token: Any = field(repr=False)
    metadata: Metadata = field(repr=False)
    timeout: float
    options: Sequence[tuple[str, Any]]
    calls_a_connection: int

    @property
    def tls(self) -> bool:
        """Whether the channels use TLS."""
        return self.credentials is not None

    @property
    def renews(self) -> bool:
        """Whether each call has a newly made token."""
        return callable(self.token)


def configure(
    address: str | Sequence[str],
    *,
    token: object,
    tls: bool | None,
    tls_ca: Pem | None,
    tls_certificate: Pem | None,
    tls_key: Pem | None,
    tls_name: str,
    metadata: Metadata,
    timeout: float,
    options: ChannelOptions,
    calls_a_connection: int,
) -> ClientConfig:
    """What both clients are made of. Raises ValueError for arguments that contradict, and for a token that would be
    sent to another machine in plaintext; OSError for a file that cannot be read."""
    endpoint = endpoint_of(address)
    credentials = channel_credentials(endpoint, tls, tls_ca, tls_certificate, tls_key)
    require_safe(endpoint, token, metadata, encrypted=credentials is not None)
    return ClientConfig(
        endpoint,
        credentials,
        token,
        tuple(metadata),
        timeout,
        endpoint.options(options, tls_name=tls_name),
        calls_a_connection,
    )


class Connection:
    """A channel with a connection of its own, and the number of its open calls and streams."""

    __slots__ = ("accounts", "calls", "channel", "exchanges", "plugins")

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        # The code that protoc makes is not typed.
        make: Any = exchange_service_pb2_grpc.ExchangeServiceStub
        make_plugins: Any = plugin_service_pb2_grpc.PluginServiceStub
        make_accounts: Any = account_service_pb2_grpc.AccountServiceStub
        self.exchanges = make(channel)
        self.plugins = make_plugins(channel)
        self.accounts = make_accounts(channel)
        self.calls = 0


class Connections:
    """As many connections as the open calls need: another one when each has as many as it may have."""

    def __init__(self, open_channel: Callable[[], Any], calls_a_connection: int) -> None:
        self._open_channel = open_channel
        self._most = max(calls_a_connection, 1)
        # Threads share a client.
        self._lock = threading.Lock()
        self.all = [Connection(open_channel())]

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """A connection for one call or stream, which is open until the end of the block."""
        with self._lock:
            connection = next((one for one in self.all if one.calls < self._most), None)
            if connection is None:
                connection = Connection(self._open_channel())
                self.all.append(connection)
            connection.calls += 1
        try:
            yield connection
        finally:
            with self._lock:
                connection.calls -= 1


class ConnectionHolder:
    """The connections of the present process, and of the present event loop in an async client.

    Those of before a fork are kept and left alone: the threads that would close them exist in the parent only.
    `require` raises RuntimeError if the library does not work in this process, and `note` is told of new connections.
    """

    def __init__(
        self,
        config: ClientConfig,
        library: Any,
        loop_of: Callable[[], object],
        *,
        require: Callable[[], None],
        note: Callable[[object], None],
    ) -> None:
        self._config = config
        # `grpc` or `grpc.aio`.
        self._library = library
        self._loop_of = loop_of
        self._require = require
        self._note = note
        # By process and event loop. `setdefault` lets one of two threads win whose first calls are at the same moment.
        self._made: dict[tuple[int, object], Connections] = {}
        self._left: list[Connections] = []
        self._closed = False

    @property
    def needs_lookup(self) -> bool:
        """Whether the next `connections` asks for the addresses of names."""
        return self._config.endpoint.needs_lookup and self._valid() is None

    def connections(self, target: str = "") -> Connections:
        """The connections, made now if there are not any. `target` is the endpoint's, if it was looked up already.

        Raises RuntimeError after `close`, and in a process that was forked while gRPC could not be; ServiceUnreachable
        if no name has an address.
        """
        if self._closed:
            raise RuntimeError("The client is closed: make another one.")
        connections = self._valid()
        if connections is None:
            self._require()
            self._forget_others()
            fresh = Connections(self._opener(target or self._config.endpoint.target()), self._most)
            connections = self._made.setdefault(self._key(), fresh)
            self._note(connections)
        return connections

    def close(self) -> list[Any]:
        """Accept no further call; return the channels to close."""
        self._closed = True
        connections = self._valid()
        self._forget_others()
        self._made.clear()
        return [one.channel for one in connections.all] if connections is not None else []

    def _key(self) -> tuple[int, object]:
        return os.getpid(), self._loop_of()

    def _valid(self) -> Connections | None:
        return self._made.get(self._key())

    def _forget_others(self) -> None:
        """Drop the connections of event loops that have ended, and leave those of the parent alone."""
        own = self._key()
        for key in [key for key in list(self._made) if key != own]:
            connections = self._made.pop(key, None)
            if connections is not None and key[0] != own[0]:
                self._left.append(connections)

    @property
    def _most(self) -> int:
        return self._config.calls_a_connection

    def _opener(self, target: str) -> Callable[[], Any]:
        config = self._config

        def open_channel() -> Any:
            if config.credentials is None:
                return self._library.insecure_channel(target, options=config.options)
            return self._library.secure_channel(target, config.credentials, options=config.options)

        return open_channel


def is_answer(code: grpc.StatusCode) -> bool:
    """Whether a call that ended so was answered by something."""
    return code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
