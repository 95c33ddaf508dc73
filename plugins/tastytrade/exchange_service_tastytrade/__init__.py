"""tastytrade: brokerage accounts, read by an OAuth grant of the user's own application.

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
            description="Such as 5WX00000. May be left empty: the login shows its accounts.",
        ),
    ),
    account_types=("cash", "margin"),
    capabilities=Capabilities(balance=False, sandbox=True),
    environments=(
        Environment("production", {"api": "https://api.tastyworks.com"}, aliases=("live",)),
        # Its logins are its own, and it is wiped every day.
        Environment("sandbox", {"api": "https://api.cert.tastyworks.com"}, aliases=("cert",)),
    ),
    documentation_url="https://developer.tastytrade.com",
    credential_url="https://my.tastytrade.com/app.html#/manage/api-access/oauth-applications",
    unsupported_reason="tastytrade is listed, but reading its balances is not yet written.",
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(TASTYTRADE,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    raise NotSupported(call.exchange.unsupported_reason)
