"""The service with CCXT in its process, and one exchange whose venue on loopback answers from a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import exchange_service_ccxt_generic as ccxt_plugin
import pytest
from exchange_service_ccxt_generic.client import CcxtClient
from exchange_service_ccxt_generic.exact import Guarded
from exchange_service_ccxt_generic.instances import Instances

from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.every_exchange.venue import ScriptedVenue, preset_markets
from tests.harness import Running, serving

_LISTINGS = {listing.id: listing for listing in ccxt_plugin.exchange_manifest().exchanges}
# The assets of the preset lists, if a test needs no others.
ASSETS: Mapping[str, str] = {"USDT": "USDT", "BTC": "BTC", "USDC": "USDC"}


@asynccontextmanager
async def through_ccxt(
    folder: Path, exchange_id: str, assets: Mapping[str, str] = ASSETS, **settings: Any
) -> AsyncIterator[tuple[Running, ScriptedVenue]]:
    """A user with a credential at this exchange, and its venue. The exchange's public lists are preset, with `assets`
    as the venue's ids by CCXT's codes, and there are no pauses: what is tested are the account's own answers."""

    async def load(self: Instances, ccxt: Any) -> Any:
        return preset_markets(CcxtClient(self._call), ccxt, assets)

    async def no_pause(self: Guarded, cost: Any = None) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Instances, "load_markets", load)
        patch.setattr(Guarded, "throttle", no_pause, raising=False)
        options: dict[str, Any] = {"plugin_processes": {"ccxt_generic": "in-process"}, **settings}
        async with ScriptedVenue() as venue, serving(folder, venue_urls={exchange_id: venue.url}, **options) as running:
            await running.store(exchange_id, **credential(_LISTINGS[exchange_id]))
            yield running, venue
