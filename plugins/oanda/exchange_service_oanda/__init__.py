"""OANDA: the balances of v20 accounts, read with a personal access token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

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
    PushLimits,
    RateLimit,
    VenueCall,
    hookimpl,
)
from exchange_service_oanda.balance import read_balance
from exchange_service_oanda.push import watch_transactions

LIMITS = (
    # What OANDA recommends for one connection. A balance costs the list of accounts and, usually, one account.
    RateLimit("address", 100, 1, cost=2),  # witness: vendor: https://developer.oanda.com/rest-live-v20/best-practices
)
# OANDA allows an address twenty streams, and two new connections a second. A token has up to three streams here, so six
# tokens keep within twenty.
# witness: vendor: https://developer.oanda.com/rest-live-v20/development-guide
PUSH_LIMITS = PushLimits(accounts=6, connections=20, connects=120)
OANDA = ExchangeMetadata(
    id="oanda",
    name="OANDA",
    asset_class="Forex",
    asset_types="Forex",
    market_hours="24/5 Trading",
    icon="i-heroicons-currency-dollar",
    logo="/oanda_logo.png",
    color_class="bg-green-500/20 text-green-500",
    requires_account_id=True,
    instructions=(
        "In OANDA's account hub open Manage API Access and generate a personal access token. "
        "A token belongs either to live or to practice accounts."
    ),
    credential_fields=(
        CredentialField("api_key", "Personal access token", private_keys=()),
        CredentialField(
            "account_id",
            "Account ID",
            required=False,
            secret=False,
            description="For example 101-004-7654321-001. If it is empty, every account of the token is read.",
        ),
    ),
    account_types=("forex",),
    capabilities=Capabilities(sandbox=True, several_accounts=True, push=True),
    environments=(
        Environment(
            "production",
            {"api": "https://api-fxtrade.oanda.com", "push": "https://stream-fxtrade.oanda.com"},
            aliases=("live",),
        ),
        Environment(
            "sandbox",
            {"api": "https://api-fxpractice.oanda.com", "push": "https://stream-fxpractice.oanda.com"},
            aliases=("practice",),
        ),
    ),
    documentation_url="https://developer.oanda.com/rest-live-v20/introduction/",
    credential_url="https://www.oanda.com/account/tpa/personal_token",
    limits=LIMITS,
    push=PUSH_LIMITS,
    public_answer_limit=ANSWER_LIMIT,
)

_NO_READ_ONLY_TOKENS = (
    "OANDA has no read-only tokens and does not say what a token may do: anybody with the token can trade. "
    "Protect it like a password."
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(OANDA,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Changed]:
    async with aclosing(watch_transactions(call)) as hints:
        async for hint in hints:
            yield hint


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return KeyRights(notes=(_NO_READ_ONLY_TOKENS,))
