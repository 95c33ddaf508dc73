"""Which tables hold facts about venues, and where the payload files are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CCXT = "plugins/ccxt_generic/exchange_service_ccxt_generic"

# By file: the names of its tables whose rows are facts about venues.
TABLES: Mapping[str, tuple[str, ...]] = {
    f"{_CCXT}/account_types.py": (
        "_BY_EXCHANGE",
        "_SYNONYMS",
        "_SINGLE",
        "_REASONS",
        "_UNREAD",
        "_SUMS",
        "_UNIFIED",
        "_PARAMETERS",
        "_BY_SETTLEMENT",
        "_FURTHER",
        "_ALWAYS",
    ),
    f"{_CCXT}/instances.py": ("_KEY_FOR_MARKETS",),
    f"{_CCXT}/kinds.py": ("KINDS",),
    f"{_CCXT}/limits.py": ("_BY_KEY", "_COSTS"),
    f"{_CCXT}/refusals.py": ("_CHANGES_SOMETHING", "_READS_BY_POST", "SIGN_INS"),
}
# Files whose rows begin with ids and words of ours. CCXT's member that a row cites exists, but has other words.
OWN_WORDS = frozenset(f"{_CCXT}/{name}.py" for name in ("account_types", "instances", "kinds", "limits", "refusals"))


def payload_files() -> Iterator[Path]:
    """Every file with a recorded answer."""
    yield from sorted(ROOT.glob("plugins/*/payloads/**/*.json"))
