"""A typed async client for Python programs. The command line and the tests use it too.

    async with ExchangeServiceClient("127.0.0.1:50051") as client:
        reply = await client.get_balance("alice", "oanda")
        print(reply.balance.summary.equity, reply.freshness.age.ToTimedelta())

It needs grpcio, protobuf and googleapis-common-protos, and runs on their older releases too. A failed call raises the
class of `exchange_service.errors` for the server's reason; its `request_id` is the one in the service's log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from exchange_service.accounts.v1 import account_service_pb2_grpc
from exchange_service.accounts.v1.account_service_pb2 import (
    CheckAccountRequest,
    CheckAccountResponse,
    ConnectAccountRequest,
    ConnectAccountResponse,
    ListAccountsRequest,
    ListAccountsResponse,
    RemoveAccountRequest,
)
from exchange_service.addresses import is_loopback, is_private
from exchange_service.errors import (
    DeadlinePassed,
    FieldInvalid,
    ServiceError,
    ServiceOverloaded,
    ShuttingDown,
    StoreUnavailable,
    StreamLifetimeReached,
    from_reason,
)
from exchange_service.operator.v1 import plugin_service_pb2_grpc
from exchange_service.operator.v1.plugin_service_pb2 import ListPluginsRequest, ListPluginsResponse
from exchange_service.v1 import exchange_pb2, exchange_service_pb2, exchange_service_pb2_grpc
from exchange_service.v1.balance_pb2 import Balance
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    AccountSelector,
    GetBalanceRequest,
    GetBalanceResponse,
    ListExchangesRequest,
    ListExchangesResponse,
    StreamBalancesRequest,
    StreamBalancesResponse,
)

__all__ = ["ExchangeServiceClient", "ServiceUnreachable", "is_loopback"]

_OPTIONS = (
    # A dead connection is noticed within 40 seconds; by default it is not noticed at all.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A minute by default, which the line above does not change.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # Otherwise channels to one address share a connection, and its limit of open calls.
    ("grpc.use_local_subchannel_pool", 1),
)
# A server lets each connection have so many calls and streams open at the same time, and gRPC lets further ones wait
# without a word. This service's limit is 250; proxies often have 100 or 128.
_CALLS_A_CONNECTION = 100
_RESUMABLE = (ShuttingDown, StreamLifetimeReached, StoreUnavailable, ServiceOverloaded)
_LONGEST_PAUSE = 30.0
# The most that a request takes.
_MOST_ACCOUNTS = 200


class ServiceUnreachable(ServiceError):
    """Nothing answers at the service's address, or something other than this service does."""


@dataclass(slots=True)
class _Connection:
    """A channel with a connection of its own, and the number of its open calls and streams."""

    channel: grpc.aio.Channel
    stub: Any
    plugin_stub: Any
    account_stub: Any
    calls: int = 0


class _Connections:
    """As many connections as the open calls need: another one when each has as many as it may have."""

    def __init__(self, open_channel: Callable[[], grpc.aio.Channel], calls_a_connection: int) -> None:
        self._open_channel = open_channel
        self._most = max(calls_a_connection, 1)
        self.all = [self._open()]

    def _open(self) -> _Connection:
        channel = self._open_channel()
        # The code that protoc makes is not typed.
        make: Any = exchange_service_pb2_grpc.ExchangeServiceStub
        make_plugin: Any = plugin_service_pb2_grpc.PluginServiceStub
        make_account: Any = account_service_pb2_grpc.AccountServiceStub
        return _Connection(channel, make(channel), make_plugin(channel), make_account(channel))

    @contextmanager
    def use(self) -> Iterator[_Connection]:
        """A connection for one call or stream, which is open until the end of the block."""
        connection = next((one for one in self.all if one.calls < self._most), None)
        if connection is None:
            connection = self._open()
            self.all.append(connection)
        connection.calls += 1
        try:
            yield connection
        finally:
            connection.calls -= 1

    async def close(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(connection.channel.close() for connection in self.all))


class ExchangeServiceClient:
    """The service at `address`, host:port, by one connection, and by further ones for hundreds of streams and calls at
    the same time.

    `metadata` and the bearer `token` are sent with every call. `timeout` is in seconds and applies to unary calls.
    `options` are additional options of the gRPC channel, such as a service config. `calls_a_connection` must not be
    more than the setting `connection_streams` of the service, nor the limit of a proxy before it. Raises ValueError for
    a token, also one in `metadata`, that would be sent to another machine in plaintext.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        token: str = "",
        timeout: float = 10.0,
        options: Sequence[tuple[str, Any]] = (),
        calls_a_connection: int = _CALLS_A_CONNECTION,
    ) -> None:
        local = is_loopback(address)
        bears_token = token or any(name.lower() == "authorization" for name, _ in metadata)
        if bears_token and credentials is None and not local:
            raise ValueError("A token is not sent to another machine in plaintext: use TLS.")
        self._address = address
        self._metadata = (*metadata, ("authorization", f"Bearer {token}")) if token else tuple(metadata)
        self._timeout = timeout
        # By default gRPC sends a call to our own network, with its token, through the proxy that the environment names.
        all_options = [*_OPTIONS, ("grpc.enable_http_proxy", 0 if is_private(address) else 1), *options]

        def open_channel() -> grpc.aio.Channel:
            if credentials is None:
                return grpc.aio.insecure_channel(address, options=all_options)
            return grpc.aio.secure_channel(address, credentials, options=all_options)

        self._connections = _Connections(open_channel, calls_a_connection)

    async def __aenter__(self) -> ExchangeServiceClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel of the first connection, for other services on it, such as health."""
        return self._connections.all[0].channel

    async def close(self) -> None:
        """Close all connections. Calls and streams end."""
        await self._connections.close()

    async def list_exchanges(
        self,
        *,
        asset_class: str = "",
        source: str = "",
        search: str = "",
        page_size: int = 0,
        page_token: str = "",
        etag: str = "",
    ) -> ListExchangesResponse:
        """One page of the catalogue. `source` is "", "custom" or "ccxt"; KeyError for another.

        Raises ServiceError, as every call does: the class of the server's reason, or ServiceUnreachable.
        """
        sources = {
            "": exchange_service_pb2.EXCHANGE_SOURCE_UNSPECIFIED,
            "custom": exchange_service_pb2.EXCHANGE_SOURCE_CUSTOM,
            "ccxt": exchange_service_pb2.EXCHANGE_SOURCE_CCXT,
        }
        request = ListExchangesRequest(
            asset_class=asset_class,
            source=sources[source],
            search=search,
            page_size=page_size,
            page_token=page_token,
            etag=etag,
        )
        reply: ListExchangesResponse = await self._call(lambda one: one.stub.ListExchanges, request)
        return reply

    async def list_plugins(self) -> ListPluginsResponse:
        """The plugins of the replica that answers, and the processes that run them. For operators."""
        request = ListPluginsRequest()
        reply: ListPluginsResponse = await self._call(lambda one: one.plugin_stub.ListPlugins, request)
        return reply

    async def all_exchanges(
        self, *, asset_class: str = "", source: str = "", search: str = ""
    ) -> list[exchange_pb2.Exchange]:
        """Every exchange that the filters select, over all pages. Raises as `list_exchanges` does."""
        entries: list[exchange_pb2.Exchange] = []
        token = ""
        while True:
            reply = await self.list_exchanges(asset_class=asset_class, source=source, search=search, page_token=token)
            entries.extend(reply.exchanges)
            token = reply.next_page_token
            if not token:
                return entries

    async def get_balance(
        self,
        user_id: str,
        exchange_id: str,
        *,
        environment: str = "",
        account_type: str = "",
        max_age: float | None = None,
        include_zero: bool = False,
        known_version: int = 0,
    ) -> GetBalanceResponse:
        """The balance of one account, at most `max_age` seconds old. None: as the service is set; 0: ask the venue now.

        `account_type` is one of the exchange's types, "all", or empty for the exchange's default. `include_zero` keeps
        rows that hold nothing. With the `version` of a balance that you have as `known_version` the answer is never an
        older one, whichever replica gives it. `freshness.delivery` of the reply is present if a stream follows the
        account at the replica that answers.

        Raises ServiceError: the class of the server's reason, or ServiceUnreachable.
        """
        request = GetBalanceRequest(
            user_id=user_id,
            exchange_id=exchange_id,
            environment=environment,
            account_type=account_type,
            include_zero=include_zero,
            known_version=known_version,
        )
        if max_age is not None:
            request.max_age.CopyFrom(_duration(max_age))
        reply: GetBalanceResponse = await self._call(lambda one: one.stub.GetBalance, request)
        return reply

    async def stream_balances(
        self,
        user_id: str,
        accounts: Sequence[AccountSelector] = (),
        *,
        min_interval: float = 0.0,
        known: Sequence[AccountSelector] = (),
        resume: bool = False,
        on_interruption: Callable[[ServiceError], None] | None = None,
    ) -> AsyncIterator[StreamBalancesResponse]:
        """Yield the events of a user's accounts, until an error is raised or you stop iterating. No `accounts`: all.

        `min_interval` is the least number of seconds between two balances of one account, 0 to 3600; 0 is every change.
        `freshness.delivery` of a balance, and `delivery` of an account in a heartbeat, say whether the venue pushes the
        account's changes or is polled, and why.
        `known` is what you have of accounts already, at most 200, each named as its events name it, with its
        `known_version` and `unconfirmed`: the stream begins with a heartbeat and yields only what is newer.
        With `resume` the stream is opened again in the same way, with what it has yielded, if the service restarts, can
        no longer be reached, has no database, or takes no further stream for now. `on_interruption` is called with each
        error that ended it. Raises ServiceError, also with `resume` if nothing was ever reached at the address or the
        first stream was refused as one too many; ValueError for more than 200 `known`.
        """
        position = _StreamPosition(user_id, accounts, min_interval, known)
        connected = asyncio.ensure_future(self.channel.channel_ready())
        try:
            async for event in self._resumed(position, resume, connected, on_interruption):
                yield event
        finally:
            connected.cancel()

    async def list_accounts(self, user_id: str = "") -> ListAccountsResponse:
        """The accounts for which a credential of the user is stored. No `user_id`: the only user that the caller may
        read. It needs the right to manage, as all calls about accounts do.

        Raises ServiceError: the class of the server's reason, or ServiceUnreachable.
        """
        request = ListAccountsRequest(user_id=user_id)
        reply: ListAccountsResponse = await self._call(lambda one: one.account_stub.ListAccounts, request)
        return reply

    async def connect_account(
        self,
        user_id: str,
        exchange_id: str,
        fields: Mapping[str, str],
        *,
        environment: str = "",
        skip_check: bool = False,
    ) -> ConnectAccountResponse:
        """Store a credential after it was tried at the venue, in the place of one that is stored already. `fields` are
        its values by the names in the exchange's `credential_fields`. With `skip_check` it is stored untried.

        Raises ServiceError as `list_accounts`; nothing is stored then. FieldInvalid has `violations`, one for each
        wrong field, named as "fields.api_key".
        """
        request = ConnectAccountRequest(
            user_id=user_id, exchange_id=exchange_id, environment=environment, fields=fields, skip_check=skip_check
        )
        reply: ConnectAccountResponse = await self._call(lambda one: one.account_stub.ConnectAccount, request)
        return reply

    async def check_account(self, user_id: str, exchange_id: str, *, environment: str = "") -> CheckAccountResponse:
        """Try a stored credential at the venue: what it shows, and what its key may do. Raises ServiceError as
        `list_accounts`: the venue's error if the account cannot be read."""
        request = CheckAccountRequest(user_id=user_id, exchange_id=exchange_id, environment=environment)
        reply: CheckAccountResponse = await self._call(lambda one: one.account_stub.CheckAccount, request)
        return reply

    async def remove_account(self, user_id: str, exchange_id: str, *, environment: str = "") -> None:
        """Remove a stored credential. Raises ServiceError as `list_accounts`: CredentialMissing if none is stored."""
        request = RemoveAccountRequest(user_id=user_id, exchange_id=exchange_id, environment=environment)
        await self._call(lambda one: one.account_stub.RemoveAccount, request)

    async def _resumed(
        self,
        position: _StreamPosition,
        resume: bool,
        connected: asyncio.Future[None],
        on_interruption: Callable[[ServiceError], None] | None,
    ) -> AsyncIterator[StreamBalancesResponse]:
        pause = 0.0
        while True:
            try:
                async for event in self._events(position.request()):
                    pause = 0.0
                    position.advance(event)
                    yield event
                raise ServiceUnreachable(f"The service at {self._address} ended the stream without a reason.")
            except (*_RESUMABLE, ServiceUnreachable) as error:
                if not resume or _never_began(error, position, connected):
                    raise
                if on_interruption is not None:
                    on_interruption(error)
                pause = max(error.retry_after or 0.0, min(max(pause * 2, 0.2), _LONGEST_PAUSE))
                await asyncio.sleep(pause)

    async def _events(self, request: StreamBalancesRequest) -> AsyncIterator[StreamBalancesResponse]:
        with self._connections.use() as connection:
            call = connection.stub.StreamBalances(request, metadata=self._metadata)
            try:
                async for event in call:
                    yield event
            except grpc.aio.AioRpcError as error:
                raise _translate(error, self._address) from None
            finally:
                # If only the iterator is dropped, the call stays open at the server.
                call.cancel()

    async def _call(self, method_of: Callable[[_Connection], Any], request: Any) -> Any:
        with self._connections.use() as connection:
            try:
                return await method_of(connection)(request, timeout=self._timeout, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                raise _translate(error, self._address) from None


def _never_began(error: ServiceError, position: _StreamPosition, connected: asyncio.Future[None]) -> bool:
    """Whether the stream has failed before it began, so that its caller should know and choose."""
    if isinstance(error, ServiceUnreachable):
        # An address that was never right does not become so by waiting.
        return not connected.done()
    # A service that is full may stay so. A stream that it had taken before comes back, as all do after a restart.
    return isinstance(error, ServiceOverloaded) and not position.began


def _translate(error: grpc.aio.AioRpcError, address: str) -> ServiceError:
    """The error of a call to the service at `address`: of the reason that it gives, else that it did not answer."""
    # A tuple first: `dict` takes the object that older releases of grpcio return for a mapping.
    trailers = dict(tuple(error.trailing_metadata() or ()))
    translated = _from_details(trailers.get("grpc-status-details-bin"))
    if translated is not None:
        translated.request_id = str(trailers.get("x-request-id", ""))
        return translated
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlinePassed(f"The service at {address} did not answer in time.", advice="Give the call more time.")
    text = error.details() or ""
    return ServiceUnreachable(
        f"The service at {address} did not answer ({error.code().name}: {text[:200]}).",
        advice="Start it with `exchange-service serve` or `exchange-service demo`.",
    )


class _StreamPosition:
    """What a stream follows, as the caller spelled it, and what was seen of each account, as the events name it: its
    newest version, and whether that is confirmed. Enough to open the stream again."""

    def __init__(
        self,
        user_id: str,
        accounts: Sequence[AccountSelector],
        min_interval: float,
        known: Sequence[AccountSelector] = (),
    ) -> None:
        if len(known) > _MOST_ACCOUNTS:
            raise ValueError(f"`known` may name {_MOST_ACCOUNTS} accounts, and names {len(known)}.")
        # Whether any event has come.
        self.began = False
        self._user_id = user_id
        self._min_interval = min_interval
        self._accounts = list(accounts)
        # The newest version of each account, 0 for one of which only errors were seen.
        self._versions: dict[tuple[str, str, str], int] = {}
        # The accounts whose last event was an error, or a balance that was marked.
        self._unconfirmed: set[tuple[str, str, str]] = set()
        for selector in known:
            self._note(_key(selector), selector.known_version, confirmed=not selector.unconfirmed)
        self._unconfirmed.update(_key(selector) for selector in accounts if selector.unconfirmed)

    def request(self) -> StreamBalancesRequest:
        """The request that goes on from here."""
        known = [
            AccountSelector(
                exchange_id=key[0],
                environment=key[1],
                account_type=key[2],
                known_version=version,
                unconfirmed=key in self._unconfirmed,
            )
            for key, version in self._versions.items()
        ]
        accounts = [self._with_version(selector) for selector in self._accounts]
        request = StreamBalancesRequest(user_id=self._user_id, accounts=accounts, known=known[-_MOST_ACCOUNTS:])
        if self._min_interval:
            request.min_interval.CopyFrom(_duration(self._min_interval))
        return request

    def _with_version(self, selector: AccountSelector) -> AccountSelector:
        """The selector with its newest version, for services that do not read `known` yet."""
        key = _key(selector)
        made = AccountSelector()
        made.CopyFrom(selector)
        if key in self._versions:
            made.known_version = max(self._versions[key], selector.known_version)
            made.unconfirmed = key in self._unconfirmed
        return made

    def advance(self, event: StreamBalancesResponse) -> None:
        """Take over the version of a balance, and that an error came after it."""
        self.began = True
        if event.HasField("balance"):
            balance = event.balance.balance
            self._note(_key(balance), balance.version, confirmed=not event.balance.freshness.HasField("stale"))
        elif event.HasField("account_error"):
            self._note(_key(event.account_error), 0, confirmed=False)

    def _note(self, key: tuple[str, str, str], version: int, *, confirmed: bool) -> None:
        # The newest last: a stream of all accounts may have followed some that are gone.
        self._versions[key] = max(self._versions.pop(key, 0), version)
        if confirmed:
            self._unconfirmed.discard(key)
        else:
            self._unconfirmed.add(key)


def _key(account: AccountSelector | Balance | AccountErrorEvent) -> tuple[str, str, str]:
    """What names an account within its user: exchange, environment and kinds of account."""
    return account.exchange_id, account.environment or "production", account.account_type


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def _from_details(details: object) -> ServiceError | None:
    """The error in a trailer; None if there is none, or one that this service did not write."""
    if not isinstance(details, bytes):
        return None
    with suppress(DecodeError):
        return _from_status(status_pb2.Status.FromString(details))
    return None


def _from_status(status: status_pb2.Status) -> ServiceError:
    reason, retry_after = "", None
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            reason = error_details_pb2.ErrorInfo.FromString(detail.value).reason
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after = delay.seconds + delay.nanos / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            faults = error_details_pb2.BadRequest.FromString(detail.value).field_violations
            violations = [(fault.field, fault.description) for fault in faults]
    # The message of a status ends with its advice.
    error = from_reason(reason, status.message, retry_after, advice="")
    if isinstance(error, FieldInvalid) and violations:
        error.field, error.description = violations[0]
        error.violations = tuple(violations)
    return error
