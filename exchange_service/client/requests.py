"""The requests of both clients, and what a health check says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from exchange_service.accounts.v1.account_service_pb2 import ConnectAccountRequest
from exchange_service.v1 import exchange_service_pb2
from exchange_service.v1.exchange_service_pb2 import GetBalanceRequest, ListExchangesRequest

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
# The service whose health is asked for.
SERVICE = "exchange_service.v1.ExchangeService"
_SOURCES = {
    "": exchange_service_pb2.EXCHANGE_SOURCE_UNSPECIFIED,
    "custom": exchange_service_pb2.EXCHANGE_SOURCE_CUSTOM,
    "ccxt": exchange_service_pb2.EXCHANGE_SOURCE_CCXT,
}
_HEALTH = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def list_exchanges(
    asset_class: str, source: str, search: str, page_size: int = 0, page_token: str = "", etag: str = ""
) -> ListExchangesRequest:
    """A page of the catalogue. KeyError for another source than "", "custom" and "ccxt"."""
    return ListExchangesRequest(
        asset_class=asset_class,
        source=_SOURCES[source],
        search=search,
        page_size=page_size,
        page_token=page_token,
        etag=etag,
    )


def get_balance(
    user_id: str,
    exchange_id: str,
    environment: str,
    account_type: str,
    max_age: float | None,
    include_zero: bool,
    known_version: int,
) -> GetBalanceRequest:
    """The balance of one account. `max_age` in seconds; None: as the service is set."""
    request = GetBalanceRequest(
        user_id=user_id,
        exchange_id=exchange_id,
        environment=environment,
        account_type=account_type,
        include_zero=include_zero,
        known_version=known_version,
    )
    if max_age is not None:
        request.max_age.CopyFrom(duration(max_age))
    return request


def connect_account(
    user_id: str, exchange_id: str, environment: str, fields: Mapping[str, str], skip_check: bool
) -> ConnectAccountRequest:
    """Store a credential."""
    return ConnectAccountRequest(
        user_id=user_id, exchange_id=exchange_id, environment=environment, fields=fields, skip_check=skip_check
    )


def duration(seconds: float) -> Duration:
    """The message of so many seconds."""
    made = Duration()
    made.FromTimedelta(timedelta(seconds=seconds))
    return made


def health_request(service: str) -> bytes:
    """A serialised grpc.health.v1.HealthCheckRequest, made by hand: a second description of that message in one process
    would be in conflict with that of the package grpcio-health-checking."""
    name = service.encode()
    if len(name) > 127:
        raise ValueError("The name of a service has at most 127 bytes.")
    # Field 1, a text: its tag, its length, and the text.
    return bytes((0x0A, len(name))) + name


def health_status(reply: bytes) -> str:
    """The status in a serialised grpc.health.v1.HealthCheckResponse."""
    # Field 1, a small number. A message without it means zero.
    number = reply[1] if len(reply) == 2 and reply[0] == 0x08 else 0
    return _HEALTH[number] if number < len(_HEALTH) else "UNKNOWN"
