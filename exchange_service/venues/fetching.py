"""What passes along the road of a fetch: its target, and the protocol of every layer on the road."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from exchange_service.credentials import CredentialReference
from exchange_service.model import Account, Credential, KeyRights, VenueReports
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing
from exchange_service.venues.watching import Pushed
from exchange_service.wire.balances import FetchedBalance

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Target:
    """What a fetch is to read.

    `key` names the balance in the cache, `credential_key` the stored credential for all account types, and `user_key`
    the user; they are keyed hashes, and empty in a plugin's process, which keeps nothing. `newer_than` is the fetch
    time, in seconds since the epoch, of the balance that the caller has already, and `not_before` the earliest one that
    the caller accepts: what another replica brings must be newer than both. Nothing with a lower version than
    `known_version` serves.
    """

    account: Account
    listing: Listing
    reference: CredentialReference
    key: str = ""
    credential_key: str = ""
    user_key: str = ""
    newer_than: float = 0.0
    not_before: float = 0.0
    known_version: int = 0
    # In a plugin's process: the name of the way out that the service has chosen. Elsewhere empty.
    way: str = ""
    # What the plugin reports of the venue's limits while the fetch is made, for the gate.
    reports: VenueReports = field(default_factory=VenueReports, compare=False)

    async def opened(self, opening: Awaitable[Credential]) -> Credential:
        """What the reference leads to, once it is opened; `reports` say meanwhile that the fetch waits for it."""
        self.reports.opening = True
        try:
            return await opening
        finally:
            self.reports.opening = False

    @property
    def wanted_after(self) -> float:
        """The fetch time that another replica's balance must exceed."""
        return max(self.newer_than, self.not_before)


class Fetcher(Protocol[T_co]):
    """One layer of the road. Each has the next one inside and adds one thing; the innermost calls the plugin."""

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> T_co:
        """Read the target's balance by `deadline`, in the event loop's time. Raises a ServiceError."""


class CheckedVenues(Fetcher[FetchedBalance], Protocol):
    """Reads accounts, and tells what their keys may do."""

    async def key_rights(self, target: Target, deadline: float) -> KeyRights:
        """What the account's key may do at the venue, as far as its plugin can tell. Raises as `fetch` does."""


class Venues(CheckedVenues, Protocol):
    """Reads accounts through their plugins, wherever those run: the innermost layer."""

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        """The plugin's answer. Raises a VenueError, PluginFailed, PluginUnavailable, or what opening the credential
        raises."""

    def watch(self, target: Target) -> AsyncGenerator[Pushed, None]:
        """What the venue pushes of the account, from the moment at which its subscription stands. Ends with a
        VenueError, PluginFailed, PluginUnavailable, or what opening the credential raises; NotSupported if the venue
        does not push this account."""

    def forget(self, account: Account) -> None:
        """Close the account's session soon, without waiting for it: its credential has changed or gone."""

    async def close(self) -> None:
        """Close every session."""
