"""A registry of one exchange, without what the other tests need."""

from __future__ import annotations

from exchange_service.model import PluginInfo
from exchange_service.plugin_api import (
    Balance,
    Capabilities,
    Environment,
    ExchangeMetadata,
    Manifest,
    VenueCall,
    hookimpl,
)
from exchange_service.venues.loading import load_plugin
from exchange_service.venues.registry import Registry

LISTING = ExchangeMetadata(
    id="fakex",
    name="Fakex",
    asset_class="Crypto",
    asset_types="Crypto Spot",
    market_hours="24/7 Trading",
    environments=(Environment("production", {"api": "https://venue.example"}, aliases=("live",)),),
    account_types=("spot", "margin"),
    capabilities=Capabilities(),
)
MANIFEST = Manifest(1, (LISTING,))


class FakexPlugin:
    """Lists the exchange, and is never asked for a balance."""

    @hookimpl
    def exchange_manifest(self) -> Manifest:
        return MANIFEST

    @hookimpl
    async def fetch_balance(self, call: VenueCall) -> Balance:
        raise NotImplementedError


def registry() -> Registry:
    """A registry of this plugin alone."""
    return Registry([load_plugin(FakexPlugin(), PluginInfo("fakex", "0.1.0", "exchange-service-fakex"))])
