"""The requests that are never sent: those that are not reads, and sign-ins that change something at the venue.

A balance is read by GET, or by one of the POSTs below. Any other request of CCXT's code (approving a fee for a broker,
registering a key, opening a session) is refused before it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# For these, CCXT's `fetch_balance` signs in or approves something before it reads.
_CHANGES_SOMETHING: Mapping[str, str] = {
    # witness: CCXT: aster.load_markets_and_sign_in
    "aster": "CCXT approves a broker's fee before it reads a balance",
    # witness: CCXT: bullish.handle_token
    "bullish": "CCXT opens a login session before it reads a balance",
    # witness: CCXT: coinbaseinternational.authenticate_v2
    "coinbaseinternational": "CCXT signs in before it reads a balance",
    # witness: CCXT: grvt.load_markets_and_sign_in
    "grvt": "CCXT signs in and approves a broker's fee before it reads a balance",
    # witness: CCXT: paradex.authenticate_rest
    "paradex": "CCXT signs in with the wallet's key before it reads a balance",
    # witness: CCXT: polymarket.create_proxy_credentials
    "polymarket": "CCXT creates further credentials before it reads a balance",
}

_UNSUPPORTED: Mapping[str, str] = {
    **{name: f"{reason}, and this service only reads." for name, reason in _CHANGES_SOMETHING.items()},
    # Its answer for the kind of an account is a bare text, as that of an outage may be.
    "hyperliquid": "It is read by the plugin exchange-service-hyperliquid, which is not loaded.",
}

# The paths of the POSTs with which CCXT's `fetch_balance` reads at these exchanges.
_READS_BY_POST: Mapping[str, tuple[str, ...]] = {
    "binance": ("asset/get-funding-asset",),  # witness: CCXT: binance.api
    "bitbns": ("currentCoinBalance/EVERYTHING",),  # witness: CCXT: bitbns.api
    "bitfinex": ("auth/r/wallets",),  # witness: CCXT: bitfinex.api
    "bithumb": ("info/balance",),  # witness: CCXT: bithumb.api
    "bitstamp": ("account_balances/",),  # witness: CCXT: bitstamp.api
    "btcbox": ("balance",),  # witness: CCXT: btcbox.api
    "cex": ("get_my_wallet_balance", "get_my_account_status_v3"),  # witness: CCXT: cex.api
    "coinmate": ("balances",),  # witness: CCXT: coinmate.api
    "coinone": ("account/balance",),  # witness: CCXT: coinone.api
    "coinspot": ("my/balances", "ro/my/balances"),  # witness: CCXT: coinspot.api
    "cryptocom": ("private/user-balance",),  # witness: CCXT: cryptocom.api
    "derive": ("get_all_portfolios", "get_subaccount"),  # witness: CCXT: derive.api
    "gemini": ("v1/balances",),  # witness: CCXT: gemini.api
    "htx": ("api/v1/contract_account_info", "swap-api/v1/swap_account_info"),  # witness: CCXT: htx.api
    "independentreserve": ("GetAccounts",),  # witness: CCXT: independentreserve.api
    "indodax": ("getInfo",),  # witness: CCXT: indodax.api
    "kraken": ("BalanceEx",),  # witness: CCXT: kraken.api
    # witness: CCXT: lbank.api
    "lbank": ("user_info", "supplement/user_info_account", "supplement/user_info"),
    "mercado": ("get_account_info",),  # witness: CCXT: mercado.api
    "p2b": ("account/balances",),  # witness: CCXT: p2b.api
    # witness: CCXT: whitebit.api
    "whitebit": ("trade-account/balance", "main-account/balance", "collateral-account/balance"),
    "zaif": ("get_info",),  # witness: CCXT: zaif.api
}

# Methods by which CCXT's classes sign in, register or approve. Each raises NotSupported.
SIGN_INS = (
    "sign_in",  # witness: CCXT: ndax.sign_in
    "sign_in_with_api_key",  # witness: CCXT: grvt.sign_in_with_api_key
    "sign_in_with_private_key",  # witness: CCXT: grvt.sign_in_with_private_key
    "initialize_client",  # witness: CCXT: grvt.initialize_client
    "authenticate_rest",  # witness: CCXT: paradex.authenticate_rest
    "onboarding",  # witness: CCXT: paradex.onboarding
    "approve_builder_fee",  # witness: CCXT: hyperliquid.approve_builder_fee
    "handle_builder_fee_approval",  # witness: CCXT: lighter.handle_builder_fee_approval
    "create_proxy_credentials",  # witness: CCXT: polymarket.create_proxy_credentials
    "set_ref",  # witness: CCXT: hyperliquid.set_ref
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
