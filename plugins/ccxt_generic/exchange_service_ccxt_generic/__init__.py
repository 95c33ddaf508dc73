"""Every exchange of CCXT: its listing, the balance of one account, and what its key may do.

Importing this package does not import CCXT, which takes seconds and a hundred megabytes. Only a balance needs it, and
what reads one: that is imported in the process that is asked for it, and not where the listings are read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from exchange_service.plugin_api import Balance, Changed, KeyRights, Manifest, VenueCall, hookimpl
from exchange_service_ccxt_generic.catalogue import newer_manifest, shipped_manifest


@hookimpl
def exchange_manifest() -> Manifest:
    return shipped_manifest()


@hookimpl
async def refresh_manifest() -> Manifest | None:
    return await newer_manifest()


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    from exchange_service_ccxt_generic.balance import read_balance

    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Changed]:
    from exchange_service_ccxt_generic.push import watch

    async with aclosing(watch(call)) as changes:
        async for change in changes:
            yield change


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    from exchange_service_ccxt_generic.balance import read_key_rights

    return await read_key_rights(call)
