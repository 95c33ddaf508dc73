"""Naming the service's address on the internet in errors, for the user who has to allow it at the venue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exchange_service.errors import AddressNotAllowed
from exchange_service.tasks import without_origin
from exchange_service.wire.balances import FetchedBalance, fault_message, parse_fetched, read_fault

_USUAL_ADVICE = "Add it to the IP allow-list of the key."


@contextmanager
def named_in_errors(address: str) -> Iterator[None]:
    """Name the operator's `outgoing_address` in an AddressNotAllowed that is raised inside; empty: change nothing."""
    try:
        yield
    except AddressNotAllowed as error:
        # Without its origin: the error with the address has this one as its context, and may be kept for long.
        plain = without_origin(error)
        raise (_naming(plain, address) if address else plain) from None


def name_in_accounts(fetched: FetchedBalance, address: str) -> FetchedBalance:
    """The plugin's answer with the address named in the errors of its accounts."""
    if not address:
        return fetched
    message = parse_fetched(fetched)
    named = False
    for account in message.venue_accounts:
        error = read_fault(account.error) if account.HasField("error") else None
        if isinstance(error, AddressNotAllowed):
            account.error.CopyFrom(fault_message(_naming(error, address)))
            named = True
    return FetchedBalance(message.SerializeToString(deterministic=True)) if named else fetched


def _naming(error: AddressNotAllowed, address: str) -> AddressNotAllowed:
    if address in error.text:
        return error
    usual = _USUAL_ADVICE if error.advice is None else error.advice
    advice = f"{usual} This service calls from {address}.".strip()
    return AddressNotAllowed(error.message, retry_after=error.given_delay, advice=advice)
