"""What CCXT's classes learn while they load markets or accounts, and then read a balance by.

Markets are loaded without a key and shared, so an instance that reads an account learns nothing then. Whatever it needs
is handed on with the markets, or the venue is asked for it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import ccxt.async_support as ccxt
import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.kinds import KINDS

from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import venue_call
from plugins.ccxt_generic.tests.every_exchange.by_query import VenueByQuery
from plugins.ccxt_generic.tests.every_exchange.credentials import credential

LISTINGS = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [name for name, listing in LISTINGS.items() if listing.capabilities.balance]

# Names that CCXT's base class hands on with the markets, or that are no matter of an account.
_BASE = inspect.getsource(ccxt.Exchange.set_markets_from_exchange)
# Written and read within one balance, so that they are learned with it.
_LEARNED_IN_THE_BALANCE: Mapping[str, str] = {
    "bittrade accounts": "the accounts of the login, which are loaded before each first balance of an instance",
    "htx accounts": "the same",
    "ndax accounts": "the same",
    "backpack options.securities": "the names of shares, which are loaded if a balance of shares is asked for",
    "delta options.currenciesByNumericId": "made of the shared list of assets before each balance",
    "derive options.deriveWalletAddress": "found from the wallet's address",
    "lighter options.accountIndex": "found from the wallet's address",
}
_NOT_IN_A_BALANCE: Mapping[str, str] = {
    "coinbase options.fetchCurrencies": "a text of the same name",
    "coinbase options.networks": "networks of deposits",
    "coinbase options.networksById": "networks of deposits",
    "extended options.currenciesByNumericId": "read by the loading of markets alone",
    "kucoinfutures options.hf": "an account of spot, which this exchange does not read",
    "poloniex options.currenciesByNumericId": "read by the loading of markets alone",
}
# Read only by the method that writes it, or by methods that a balance does not call with an account's instance.
_NOT_FOR_A_BALANCE = (
    "_temp_currencies",
    "crossMarginPairsData",
    "isolatedMarginPairsData",
    "fetchMarkets",
    "marketsBy",
    "networkNamesBy",
    "networkChainIdsBy",
    "tradingPairs",
    "exchangeInfo",
    "builderFee",
    "approvedBuilderFee",
    "tiersFor",
    "apiKeyIndex",
    "auths",
)


@cache
def _tree(function: Any) -> ast.AST:
    return ast.parse("if True:\n" + inspect.getsource(function))


def _of_self(node: ast.AST) -> str:
    """The name of an attribute of self; empty for any other node."""
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if named and isinstance(node, ast.Attribute) else ""


def reached(kind: type, *start: str) -> dict[str, Any]:
    """The methods of the class that these call, with those that they call, and so on."""
    found: dict[str, Any] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        method = getattr(kind, name, None)
        if name in found or not inspect.isfunction(method) or not method.__module__.startswith("ccxt."):
            continue
        found[name] = method
        waiting += [attribute for node in ast.walk(_tree(method)) if (attribute := _of_self(node))]
    return found


def written(method: Any) -> Iterator[str]:
    """The attributes and options that a method sets."""
    for node in ast.walk(_tree(method)):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            for one in target.elts if isinstance(target, ast.Tuple) else (target,):
                if isinstance(one, ast.Subscript) and _of_self(one.value) == "options":
                    if isinstance(one.slice, ast.Constant):
                        yield f"options.{one.slice.value}"
                elif name := _of_self(one):
                    yield name


def read(method: Any) -> Iterator[str]:
    """The attributes that a method reads, and every text in it, which may name an option."""
    for node in ast.walk(_tree(method)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"options.{node.value}"
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and (name := _of_self(node)):
            yield name


def learned(exchange_id: str) -> set[str]:
    """What the class sets while it loads markets or accounts or reads a balance, and uses to read a balance."""
    kind = getattr(ccxt, exchange_id)
    balance = reached(kind, "fetch_balance")
    loading = reached(kind, "load_markets", "load_accounts", "fetch_markets", "fetch_currencies")
    own = {
        name: method
        for name, method in {**loading, **balance}.items()
        if ".base." not in method.__module__ or name == "load_accounts"
    }
    sets = {name for method in own.values() for name in written(method)}
    return sets & {name for method in balance.values() for name in read(method)}


def test_whatever_a_balance_needs_of_what_ccxt_learns_is_handed_on_or_asked_for(
    record_property: Callable[[str, object], None],
) -> None:
    unknown, tried = [], 0
    for exchange_id in SERVED:
        asked = {f"options.{option}" for kind in KINDS.get(exchange_id, ()) for option in kind.options}
        for name in learned(exchange_id):
            tried += 1
            explained = f"{exchange_id} {name}" in {**_LEARNED_IN_THE_BALANCE, **_NOT_IN_A_BALANCE}
            elsewhere = name.removeprefix("options.").startswith(_NOT_FOR_A_BALANCE)
            if name not in asked and not explained and not elsewhere and f"self.{name}" not in _BASE:
                unknown.append(f"{exchange_id} {name}")
    record_property(SWEEP, ["what CCXT learns of an account", SERVED, tried, len(unknown), 0])
    assert unknown == []


@pytest.mark.usefixtures("without_pauses")
async def test_deltas_assets_have_names_and_not_numbers() -> None:
    assets = [{"id": 2, "symbol": "BTC", "precision": 8, "networks": []}]
    product = {
        "id": 8320,
        "symbol": "BTC_USDT",
        "contract_type": "spot",
        "underlying_asset": {"id": 2, "symbol": "BTC"},
        "quoting_asset": {"id": 3, "symbol": "USDT"},
        "settling_asset": None,
        "product_specs": {},
        "state": "live",
    }
    async with VenueByQuery() as venue:
        assert isinstance(venue, VenueByQuery)
        venue.answers = {
            "/v2/assets": {"success": True, "result": assets},
            "/v2/products": {"success": True, "result": [product]},
            "/v2/wallet/balances": {
                "success": True,
                "result": [{"asset_id": 2, "balance": "10", "available_balance": "9"}],
            },
        }
        listing = LISTINGS["delta"]
        async with venue_call(listing, override=venue.url, timeout=30.0, **credential(listing)) as call:
            balance = await plugin.fetch_balance(call)
    assert [row.asset for _, row in balance.rows()] == ["BTC"]
