"""ExchangeService: check the request, call the use case, fill the reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from exchange_service.balances.service import Balances
from exchange_service.catalogue import CCXT, CUSTOM, Catalogue, Query
from exchange_service.errors import FieldInvalid
from exchange_service.grpc_server.admission import current_caller
from exchange_service.grpc_server.boundary import Context, Handler
from exchange_service.grpc_server.write_limit import WriteLimit
from exchange_service.identity.authenticator import Authenticator
from exchange_service.model import Account
from exchange_service.observability.metrics import Metrics
from exchange_service.plugin_host.report import PluginReport
from exchange_service.streams.accounts import Selector
from exchange_service.streams.service import Streams
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.venues.registry import Listing, Registry
from exchange_service.wire.balances import Source, get_balance_reply

_DESCRIPTOR = messages.DESCRIPTOR.services_by_name["ExchangeService"]
SERVICE = _DESCRIPTOR.full_name
STREAMS = frozenset(method.name for method in _DESCRIPTOR.methods if method.server_streaming)
_MAX_TEXT = 256
# Seconds. Who wants a balance younger than this asks the venue at nearly every call, as who forces it.
_FORCED_BELOW = 1.0
# Seconds that a subscriber may want between two balances of an account.
_LONGEST_INTERVAL = 3600.0
_SOURCE_NAMES = {source: source.name.lower().replace("_", "-") for source in Source}
_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply")
_T = TypeVar("_T")
# Requests that are known by their bytes, of at most so many bytes each.
_MOST_KNOWN, _LONGEST_KNOWN = 20_000, 512
_SOURCES = {
    messages.EXCHANGE_SOURCE_UNSPECIFIED: "",
    messages.EXCHANGE_SOURCE_CUSTOM: CUSTOM,
    messages.EXCHANGE_SOURCE_CCXT: CCXT,
}


@dataclass(frozen=True, slots=True)
class _AskedBalance:
    """What a GetBalanceRequest asks, found with the registry as it was then."""

    account: Account
    listing: Listing
    max_age: float | None
    include_zero: bool
    generation: int


@dataclass(slots=True)
class Servicer:
    """Translates between the wire and the three use cases. Timeouts are in seconds.

    Whom the caller may read is checked before anything is looked up, so that nobody learns who exists.
    """

    callers: Authenticator
    registry: Registry
    catalogue: Catalogue
    balances: Balances
    streams: Streams
    plugins: PluginReport
    call_timeout: float
    write_timeout: float
    metrics: Metrics = field(default_factory=Metrics)
    # What requests ask, by their bytes: a caller asks the same again and again.
    _lists: dict[bytes, tuple[Query, str]] = field(default_factory=dict)
    _balances: dict[bytes, _AskedBalance] = field(default_factory=dict)
    _writes: WriteLimit = field(init=False)

    def __post_init__(self) -> None:
        self._writes = WriteLimit(self.write_timeout)

    async def list_exchanges(self, data: bytes, context: Context) -> bytes:
        """ListExchanges."""
        asked = self._lists.get(data)
        if asked is None:
            asked = _remembered(self._lists, data, self._read_list(_parsed(messages.ListExchangesRequest, data)))
        return self.catalogue.answer(*asked)

    def _read_list(self, request: messages.ListExchangesRequest) -> tuple[Query, str]:
        if request.source not in _SOURCES:
            raise FieldInvalid("source", "it is none of the values of ExchangeSource.")
        query = Query(
            asset_class=_text(request, "asset_class"),
            source=_SOURCES[request.source],
            search=_text(request, "search"),
            page_size=request.page_size,
            page_token=_text(request, "page_token", limit=1024),
        )
        return query, request.etag

    async def get_balance(self, data: bytes, context: Context) -> bytes:
        """GetBalance."""
        caller = current_caller()
        asked = self._balances.get(data)
        if asked is None:
            request = _parsed(messages.GetBalanceRequest, data)
            # Before anything is looked up.
            caller.require(_required(request, "user_id"))
            asked = _remembered(self._balances, data, self._read_balance(request))
        else:
            caller.require(asked.account.user_id)
        if asked.generation != self.registry.generation:
            self._balances.clear()
            asked = self._read_balance(_parsed(messages.GetBalanceRequest, data))
        forced = asked.max_age is not None and asked.max_age < _FORCED_BELOW
        if forced:
            await self.callers.take_refresh(caller)
        reading = None if forced else self.balances.get_local(asked.account, asked.max_age)
        if reading is not None:
            self.metrics.cache_read("process")
        else:
            deadline = self._deadline(context)
            reading = await self.balances.get(asked.account, asked.listing, max_age=asked.max_age, deadline=deadline)
            self.metrics.cache_read("shared" if reading.source is Source.CACHE else "nowhere")
        self.metrics.balance_read(_SOURCE_NAMES[reading.source])
        return get_balance_reply(
            reading.stored, reading.source, reading.age, reading.stale, include_zero=asked.include_zero
        )

    def _read_balance(self, request: messages.GetBalanceRequest) -> _AskedBalance:
        exchange_id = _required(request, "exchange_id")
        environment = _text(request, "environment")
        max_age = None
        if request.HasField("max_age"):
            max_age = request.max_age.seconds + request.max_age.nanos / 1e9
            if max_age < 0:
                raise FieldInvalid("max_age", "it should not be negative.")
        generation = self.registry.generation
        account_type = _text(request, "account_type")
        account, listing = self.registry.account(request.user_id, exchange_id, environment, account_type)
        return _AskedBalance(account, listing, max_age, request.include_zero, generation)

    async def stream_balances(self, request: messages.StreamBalancesRequest, context: Context) -> None:
        """StreamBalances."""
        caller = current_caller()
        user_id = _required(request, "user_id")
        caller.require(user_id)
        selectors = [
            Selector(
                _required(selector, "exchange_id", where=f"accounts[{index}]."),
                _text(selector, "environment", where=f"accounts[{index}]."),
                selector.known_version,
                _text(selector, "account_type", where=f"accounts[{index}]."),
            )
            for index, selector in enumerate(request.accounts)
        ]
        min_interval = request.min_interval.seconds + request.min_interval.nanos / 1e9
        if not 0 <= min_interval <= _LONGEST_INTERVAL:
            raise FieldInvalid("min_interval", f"it should be between 0 and {_LONGEST_INTERVAL:g} seconds.")
        with self.callers.streaming(caller, user_id) as watch:
            async with self.streams.subscribe(user_id, selectors, min_interval=min_interval) as subscription:
                watch(subscription.end)
                writer = self._writes.writer(context)
                while True:
                    await writer.write(await subscription.next_event())
                    self.metrics.event_written()

    async def list_plugins(self, request: messages.ListPluginsRequest, context: Context) -> bytes:
        """ListPlugins."""
        current_caller().require_everybody()
        return self.plugins.answer()

    def _deadline(self, context: Context) -> float:
        """When the caller gives up, in the event loop's time; read once, because grpc reckons with the wall clock."""
        remaining = context.time_remaining()
        return asyncio.get_running_loop().time() + (self.call_timeout if remaining is None else remaining)

    def handlers(self, within: Callable[[str, Handler], Handler]) -> grpc.GenericRpcHandler:
        """The handlers for the server, each `within` what stands before it. They take and return bytes: a request that
        cannot be parsed is then refused like any other bad one, and what is stored as bytes goes out as it is."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        calls: dict[str, tuple[Callable[[Any], Any], Handler]] = {
            "ListExchanges": (unary, self.list_exchanges),
            "GetBalance": (unary, self.get_balance),
            "ListPlugins": (unary, _parsing(messages.ListPluginsRequest, self.list_plugins)),
            "StreamBalances": (stream, _parsing(messages.StreamBalancesRequest, self.stream_balances)),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: kind(within(name, handler)) for name, (kind, handler) in calls.items()}
        )


def _parsed(kind: type[_Request], data: bytes) -> _Request:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise FieldInvalid("request", f"it is no {kind.DESCRIPTOR.full_name}.") from None


def _remembered(known: dict[bytes, _T], data: bytes, asked: _T) -> _T:
    """What a request's bytes were found to ask, so that the next one like it is not read again."""
    if len(data) <= _LONGEST_KNOWN:
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[data] = asked
    return asked


def _parsing(
    kind: type[_Request], handler: Callable[[_Request, Context], Awaitable[_Reply]]
) -> Callable[[bytes, Context], Awaitable[_Reply]]:
    async def handle(data: bytes, context: Context) -> _Reply:
        return await handler(_parsed(kind, data), context)

    return handle


def _text(message: Any, field: str, *, where: str = "", limit: int = _MAX_TEXT) -> str:
    value: str = getattr(message, field)
    if len(value) > limit:
        raise FieldInvalid(where + field, f"it should have at most {limit} characters.")
    if not value.isprintable():
        raise FieldInvalid(where + field, "it holds characters that cannot be printed.")
    return value


def _required(message: Any, field: str, *, where: str = "") -> str:
    value = _text(message, field, where=where)
    if not value.strip():
        raise FieldInvalid(where + field, "it is required.")
    return value
