"""ExchangeService: check the request, call the use case, fill the reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from exchange_service.balances import Balances
from exchange_service.catalogue import CCXT, CUSTOM, Catalogue, Query
from exchange_service.errors import FieldInvalid, SubscriberTooSlow
from exchange_service.feeds import Feeds, Selector
from exchange_service.grpc_server.admission import current_caller
from exchange_service.grpc_server.boundary import Context
from exchange_service.identity.callers import Callers
from exchange_service.plugin_host.report import PluginReport
from exchange_service.registry import Registry
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.wire import get_balance_reply

SERVICE = messages.DESCRIPTOR.services_by_name["ExchangeService"].full_name
_MAX_TEXT = 256
# Seconds. Who wants a balance younger than this asks the venue at nearly every call, as who forces it.
_FORCED_BELOW = 1.0
_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply")
_SOURCES = {
    messages.EXCHANGE_SOURCE_UNSPECIFIED: "",
    messages.EXCHANGE_SOURCE_CUSTOM: CUSTOM,
    messages.EXCHANGE_SOURCE_CCXT: CCXT,
}


@dataclass(slots=True)
class Servicer:
    """Translates between the wire and the three use cases. Timeouts are in seconds.

    Whom the caller may read is checked before anything is looked up, so that nobody learns who exists.
    """

    callers: Callers
    registry: Registry
    catalogue: Catalogue
    balances: Balances
    feeds: Feeds
    plugins: PluginReport
    call_timeout: float
    write_timeout: float

    async def list_exchanges(self, request: messages.ListExchangesRequest, context: Context) -> bytes:
        """ListExchanges."""
        if request.source not in _SOURCES:
            raise FieldInvalid("source", "it is none of the values of ExchangeSource.")
        query = Query(
            asset_class=_text(request, "asset_class"),
            source=_SOURCES[request.source],
            search=_text(request, "search"),
            page_size=request.page_size,
            page_token=_text(request, "page_token", limit=1024),
        )
        return await self.catalogue.answer(query, request.etag)

    async def get_balance(self, request: messages.GetBalanceRequest, context: Context) -> bytes:
        """GetBalance."""
        deadline = self._deadline(context)
        caller = current_caller()
        user_id = _required(request, "user_id")
        caller.require(user_id)
        exchange_id = _required(request, "exchange_id")
        environment = _text(request, "environment")
        max_age = None
        if request.HasField("max_age"):
            max_age = request.max_age.seconds + request.max_age.nanos / 1e9
            if max_age < 0:
                raise FieldInvalid("max_age", "it should not be negative.")
        account, listing = self.registry.account(user_id, exchange_id, environment, _text(request, "account_type"))
        if max_age is not None and max_age < _FORCED_BELOW:
            await self.callers.take_refresh(caller)
        reading = await self.balances.get(account, listing, max_age=max_age, deadline=deadline)
        data = reading.stored.data if request.include_zero else reading.stored.compact
        return get_balance_reply(data, reading.source, reading.age, reading.stale)

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
        with self.callers.streaming(caller, user_id) as watch:
            async with self.feeds.subscribe(user_id, selectors) as subscription:
                watch(subscription.end)
                async for event in subscription:
                    await self._write(context, event)

    async def list_plugins(self, request: messages.ListPluginsRequest, context: Context) -> bytes:
        """ListPlugins."""
        current_caller().require_everybody()
        return self.plugins.answer()

    async def _write(self, context: Context, event: bytes) -> None:
        """Write, unless the subscriber leaves it unread: then end his stream, and nobody else's."""
        try:
            async with asyncio.timeout(self.write_timeout):
                await context.write(event)
        except TimeoutError:
            raise SubscriberTooSlow(f"A message lay unread for {self.write_timeout:g} seconds.") from None

    def _deadline(self, context: Context) -> float:
        """When the caller gives up, in the event loop's time; read once, because grpc reckons with the wall clock."""
        remaining = context.time_remaining()
        return asyncio.get_running_loop().time() + (self.call_timeout if remaining is None else remaining)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers for the server. They take and return bytes: a request that cannot be parsed is then refused
        like any other bad one, and what is stored as bytes goes out as it is."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ListExchanges": unary(_parsing(messages.ListExchangesRequest, self.list_exchanges)),
                "GetBalance": unary(_parsing(messages.GetBalanceRequest, self.get_balance)),
                "ListPlugins": unary(_parsing(messages.ListPluginsRequest, self.list_plugins)),
                "StreamBalances": stream(_parsing(messages.StreamBalancesRequest, self.stream_balances)),
            },
        )


def _parsing(
    kind: type[_Request], handler: Callable[[_Request, Context], Awaitable[_Reply]]
) -> Callable[[bytes, Context], Awaitable[_Reply]]:
    async def handle(data: bytes, context: Context) -> _Reply:
        try:
            request = kind.FromString(data)
        except DecodeError:
            raise FieldInvalid("request", f"it is no {kind.DESCRIPTOR.full_name}.") from None
        return await handler(request, context)

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
