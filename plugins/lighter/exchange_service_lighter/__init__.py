"""Lighter: perpetual and spot accounts of one wallet address. Reads are public and need no key."""

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
from exchange_service_lighter.balance import key_rights, read_balance
from exchange_service_lighter.push import watch

# The limit without a token. One request reads all accounts of a wallet.
# witness: vendor: https://apidocs.lighter.xyz/docs/rate-limits
_LIMITS = (RateLimit("address", 60, 60),)
# Two subscriptions follow one account of a wallet, so a connection carries 250 of them. Messages and those that are not
# acknowledged count for the network address. The accounts are fewer than the 5,000 subscriptions of an address allow,
# because a wallet may have several.
# witness: report: https://docs.rs/crate/df-lighter-core/latest/source/src/live/session/limits.rs
_PUSH_LIMITS = PushLimits(
    accounts=1000, connections=255, connects=80, subscriptions=500, messages=200, unacknowledged=50
)

LIGHTER = ExchangeMetadata(
    id="lighter",
    name="Lighter DEX",
    asset_class="Crypto",
    asset_types="Crypto Perps (zkSync)",
    market_hours="24/7 Trading",
    icon="i-simple-icons-bitcoin",
    logo="/lighter_logo.png",
    color_class="bg-purple-500/20 text-purple-500",
    instructions=(
        "No key is needed: Lighter's balances are public, so store the address of your wallet. "
        "A read-only token from Lighter's page of API keys is optional. Never store a private key."
    ),
    credential_fields=(
        CredentialField(
            "wallet_address",
            "Wallet address",
            required=False,
            secret=False,
            description="The Ethereum address that owns the accounts: 0x and 40 digits. Store it or an account index.",
        ),
        CredentialField(
            "account_index",
            "Account index",
            required=False,
            secret=False,
            description="The number of one account, to read that account alone. Store it or a wallet address.",
        ),
        CredentialField(
            "deployment",
            "Deployment",
            required=False,
            secret=False,
            description="robinhood for Lighter on Robinhood Chain. If it is empty, Lighter itself is read.",
        ),
        CredentialField(
            "api_key",
            "Read-only token",
            required=False,
            description="Begins with ro: and raises the venue's limit on requests. Never a private key.",
            private_keys=(),
        ),
    ),
    account_types=("perpetual", "spot", "pool"),
    capabilities=Capabilities(push=True, sandbox=True, several_accounts=True, read_without_secret=True),
    environments=(
        Environment(
            "production",
            {
                "api": "https://mainnet.zklighter.elliot.ai",
                "push": "wss://mainnet.zklighter.elliot.ai/stream",
                "robinhood": "https://api.rh.lighter.xyz",
                "robinhood push": "wss://api.rh.lighter.xyz/stream",
            },
            aliases=("live", "mainnet"),
        ),
        Environment(
            "sandbox",
            {
                "api": "https://testnet.zklighter.elliot.ai",
                "push": "wss://testnet.zklighter.elliot.ai/stream",
                "robinhood": "https://api.rh-testnet.lighter.xyz",
                "robinhood push": "wss://api.rh-testnet.lighter.xyz/stream",
            },
            aliases=("testnet",),
        ),
    ),
    documentation_url="https://apidocs.lighter.xyz",
    credential_url="https://app.lighter.xyz/apikeys",
    limits=_LIMITS,
    push=_PUSH_LIMITS,
    public_answer_limit=ANSWER_LIMIT,
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(LIGHTER,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Balance | Changed]:
    async with aclosing(watch(call)) as items:
        async for item in items:
            yield item


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return key_rights(call)
