"""ExchangeService: read the request, call the use case, fill the reply."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from exchange_service.balances.service import BalanceQuery, BalanceReader, BalanceResult
from exchange_service.catalogue import Catalogue
from exchange_service.deadlines import time_remaining
from exchange_service.grpc_server.authentication import current_caller
from exchange_service.grpc_server.handler_wrapper import Context, Look
from exchange_service.grpc_server.methods import ServiceMethods
from exchange_service.grpc_server.requests import RequestReader, read_stream_balances
from exchange_service.grpc_server.turns import Deliveries, Writes
from exchange_service.grpc_server.write_limit import WriteLimit
from exchange_service.identity import Caller
from exchange_service.identity.authenticator import Authenticator
from exchange_service.observability.tracing import annotate, end_span
from exchange_service.streams.service import Streams
from exchange_service.v1 import exchange_service_pb2
from exchange_service.wire.replies import get_balance_reply

_DESCRIPTOR = exchange_service_pb2.DESCRIPTOR.services_by_name["ExchangeService"]
SERVICE = _DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class Servicer:
    """Translates between the wire and the three use cases."""

    requests: RequestReader
    authenticator: Authenticator
    catalogue: Catalogue
    balances: BalanceReader
    streams: Streams
    writes: WriteLimit
    turns: Writes = field(default_factory=Writes)
    deliveries: Deliveries = field(default_factory=Deliveries)

    async def list_exchanges(self, data: bytes, context: Context) -> bytes:
        """ListExchanges."""
        query, etag = self.requests.read_list_exchanges(data)
        return self.catalogue.answer(query, etag)

    async def get_balance(self, data: bytes, context: Context) -> bytes:
        """GetBalance."""
        caller = current_caller()
        query, include_zero = self.requests.read_get_balance(data, caller)
        annotate(exchange=query.account.exchange_id, environment=query.account.environment)
        result = await self.balances.get(query, caller, time_remaining)
        annotate(source=result.source.name.lower())
        return _balance_reply(result, include_zero)

    def ready_exchanges(self, data: bytes, caller: Caller) -> bytes | None:
        """ListExchanges, of a request that came before and a reply that is built."""
        known = self.requests.known_list_exchanges(data)
        return None if known is None else self.catalogue.ready(*known)

    def ready_balance(self, data: bytes, caller: Caller) -> bytes | None:
        """GetBalance, of a request that came before and a balance that this process has."""
        known = self.requests.known_get_balance(data, caller)
        if known is None:
            return None
        result = self.balances.ready(known[0])
        return None if result is None else _balance_reply(result, known[1])

    def look_for_balance(self, data: bytes, caller: Caller) -> Look | None:
        """GetBalance, of a request that came before and a balance that another replica may have stored."""
        known = self.requests.known_get_balance(data, caller)
        reading = None if known is None else self.balances.look(known[0])
        return None if known is None or reading is None else Look(reading, partial(self._after_look, *known))

    def _after_look(self, query: BalanceQuery, include_zero: bool) -> bytes | None:
        result = self.balances.ready(query, has_looked=True)
        return None if result is None else _balance_reply(result, include_zero)

    async def stream_balances(self, data: bytes, context: Context) -> None:
        """StreamBalances."""
        caller = current_caller()
        query = read_stream_balances(data, caller, self.streams.max_accounts)
        await self.authenticator.take_selectors(caller, len(query.selectors))
        with self.authenticator.streaming(caller, query.user_id) as watch:
            async with self.streams.subscribe(
                query.user_id, query.selectors, known=query.known, min_interval=query.min_interval
            ) as subscription:
                watch(subscription.end)
                # The call lasts for hours: its span says how it was opened, and what comes has spans of its own.
                end_span()
                writer = self.writes.writer(context)
                if writer.is_direct:
                    subscription.write_directly(writer.try_write, self.deliveries.soon)
                while True:
                    await writer.write(await subscription.next_event(self.turns.take))

    def methods(self) -> ServiceMethods:
        """The handlers for the server."""
        return ServiceMethods(
            _DESCRIPTOR,
            {
                "ListExchanges": self.list_exchanges,
                "GetBalance": self.get_balance,
                "StreamBalances": self.stream_balances,
            },
            {"ListExchanges": self.ready_exchanges, "GetBalance": self.ready_balance},
            {"GetBalance": self.look_for_balance},
        )


def _balance_reply(result: BalanceResult, include_zero: bool) -> bytes:
    return get_balance_reply(
        result.stored, result.source, result.age, result.stale, include_zero=include_zero, delivery=result.delivery
    )
