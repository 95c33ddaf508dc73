"""Tradier: brokerage accounts in two listings, as a whole and with their options figures first."""

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
from exchange_service_tradier.views import account_view, options_view

_ENVIRONMENTS = (
    Environment("production", {"api": "https://api.tradier.com/v1"}, aliases=("live",)),
    # Its accounts and tokens are its own; its market data comes a quarter of an hour late.
    Environment("sandbox", {"api": "https://sandbox.tradier.com/v1"}, aliases=("paper",)),
)
_CREDENTIAL_FIELDS = (
    CredentialField("api_key", "Access token"),
    CredentialField(
        "account_id",
        "Account number",
        required=False,
        secret=False,
        description="Such as 6YA00000, or VA00000000 in the sandbox. May be left empty: the token shows its accounts.",
    ),
)
_INSTRUCTIONS = (
    "In Tradier's dashboard open Settings, API Access, and copy the access token of the environment that you connect. "
    "The sandbox has a token and an account number of its own."
)
# The sandbox's; live it is twice as much. The token's profile is asked for now and then besides the account.
_LIMITS = (RateLimit("key", 60, 60, cost=2),)
_DOCUMENTATION = "https://documentation.tradier.com/brokerage-api"
_CREDENTIAL_PAGE = "https://dash.tradier.com/settings/api"

TRADIER = ExchangeMetadata(
    id="tradier",
    name="Tradier",
    asset_class="Stocks",
    asset_types="Stocks • Options",
    market_hours="Market Hours",
    icon="i-heroicons-chart-bar",
    logo="/tradier_logo.png",
    color_class="bg-blue-500/20 text-blue-500",
    requires_account_id=True,
    instructions=_INSTRUCTIONS,
    credential_fields=_CREDENTIAL_FIELDS,
    account_types=("cash", "margin"),
    capabilities=Capabilities(sandbox=True, several_accounts=True),
    environments=_ENVIRONMENTS,
    documentation_url=_DOCUMENTATION,
    credential_url=_CREDENTIAL_PAGE,
    limits=_LIMITS,
)

TRADIER_OPTIONS = ExchangeMetadata(
    id="tradier_options",
    name="Tradier Options",
    asset_class="Options",
    asset_types="Options",
    market_hours="Market Hours",
    icon="i-heroicons-chart-bar",
    logo="/tradier_logo.png",
    color_class="bg-blue-500/20 text-blue-500",
    requires_account_id=True,
    instructions=_INSTRUCTIONS,
    credential_fields=_CREDENTIAL_FIELDS,
    account_types=("options",),
    capabilities=Capabilities(sandbox=True, several_accounts=True),
    environments=_ENVIRONMENTS,
    documentation_url=_DOCUMENTATION,
    credential_url=_CREDENTIAL_PAGE,
    limits=_LIMITS,
    # The same accounts, so the same token: nobody should have to store it twice.
    credential_of="tradier",
)

_NO_READ_ONLY_TOKENS = (
    "Tradier gives individuals no read-only tokens, and does not say what a token may do: whoever has it can trade. "
    "Keep it as you keep a password."
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(TRADIER, TRADIER_OPTIONS))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return await (options_view(call) if call.exchange.id == TRADIER_OPTIONS.id else account_view(call))


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return KeyRights(notes=(_NO_READ_ONLY_TOKENS,))
