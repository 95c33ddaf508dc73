"""One balance of tastytrade: the stored account, or every open account of the login."""

from __future__ import annotations

from dataclasses import replace

from exchange_service.plugin_api import Balance, VenueAccount, VenueCall, combined_summary, gather_accounts
from exchange_service_tastytrade import parse
from exchange_service_tastytrade.client import TastytradeClient


async def read_balance(call: VenueCall) -> Balance:
    """The accounts of the requested types, with the oldest of their times. An account that fails has its error."""
    client = TastytradeClient(call)
    listed = {account.number: account for account in await client.accounts() if call.wants(account.type)}

    async def read(number: str) -> VenueAccount:
        return parse.account(await client.balances(number), number)

    # The list has the type and the name of an account, also if its balances cannot be read.
    accounts = tuple(
        replace(account, type=listed[account.id].type, label=listed[account.id].label)
        for account in await gather_accounts(list(listed), read)
    )
    times = [account.venue_time for account in accounts if account.venue_time is not None]
    return Balance(accounts, combined_summary(accounts), venue_time=min(times, default=None))
