"""Aster: the futures and spot accounts of one wallet, read with an agent's signature or an older HMAC key."""

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
    VenueAccount,
    VenueCall,
    gather_accounts,
    hookimpl,
)
from exchange_service_aster import parse
from exchange_service_aster.client import AsterClient
from exchange_service_aster.scheme import AgentScheme

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
        CredentialField(
            "scheme",
            "Scheme",
            required=False,
            secret=False,
            description="v3 for an agent, v1 for an older HMAC key. Left empty, it follows from the other fields.",
        ),
    ),
    account_types=(parse.FUTURES, parse.SPOT),
    capabilities=Capabilities(sandbox=True, several_accounts=True),
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
    # In the venue's weights: both accounts together weigh ten.
    limits=(RateLimit("address", 2400, 60, cost=10),),
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(ASTER,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    client = await AsterClient.open(call)
    account_id = client.scheme.account_id

    async def read(account_type: str) -> VenueAccount:
        if account_type == parse.SPOT:
            return parse.spot_account(await client.spot_account(), account_id)
        return parse.futures_account(await client.futures_account(), account_id)

    def unread(account_type: str) -> VenueAccount:
        return VenueAccount(id=account_id, type=account_type)

    wanted = [account_type for account_type in ASTER.account_types if call.wants(account_type)]
    accounts = await gather_accounts(wanted, read, unread=unread)
    return Balance(accounts, parse.overall_summary(accounts), notes=parse.notes(accounts))


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    client = await AsterClient.open(call)
    if not isinstance(client.scheme, AgentScheme):
        return KeyRights(notes=(parse.HMAC_RIGHTS,))
    return parse.key_rights(await client.agents(), client.scheme.agent)
