"""Every exchange of CCXT: its listing, the balance of one account, and what its key may do.

Importing this package does not import CCXT: that takes seconds and a hundred megabytes, and only a balance needs it.
"""

from __future__ import annotations

from exchange_service.plugin_api import Balance, KeyRights, Manifest, VenueCall, hookimpl
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


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return await CcxtClient(call).key_rights()
