"""Lighter: perpetual and spot accounts of one wallet address. Reads are public and need no key."""

from __future__ import annotations

from exchange_service.plugin_api import (
    Balance,
    Capabilities,
    CredentialField,
    Environment,
    ExchangeMetadata,
    KeyRights,
    Manifest,
    RateLimit,
    VenueCall,
    hookimpl,
)
from exchange_service_lighter.balance import key_rights, read_balance

# The limit without a token. One request reads all accounts of a wallet.
# witness: vendor: https://apidocs.lighter.xyz/docs/rate-limits
_LIMITS = (RateLimit("address", 60, 60),)

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
    capabilities=Capabilities(sandbox=True, several_accounts=True, read_without_secret=True),
    environments=(
        Environment(
            "production",
            {"api": "https://mainnet.zklighter.elliot.ai", "robinhood": "https://api.rh.lighter.xyz"},
            aliases=("live", "mainnet"),
        ),
        Environment(
            "sandbox",
            {"api": "https://testnet.zklighter.elliot.ai", "robinhood": "https://api.rh-testnet.lighter.xyz"},
            aliases=("testnet",),
        ),
    ),
    documentation_url="https://apidocs.lighter.xyz",
    credential_url="https://app.lighter.xyz/apikeys",
    limits=_LIMITS,
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(LIGHTER,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return key_rights(call)
