"""Kraken Futures for exchange-service: the holding, multi-collateral and single-collateral wallets of one key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from exchange_service.plugin_api import (
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
from exchange_service_krakenfutures.balance import read_balance, read_rights
from exchange_service_krakenfutures.push import watch

# 500 units in ten seconds, of which the list of accounts takes two. They count for the network address, because the
# venue's error says that the limit of the calling address has been exceeded.
# witness: vendor: https://docs.kraken.com/api/docs/guides/futures-rate-limits
LIMITS = (RateLimit("address", 500, 10, cost=2),)
# Each key has a connection of its own. The venue's other limit, 100 requests a second on each connection, is never
# reached by the three messages that open one.
# witness: vendor: https://docs.kraken.com/api/docs/guides/futures-rate-limits
PUSH_LIMITS = PushLimits(accounts=100, connections=100)

KRAKENFUTURES = ExchangeMetadata(
    id="krakenfutures",
    name="Kraken Futures",
    asset_class="Crypto",
    asset_types="Crypto Perps • Crypto Futures",
    market_hours="24/7 Trading",
    icon="i-simple-icons-bitcoin",
    logo="https://user-images.githubusercontent.com/24300605/81436764-b22fd580-9172-11ea-9703-742783e6376d.jpg",
    color_class="bg-violet-500/20 text-violet-500",
    instructions=(
        'In Kraken Futures, under Settings, API, create a key with the access "Read Only" to the general API and '
        '"No Access" to withdrawals. A key of Kraken\'s spot exchange does not open it. '
        # https://docs.kraken.com/exchange/api-reference/futures-rest
        "Kraken ends this interface on 1 March 2027."
    ),
    credential_fields=(
        CredentialField("api_key", "Public key", private_keys=()),
        CredentialField("api_secret", "Private key", private_keys=()),
    ),
    ip_whitelist="Optional: a key may be limited to network addresses.",
    account_types=("flex", "cash", "margin"),
    capabilities=Capabilities(push=True, several_accounts=True),
    environments=(
        Environment(
            "production",
            {"api": "https://futures.kraken.com", "push": "wss://futures.kraken.com/ws/v1"},
            aliases=("live",),
        ),
    ),
    documentation_url="https://docs.kraken.com/exchange/guides/futures/rest",
    credential_url="https://futures.kraken.com/trade/settings/api",
    limits=LIMITS,
    push=PUSH_LIMITS,
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(KRAKENFUTURES,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await read_balance(call)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Balance | Changed]:
    async with aclosing(watch(call)) as hints:
        async for hint in hints:
            yield hint


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return await read_rights(call)
