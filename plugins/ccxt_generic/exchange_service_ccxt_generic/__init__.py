"""Every exchange of CCXT: its listing, and the balance of one account.

Importing this package does not import CCXT: that takes seconds and a hundred megabytes, and only a balance needs it.
"""

from __future__ import annotations

from exchange_service.plugin_api import Balance, Manifest, VenueCall, hookimpl
from exchange_service_ccxt_generic.catalogue import newer_manifest, shipped_manifest
from exchange_service_ccxt_generic.client import CcxtClient


@hookimpl
def exchange_manifest() -> Manifest:
    return shipped_manifest()


@hookimpl
async def refresh_manifest() -> Manifest | None:
    return await newer_manifest()


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await CcxtClient(call).balance()
