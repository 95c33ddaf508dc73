"""Several venue accounts behind one credential: reading each on its own, and one summary for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from exchange_service.amounts import exact_sum
from exchange_service.errors import CredentialRejected, VenueError, VenueMalformed
from exchange_service.model import Summary, VenueAccount
from exchange_service.plugin_kit.payload import as_object
from exchange_service.plugin_kit.tasks import without_exit
from exchange_service.tasks import without_origin

Listed = TypeVar("Listed")

# More than any venue shows behind one credential: each costs a request, an account in the balance, or both.
MOST_ACCOUNTS = 200
# Accounts that are read at the same time. Each may be waiting with an answer of the largest size.
_AT_ONCE = 16
# What may be spent within one account, in words. Another account's money does not pay for a deficit of it.
_SPENDABLE = {"available": "available amount", "buying_power": "buying power"}


def read_account_list(
    entries: Iterable[Any],
    identify: Callable[[Mapping[str, Any]], str],
    read: Callable[[Mapping[str, Any]], Listed],
) -> dict[str, Listed | VenueMalformed]:
    """The accounts of a venue's list by their ids: each as `read` gives it, or as the error why it cannot be read.

    An entry that is malformed, or whose id is listed twice, is the error of that account alone. The entries in which
    `identify` finds no id stand together under the empty id, as one error. Raises VenueMalformed if there are more than
    200 entries.
    """
    return _read_entries(entries, identify, read, VenueMalformed)


def split_accounts(
    entries: Iterable[Any],
    identify: Callable[[Mapping[str, Any]], str],
    read: Callable[[Mapping[str, Any]], VenueAccount],
    *,
    type: str = "",
    unread: Callable[[str], VenueAccount] | None = None,
) -> tuple[VenueAccount, ...]:
    """The accounts that one answer holds, each as `read` makes it of its entry, in the order of the entries.

    An entry holds its own id. If the venue has an object by names or numbers, give each entry as a mapping of both,
    such as {"id": name, "account": value}.

    An entry that is malformed, one whose id is listed twice, and one for which `read` raises another VenueError, is in
    the result with its error and with `type`, or as `unread(id)` describes it; the others stand. The entries in which
    `identify` finds no id stand together under the empty id, as one error. Raises the error if all accounts fail, or if
    any fails with CredentialRejected, because the key is the same for all, and VenueMalformed if there are more than
    200 entries.
    """
    found = _read_entries(entries, identify, read, VenueError)
    return _with_errors(list(found), list(found.values()), type, unread)


Refusal = TypeVar("Refusal", bound=VenueError)


def _read_entries(
    entries: Iterable[Any],
    identify: Callable[[Mapping[str, Any]], str],
    read: Callable[[Mapping[str, Any]], Listed],
    refusal: type[Refusal],
) -> dict[str, Listed | Refusal | VenueMalformed]:
    """What `read` makes of each entry, by its id, or the error of the kind `refusal` that is this account's alone."""
    entries = tuple(islice(entries, MOST_ACCOUNTS + 1))
    check_number(len(entries))
    found: dict[str, Listed | Refusal | VenueMalformed] = {}
    for entry in entries:
        account_id = ""
        try:
            account_id = identify(as_object(entry, "an account of the list"))
            listed: Listed | Refusal | VenueMalformed = read(entry)
        except refusal as error:
            listed = without_origin(error)
        if account_id in found:
            listed = VenueMalformed(_TWICE if account_id else _WITHOUT_IDS)
        found[account_id] = listed
    return found


def check_number(accounts: int) -> None:
    """Raise VenueMalformed if there are more accounts behind one credential than 200."""
    if accounts > MOST_ACCOUNTS:
        raise VenueMalformed(
            f"The venue lists more than {MOST_ACCOUNTS} accounts behind one credential.",
            advice="Use a key that reads fewer accounts, or store the account_id of one if the exchange takes it.",
        )


_TWICE = "The venue lists this account twice."
_WITHOUT_IDS = "The venue lists several accounts without a readable id."


async def gather_accounts(
    ids: Sequence[str],
    read: Callable[[str], Awaitable[VenueAccount]],
    *,
    type: str = "",
    unread: Callable[[str], VenueAccount] | None = None,
) -> tuple[VenueAccount, ...]:
    """Read the accounts by `read`, 16 at the same time; the results are in the order of `ids`.

    An account that fails with a VenueError is in the result with its error and with `type`, or as `unread(id)`
    describes it. Raises the error if all accounts fail, or if any fails with CredentialRejected, because the key is
    the same for all. Any other exception is raised after all reads have ended. Raises VenueMalformed, and reads none,
    if there are more than 200.
    """
    check_number(len(ids))
    return _with_errors(ids, await _read_all(ids, read), type, unread)


def _with_errors(
    ids: Sequence[str],
    results: Sequence[VenueAccount | VenueError],
    account_type: str,
    unread: Callable[[str], VenueAccount] | None,
) -> tuple[VenueAccount, ...]:
    """Each account as it was read, or with its error; raises as `gather_accounts` says."""
    _raise_if_nothing_is_known(results)
    describe = unread or partial(VenueAccount, type=account_type)
    return tuple(
        replace(describe(account_id), error=result) if isinstance(result, VenueError) else result
        for account_id, result in zip(ids, results, strict=True)
    )


def combined_summary(accounts: Sequence[VenueAccount]) -> Summary | None:
    """The summary for accounts that do not overlap: the sum of each figure that all of them state.

    Money and profit are added whatever their signs. What may be spent within an account, `available` and
    `buying_power`, is added only if no account has a negative one: see `deficit_notes`. An account that holds nothing
    takes nothing away: beside others it is not counted. None if there is no account, if one has an error or no summary,
    or if the currencies of those that count differ.
    """
    counted = [account for account in accounts if not _holds_nothing(account)] or accounts[:1]
    summaries = [account.summary for account in counted]
    known = [summary for summary in summaries if summary is not None]
    if not known or len(known) != len(summaries) or len({summary.currency for summary in known}) != 1:
        return None
    if len(known) == 1:
        return known[0]
    figures: dict[str, Decimal] = {}
    for item in fields(Summary):
        values = [getattr(summary, item.name) for summary in known]
        if item.name == "currency" or None in values or (item.name in _SPENDABLE and min(values) < 0):
            continue
        figures[item.name] = exact_sum(values)
    return Summary(currency=known[0].currency, **figures)


def _holds_nothing(account: VenueAccount) -> bool:
    """Whether the venue states figures for the account, and every one of them is zero."""
    if account.error is not None or account.summary is None:
        return False
    stated = (getattr(account.summary, item.name) for item in fields(Summary) if item.name != "currency")
    known = [figure for figure in stated if figure is not None]
    return bool(known) and not any(known) and all(row.is_zero() for row in account.assets)


def deficit_notes(accounts: Sequence[VenueAccount], summary: Summary | None) -> tuple[str, ...]:
    """A sentence for each figure that `summary`, over these accounts, lacks because one of them has a negative one."""
    if summary is None or len(accounts) < 2:
        return ()
    notes = []
    for figure, words in _SPENDABLE.items():
        short = [account.id or account.type for account in accounts if _is_negative(account.summary, figure)]
        if short and getattr(summary, figure) is None:
            notes.append(
                f"There is no {words} for all accounts together, because it is negative in {', '.join(short)}: "
                "another account's money does not pay for that."
            )
    return tuple(notes)


def _is_negative(summary: Summary | None, figure: str) -> bool:
    value = None if summary is None else getattr(summary, figure)
    return value is not None and value < 0


async def _read_all(
    ids: Sequence[str], read: Callable[[str], Awaitable[VenueAccount]]
) -> list[VenueAccount | VenueError]:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def read_one(account_id: str) -> VenueAccount | VenueError:
        try:
            async with slots:
                return await without_exit(partial(read, account_id), "reading an account")
        except VenueError as error:
            return without_origin(error)

    results: list[VenueAccount | VenueError] = []
    # One that breaks does not end the wait: no read may go on after this call has ended.
    for result in await asyncio.gather(*(read_one(account_id) for account_id in ids), return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, VenueError):
            raise result
        results.append(result)
    return results


def _raise_if_nothing_is_known(results: Sequence[VenueAccount | VenueError]) -> None:
    """Raise the error of a refused key or of accounts that all failed; a transient error is preferred."""
    errors = [result for result in results if isinstance(result, VenueError)]
    refused = [error for error in errors if isinstance(error, CredentialRejected)]
    if refused or (errors and len(errors) == len(results)):
        candidates = refused or errors
        raise next((error for error in candidates if error.transient), candidates[0])
