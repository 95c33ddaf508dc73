"""Which recorded answers name the account that they are of."""

from __future__ import annotations

import json
from typing import Any

from exchange_service_ccxt_generic.account_names import NAMES, names
from exchange_service_ccxt_generic.kinds import KINDS

from plugins.ccxt_generic.tests.every_exchange.true_answers import TrueAnswer, true_answers


def bodies(answer: TrueAnswer) -> list[Any]:
    """The answers that the balance is read from: not those that say which kind of account it is."""
    before = () if answer.exchange_id in KINDS else answer.before.values()
    return [*before, json.loads(answer.body)]


def is_named(answer: TrueAnswer) -> bool:
    """Whether one of its names is compared."""
    return any(names(body, path) for path in NAMES.get(answer.exchange_id, ()) for body in bodies(answer))


def named_types(exchange_id: str) -> list[str]:
    """The account types whose recorded answers have a name, in the order of the files."""
    named = (answer for answer in true_answers() if answer.exchange_id == exchange_id and is_named(answer))
    return list(dict.fromkeys(answer.account_type for answer in named))
