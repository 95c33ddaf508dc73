"""Aster: the futures and spot accounts of one wallet, read with an agent's signature or an older HMAC key."""

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
    RateLimit,
    VenueCall,
    hookimpl,
)
from exchange_service_aster import parse
from exchange_service_aster.balance import read_balance, read_key_rights
from exchange_service_aster.push import watch_account

# In the venue's weights: the two accounts together weigh ten.
# witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md
_LIMITS = (RateLimit("address", 2400, 60, cost=10),)

ASTER = ExchangeMetadata(
    id="aster",
    name="Aster",
    asset_class="Crypto",
    asset_types="Crypto Futures",
    market_hours="24/7 Trading",
    icon="i-simple-icons-bitcoin",
    logo="/aster_logo.png",
    color_class="bg-orange-500/20 text-orange-500",
    instructions=(
        "On Aster's API page choose Pro API and register an agent with the right to read only, "
        "then store the agent's private key and your wallet's address. "
        "Never store the private key of the wallet itself. Agents expire: register a new one then."
    ),
    ip_whitelist="An agent or key can be bound to network addresses. If it may withdraw, it must be.",
    credential_fields=(
        CredentialField(
            "wallet_address",
            "Wallet address",
            required=False,
            secret=False,
            description="The main wallet that the agent acts for: 0x and 40 digits. Not needed with an older API key.",
        ),
        CredentialField(
            "api_key",
            "Agent address, or API key",
            required=False,
            description="For an agent its address, or nothing. An older HMAC key needs its API key here.",
            private_keys=(),
        ),
        CredentialField("api_secret", "Agent private key, or API secret", private_keys=()),
        CredentialField(
            "scheme",
            "Scheme",
            required=False,
            secret=False,
            description="v3 for an agent, v1 for an older HMAC key. If it is empty, the other fields decide.",
        ),
    ),
    account_types=(parse.FUTURES, parse.SPOT),
    capabilities=Capabilities(sandbox=True, several_accounts=True, push=True),
    environments=(
        Environment(
            "production",
            {
                "api": "https://fapi.asterdex.com",
                "spot": "https://sapi.asterdex.com",
                "push": "wss://fstream.asterdex.com",
                "spot_push": "wss://sstream.asterdex.com",
            },
            aliases=("live", "mainnet"),
        ),
        Environment(
            "sandbox",
            {
                "api": "https://fapi.asterdex-testnet.com",
                "spot": "https://sapi.asterdex-testnet.com",
                "push": "wss://fstream.asterdex-testnet.com",
                "spot_push": "wss://sstream.asterdex-testnet.com",
            },
            aliases=("testnet",),
        ),
    ),
    documentation_url="https://asterdex.github.io/aster-api-website/",
    credential_url="https://www.asterdex.com/en/api-wallet",
    limits=_LIMITS,
    public_answer_limit=ANSWER_LIMIT,
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(ASTER,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Changed]:
    async with aclosing(watch_account(call)) as hints:
        async for hint in hints:
            yield hint


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return await read_key_rights(call)
