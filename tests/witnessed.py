"""Which tables hold facts about venues, and where the payload files are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CCXT = "plugins/ccxt_generic/exchange_service_ccxt_generic"

# By file: the names of its tables whose rows are facts about venues.
TABLES: Mapping[str, tuple[str, ...]] = {
    f"{_CCXT}/key_forms.py": ("KEYS_IN_LINES",),
}


def payload_files() -> Iterator[Path]:
    """Every file with a recorded answer."""
    yield from sorted(ROOT.glob("plugins/*/payloads/**/*.json"))
