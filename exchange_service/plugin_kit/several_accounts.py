"""Several venue accounts behind one credential: reading each on its own, and one summary for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from functools import partial

from exchange_service.amounts import exact_sum
from exchange_service.errors import CredentialRejected, VenueError
from exchange_service.model import Summary, VenueAccount
from exchange_service.plugin_kit.tasks import without_exit


async def gather_accounts(
    ids: Sequence[str],
    read: Callable[[str], Awaitable[VenueAccount]],
    *,
    type: str = "",
    unread: Callable[[str], VenueAccount] | None = None,
) -> tuple[VenueAccount, ...]:
    """Read the accounts at the same time, by `read`; the results are in the order of `ids`.

    An account that fails with a VenueError is in the result with its error and with `type`, or as `unread(id)`
    describes it. Raises the error if all accounts fail, or if any fails with CredentialRejected, because the key is
    the same for all. Any other exception is raised after all reads have ended.
    """
    results = await _read_all(ids, read)
    _raise_if_nothing_is_known(results)
    describe = unread or partial(VenueAccount, type=type)
    return tuple(
        replace(describe(account_id), error=result) if isinstance(result, VenueError) else result
        for account_id, result in zip(ids, results, strict=True)
    )


def combined_summary(accounts: Sequence[VenueAccount]) -> Summary | None:
    """The summary for accounts that do not overlap: the sum of each figure that all of them state.

    None if there is no account, if one has an error or no summary, or if their currencies differ.
    """
    summaries = [account.summary for account in accounts]
    known = [summary for summary in summaries if summary is not None]
    if not known or len(known) != len(summaries) or len({summary.currency for summary in known}) != 1:
        return None
    if len(known) == 1:
        return known[0]
    figures: dict[str, Decimal] = {}
    for item in fields(Summary):
        values = [getattr(summary, item.name) for summary in known]
        if item.name == "currency" or None in values:
            continue
        figures[item.name] = exact_sum(values)
    return Summary(currency=known[0].currency, **figures)


async def _read_all(
    ids: Sequence[str], read: Callable[[str], Awaitable[VenueAccount]]
) -> list[VenueAccount | VenueError]:
    async def read_one(account_id: str) -> VenueAccount | VenueError:
        try:
            return await without_exit(partial(read, account_id), "reading an account")
        except VenueError as error:
            return error

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
