"""Gives a manifest whose fields hold values of wrong types."""

from typing import Any

from evil_common import WELL, listing

from exchange_service.plugin_api import Balance, Manifest, VenueCall, hookimpl


@hookimpl
def exchange_manifest() -> Manifest:
    nonsense: Any = float("nan")
    return Manifest(1, (listing("evil-babbles", asset_types=[object()], logo=nonsense, countries=b"\x00\xff"),))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return WELL
