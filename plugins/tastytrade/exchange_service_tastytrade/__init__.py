"""tastytrade: the balances of brokerage accounts, read by an OAuth grant of the user's own application."""

from __future__ import annotations

from dataclasses import replace

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
    combined_summary,
    gather_accounts,
    hookimpl,
)
from exchange_service_tastytrade import parse
from exchange_service_tastytrade.client import TastytradeClient

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
        "then choose Manage and Create Grant: the application's client secret and the grant's refresh token are needed."
    ),
    credential_fields=(
        CredentialField(
            "api_key",
            "Client id",
            required=False,
            secret=False,
            description="The OAuth application's id; may be left empty, the venue does not ask for it.",
        ),
        CredentialField(
            "api_secret",
            "Client secret",
            description="The OAuth application's secret, which tastytrade shows once.",
        ),
        CredentialField(
            "passphrase",
            "Refresh token",
            description="From Create Grant. It does not expire, and can be revoked on the same page.",
        ),
        CredentialField(
            "account_id",
            "Account number",
            required=False,
            secret=False,
            description="Such as 5WX00000. Left empty, every open account of the login is read.",
        ),
    ),
    account_types=("cash", "margin"),
    capabilities=Capabilities(sandbox=True, several_accounts=True),
    environments=(
        Environment("production", {"api": "https://api.tastyworks.com"}, aliases=("live",)),
        # Its logins and grants are its own, and it is wiped every day.
        Environment("sandbox", {"api": "https://api.cert.tastyworks.com"}, aliases=("cert",)),
    ),
    documentation_url="https://developer.tastytrade.com",
    credential_url="https://my.tastytrade.com/app.html#/manage/api-access/oauth-applications",
    # The venue publishes none. This is a balance every two seconds: a list of accounts, and one account as a rule.
    limits=(RateLimit("key", 60, 60, cost=2),),
)

_READ_IS_ENOUGH = (
    "tastytrade does not say what a grant may do. An OAuth application with the scope read alone is enough."
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(TASTYTRADE,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    client = TastytradeClient(call)
    listed = {account.number: account for account in await client.accounts() if call.wants(account.type)}

    async def read(number: str) -> VenueAccount:
        return parse.account(await client.balances(number), number)

    found = await gather_accounts(list(listed), read)
    # Also one that could not be read has its type and name.
    accounts = tuple(
        replace(account, type=listed[account.id].type, label=listed[account.id].label) for account in found
    )
    times = [account.venue_time for account in accounts if account.venue_time is not None]
    return Balance(accounts, combined_summary(accounts), venue_time=min(times, default=None))


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return KeyRights(notes=(_READ_IS_ENOUGH,))
