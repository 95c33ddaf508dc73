"""What a credential shows at its venue: the balance of every account that it opens, and what else its key may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from exchange_service.errors import ServiceError
from exchange_service.model import ALL_ACCOUNT_TYPES, KeyRights
from exchange_service.venues.fetching import CheckedVenues, Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.balances import FetchedBalance

READ_ONLY_SUFFICES = "This service only reads: a key without that right is enough, and safer."


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a credential shows. `rights` is None if they could not be read; `warnings` are sentences for the key's
    owner."""

    fetched: FetchedBalance
    rights: KeyRights | None = None
    warnings: tuple[str, ...] = ()


async def check_target(venues: CheckedVenues, target: Target, deadline: Callable[[], float]) -> CheckResult:
    """Read the target's account, of every type, and ask what its key may do. `deadline` gives each of the two requests
    its own, in the event loop's time. Raises the error that prevents the reading."""
    account = replace(target.account, account_type=ALL_ACCOUNT_TYPES)
    fetched = await venues.fetch(replace(target, account=account), deadline(), Priority())
    rights, doubts = await _read_rights(venues, target, deadline)
    return CheckResult(fetched, rights, (*doubts, *rights_warnings(rights)))


async def _read_rights(
    venues: CheckedVenues, target: Target, deadline: Callable[[], float]
) -> tuple[KeyRights | None, tuple[str, ...]]:
    """The key's rights. A failure here is a warning, because the key reads balances all the same."""
    try:
        return await venues.key_rights(target, deadline()), ()
    except ServiceError as error:
        return None, (f"The key's rights could not be read: {error.text}",)


def rights_warnings(rights: KeyRights | None) -> tuple[str, ...]:
    """Sentences for the owner of a key that may do more than read."""
    if rights is None:
        return ()
    may = [word for word, allowed in (("trade", rights.trade), ("withdraw", rights.withdraw)) if allowed]
    return (f"The key may {' and '.join(may)}. {READ_ONLY_SUFFICES}",) if may else ()
