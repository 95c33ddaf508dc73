"""Counts what the service asks of venues, and of the store that opens credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from exchange_service.credentials import CredentialReference
from exchange_service.errors import PluginFailed, ServiceError
from exchange_service.model import Credential
from exchange_service.observability.metrics import CANCELLED, Metrics
from exchange_service.observability.tracing import add_event
from exchange_service.venues.fetching import Fetcher, Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.balances import FetchedBalance

OpenCredential = Callable[[CredentialReference], Awaitable[Credential]]


class Instrumented:
    """Counts the fetches that reach a venue, how they end and how long they take."""

    def __init__(self, inner: Fetcher[FetchedBalance], metrics: Metrics) -> None:
        self.inner = inner
        self._metrics = metrics

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        """See `Fetcher`."""
        loop = asyncio.get_running_loop()
        began, reason = loop.time(), ""
        try:
            return await self.inner.fetch(target, deadline, priority)
        except asyncio.CancelledError:
            reason = CANCELLED
            raise
        except ServiceError as error:
            reason = error.reason
            raise
        except Exception:
            reason = PluginFailed.reason
            raise
        finally:
            self._metrics.fetch_ended(target.listing.metadata.id, reason, loop.time() - began)


def instrumented_opening(open_credential: OpenCredential, metrics: Metrics) -> OpenCredential:
    """The same opening of credentials, counted."""

    async def opening(reference: CredentialReference) -> Credential:
        try:
            credential = await open_credential(reference)
        except ServiceError as error:
            metrics.credential_opened(error.reason)
            raise
        metrics.credential_opened()
        add_event("credential.opened")
        return credential

    return opening
