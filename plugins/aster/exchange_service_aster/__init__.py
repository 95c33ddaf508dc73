"""Aster: perpetual futures and spot wallets of one wallet address.

For now the listing alone: reading balances is not yet written.
"""

from __future__ import annotations

from exchange_service.plugin_api import (
    Balance,
    Capabilities,
    CredentialField,
    Environment,
    ExchangeMetadata,
    Manifest,
    NotSupported,
    VenueCall,
    hookimpl,
)

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
        "Never give the private key of the wallet itself; agents expire and must then be made anew."
    ),
    ip_whitelist="An agent or key can be bound to addresses; one that may withdraw must be.",
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
            description="The agent's address may be left empty. Older HMAC keys, no longer issued, need theirs.",
        ),
        CredentialField("api_secret", "Agent private key, or API secret"),
    ),
    account_types=("futures", "spot"),
    capabilities=Capabilities(balance=False, sandbox=True),
    environments=(
        Environment(
            "production",
            {"api": "https://fapi.asterdex.com", "spot": "https://sapi.asterdex.com"},
            aliases=("live", "mainnet"),
        ),
        Environment(
            "sandbox",
            {"api": "https://fapi.asterdex-testnet.com", "spot": "https://sapi.asterdex-testnet.com"},
            aliases=("testnet",),
        ),
    ),
    documentation_url="https://asterdex.github.io/aster-api-website/",
    credential_url="https://www.asterdex.com/en/api-wallet",
    unsupported_reason="Aster is listed, but reading its balances is not yet written.",
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(ASTER,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    raise NotSupported(call.exchange.unsupported_reason)
