"""Tradier: brokerage accounts in two listings, as a whole and with their options' figures first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from exchange_service.plugin_api import (
    ANSWER_LIMIT,
    Balance,
    Capabilities,
    Changed,
    CredentialField,
    Environment,
    ExchangeMetadata,
    KeyRights,
    Manifest,
    RateLimit,
    VenueCall,
    hookimpl,
)
from exchange_service_tradier.balance import read_balance, read_options_balance
from exchange_service_tradier.push import watch_orders

# witness: vendor: https://documentation.tradier.com/brokerage-api/overview/rate-limiting
LIMITS = (
    # The limit of the sandbox; the live limit is twice as high. A balance costs one account and sometimes the profile.
    RateLimit("key", 60, 60, cost=2),
)
TRADIER = ExchangeMetadata(
    id="tradier",
    name="Tradier",
    asset_class="Stocks",
    asset_types="Stocks • Options",
    market_hours="Market Hours",
    icon="i-heroicons-chart-bar",
    logo="/tradier_logo.png",
    color_class="bg-blue-500/20 text-blue-500",
    requires_account_id=True,
    instructions=(
        "In Tradier's dashboard open Settings, API Access, and copy the access token of the environment that you "
        "connect. The sandbox has its own token and account number."
    ),
    credential_fields=(
        CredentialField("api_key", "Access token", private_keys=()),
        CredentialField(
            "account_id",
            "Account number",
            required=False,
            secret=False,
            description="For example 6YA00000, in the sandbox VA00000000. If it is empty, every open account is read.",
        ),
    ),
    account_types=("cash", "margin"),
    capabilities=Capabilities(sandbox=True, several_accounts=True, push=True),
    environments=(
        Environment(
            "production",
            {"api": "https://api.tradier.com/v1", "push": "wss://ws.tradier.com/v1"},
            aliases=("live",),
        ),
        # The sandbox has its own accounts and tokens. Its market data are 15 minutes late.
        Environment(
            "sandbox",
            {"api": "https://sandbox.tradier.com/v1", "push": "wss://sandbox-ws.tradier.com/v1"},
            aliases=("paper",),
        ),
    ),
    documentation_url="https://documentation.tradier.com/brokerage-api",
    credential_url="https://dash.tradier.com/settings/api",
    limits=LIMITS,
    public_answer_limit=ANSWER_LIMIT,
)

TRADIER_OPTIONS = replace(
    TRADIER,
    id="tradier_options",
    name="Tradier Options",
    asset_class="Options",
    asset_types="Options",
    account_types=("options",),
    # The session for events is one for each user, over both listings and all replicas.
    capabilities=replace(TRADIER.capabilities, push=False),
    # The accounts are the same, so users need not store the token twice.
    credential_of="tradier",
)

_NO_READ_ONLY_TOKENS = (
    "Tradier gives individuals no read-only tokens and does not say what a token may do: anybody with the token can "
    "trade. Protect it like a password."
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(TRADIER, TRADIER_OPTIONS))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await (read_options_balance(call) if call.exchange.id == TRADIER_OPTIONS.id else read_balance(call))


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Changed]:
    async with aclosing(watch_orders(call)) as hints:
        async for hint in hints:
            yield hint


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return KeyRights(notes=(_NO_READ_ONLY_TOKENS,))
