"""One balance of OANDA: the stored account, or every account of the token."""

from __future__ import annotations

import asyncio

from exchange_service.plugin_api import (
    Balance,
    VenueAccount,
    VenueCall,
    VenueMalformed,
    combined_summary,
    gather_accounts,
)
from exchange_service_oanda import parse
from exchange_service_oanda.client import OandaClient

# OANDA recommends at most two new connections a second.
_CONCURRENT_READS = 2


async def read_balance(call: VenueCall) -> Balance:
    """The accounts with a summary, if it can be given for all of them. An account that fails has its error."""
    client = OandaClient(call)
    slots = asyncio.Semaphore(_CONCURRENT_READS)

    listed = await client.accounts()
    last = await client.last_read()
    last.accounts = listed.keys()

    async def read(account_id: str) -> VenueAccount:
        if isinstance(broken := listed[account_id], VenueMalformed):
            raise broken
        async with slots:
            payload = await client.summary(account_id)
        account = await call.compute(parse.account, payload, account_id)
        last.holding[account_id] = parse.holds_trades(payload)
        return account

    accounts = await gather_accounts(list(listed), read, type="forex")
    return Balance(accounts, combined_summary(accounts))
