"""Which tables hold facts about venues, and where the payload files are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CCXT = "plugins/ccxt_generic/exchange_service_ccxt_generic"

# By file: the names of its tables whose rows are facts about venues.
TABLES: Mapping[str, tuple[str, ...]] = {
    "plugins/aster/exchange_service_aster/__init__.py": ("_LIMITS",),
    "plugins/aster/exchange_service_aster/client.py": ("_BY_CODE", "_BY_WORD", "_REGION_WORDS"),
    "plugins/aster/exchange_service_aster/simulator.py": ("_REFUSALS",),
    "plugins/aster/tests/test_aster_signing.py": ("HMAC_EXAMPLES", "SIGNATURES", "ADDRESSES"),
    "plugins/hyperliquid/exchange_service_hyperliquid/__init__.py": ("_LIMITS",),
    "plugins/hyperliquid/exchange_service_hyperliquid/client.py": ("_REJECTED",),
    "plugins/hyperliquid/exchange_service_hyperliquid/parse.py": ("STANDARD_MODES", "UNIFIED_MODES"),
    "plugins/hyperliquid/exchange_service_hyperliquid/simulator.py": ("_REFUSALS",),
    "plugins/lighter/exchange_service_lighter/__init__.py": ("_LIMITS",),
    "plugins/lighter/exchange_service_lighter/client.py": ("_DEPLOYMENTS", "_BY_CODE"),
    "plugins/lighter/exchange_service_lighter/parse.py": ("_POOLS", "_SYMBOLS", "_ASSETS_OF_POOLS"),
    "plugins/lighter/exchange_service_lighter/simulator.py": ("_ERRORS",),
    "plugins/oanda/exchange_service_oanda/__init__.py": ("LIMITS",),
    "plugins/oanda/exchange_service_oanda/simulator.py": ("_REFUSALS",),
    "plugins/tastytrade/exchange_service_tastytrade/__init__.py": ("LIMITS",),
    "plugins/tastytrade/exchange_service_tastytrade/client.py": ("_REFUSED_GRANTS",),
    "plugins/tastytrade/exchange_service_tastytrade/parse.py": ("_FIGURES", "_TYPES"),
    "plugins/tastytrade/exchange_service_tastytrade/simulator.py": ("_ERRORS", "_GATEWAY_PAGE", "_REFUSED_GRANT"),
    "plugins/tradier/exchange_service_tradier/__init__.py": ("LIMITS",),
    "plugins/tradier/exchange_service_tradier/parse.py": ("_CALLS", "_OPTION_FIELDS", "_TYPES"),
    "plugins/tradier/exchange_service_tradier/simulator.py": ("_FAULTS", "_UNAUTHORIZED_ACCOUNT"),
    "plugins/tradier/tests/test_tradier_client.py": ("BODIES",),
}


def payload_files() -> Iterator[Path]:
    """Every file with a recorded answer."""
    yield from sorted(ROOT.glob("plugins/*/payloads/**/*.json"))
