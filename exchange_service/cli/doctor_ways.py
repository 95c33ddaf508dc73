"""What `exchange-service doctor` says of the ways out: whether each leads to a venue. No venue is sent a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from exchange_service.errors import ServiceError
from exchange_service.model import ExchangeMetadata
from exchange_service.settings import Settings
from exchange_service.startup_checks import UnsafeSettings, open_egress, venue_overrides
from exchange_service.venues.egress import DIRECT, Egress, Way
from exchange_service.venues.registry import Registry
from exchange_service.venues.tunnels import open_tunnel

# Seconds for a connection through a proxy.
_LIMIT = 5.0


@dataclass(frozen=True, slots=True)
class WayCheck:
    """What was seen of a way: its name, whether it works, and a sentence."""

    name: str
    works: bool
    text: str


async def check_ways(settings: Settings, registry: Registry) -> list[WayCheck]:
    """One of each way but the direct one; empty if `egress` cannot be used, which the settings' check tells."""
    try:
        egress, overrides = open_egress(settings, registry), venue_overrides(settings, registry)
    except UnsafeSettings:
        return []
    ways = [way for name, way in egress.ways.items() if name != DIRECT]
    return list(await asyncio.gather(*(_check(way, egress, registry, overrides) for way in ways)))


async def _check(way: Way, egress: Egress, registry: Registry, overrides: Mapping[str, str]) -> WayCheck:
    seen_as = f" Venues see {way.address}." if way.address else ""
    if way.proxy is None:
        return WayCheck(way.name, True, f"begins at {way.local_address}, an address of this machine.{seen_as}")
    served = [item.metadata for item in registry.listings.values() if way in egress.serving({item.metadata.id})]
    if not served:
        return WayCheck(way.name, True, "leads to no venue: name it in venues or pinned.")
    venue = served[0]
    host, port = _host_of(venue, overrides)
    try:
        tunnel = await open_tunnel(way, venue.name, host, port, _LIMIT)
    except ServiceError as error:
        return WayCheck(way.name, False, f"{error.message} Check the proxy, and egress.")
    tunnel.close()
    return WayCheck(way.name, True, f"its proxy connects to {venue.name} ({host}:{port}).{seen_as}")


def _host_of(venue: ExchangeMetadata, overrides: Mapping[str, str]) -> tuple[str, int]:
    place = venue.environments[0]
    override = overrides.get(f"{venue.id}.{place.name}") or overrides.get(venue.id)
    parts = urlsplit(override or next(iter(place.urls.values())))
    return parts.hostname or "", parts.port or (80 if parts.scheme in ("http", "ws") else 443)
