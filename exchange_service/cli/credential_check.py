"""Checking stored credentials at their venues: whether each works, what it shows, and what else it may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from exchange_service.accounts.checking import check_target
from exchange_service.app import open_venues
from exchange_service.balances.replacements import Replacements
from exchange_service.credentials.configured import open_configured_store
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.errors import CredentialMissing, NotSupported, ServiceError
from exchange_service.model import Account, Balance, KeyRights
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.settings import Settings
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.fetching import Target, Venues
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.registry import Registry, retirement
from exchange_service.wire.balances import read_fetched


@dataclass(frozen=True, slots=True)
class CredentialCheck:
    """The result for one credential: a balance, or the error that prevented its reading.

    `rights` is None if they could not be read; `warnings` are sentences for the key's owner.
    """

    account: Account
    name: str
    balance: Balance | None = None
    error: ServiceError | None = None
    rights: KeyRights | None = None
    warnings: tuple[str, ...] = ()


class Checker:
    """Checks stored credentials at their venues, without a running service; see `open_checker`."""

    def __init__(self, settings: Settings, venues: Venues, store: SqlCredentialStore, registry: Registry) -> None:
        self._timeout = settings.venue_timeout
        self._venues = venues
        self._store = store
        self._registry = registry

    async def stored_accounts(self, user_id: str) -> list[Account]:
        """The accounts with a stored credential of the user."""
        return await self._store.accounts(user_id)

    async def check(self, account: Account) -> CredentialCheck:
        """Read the account, of every type, with its stored credential, and ask what the key may do.

        An error of the credential or the venue is in the result; ExchangeUnknown, FieldInvalid, CredentialMissing and
        StoreUnavailable are raised.
        """
        retired = self._registry.retired.get(account.exchange_id.strip().lower())
        if retired is not None:
            return CredentialCheck(account, retired.name, error=retirement(retired))
        account, listing = self._registry.account(account.user_id, account.exchange_id, account.environment)
        metadata = listing.metadata
        aliases = metadata.environment_aliases(account.environment)
        reference = await self._store.find(account, aliases=aliases, credential_of=metadata.credential_of)
        if reference is None:
            raise CredentialMissing(
                f"No credential is stored for this user at {metadata.name} ({account.environment}).",
                advice="Add one with `exchange-service credentials add`.",
            )
        if not metadata.capabilities.balance:
            return CredentialCheck(account, metadata.name, error=NotSupported(metadata.unsupported_reason))
        try:
            result = await check_target(self._venues, Target(account, listing, reference), self._deadline)
        except ServiceError as error:
            return CredentialCheck(account, metadata.name, error=error)
        return CredentialCheck(
            account, metadata.name, read_fetched(result.fetched), None, result.rights, result.warnings
        )

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout


@asynccontextmanager
async def open_checker(settings: Settings) -> AsyncIterator[Checker]:
    """A checker on the settings' database and plugins; everything that it opens is closed at the end."""
    registry = open_registry(settings)
    store = await open_configured_store(settings)
    http = VenueHttpPool(timeout=settings.venue_timeout)
    replacements = Replacements(store)
    opening = replacements.opening(store.open, registry.rotates)
    venues = open_venues(settings, registry, opening, http, VenueStatus(), replacements.replace)
    try:
        yield Checker(settings, venues, store, registry)
    finally:
        await venues.close()
        await http.close()
        # A token that was spent is lost if the new one is not stored.
        await replacements.close()
        await store.close()
        await registry.close()
