"""Every exchange of CCXT: its listing, the balance of one account, and what its key may do.

Importing this package does not import CCXT, which takes seconds and a hundred megabytes. Only a balance needs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from exchange_service.plugin_api import Balance, Changed, KeyRights, Manifest, VenueCall, hookimpl
from exchange_service_ccxt_generic.balance import read_balance, read_key_rights
from exchange_service_ccxt_generic.catalogue import newer_manifest, shipped_manifest
from exchange_service_ccxt_generic.push import watch


@hookimpl
def exchange_manifest() -> Manifest:
    return shipped_manifest()


@hookimpl
async def refresh_manifest() -> Manifest | None:
    return await newer_manifest()


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Changed]:
    async with aclosing(watch(call)) as changes:
        async for change in changes:
            yield change


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return await read_key_rights(call)
