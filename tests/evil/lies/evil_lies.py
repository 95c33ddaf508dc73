"""Gives a dict instead of a manifest."""

from evil_common import WELL

from exchange_service.plugin_api import Balance, VenueCall, hookimpl


@hookimpl
def exchange_manifest() -> dict[str, object]:
    return {"api_version": 1, "exchanges": ["oanda"]}


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return WELL
