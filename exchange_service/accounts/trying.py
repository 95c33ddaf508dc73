"""Trying credentials at their venues: behind the gate as every other fetch, and within a limit of refused attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from exchange_service.accounts.candidates import Candidates
from exchange_service.accounts.checking import CheckResult, check_target
from exchange_service.deadlines import time_remaining
from exchange_service.errors import CredentialInvalid, DeadlinePassed, NotSupported, ServiceError, VenueError
from exchange_service.identity.quotas import AccountAttempts
from exchange_service.model import Account, Credential, KeyRights
from exchange_service.tasks import without_origin
from exchange_service.venue_gate import Gated
from exchange_service.venues.fetching import Target, Venues
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing
from exchange_service.wire.balances import FetchedBalance

# Seconds of the call's time that the venue leaves for the store.
_FOR_THE_STORE = 1.0
# Seconds below which the venue is not asked: no answer would come in time.
_LEAST_TIME = 0.2


@dataclass(frozen=True, slots=True)
class GatedVenues:
    """Accounts and the rights of their keys, both read through the gate."""

    gate: Gated
    venues: Venues

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        """See `Fetcher`."""
        return await self.gate.fetch(target, deadline, priority)

    async def key_rights(self, target: Target, deadline: float) -> KeyRights:
        """See `CheckedVenues`."""

        async def ask(target: Target, deadline: float, priority: Priority) -> KeyRights:
            return await self.venues.key_rights(target, deadline)

        return await self.gate.through(target, deadline, Priority(), ask)


@dataclass(frozen=True, slots=True)
class Attempts:
    """Tries credentials. `limit` counts what venues refuse of each account, `user_key` gives the hash that stands for a
    user at the gate, and `venue_timeout` is in seconds."""

    venues: GatedVenues
    candidates: Candidates
    limit: AccountAttempts
    user_key: Callable[[str], str]
    venue_timeout: float

    async def of_candidate(
        self, account: Account, listing: Listing, credential: Credential
    ) -> tuple[CheckResult, Credential]:
        """Try a credential that is not stored, in a session of its own. Returns the credential as it is to be stored:
        its plugin may have spent a token and got another one. Raises as `of_stored`."""
        with self.candidates.trying(account, credential, self.venues.venues.forget) as reference:
            target = Target(account, listing, reference, user_key=self.user_key(account.user_id))
            result = await self.of_stored(target)
            return result, self.candidates.newest(reference)

    async def of_stored(self, target: Target) -> CheckResult:
        """Try the credential that the target names. Raises what the venue says of it, DeadlinePassed, or
        CallerRateLimited after too many refused attempts."""
        account = _name(target.account)
        await self.limit.take(account)
        try:
            result = await check_target(self.venues, target, self._deadline)
        except ServiceError as error:
            failure = without_origin(error)
        else:
            self.limit.give_back(account)
            return result
        if not _is_refusal(failure):
            self.limit.give_back(account)
        raise failure

    async def leave_untried(self, account: Account) -> None:
        """Count that a credential is stored untried: the first balance is an attempt. CallerRateLimited as
        `of_stored`."""
        await self.limit.take(_name(account))

    def _deadline(self) -> float:
        remaining = time_remaining()
        seconds = self.venue_timeout if remaining is None else min(self.venue_timeout, remaining - _FOR_THE_STORE)
        if seconds < _LEAST_TIME:
            raise DeadlinePassed("The call's deadline leaves too little time to ask the venue.")
        return asyncio.get_running_loop().time() + seconds


def _name(account: Account) -> str:
    return "\0".join((account.user_id, account.exchange_id, account.environment))


def _is_refusal(error: ServiceError) -> bool:
    """Whether the venue may have counted it as a wrong key."""
    if not isinstance(error, VenueError) or isinstance(error, CredentialInvalid | NotSupported):
        return False
    return error.venue_was_asked and not error.transient
