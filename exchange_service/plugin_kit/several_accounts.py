"""Several venue accounts behind one credential: reading each on its own, and the one figure for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from functools import partial

from exchange_service.amounts import exact_sum
from exchange_service.errors import CredentialRejected, VenueError
from exchange_service.model import Summary, VenueAccount


async def gather_accounts(
    ids: Sequence[str],
    read: Callable[[str], Awaitable[VenueAccount]],
    *,
    type: str = "",
    unread: Callable[[str], VenueAccount] | None = None,
) -> tuple[VenueAccount, ...]:
    """Read each account by `read`, at the same time. One that fails with a VenueError stands in the result with
    its error; where all fail, or the key is refused, the error is raised, because then nothing is known.

    `unread` names an account that failed, where it has more than the id and the one `type`.
    """

    async def one(account_id: str) -> VenueAccount | VenueError:
        try:
            return await read(account_id)
        except VenueError as error:
            return error
        except SystemExit:
            # Out of a task it would end the event loop, and with it the service.
            raise RuntimeError("reading an account wanted to exit") from None

    # All are waited for, also where one breaks: none may go on reading after this call has ended.
    results: list[VenueAccount | VenueError] = []
    for outcome in await asyncio.gather(*(one(account_id) for account_id in ids), return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, VenueError):
            raise outcome
        results.append(outcome)
    failures = [result for result in results if isinstance(result, VenueError)]
    refused = [failure for failure in failures if isinstance(failure, CredentialRejected)]
    if refused or (failures and len(failures) == len(results)):
        raise next((failure for failure in refused or failures if failure.transient), (refused or failures)[0])
    name = unread or partial(VenueAccount, type=type)
    return tuple(
        replace(name(account_id), error=result) if isinstance(result, VenueError) else result
        for account_id, result in zip(ids, results, strict=True)
    )


def combined_summary(accounts: Sequence[VenueAccount]) -> Summary | None:
    """The summary for accounts that do not overlap: each figure that all of them give, summed.

    None where there is no account, one could not be read or has no summary, or their currencies differ.
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
