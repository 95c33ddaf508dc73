"""Clients for Python programs: see docs/calling-python.md.

Installed by `exchange-service-client`, with grpcio, protobuf and googleapis-common-protos and nothing else. They run on
older releases of these too.
"""

from exchange_service.addresses import is_loopback
from exchange_service.client.async_client import AsyncClient, ExchangeServiceClient
from exchange_service.client.failures import ServiceUnreachable
from exchange_service.client.resuming import Reconnecting
from exchange_service.client.sync_client import Client

__all__ = ["AsyncClient", "Client", "ExchangeServiceClient", "Reconnecting", "ServiceUnreachable", "is_loopback"]
