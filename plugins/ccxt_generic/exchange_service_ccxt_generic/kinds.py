"""How CCXT learns which kind of account a user has, at exchanges with plain and unified accounts.

CCXT's `fetch_balance` finds out by itself, but takes an error or an unknown answer for the plain kind and then reads
another wallet. So each instance finds out before it reads anything, and CCXT has the answer in its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exchange_service.plugin_api import VenueMalformed
from exchange_service_ccxt_generic.answers import Answer
from exchange_service_ccxt_generic.exact_json import exact_json
from exchange_service_ccxt_generic.paths import at


@dataclass(frozen=True, slots=True)
class Kind:
    """CCXT's method that reads the kind, and `told`: dotted paths to the kind in its answers, with the known values.

    Without values any value is known. Each answer has one of the paths.
    """

    method: str
    told: Mapping[str, tuple[Any, ...]]
    arguments: tuple[Any, ...] = ()
    # The venue's error code for a plain account.
    plain: str = ""

    def is_told(self, answers: Sequence[Answer]) -> bool:
        """Whether there are answers, and each accepted one states a known kind."""
        good = [answer.value() for answer in answers if answer.is_json and answer.error is None]
        return bool(answers) and all(self._tells(value) for value in good)

    def _tells(self, value: Any) -> bool:
        stated = [(at(value, path), known) for path, known in self.told.items()]
        return any(kind is not None and (kind in known or not known) for kind, known in stated)


_BYBIT = Kind("is_unified_enabled", {"result.uta": (0, 1), "result.unifiedMarginStatus": ()})
_GATE = Kind("load_unified_status", {"key.mode": (1, 2)})
_KUCOIN = Kind("is_uta_enabled", {"data.selfAccountMode": ("CLASSIC", "UNIFIED")})

KINDS: Mapping[str, Kind] = {
    "bitget": Kind("handle_uta_and_params", {"data": ()}, ({}, "fetchBalance"), plain="40085"),
    "bybit": _BYBIT,
    "bybiteu": _BYBIT,
    "bybitid": _BYBIT,
    "gate": _GATE,
    "gateeu": _GATE,
    "kucoin": _KUCOIN,
    "kucoinfutures": _KUCOIN,
}


def has_code(body: str, code: str) -> bool:
    """Whether the body is an object with this `code`; false for an empty code."""
    try:
        return bool(code) and str(at(exact_json(body), "code")) == code
    except VenueMalformed:
        return False
