"""How CCXT learns which kind of account a user has, at exchanges with plain and unified accounts.

CCXT's `fetch_balance` finds out by itself, but takes an error or an unknown answer for the plain kind and then reads
another wallet. So each instance finds out before it reads anything, and CCXT has the answer in its options. A user may
change the kind at any time, and then the old wallets may answer as empty ones, so the venue is asked again before every
second balance, and at once if a balance is empty or refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exchange_service.plugin_api import VenueMalformed
from exchange_service_ccxt_generic.answers import Answer, may_be_error, size_of
from exchange_service_ccxt_generic.exact_json import exact_json
from exchange_service_ccxt_generic.paths import at


@dataclass(frozen=True, slots=True)
class Kind:
    """A question about the account: CCXT's method that asks it, and what its answers say.

    `told` has dotted paths to the kind in the answers, with the known values; without values any value is known. Each
    answer has one of the paths. CCXT keeps the kind in `options`.
    """

    method: str
    told: Mapping[str, tuple[Any, ...]]
    options: tuple[str, ...]
    arguments: tuple[Any, ...] = ()
    # The venue's error code for a plain account.
    plain: str = ""
    # An account for which CCXT has this option as true is not asked.
    unless: str = ""
    # A kind that never changes again once this option is true.
    lasting: bool = False

    def is_told(self, answers: Sequence[Answer]) -> bool:
        """Whether there are answers, and each accepted one states a known kind."""
        good = [answer.value() for answer in answers if answer.is_json and answer.error is None]
        return bool(answers) and all(self._tells(value) for value in good)

    def _tells(self, value: Any) -> bool:
        stated = [(at(value, path), known) for path, known in self.told.items()]
        return any(kind is not None and (kind in known or not known) for kind, known in stated)


_BYBIT = Kind(
    "is_unified_enabled",
    {"result.uta": (0, 1), "result.unifiedMarginStatus": ()},
    ("enableUnifiedMargin", "enableUnifiedAccount", "unifiedMarginStatus"),
)
_GATE = Kind("load_unified_status", {"key.mode": (1, 2)}, ("unifiedAccount",))
_KUCOIN = Kind("is_uta_enabled", {"data.selfAccountMode": ("CLASSIC", "UNIFIED")}, ("uta",))
# Whether the account of trades is one for high frequency. CCXT asks only if markets are loaded with a key.
_HIGH_FREQUENCY = Kind("load_migration_status", {"data": (True, False)}, ("hf",), unless="uta", lasting=True)

# The questions of each exchange, in the order in which they are asked.
KINDS: Mapping[str, tuple[Kind, ...]] = {
    # CCXT takes any error for the plain kind. The code is Bitget's word for it.
    # witness: report: TraderAlice/OpenAlice#951
    "bitget": (Kind("handle_uta_and_params", {"data": ()}, ("uta",), ({}, "fetchBalance"), plain="40084"),),
    "bybit": (_BYBIT,),  # witness: CCXT: bybit.is_unified_enabled
    "bybiteu": (_BYBIT,),  # witness: CCXT: bybiteu.is_unified_enabled
    "bybitid": (_BYBIT,),  # witness: CCXT: bybitid.is_unified_enabled
    "gate": (_GATE,),  # witness: CCXT: gate.load_unified_status
    "gateeu": (_GATE,),  # witness: CCXT: gateeu.load_unified_status
    "kucoin": (_KUCOIN, _HIGH_FREQUENCY),  # witness: CCXT: kucoin.load_migration_status
    "kucoinfutures": (_KUCOIN,),  # witness: CCXT: kucoinfutures.is_uta_enabled
}


def questions(exchange_id: str, options: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The questions whose answers may have changed since CCXT has kept `options`."""
    return tuple(
        kind
        for kind in KINDS.get(exchange_id, ())
        if not (kind.lasting and all(options.get(name) is True for name in kind.options))
    )


def kept(asked: Sequence[Kind], options: Mapping[str, Any]) -> dict[str, Any]:
    """What CCXT keeps in its `options` of the answers to these questions."""
    return {name: options.get(name) for kind in asked for name in kind.options}


def has_code(body: str, code: str) -> bool:
    """Whether the body is an object with this `code`; false for an empty code."""
    try:
        return bool(code) and may_be_error(size_of(body)) and str(at(exact_json(body), "code")) == code
    except VenueMalformed:
        return False
