"""The events of StreamBalances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exchange_service.errors import ServiceError
from exchange_service.model import Account
from exchange_service.v1 import exchange_service_pb2
from exchange_service.wire.balances import fault_message
from exchange_service.wire.delivery import Delivery
from exchange_service.wire.protobuf import encode_field, to_duration, to_timestamp
from exchange_service.wire.replies import Source, freshness_message


def balance_event(
    data: bytes, source: Source, age: float, stale: ServiceError | None, delivery: Delivery | None = None
) -> bytes:
    """A serialised StreamBalancesResponse with a BalanceEvent. `data` is a serialised `Balance`, `age` in seconds."""
    freshness = exchange_service_pb2.BalanceEvent(freshness=freshness_message(source, age, stale, delivery))
    return encode_field(1, encode_field(1, data) + freshness.SerializeToString())


def account_error_event(account: Account, error: ServiceError, last_version: int) -> bytes:
    """A serialised StreamBalancesResponse with an AccountErrorEvent."""
    event = exchange_service_pb2.AccountErrorEvent(
        exchange_id=account.exchange_id,
        environment=account.environment,
        account_type=account.account_type,
        error=fault_message(error),
        last_version=last_version,
    )
    return exchange_service_pb2.StreamBalancesResponse(account_error=event).SerializeToString()


@dataclass(frozen=True, slots=True)
class AccountState:
    """The state of one account of a stream, as AccountState in exchange_service.proto. `age` is in seconds."""

    account: Account
    version: int
    age: float | None
    error: ServiceError | None
    catching_up: bool = False
    delivery: Delivery | None = None


def account_state(state: AccountState) -> bytes:
    """Field 2 of a HeartbeatEvent, serialised, for this account."""
    entry = exchange_service_pb2.AccountState(
        exchange_id=state.account.exchange_id,
        environment=state.account.environment,
        account_type=state.account.account_type,
        version=state.version,
        catching_up=state.catching_up,
    )
    if state.age is not None:
        entry.age.CopyFrom(to_duration(state.age))
    if state.error is not None:
        entry.error.CopyFrom(fault_message(state.error))
    if state.delivery is not None:
        entry.delivery.CopyFrom(state.delivery.message())
    return encode_field(2, entry.SerializeToString())


def heartbeat_event(now: float, states: Iterable[bytes]) -> bytes:
    """A serialised StreamBalancesResponse with a HeartbeatEvent.

    `now` is in seconds since the epoch; `states` are results of `account_state`.
    """
    event = exchange_service_pb2.HeartbeatEvent(server_time=to_timestamp(now))
    return encode_field(3, event.SerializeToString() + b"".join(states))
