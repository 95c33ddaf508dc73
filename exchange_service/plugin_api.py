"""All that a plugin imports, on one page.

A plugin is a module named by an entry point of the group `exchange_service`. It implements two hooks:

    @hookimpl
    def exchange_manifest() -> Manifest: ...          who it is, as plain data

    @hookimpl
    async def fetch_balance(call: VenueCall) -> Balance: ...    what an account holds

The rest is optional. Hooks take and give plain data, so that a plugin can as well run in a process of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pluggy

from exchange_service.amounts import exact_difference, exact_sum
from exchange_service.errors import (
    AccountUnknown,
    AddressNotAllowed,
    ClockSkew,
    CredentialInvalid,
    CredentialRejected,
    FeatureNotEnabled,
    NotSupported,
    PermissionMissing,
    RegionRestricted,
    RequestRefused,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import (
    ALL_ACCOUNT_TYPES,
    ASSET_CLASSES,
    PRODUCTION,
    SANDBOX,
    SECRET_FIELDS,
    Account,
    AssetBalance,
    Balance,
    Capabilities,
    Credential,
    CredentialField,
    Environment,
    ExchangeMetadata,
    KeyRights,
    Manifest,
    RateLimit,
    Secret,
    Summary,
    VenueAccount,
)
from exchange_service.plugin_kit.credential_fields import read_metadata, required_text, wallet_address
from exchange_service.plugin_kit.payload import (
    amount,
    as_list,
    as_object,
    check_unique,
    milliseconds,
    parse_amount,
    parse_json,
    required_amount,
    retry_after,
    text,
)
from exchange_service.plugin_kit.responses import raise_unexpected_status
from exchange_service.plugin_kit.several_accounts import combined_summary, gather_accounts
from exchange_service.plugin_kit.state import State

__all__ = [
    "ALL_ACCOUNT_TYPES",
    "API_VERSION",
    "ASSET_CLASSES",
    "PRODUCTION",
    "SANDBOX",
    "SECRET_FIELDS",
    "Account",
    "AccountUnknown",
    "AddressNotAllowed",
    "AssetBalance",
    "Balance",
    "Capabilities",
    "ClockSkew",
    "Credential",
    "CredentialField",
    "CredentialInvalid",
    "CredentialRejected",
    "Environment",
    "ExchangeMetadata",
    "FeatureNotEnabled",
    "Http",
    "KeyRights",
    "Manifest",
    "NotSupported",
    "PermissionMissing",
    "RateLimit",
    "RegionRestricted",
    "RequestRefused",
    "Response",
    "Secret",
    "State",
    "Summary",
    "VenueAccount",
    "VenueCall",
    "VenueError",
    "VenueMaintenance",
    "VenueMalformed",
    "VenueRateLimited",
    "VenueTimeout",
    "VenueUnavailable",
    "amount",
    "as_list",
    "as_object",
    "check_unique",
    "combined_summary",
    "exact_difference",
    "exact_sum",
    "gather_accounts",
    "hookimpl",
    "hookspec",
    "milliseconds",
    "parse_amount",
    "parse_json",
    "raise_unexpected_status",
    "read_metadata",
    "required_amount",
    "required_text",
    "retry_after",
    "text",
    "wallet_address",
]

# The version of everything on this page. It rises when a plugin written for the one before would break.
API_VERSION = 1

hookspec = pluggy.HookspecMarker("exchange_service")
hookimpl = pluggy.HookimplMarker("exchange_service")


class Response(Protocol):
    """A venue's answer, read in full and within the size limit."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names ignore case."""

    @property
    def body(self) -> bytes:
        """The body, decompressed."""

    def json(self) -> Any:
        """The body as JSON with exact numbers, see `parse_json`; VenueMalformed if it is none."""

    def raise_for_status(self) -> None:
        """Raise the error that a status of 300 or more usually means; plugins look for their venue's own words first.

        401 CredentialRejected · 403 PermissionMissing · 404 AccountUnknown · 418, 429 VenueRateLimited with the
        venue's Retry-After · 451 RegionRestricted · 408, 504 VenueTimeout · other 4xx RequestRefused ·
        503 with "maintenance" in the body VenueMaintenance · other 5xx VenueUnavailable · 3xx VenueMalformed.
        """


class Http(Protocol):
    """The guarded HTTP session: only the manifest's hosts, no redirects, no cookies, no proxy from the environment,
    bounded time and size. What fails below HTTP comes as VenueUnavailable, VenueTimeout or VenueMalformed."""

    async def get(
        self, url: str, *, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """GET `url`."""

    async def post(
        self,
        url: str,
        *,
        json: Any = None,
        data: bytes | Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """POST `json`, or `data` as a form or bytes, to `url`. For reads that a venue wants as POST."""

    @property
    def client_session(self) -> Any:
        """The guarded aiohttp.ClientSession itself, for libraries that bring their own calls. Never close it."""


@dataclass(frozen=True, slots=True)
class VenueCall:
    """What the host hands a plugin for one call."""

    # The listing that is asked for, and whose account it is.
    exchange: ExchangeMetadata
    account: Account
    # The venue's environment: the request's, or the sandbox where the stored metadata say `"sandbox": true`.
    environment: Environment
    # What the user stored. Reveal secrets where they are used, keep them nowhere else than in `account_state`.
    credential: Credential = field(repr=False)
    # For the account's own answers, bodies up to 8 MiB; `public_http` is for public market data, up to 64 MiB.
    http: Http = field(repr=False)
    public_http: Http = field(repr=False)
    # When the answer must be there, in the event loop's time. The host ends the call then.
    deadline: float
    # State of the plugin, shared by all accounts, and of this account alone.
    plugin_state: State = field(repr=False)
    account_state: State = field(repr=False)
    # Set by the operator: an address to use in place of the venue's, for simulators and proxies.
    override: str = ""

    def wants(self, account_type: str) -> bool:
        """Whether accounts of this type are asked for; what is not need not be read. `account.account_type` holds the
        caller's own word: one of the listing's types, ALL_ACCOUNT_TYPES, or empty for the listing's default."""
        return self.exchange.reads(account_type, self.account.account_type)

    def url(self, name: str = "api") -> str:
        """The environment's address of this name, without a slash at its end."""
        return self.rebased(self.environment.urls[name]).rstrip("/")

    def rebased(self, url: str) -> str:
        """`url` with scheme and host replaced by the operator's override, if there is one; the path is kept."""
        if not self.override:
            return url
        _, _, rest = url.partition("://")
        _, slash, path = rest.partition("/")
        return self.override.rstrip("/") + slash + path

    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


@hookspec(firstresult=True)
def exchange_manifest() -> Manifest:  # type: ignore[empty-body]
    """Say who you are and what you serve. Called once, at load; must not import a venue's heavy library."""


@hookspec(firstresult=True)
def fetch_balance(call: VenueCall) -> Awaitable[Balance]:  # type: ignore[empty-body]
    """Read one account, as an `async def`. Called whenever the kept answer is too old. Raise a VenueError, or let
    the ones of `call.http` pass; whatever else escapes is reported as the plugin's failure, without its text."""


@hookspec(firstresult=True)
def watch_balance(call: VenueCall) -> AsyncIterator[Balance]:  # type: ignore[empty-body]
    """Optional, for venues that push: yield the whole balance at each change. Called while somebody streams."""


@hookspec(firstresult=True)
def check_credential(call: VenueCall) -> Awaitable[KeyRights]:  # type: ignore[empty-body]
    """Optional, for venues that tell: what the stored key may do besides reading. Called by `credentials check`, after
    a balance could be read with it. Raises as `fetch_balance` does."""


@hookspec(firstresult=True)
def refresh_manifest() -> Awaitable[Manifest | None]:  # type: ignore[empty-body]
    """Optional: a newer manifest than the one given at load, or None. Called once, after the service has begun to
    serve, so that it may take its time; it must not block the event loop."""
