"""One balance of Lighter: all accounts of a wallet, or the account of one index."""

from __future__ import annotations

import asyncio

from exchange_service.plugin_api import Balance, KeyRights, VenueCall
from exchange_service_lighter.client import LighterClient
from exchange_service_lighter.last_read import FoundAccounts, last_read


async def read_balance(call: VenueCall) -> Balance:
    """The accounts with Lighter's summary, and with notes on the stored token."""
    client = LighterClient(call)
    kept, begun = await last_read(call), asyncio.get_running_loop().time()
    accounts = await client.accounts()
    findings = FoundAccounts(tuple(accounts), client.usual_collateral, client.notes, begun)
    balance = await call.compute(findings.balance, accounts)
    kept.put(findings)
    return balance


def key_rights(call: VenueCall) -> KeyRights:
    """What the stored token may do, without a request: a token cannot sign, so it can neither trade nor withdraw."""
    client = LighterClient(call)
    return KeyRights(
        trade=False, withdraw=False, expires=client.token.expires if client.token else None, notes=client.notes
    )
