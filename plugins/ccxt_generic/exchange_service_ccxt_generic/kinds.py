"""How CCXT learns which kind of account a user has, where an exchange has a plain and a unified one.

CCXT's `fetch_balance` asks by itself, takes trouble or a strange answer for the plain kind, and reads another wallet.
So each instance asks before it reads anything; CCXT then finds the answer in its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exchange_service.plugin_api import VenueMalformed
from exchange_service_ccxt_generic.exact import Answer, exact_json


@dataclass(frozen=True, slots=True)
class Kind:
    """The question for the kind: CCXT's method and its arguments, and what tells the kind in the answers. That is a
    dotted path with the values that are known there, or none where all are; each answer has one of the paths."""

    method: str
    told: Mapping[str, tuple[Any, ...]]
    arguments: tuple[Any, ...] = ()
    # The venue's code by which it refuses the question of a plain account.
    plain: str = ""

    def is_told(self, answers: Sequence[Answer]) -> bool:
        """Whether there were answers, and each good one tells the kind."""
        good = [answer.value() for answer in answers if answer.is_json and answer.error is None]
        return bool(answers) and all(self._tells(value) for value in good)

    def _tells(self, value: Any) -> bool:
        found = [(_at(value, path), known) for path, known in self.told.items()]
        return any(said is not None and (said in known or not known) for said, known in found)


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
    """Whether the body is an object with this `code`; an empty one is none's."""
    try:
        return bool(code) and str(_at(exact_json(body), "code")) == code
    except VenueMalformed:
        return False


def _at(value: Any, path: str) -> Any:
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
