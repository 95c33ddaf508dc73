"""Lighter: perpetual and spot accounts of one wallet address, which anybody may read.

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
        "No key is needed: Lighter's balances are public, so give the address of your wallet. "
        "A read-only token, made on Lighter's page of API keys, is optional."
    ),
    credential_fields=(
        CredentialField(
            "wallet_address",
            "Wallet address",
            secret=False,
            description="The Ethereum address that owns the account: 0x and 40 digits.",
        ),
        CredentialField(
            "account_index",
            "Account index",
            required=False,
            secret=False,
            description="The number of one account of the wallet, where only that one is wanted.",
        ),
        CredentialField(
            "api_key",
            "Read-only token",
            required=False,
            description="Begins with ro: and raises the venue's limit on requests. Never a private key.",
        ),
    ),
    account_types=("perpetual", "spot"),
    capabilities=Capabilities(balance=False, sandbox=True, read_without_secret=True),
    environments=(
        Environment("production", {"api": "https://mainnet.zklighter.elliot.ai"}, aliases=("live", "mainnet")),
        Environment("sandbox", {"api": "https://testnet.zklighter.elliot.ai"}, aliases=("testnet",)),
    ),
    documentation_url="https://apidocs.lighter.xyz",
    credential_url="https://app.lighter.xyz/apikeys",
    unsupported_reason="Lighter is listed, but reading its balances is not yet written.",
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(LIGHTER,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    raise NotSupported(call.exchange.unsupported_reason)
