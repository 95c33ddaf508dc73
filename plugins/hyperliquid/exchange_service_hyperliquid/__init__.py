"""Hyperliquid: perpetual and spot balances of a wallet address. Reads are public and need no key."""

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
from exchange_service_hyperliquid.balance import key_rights, read_balance
from exchange_service_hyperliquid.push import watch_wallet

# In the venue's weights: each of the two states weighs two. The mode weighs twenty and is read once an hour; its
# share is the other two.
# witness: vendor: https://hyperliquid.gitbook.io/hyperliquid-docs/for-developers/api/rate-limits
_LIMITS = (RateLimit("address", 1200, 60, cost=6),)
# The ten are different addresses, whatever is followed of them and on however many connections.
# witness: vendor: https://hyperliquid.gitbook.io/hyperliquid-docs/for-developers/api/rate-limits
_PUSH = PushLimits(accounts=10, connections=10, connects=30, subscriptions=1000, messages=2000)

HYPERLIQUID = ExchangeMetadata(
    id="hyperliquid",
    name="Hyperliquid",
    asset_class="Crypto",
    asset_types="Crypto Perps",
    market_hours="24/7 Trading",
    icon="i-simple-icons-bitcoin",
    logo="/hyperliquid_logo.png",
    color_class="bg-cyan-500/20 text-cyan-500",
    instructions=(
        "No key is needed: store the address of the wallet that you trade with, shown at the top right of "
        "app.hyperliquid.xyz. Never store the address of an API wallet or a private key."
    ),
    credential_fields=(
        CredentialField(
            "wallet_address",
            "Wallet address",
            secret=False,
            description="0x and 40 hexadecimal digits: the main wallet, a sub-account or a vault.",
        ),
        CredentialField(
            "dexs",
            "Builder dexs",
            required=False,
            secret=False,
            description="Names with commas between them, such as xyz,flx. If it is empty, only the main dex is read.",
        ),
    ),
    account_types=("perpetual", "spot", "vault", "staking"),
    # The types that the venue itself calls the balance. Reading vaults or staking weighs ten times as much.
    default_account_types=("perpetual", "spot"),
    capabilities=Capabilities(sandbox=True, several_accounts=True, push=True, read_without_secret=True),
    environments=(
        Environment(
            "production",
            {"api": "https://api.hyperliquid.xyz", "push": "wss://api.hyperliquid.xyz/ws"},
            aliases=("live", "mainnet"),
        ),
        Environment(
            "sandbox",
            {"api": "https://api.hyperliquid-testnet.xyz", "push": "wss://api.hyperliquid-testnet.xyz/ws"},
            aliases=("testnet",),
        ),
    ),
    documentation_url="https://hyperliquid.gitbook.io/hyperliquid-docs/for-developers/api",
    limits=_LIMITS,
    push=_PUSH,
    public_answer_limit=ANSWER_LIMIT,
    # No credential_url: the only page for keys makes API wallets, whose address must not be stored.
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(HYPERLIQUID,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Balance | Changed]:
    async with aclosing(watch_wallet(call)) as news:
        async for item in news:
            yield item


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return key_rights(call)
