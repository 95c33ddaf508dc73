"""What a balance of every account type takes of its venue's limit, by CCXT's own figures, and what its listing says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from statistics import mean
from typing import Any

import pytest
from exchange_service_ccxt_generic.exact import Guarded
from exchange_service_ccxt_generic.kinds import KINDS

from exchange_service.plugin_api import ALL_ACCOUNT_TYPES, RateLimit, VenueCall, VenueError
from exchange_service.pytest_plugin import SWEEP
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.test_every_exchange_types import LISTINGS, SERVED, SEVERAL, TYPES, answers_of

# CCXT takes less before this request than its own description of the interface says.
_LESS_THAN_DESCRIBED = {"binanceus spot": (4, 10)}

# What Binance itself counts for the one request of a balance, and of how many in a minute.
_OF_BINANCE = {
    "binance spot": (20, 6000),
    "binance future": (5, 2400),
    "binance swap": (5, 2400),
    "binance delivery": (5, 2400),
    "binanceusdm swap": (5, 2400),
    "binanceusdm future": (5, 2400),
    "binancecoinm delivery": (5, 2400),
}


async def taken(call: VenueCall, monkeypatch: pytest.MonkeyPatch) -> float:
    """What CCXT has counted for a balance after the first. If each second one asks for the kind of the account, it is
    the mean of two, or the dearer one if others would pay for it."""
    costs: list[float] = []

    async def count(self: Guarded, cost: Any = None) -> None:
        costs.append(1.0 if cost is None else float(cost))

    monkeypatch.setattr(Guarded, "throttle", count)
    each = []
    # The first one also opens the account.
    for _ in range(3 if call.exchange.id in KINDS else 2):
        costs.clear()
        with suppress(VenueError):
            await read(call)
        each.append(sum(costs))
    return mean(each[1:]) if limit_of(call.exchange.id).scope == "key" else max(each[1:])


def is_right(name: str, taken: float, declared: int) -> bool:
    """Whether so much is declared, in whole units and at most one more."""
    if name in _LESS_THAN_DESCRIBED:
        return (taken, declared) == _LESS_THAN_DESCRIBED[name]
    return taken <= declared <= taken + 1


async def test_each_type_takes_what_its_listing_says(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    wrong: dict[str, tuple[float, int]] = {}
    for name, account in TYPES.items():
        exchange_id, account_type = name.split()
        async with opened(LISTINGS[exchange_id], account.assets, account_type) as (venue, call):
            venue.tell(account, account.answer)
            used, declared = await taken(call, monkeypatch), limit_of(exchange_id).cost_of(account_type)
            if not is_right(name, used, declared):
                wrong[name] = used, declared
    record_property(SWEEP, ["account types whose requests are counted", sorted(SERVED), len(TYPES), 0, len(wrong)])
    assert wrong == {}


@pytest.mark.parametrize("name", _OF_BINANCE)
def test_binances_own_limits_are_kept(name: str) -> None:
    exchange_id, account_type = name.split()
    limit, (weight, allowed) = limit_of(exchange_id), _OF_BINANCE[name]
    assert limit.seconds == 60
    assert limit.count // limit.cost_of(account_type) * weight <= allowed


async def test_all_types_take_no_more_than_their_listing_says(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, tuple[float, int]] = {}
    for exchange_id, unified in SEVERAL:
        async with opened(LISTINGS[exchange_id], {"BTC": "BTC", "USDT": "USDT"}) as (venue, call):
            venue.answers = dict(answers_of(exchange_id, unified))
            every = replace(call, account=replace(call.account, account_type=ALL_ACCOUNT_TYPES))
            used, declared = await taken(every, monkeypatch), limit_of(exchange_id).cost_of(ALL_ACCOUNT_TYPES)
            if used > declared:
                wrong[exchange_id] = used, declared
    assert wrong == {}


def limit_of(exchange_id: str) -> RateLimit:
    (limit,) = LISTINGS[exchange_id].limits
    return limit
