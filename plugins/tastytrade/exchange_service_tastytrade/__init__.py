"""tastytrade: the balances of brokerage accounts, read with an OAuth grant of the user's own application."""

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
from exchange_service_tastytrade.balance import read_balance
from exchange_service_tastytrade.push import watch

# witness: unproven: numbers were looked for on the pages of developer.tastytrade.com
LIMITS = (
    # This allows a balance every two seconds: the list and, usually, one account.
    RateLimit("key", 60, 60, cost=2),
)
TASTYTRADE = ExchangeMetadata(
    id="tastytrade",
    name="Tasty Trade",
    asset_class="Futures",
    asset_types="Futures • Options",
    market_hours="Extended Hours",
    icon="i-heroicons-chart-line",
    logo="/tastytrade_logo.jpg",
    color_class="bg-indigo-500/20 text-indigo-500",
    requires_passphrase=True,
    requires_account_id=True,
    instructions=(
        "In tastytrade's API access settings make an OAuth application with the scope read alone, "
        "then choose Manage and Create Grant. Store the application's client secret and the grant's refresh token."
    ),
    credential_fields=(
        CredentialField(
            "api_key",
            "Client id",
            required=False,
            secret=False,
            description="The OAuth application's id. It may be empty: the venue does not need it.",
        ),
        CredentialField(
            "api_secret",
            "Client secret",
            description="The OAuth application's secret, which tastytrade shows once.",
            private_keys=(),
        ),
        CredentialField(
            "passphrase",
            "Refresh token",
            description="From Create Grant. It does not expire and can be revoked on the same page.",
            private_keys=(),
        ),
        CredentialField(
            "account_id",
            "Account number",
            required=False,
            secret=False,
            description="For example 5WX00000. If it is empty, every open account of the login is read.",
        ),
    ),
    account_types=("cash", "margin"),
    capabilities=Capabilities(push=True, sandbox=True, several_accounts=True),
    environments=(
        Environment(
            "production",
            {"api": "https://api.tastyworks.com", "push": "wss://streamer.tastyworks.com"},
            aliases=("live",),
        ),
        # The sandbox has its own logins and grants, and is wiped every day.
        Environment(
            "sandbox",
            {"api": "https://api.cert.tastyworks.com", "push": "wss://streamer.cert.tastyworks.com"},
            aliases=("cert",),
        ),
    ),
    documentation_url="https://developer.tastytrade.com",
    credential_url="https://my.tastytrade.com/app.html#/manage/api-access/oauth-applications",
    limits=LIMITS,
    public_answer_limit=ANSWER_LIMIT,
)

_READ_IS_ENOUGH = (
    "tastytrade does not say what a grant may do. An OAuth application with the scope read alone is enough."
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(TASTYTRADE,))


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
    return KeyRights(notes=(_READ_IS_ENOUGH,))
