"""The requests that are never sent: those that are not reads, and sign-ins that change something at the venue.

A balance is read by GET, or by one of the POSTs below. Any other request of CCXT's code (approving a fee for a broker,
registering a key, opening a session) is refused before it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# For these, CCXT's `fetch_balance` signs in or approves something before it reads.
_CHANGES_SOMETHING: Mapping[str, str] = {
    "aster": "CCXT approves a broker's fee before it reads a balance",
    "bullish": "CCXT opens a login session before it reads a balance",
    "coinbaseinternational": "CCXT signs in before it reads a balance",
    "grvt": "CCXT signs in and approves a broker's fee before it reads a balance",
    "paradex": "CCXT signs in with the wallet's key before it reads a balance",
    "polymarket": "CCXT creates further credentials before it reads a balance",
}

_UNSUPPORTED: Mapping[str, str] = {
    **{name: f"{reason}, and this service only reads." for name, reason in _CHANGES_SOMETHING.items()},
    # Its answer for the kind of an account is a bare text, as that of an outage may be.
    "hyperliquid": "It is read by the plugin exchange-service-hyperliquid, which is not loaded.",
}

# The paths of the POSTs with which CCXT's `fetch_balance` reads at these exchanges.
_READS_BY_POST: Mapping[str, tuple[str, ...]] = {
    "binance": ("asset/get-funding-asset",),
    "bitbns": ("currentCoinBalance/EVERYTHING",),
    "bitfinex": ("auth/r/wallets",),
    "bithumb": ("info/balance",),
    "bitstamp": ("account_balances/",),
    "btcbox": ("balance",),
    "cex": ("get_my_wallet_balance", "get_my_account_status_v3"),
    "coinmate": ("balances",),
    "coinone": ("account/balance",),
    "coinspot": ("my/balances", "ro/my/balances"),
    "cryptocom": ("private/user-balance",),
    "derive": ("get_all_portfolios", "get_subaccount"),
    "gemini": ("v1/balances",),
    "htx": ("api/v1/contract_account_info", "swap-api/v1/swap_account_info"),
    "independentreserve": ("GetAccounts",),
    "indodax": ("getInfo",),
    "kraken": ("BalanceEx",),
    "lbank": ("user_info", "supplement/user_info_account", "supplement/user_info"),
    "mercado": ("get_account_info",),
    "p2b": ("account/balances",),
    "whitebit": ("trade-account/balance", "main-account/balance", "collateral-account/balance"),
    "zaif": ("get_info",),
}

# Methods by which CCXT's classes sign in, register or approve. Each raises NotSupported.
SIGN_INS = (
    "sign_in",
    "sign_in_with_api_key",
    "sign_in_with_private_key",
    "initialize_client",
    "authenticate_rest",
    "onboarding",
    "approve_builder_fee",
    "handle_builder_fee_approval",
    "create_proxy_credentials",
    "set_ref",
)

# Options that keep CCXT from attaching or approving fees.
SAFE_OPTIONS: Mapping[str, bool] = {"builderFee": False}

_LEADING_VERSION = re.compile(r"^v\d+/")


def unsupported_reason(exchange_id: str) -> str:
    """A sentence why no balance of this exchange can be read; empty if it can."""
    return _UNSUPPORTED.get(exchange_id, "")


def is_read(exchange_id: str, method: str, path: str) -> bool:
    """Whether a request on the way to a balance is known to only read. `path` is CCXT's, before it is filled in."""
    if method == "GET":
        return True
    known = {_LEADING_VERSION.sub("", read) for read in _READS_BY_POST.get(exchange_id, ())}
    return method == "POST" and _LEADING_VERSION.sub("", path) in known
