"""A user's stored accounts: which row serves which account, and how each is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from exchange_service.balances.known import KnownState
from exchange_service.balances.service import Balances
from exchange_service.credentials import StoredCredential
from exchange_service.errors import CredentialInvalid, ExchangeRetired, ServiceError
from exchange_service.model import PRODUCTION, Account, ExchangeMetadata
from exchange_service.tasks import without_origin
from exchange_service.venues.registry import Registry


@dataclass(frozen=True, slots=True)
class StoredAccount:
    """An account whose credential is stored, as callers know it. `stored_time` is in seconds since the epoch."""

    account: Account
    stored_time: float | None
    sealed: bool
    known: KnownState = field(default_factory=KnownState)


def matching_rows(
    rows: Iterable[StoredCredential], account: Account, metadata: ExchangeMetadata
) -> list[StoredCredential]:
    """The rows that serve this account, perhaps under an alias of the environment; several are a mistake."""
    names = {account.environment, *metadata.environment_aliases(account.environment)}
    return [
        row for row in rows if row.account.exchange_id == account.exchange_id and _environment(row.account) in names
    ]


def named_rows(rows: Iterable[StoredCredential], exchange_id: str, environment: str) -> list[StoredCredential]:
    """The rows with these names, letter by letter, or else in small letters."""
    wanted = environment.strip().lower() or PRODUCTION
    there = [row for row in rows if _environment(row.account) == wanted]
    exact = [row for row in there if row.account.exchange_id == exchange_id.strip()]
    return exact or [row for row in there if row.account.exchange_id == exchange_id.strip().lower()]


def only_row(rows: Sequence[StoredCredential], account: Account) -> StoredCredential | None:
    """The row, or None. CredentialInvalid if there are several."""
    if len(rows) > 1:
        raise _several(account)
    return rows[0] if rows else None


def _several(account: Account) -> CredentialInvalid:
    return CredentialInvalid(
        f"More than one credential is stored for {account.exchange_id} in the environment {account.environment}.",
        advice="Remove the account, and connect it again.",
    )


def _environment(account: Account) -> str:
    return account.environment.strip().lower() or PRODUCTION


def show_accounts(rows: Iterable[StoredCredential], registry: Registry, balances: Balances) -> list[StoredAccount]:
    """Each account once, sorted, with what this replica knows of it."""
    shown: dict[Account, StoredAccount] = {}
    for row in rows:
        account, is_served, error = _as_served(row.account, registry)
        known = balances.known(account) if is_served else KnownState(error=error)
        if account in shown:
            known = KnownState(known.last_fetch_time, _several(account), known.delivery)
        shown[account] = StoredAccount(account, row.stored_time, row.sealed, known)
    return [shown[account] for account in sorted(shown)]


def _as_served(account: Account, registry: Registry) -> tuple[Account, bool, ServiceError | None]:
    """The account as a call names it, and whether a plugin serves it; as it is stored if none does, with the error if
    one did once."""
    try:
        served, _ = registry.account(account.user_id, account.exchange_id, account.environment, suggest=False)
    except ExchangeRetired as retired:
        return account, False, without_origin(retired)
    except ServiceError:
        return account, False, None
    # No call finds a row whose exchange has capitals.
    return (served, True, None) if served.exchange_id == account.exchange_id else (account, False, None)
