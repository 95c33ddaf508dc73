"""Hyperliquid: perpetual and spot balances of a wallet address. Reads are public and need no key."""

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
from exchange_service_hyperliquid.client import HyperliquidClient
from exchange_service_hyperliquid.wallet import read_balance

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
        "No key is needed: give the address of the wallet that you trade with, as it stands at the top right of "
        "app.hyperliquid.xyz. Not the address of an API wallet, and never a private key."
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
            description="Names with commas between them, such as xyz,flx. Left empty, the main dex alone is read.",
        ),
    ),
    account_types=("perpetual", "spot", "vault", "staking"),
    # What the venue itself calls the balance. Vaults and staking are places where money was put for longer, and
    # each costs ten times as much to ask about.
    default_account_types=("perpetual", "spot"),
    capabilities=Capabilities(sandbox=True, several_accounts=True, read_without_secret=True),
    environments=(
        Environment("production", {"api": "https://api.hyperliquid.xyz"}, aliases=("live", "mainnet")),
        Environment("sandbox", {"api": "https://api.hyperliquid-testnet.xyz"}, aliases=("testnet",)),
    ),
    documentation_url="https://hyperliquid.gitbook.io/hyperliquid-docs/for-developers/api",
    # In the venue's weights: each of the two states weighs two. An address's mode weighs twenty, and is asked once in
    # hours; the two more are its share.
    limits=(RateLimit("address", 1200, 60, cost=6),),
    # No credential_url: the only page that makes keys makes API wallets, whose address is the wrong one to store.
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(HYPERLIQUID,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(HyperliquidClient(call))


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    notes = HyperliquidClient(call).needless_secrets()
    return KeyRights(trade=False, withdraw=False, notes=notes)
