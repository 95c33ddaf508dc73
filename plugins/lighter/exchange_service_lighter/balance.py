"""One balance of Lighter: all accounts of a wallet, or the account of one index."""

from __future__ import annotations

from dataclasses import replace

from exchange_service.plugin_api import Balance, KeyRights, VenueCall
from exchange_service_lighter import parse
from exchange_service_lighter.client import LighterClient


async def read_balance(call: VenueCall) -> Balance:
    """The accounts with Lighter's summary, and with notes on the stored token."""
    client = LighterClient(call)
    balance = await call.compute(parse.balance, await client.accounts(), client.usual_collateral)
    return replace(balance, notes=(*client.notes, *balance.notes))


def key_rights(call: VenueCall) -> KeyRights:
    """What the stored token may do, without a request: a token cannot sign, so it can neither trade nor withdraw."""
    client = LighterClient(call)
    return KeyRights(
        trade=False, withdraw=False, expires=client.token.expires if client.token else None, notes=client.notes
    )
