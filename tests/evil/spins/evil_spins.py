"""Computes without end, and never yields to its event loop."""

from evil_common import EvilPlugin

from exchange_service.plugin_api import VenueCall


async def spins(call: VenueCall) -> None:
    while True:
        pass


plugin = EvilPlugin("evil-spins", spins)
