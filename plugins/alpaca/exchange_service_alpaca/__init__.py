"""Alpaca: money and positions of a trading account, live or paper, read with an API key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from exchange_service.plugin_api import (
    Balance,
    Capabilities,
    Changed,
    CredentialField,
    Environment,
    ExchangeMetadata,
    KeyRights,
    Manifest,
    NotSupported,
    PluginSetting,
    RateLimit,
    VenueCall,
    hookimpl,
)
from exchange_service_alpaca.balance import read_balance
from exchange_service_alpaca.client import REQUESTS_A_MINUTE
from exchange_service_alpaca.push import watch_orders

# Alpaca counts the requests of each key. A balance costs the account and its positions.
# witness: vendor: https://alpaca.markets/support/usage-limit-api-calls/
LIMITS = (RateLimit("key", REQUESTS_A_MINUTE, 60, cost=2),)
# A position costs an answer about 600 bytes, and a balance has up to 5000 rows.
ANSWER_LIMIT = 4 * 1024 * 1024
# Each buying power multiplier of an account, 1 included, stands for a margin account.
# witness: vendor: https://github.com/alpacahq/cli api/specs/trading-api.json, Account.multiplier
_TYPES = ("margin",)
# witness: vendor: https://github.com/alpacahq/alpaca-py alpaca/common/enums.py, BaseURL
_ENVIRONMENTS = (
    Environment(
        "production",
        {"api": "https://api.alpaca.markets", "push": "wss://api.alpaca.markets/stream"},
        aliases=("live",),
    ),
    Environment(
        "sandbox",
        {"api": "https://paper-api.alpaca.markets", "push": "wss://paper-api.alpaca.markets/stream"},
        aliases=("paper",),
    ),
)
ALPACA = ExchangeMetadata(
    id="alpaca",
    name="Alpaca",
    asset_class="Stocks",
    asset_types="US Stocks • Options • Crypto",
    market_hours="Market Hours",
    icon="i-heroicons-chart-bar",
    color_class="bg-yellow-500/20 text-yellow-500",
    instructions=(
        "On Alpaca's dashboard choose the live or a paper account, and generate a key under API Keys. "
        "A key belongs to one account. The secret is shown once."
    ),
    credential_fields=(
        CredentialField("api_key", "API key ID", private_keys=()),
        CredentialField("api_secret", "Secret key", private_keys=()),
    ),
    account_types=_TYPES,
    capabilities=Capabilities(sandbox=True, push=True),
    environments=_ENVIRONMENTS,
    documentation_url="https://docs.alpaca.markets/docs/trading-api",
    credential_url="https://app.alpaca.markets/",
    limits=LIMITS,
    answer_limit=ANSWER_LIMIT,
    public_answer_limit=ANSWER_LIMIT,
)

_RIGHTS_NOT_STATED = (
    "Alpaca does not say what a key may do. Its interface places orders and sends crypto away, so protect the key as "
    "one that may trade and withdraw."
)
# Off unless the operator wants it: see the README, "Pushes".
FOLLOW_ORDERS = PluginSetting(
    "follow_orders",
    "Whether to follow each account by a connection to Alpaca's order stream. An account may have a single one, which "
    "would keep its user's own program from connecting.",
    "boolean",
    default=False,
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(ALPACA,), settings=(FOLLOW_ORDERS,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Changed]:
    if not call.settings[FOLLOW_ORDERS.name]:
        raise NotSupported("The operator has not switched Alpaca's pushes on (the setting follow_orders).")
    async with aclosing(watch_orders(call)) as hints:
        async for hint in hints:
            yield hint


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return KeyRights(notes=(_RIGHTS_NOT_STATED,))
