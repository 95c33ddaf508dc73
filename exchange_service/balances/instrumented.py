"""Counts what the service asks of others, without their knowing: venues, and the store that opens credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from exchange_service.credentials import CredentialReference
from exchange_service.errors import PluginFailed, ServiceError
from exchange_service.model import Account, Credential, KeyRights
from exchange_service.observability.metrics import CANCELLED, Metrics, ProcessOfPlugin
from exchange_service.plugin_host.client import PluginClients
from exchange_service.plugin_host.supervisor import ProcessState
from exchange_service.venues.registry import Listing, Registry
from exchange_service.venues.sessions import Venues
from exchange_service.wire.balances import FetchedBalance

OpenCredential = Callable[[CredentialReference], Awaitable[Credential]]


class InstrumentedVenues:
    """Passes everything on to `venues`, and counts the balances that are asked for."""

    def __init__(self, venues: Venues, metrics: Metrics) -> None:
        self._venues = venues
        self._metrics = metrics

    async def fetch(
        self, reference: CredentialReference, listing: Listing, deadline: float, *, account_type: str = ""
    ) -> FetchedBalance:
        """See `Venues`."""
        loop = asyncio.get_running_loop()
        began, reason = loop.time(), ""
        try:
            return await self._venues.fetch(reference, listing, deadline, account_type=account_type)
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
            self._metrics.fetch_ended(listing.metadata.id, reason, loop.time() - began)

    async def key_rights(self, reference: CredentialReference, listing: Listing, deadline: float) -> KeyRights:
        """See `Venues`."""
        return await self._venues.key_rights(reference, listing, deadline)

    def forget(self, account: Account) -> None:
        """See `Venues`."""
        self._venues.forget(account)

    async def close(self) -> None:
        """See `Venues`."""
        await self._venues.close()


def instrumented_opening(open_credential: OpenCredential, metrics: Metrics) -> OpenCredential:
    """The same opening of credentials, counted."""

    async def opening(reference: CredentialReference) -> Credential:
        try:
            credential = await open_credential(reference)
        except ServiceError as error:
            metrics.credential_opened(error.reason)
            raise
        metrics.credential_opened()
        return credential

    return opening


def processes_of(registry: Registry, venues: PluginClients) -> Iterator[ProcessOfPlugin]:
    """How the processes are that run plugins."""
    for plugin in registry.plugins:
        for number, condition in enumerate(venues.statuses(plugin)):
            running = condition.state is ProcessState.RUNNING
            yield ProcessOfPlugin(plugin.info.name, number, running, condition.memory, condition.restarts)
