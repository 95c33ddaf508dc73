"""Computes without an end, and without giving anybody else a turn."""

from evil_common import EvilPlugin

from exchange_service.plugin_api import VenueCall


async def spins(call: VenueCall) -> None:
    while True:
        pass


plugin = EvilPlugin("evil-spins", spins)
