"""The async clients.

async with AsyncClient("127.0.0.1:50051") as client:
    reply = await client.get_balance("alice", "oanda")
    print(reply.balance.summary.equity, reply.freshness.age.ToTimedelta())
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc

from exchange_service.accounts.v1.account_service_pb2 import (
    CheckAccountRequest,
    CheckAccountResponse,
    ConnectAccountResponse,
    ListAccountsRequest,
    ListAccountsResponse,
    RemoveAccountRequest,
)
from exchange_service.client import forks, requests
from exchange_service.client.connections import (
    CALLS_A_CONNECTION,
    ClientConfig,
    Connection,
    ConnectionHolder,
    Connections,
    configure,
    is_answer,
)
from exchange_service.client.endpoint import endpoint_of
from exchange_service.client.failures import ServiceUnreachable, is_from_service, translate, unreachable
from exchange_service.client.first_round import FirstRound
from exchange_service.client.position import StreamPosition
from exchange_service.client.resuming import Reconnecting, Resumption
from exchange_service.client.security import AsyncToken, Pem, current_token_async, require_safe, with_token
from exchange_service.errors import CallerUnknown, DeadlinePassed, ServiceError
from exchange_service.operator.v1.plugin_service_pb2 import ListPluginsRequest, ListPluginsResponse
from exchange_service.v1 import exchange_pb2
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    AccountSelector,
    BalanceEvent,
    GetBalanceResponse,
    ListExchangesResponse,
    StreamBalancesRequest,
    StreamBalancesResponse,
)

__all__ = ["AsyncClient", "ExchangeServiceClient"]


def _present_loop() -> object:
    """The running event loop, which a channel belongs to; None outside of one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _health(connection: Connection) -> Any:
    return connection.channel.unary_unary(requests.HEALTH_METHOD)


class _AsyncCalls:
    """The calls that both async clients have."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._holder = ConnectionHolder(
            config, grpc.aio, _present_loop, require=forks.require_async, note=forks.note_async
        )
        # Whether the service has ever answered.
        self._reached = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel of the first connection, for other services on it. It belongs to the running event loop."""
        channel: grpc.aio.Channel = self._holder.connections().all[0].channel
        return channel

    async def close(self) -> None:
        """Close all connections. Calls and streams end, and the client cannot be used again."""
        await asyncio.gather(*(channel.close() for channel in self._holder.close()))

    async def health(self, service: str = requests.SERVICE) -> str:
        """What the service says of itself: "SERVING", "NOT_SERVING" (it is about to end, or cannot serve), "UNKNOWN",
        or "SERVICE_UNKNOWN" if it has no service of this name.

        Raises ServiceUnreachable, and DeadlinePassed.
        """
        request = requests.health_request(service)
        try:
            reply = await self._invoke(_health, request, await self._token())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise self._translated(error) from None
        return requests.health_status(reply)

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
        request = requests.list_exchanges(asset_class, source, search, page_size, page_token, etag)
        reply: ListExchangesResponse = await self._call(lambda one: one.exchanges.ListExchanges, request)
        return reply

    async def list_plugins(self) -> ListPluginsResponse:
        """The plugins of the replica that answers, and the processes that run them. For operators."""
        reply: ListPluginsResponse = await self._call(lambda one: one.plugins.ListPlugins, ListPluginsRequest())
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
        request = requests.get_balance(
            user_id, exchange_id, environment, account_type, max_age, include_zero, known_version
        )
        reply: GetBalanceResponse = await self._call(lambda one: one.exchanges.GetBalance, request)
        return reply

    async def balances(
        self, user_id: str, accounts: Sequence[AccountSelector] = (), *, timeout: float | None = None
    ) -> list[BalanceEvent | AccountErrorEvent]:
        """Each account of a user once, with its balance or its error, in the order of their names. No `accounts`: all.

        It takes at most `timeout` seconds, None: the client's. An account that has not answered by then has an error
        with the reason DEADLINE_PASSED. Raises ServiceError, DeadlinePassed too if the accounts are not even named.
        """
        first_round = FirstRound(user_id, accounts)
        seconds = self._config.timeout if timeout is None else timeout
        try:
            async with aclosing(self._events(first_round.request(), seconds)) as events:
                async for event in events:
                    if first_round.advance(event):
                        break
        except DeadlinePassed:
            # The result says what is missing.
            pass
        return first_round.result()

    async def list_accounts(self, user_id: str = "") -> ListAccountsResponse:
        """The accounts for which a credential of the user is stored. No `user_id`: the only user that the caller may
        read. It needs the right to manage, as all calls about accounts do.

        Raises ServiceError: the class of the server's reason, or ServiceUnreachable.
        """
        request = ListAccountsRequest(user_id=user_id)
        reply: ListAccountsResponse = await self._call(lambda one: one.accounts.ListAccounts, request)
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
        request = requests.connect_account(user_id, exchange_id, environment, fields, skip_check)
        reply: ConnectAccountResponse = await self._call(lambda one: one.accounts.ConnectAccount, request)
        return reply

    async def check_account(self, user_id: str, exchange_id: str, *, environment: str = "") -> CheckAccountResponse:
        """Try a stored credential at the venue: what it shows, and what its key may do. Raises ServiceError as
        `list_accounts`: the venue's error if the account cannot be read."""
        request = CheckAccountRequest(user_id=user_id, exchange_id=exchange_id, environment=environment)
        reply: CheckAccountResponse = await self._call(lambda one: one.accounts.CheckAccount, request)
        return reply

    async def remove_account(self, user_id: str, exchange_id: str, *, environment: str = "") -> None:
        """Remove a stored credential. Raises ServiceError as `list_accounts`: CredentialMissing if none is stored."""
        request = RemoveAccountRequest(user_id=user_id, exchange_id=exchange_id, environment=environment)
        await self._call(lambda one: one.accounts.RemoveAccount, request)

    async def _followed(
        self, position: StreamPosition, resume: bool
    ) -> AsyncGenerator[StreamBalancesResponse | Reconnecting, None]:
        resumption = Resumption(position, resume=resume, renews=self._config.renews, reached=lambda: self._reached)
        while True:
            try:
                async with aclosing(self._events(resumption.request())) as events:
                    async for event in events:
                        resumption.advance(event)
                        yield event
                raise ServiceUnreachable(f"The service at {self._address} ended the stream without a reason.")
            except ServiceError as error:
                reconnecting = resumption.after(error)
            yield reconnecting
            await asyncio.sleep(reconnecting.delay)

    async def _events(
        self, request: StreamBalancesRequest, timeout: float | None = None
    ) -> AsyncGenerator[StreamBalancesResponse, None]:
        connections, token = await self._connections(), await self._token()
        metadata = with_token(self._config.metadata, token)
        with connections.use() as connection:
            call = connection.exchanges.StreamBalances(request, timeout=timeout, metadata=metadata)
            try:
                async for event in call:
                    self._reached = True
                    yield event
            except grpc.aio.AioRpcError as error:
                raise self._translated(error) from None
            finally:
                # If only the iterator is dropped, the call stays open at the server.
                call.cancel()

    async def _call(self, method_of: Callable[[Connection], Any], request: Any) -> Any:
        token = await self._token()
        try:
            try:
                return await self._invoke(method_of, request, token)
            except grpc.aio.AioRpcError as error:
                if not isinstance(self._translated(error), CallerUnknown):
                    raise
                newer = await self._token()
                if newer == token:
                    raise
            # The token has ended since the program made it.
            return await self._invoke(method_of, request, newer)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None

    async def _invoke(self, method_of: Callable[[Connection], Any], request: Any, token: str) -> Any:
        connections, metadata = await self._connections(), with_token(self._config.metadata, token)
        with connections.use() as connection:
            reply = await method_of(connection)(request, timeout=self._config.timeout, metadata=metadata)
        self._reached = True
        return reply

    async def _connections(self) -> Connections:
        if self._holder.needs_lookup:
            target = await asyncio.to_thread(self._config.endpoint.target)
            return self._holder.connections(target)
        return self._holder.connections()

    async def _token(self) -> str:
        return await current_token_async(self._config.token)

    @property
    def _address(self) -> str:
        return self._config.endpoint.text

    def _translated(self, error: grpc.aio.AioRpcError) -> ServiceError:
        if is_from_service(error):
            self._reached = True
        return translate(error, self._address, tls=self._config.tls)


class AsyncClient(_AsyncCalls):
    """The service at `address`: host:port, or the replicas' addresses, separated by commas or in a sequence, which are
    called in turn. It connects at the first call, and to a name with several addresses too if it is given as
    dns:///name:port.

    `token` is sent with every call; a callable, async too, is asked for it at each call, so let it keep a token while
    that is valid. `metadata` is sent as well. `tls_ca` is the PEM file, or its content as bytes, of the authority to
    trust, `tls_certificate` and `tls_key` are the client's own; `tls_name` is the name in the service's certificate if
    it is not the first address's. `tls` None: TLS, except to this machine if no file is given. `timeout` is in seconds,
    and applies to a call with all its attempts. Calls that read are tried up to three times, unless the service says
    that it does not help. `options` are options of the gRPC channel, in place of those of the client.
    `calls_a_connection` must not be more than the setting `connection_streams` of the service, nor the limit of a proxy
    before it.

    Raises ValueError for arguments that contradict, and for a token, also one in `metadata`, that would be sent to
    another machine in plaintext; OSError for a file that cannot be read.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        token: AsyncToken = "",
        tls: bool | None = None,
        tls_ca: Pem | None = None,
        tls_certificate: Pem | None = None,
        tls_key: Pem | None = None,
        tls_name: str = "",
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = 10.0,
        options: Sequence[tuple[str, Any]] = (),
        calls_a_connection: int = CALLS_A_CONNECTION,
    ) -> None:
        super().__init__(
            configure(
                address,
                token=token,
                tls=tls,
                tls_ca=tls_ca,
                tls_certificate=tls_certificate,
                tls_key=tls_key,
                tls_name=tls_name,
                metadata=metadata,
                timeout=timeout,
                options=options,
                calls_a_connection=calls_a_connection,
            )
        )

    async def stream_balances(
        self,
        user_id: str,
        accounts: Sequence[AccountSelector] = (),
        *,
        min_interval: float = 0.0,
        known: Sequence[AccountSelector] = (),
        resume: bool = True,
    ) -> AsyncGenerator[StreamBalancesResponse | Reconnecting, None]:
        """Yield the events of a user's accounts, until an error is raised or you stop iterating. No `accounts`: all.

        If the service restarts, can no longer be reached, has no database, ends a stream of long life, or takes no
        further stream for now, `Reconnecting` is yielded, and the stream is opened again with the versions that it has
        yielded: no version goes back, and no change is lost. With a callable `token` also if the token has ended.
        With `resume=False` the error is raised instead.

        `min_interval` is the least number of seconds between two balances of one account, 0 to 3600; 0 is every change.
        `freshness.delivery` of a balance, and `delivery` of an account in a heartbeat, say whether the venue pushes the
        account's changes or is polled, and why. `known` is what you have of accounts already, at most 200, each named
        as its events name it, with its `known_version` and `unconfirmed`: the stream begins with a heartbeat and yields
        only what is newer. A stream without accounts begins with a heartbeat too.

        Raises ServiceError; ServiceUnreachable within `timeout` seconds if nothing was ever reached at the address, and
        ServiceOverloaded if the first stream was refused; ValueError for more than 200 `known`.
        """
        position = StreamPosition(user_id, accounts, min_interval, known)
        if not self._reached:
            await self._reach()
        async with aclosing(self._followed(position, resume)) as events:
            async for event in events:
                yield event

    async def _reach(self) -> None:
        """Make sure that something answers at the address: a stream itself has no deadline."""
        try:
            await self._invoke(_health, requests.health_request(requests.SERVICE), await self._token())
        except grpc.aio.AioRpcError as error:
            if not is_answer(error.code()):
                raise unreachable(self._translated(error)) from None
            self._reached = True


class ExchangeServiceClient(_AsyncCalls):
    """The older name of AsyncClient: it takes one address or a target of gRPC, ready-made `credentials`, and does not
    try again. A stream resumes if it is told to, and says so to a callback.

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
        calls_a_connection: int = CALLS_A_CONNECTION,
    ) -> None:
        endpoint = endpoint_of(address)
        require_safe(endpoint, token, metadata, encrypted=credentials is not None)
        all_options = endpoint.options(options, retries=False)
        super().__init__(
            ClientConfig(endpoint, credentials, token, tuple(metadata), timeout, all_options, calls_a_connection)
        )

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
        """As `AsyncClient.stream_balances`, but it resumes only with `resume`, and calls `on_interruption` with each
        error that ended a stream in place of yielding `Reconnecting`."""
        position = StreamPosition(user_id, accounts, min_interval, known)
        async with aclosing(self._followed(position, resume)) as events:
            async for event in events:
                if not isinstance(event, Reconnecting):
                    yield event
                elif on_interruption is not None:
                    on_interruption(event.error)
