"""Clients for Python programs: see docs/calling-python.md.

Installed by `exchange-service-client`, with grpcio, protobuf and googleapis-common-protos and nothing else. They run on
older releases of these too.
"""

from exchange_service.addresses import is_loopback
from exchange_service.client.async_client import ExchangeServiceClient, ServiceUnreachable

__all__ = ["ExchangeServiceClient", "ServiceUnreachable", "is_loopback"]
