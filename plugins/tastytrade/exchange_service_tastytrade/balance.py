"""One balance of tastytrade: the stored account, or every open account of the login."""

from __future__ import annotations

from dataclasses import replace

from exchange_service.plugin_api import (
    Balance,
    VenueAccount,
    VenueCall,
    VenueMalformed,
    combined_summary,
    gather_accounts,
)
from exchange_service_tastytrade import parse
from exchange_service_tastytrade.client import TastytradeClient


async def read_balance(call: VenueCall) -> Balance:
    """The accounts of the requested types, with the oldest of their times. An account that fails has its error."""
    client = TastytradeClient(call)
    listed = await client.accounts()
    requested = {number: account for number, account in listed.items() if _is_requested(account, call)}

    async def read(number: str) -> VenueAccount:
        entry = requested[number]
        if isinstance(entry, VenueMalformed):
            raise entry
        account = await call.compute(parse.account, await client.balances(number), number)
        return replace(account, type=entry.type, label=entry.label)

    def unread(number: str) -> VenueAccount:
        """The account without its figures: the list has its type and its name also if it cannot be read."""
        entry = requested[number]
        return (
            VenueAccount(number)
            if isinstance(entry, VenueMalformed)
            else VenueAccount(number, entry.type, label=entry.label)
        )

    accounts = await gather_accounts(list(requested), read, unread=unread)
    times = [account.venue_time for account in accounts if account.venue_time is not None]
    closed = [number for number, account in listed.items() if not parse.is_open(account)]
    notes = (f"Closed at tastytrade, and left out: {', '.join(closed)}.",) if closed else ()
    return Balance(accounts, combined_summary(accounts), venue_time=min(times, default=None), notes=notes)


def _is_requested(listed: parse.ListedAccount | VenueMalformed, call: VenueCall) -> bool:
    """Whether the account may be open and is of a requested type. An account whose type is not known is."""
    return isinstance(listed, VenueMalformed) or (not listed.closed and call.wants(listed.type))
