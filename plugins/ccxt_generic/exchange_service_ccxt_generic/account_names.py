"""Where an exchange's answers name the user or the account that they are of, and that it stays the same.

CCXT takes every answer for the one of its key. Where the raw answer has a name, the name of the first answer must be in
every later one, while the account is in use with the same credential. Numbers of rows, of wallets and of assets are no
names: they differ within an account. The names of two account types are not compared, because a venue may number each
account of a user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exchange_service.plugin_api import VenueCall, require_account, require_same_accounts

# By exchange: the dotted paths of names in an answer. "[]" stands for each entry of a list.
NAMES: Mapping[str, tuple[str, ...]] = {
    "alpaca": ("account_number",),  # witness: CCXT: alpaca.fetch_balance
    # witness: test data: nautechsystems/nautilus_trader binance/test_data/spot/http_json/account_response.json
    "binance": ("uid",),
    "bingx": ("data.[].userId", "data.[].shortUid"),  # witness: CCXT: bingx.fetch_balance
    # witness: vendor: https://github.com/BitTrade-Inc/BitTrade-api-docs/blob/master/private-api.md
    "bittrade": ("data.id",),
    "btcbox": ("uid",),  # witness: test data: you21979/node-btcbox README.md
    "bybit": ("result.memberId",),  # witness: CCXT: bybit.fetch_balance
    "bybiteu": ("result.memberId",),  # witness: CCXT: bybiteu.fetch_balance
    "bybitid": ("result.memberId",),  # witness: CCXT: bybitid.fetch_balance
    # witness: test data: bennycode/coinbase-pro-node src/test/fixtures/rest/accounts/GET-200.json
    "coinbaseexchange": ("[].profile_id",),
    "delta": ("result.[].user_id",),  # witness: CCXT: delta.fetch_balance
    # witness: test data: nautechsystems/nautilus_trader deribit/test_data/http_get_account_summaries.json
    "deribit": ("result.id",),
    "derive": ("result.[].subaccount_id",),  # witness: CCXT: derive.fetch_balance
    "dydx": ("subaccount.address",),  # witness: CCXT: dydx.fetch_balance
    "extended": ("data.[].accountId",),  # witness: CCXT: extended.fetch_balance
    "gate": ("user", "user_id"),  # witness: CCXT: gate.fetch_balance
    "gateeu": ("user_id",),  # witness: CCXT: gateeu.fetch_balance
    "hashkey": ("userId",),  # witness: CCXT: hashkey.fetch_balance
    "htx": ("data.id",),  # witness: CCXT: htx.fetch_balance
    "indodax": ("return.user_id",),  # witness: CCXT: indodax.fetch_balance
    "lighter": ("accounts.[].index",),  # witness: CCXT: lighter.fetch_balance
    "nado": ("data.subaccount",),  # witness: CCXT: nado.fetch_balance
    "ndax": ("[].AccountId",),  # witness: CCXT: ndax.fetch_balance
    "onetrading": ("account_id",),  # witness: CCXT: onetrading.fetch_balance
    # witness: vendor: https://github.com/Paymium/old-api-documentation/blob/master/README.md
    "paymium": ("name",),
    "phemex": ("data.[].userID", "data.account.userID"),  # witness: CCXT: phemex.fetch_balance
    "poloniex": ("[].accountId",),  # witness: CCXT: poloniex.fetch_balance
    "toobit": ("userId",),  # witness: CCXT: toobit.fetch_balance
    "weex": ("uid",),  # witness: CCXT: weex.fetch_balance
}
# One answer holds all accounts of the user there, each with its own name.
_SEVERAL = frozenset(
    {
        "derive",  # witness: CCXT: derive.fetch_balance
        "poloniex",  # witness: CCXT: poloniex.fetch_balance
    }
)


async def require_own_answers(call: VenueCall, account_type: str, answers: Sequence[Any]) -> None:
    """Raise VenueMalformed if the raw answers to a read of this type are about another account than those before."""
    exchange_id, venue = call.exchange.id, call.exchange.name
    for path in NAMES.get(exchange_id, ()):
        found = [name for answer in answers for name in names(answer, path)]
        if exchange_id not in _SEVERAL:
            for name in found[1:]:
                require_account(found[0], name, venue)
        await require_same_accounts(call.account_state, found, venue, kind=f"{account_type} {path}")


def names(answer: Any, path: str) -> list[Any]:
    """The names at a path of an answer, without empty ones."""
    return [name for name in _values(answer, path.split(".")) if isinstance(name, str | int) and name != ""]


def _values(value: Any, steps: Sequence[str]) -> Iterator[Any]:
    if not steps:
        yield value
    elif steps[0] == "[]" and isinstance(value, list):
        for entry in value:
            yield from _values(entry, steps[1:])
    elif isinstance(value, dict) and steps[0] in value:
        yield from _values(value[steps[0]], steps[1:])
