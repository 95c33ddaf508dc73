"""The contract of a plugin, as tests to inherit. They call the plugin as the service does.

    class TestOurVenue(PluginContract):
        plugin = exchange_service_our_venue
        exchange_id = "our_venue"
        simulator = OurVenueSimulator

This is all, if the simulator is a `DemoVenue`. For any other simulator also define `credential`, which returns the row
that opens an account there. A plugin that has only a listing so far inherits `ListingContract` and sets the first two.

Install `exchange-service-plugin[testing]` and run pytest; both modes of pytest-asyncio work. If blockbuster is
installed, the suite also finds calls that block the event loop.
"""

from __future__ import annotations

from exchange_service.testing.balance_contract import BalanceContract
from exchange_service.testing.listing_contract import HEAVY_LIBRARIES, ListingContract
from exchange_service.testing.malformed import NONSENSE
from exchange_service.testing.names_contract import NamesContract
from exchange_service.testing.push_contract import PushContract
from exchange_service.testing.safety_contract import SafetyContract
from exchange_service.testing.trouble_contract import TroubleContract

__all__ = ["HEAVY_LIBRARIES", "NONSENSE", "ListingContract", "PluginContract"]


class PluginContract(BalanceContract, NamesContract, TroubleContract, SafetyContract, PushContract):
    """The whole contract: loading, the manifest, and how the plugin reads a venue that answers, fails or attacks.

    Set `plugin`, `exchange_id` and `simulator`; optionally `allowed_requests`, the requests that the plugin may send,
    and `nonsense`, the malformed answers to try if one of NONSENSE is a true answer of the venue.
    """
