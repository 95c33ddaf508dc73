"""All that a plugin imports, on one page.

A plugin is a module named by an entry point of the group `exchange_service`. It implements two hooks:

    @hookimpl
    def exchange_manifest() -> Manifest: ...          the plugin's exchanges, as plain data

    @hookimpl
    async def fetch_balance(call: VenueCall) -> Balance: ...    what one account holds

The other hooks are optional. Hooks take and return plain data, because a plugin may run in a process of its own.
docs/plugins.md shows how a plugin is written, and docs/plugin-reference.md has every name of this page.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ParamSpec, Protocol, TypeVar

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
    ANSWER_LIMIT,
    ASSET_CLASSES,
    CASH,
    HOLDING,
    PRODUCTION,
    SANDBOX,
    SECRET_FIELDS,
    Account,
    AssetBalance,
    Balance,
    Capabilities,
    Changed,
    Credential,
    CredentialField,
    Environment,
    ExchangeMetadata,
    KeyRights,
    Manifest,
    PluginSetting,
    PushLimits,
    RateLimit,
    RetiredExchange,
    Secret,
    Summary,
    VenueAccount,
    VenueReports,
)
from exchange_service.plugin_kit.account_names import require_account, require_same_accounts
from exchange_service.plugin_kit.credential_fields import read_metadata, required_text, wallet_address
from exchange_service.plugin_kit.gateways import gateway_error
from exchange_service.plugin_kit.key_texts import KEY_KINDS, PrivateKey, clean_text, private_key
from exchange_service.plugin_kit.payload import (
    amount,
    as_list,
    as_object,
    check_unique,
    iso_time,
    milliseconds,
    parse_amount,
    parse_json,
    required_amount,
    required_iso_time,
    required_milliseconds,
    required_seconds,
    retry_after,
    seconds,
    text,
)
from exchange_service.plugin_kit.push import PushLanguage, Socket, Subscription, subscribed
from exchange_service.plugin_kit.responses import raise_unexpected_status
from exchange_service.plugin_kit.several_accounts import (
    combined_summary,
    gather_accounts,
    read_account_list,
    split_accounts,
)
from exchange_service.plugin_kit.state import State
from exchange_service.tasks import beside_the_loop

__all__ = [
    "ALL_ACCOUNT_TYPES",
    "ANSWER_LIMIT",
    "API_VERSION",
    "ASSET_CLASSES",
    "CASH",
    "HOLDING",
    "KEY_KINDS",
    "PRODUCTION",
    "SANDBOX",
    "SECRET_FIELDS",
    "Account",
    "AccountUnknown",
    "AddressNotAllowed",
    "AssetBalance",
    "Balance",
    "Capabilities",
    "Changed",
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
    "PluginSetting",
    "PrivateKey",
    "PushLanguage",
    "PushLimits",
    "RateLimit",
    "RegionRestricted",
    "RequestRefused",
    "Response",
    "RetiredExchange",
    "Secret",
    "Socket",
    "State",
    "Subscription",
    "Summary",
    "VenueAccount",
    "VenueCall",
    "VenueError",
    "VenueMaintenance",
    "VenueMalformed",
    "VenueRateLimited",
    "VenueReports",
    "VenueTimeout",
    "VenueUnavailable",
    "amount",
    "as_list",
    "as_object",
    "beside_the_loop",
    "check_unique",
    "clean_text",
    "combined_summary",
    "exact_difference",
    "exact_sum",
    "gateway_error",
    "gather_accounts",
    "hookimpl",
    "hookspec",
    "iso_time",
    "milliseconds",
    "parse_amount",
    "parse_json",
    "private_key",
    "raise_unexpected_status",
    "read_account_list",
    "read_metadata",
    "require_account",
    "require_same_accounts",
    "required_amount",
    "required_iso_time",
    "required_milliseconds",
    "required_seconds",
    "required_text",
    "retry_after",
    "seconds",
    "split_accounts",
    "subscribed",
    "text",
    "wallet_address",
]

# The version of this page. It rises when a plugin that was written for the version before would break. Write the number
# itself into a manifest.
API_VERSION = 1
# The versions whose plugins this release serves; docs/plugin-reference.md says for how long.
SERVED_API_VERSIONS = (1,)

T = TypeVar("T")
P = ParamSpec("P")

# Marks the declarations of hooks on this page. A plugin does not need it.
hookspec = pluggy.HookspecMarker("exchange_service")

# A hook as a type checker accepts it. One of another form is refused by the service too, when it is loaded.
_Hook = TypeVar(
    "_Hook",
    bound="Callable[[], Manifest] | Callable[[VenueCall], Coroutine[Any, Any, Balance]] | "
    "Callable[[VenueCall], AsyncIterator[Balance | Changed]] | Callable[[VenueCall], AsyncIterator[Balance]] | "
    "Callable[[VenueCall], AsyncIterator[Changed]] | Callable[[VenueCall], Coroutine[Any, Any, KeyRights]] | "
    "Callable[[], Coroutine[Any, Any, Manifest | None]]",
)


class _HookMarker(Protocol):
    """The type of `hookimpl`: it returns the function that it marks."""

    def __call__(self, function: _Hook, /) -> _Hook:
        """Mark the function as a hook."""


# Marks a function of a plugin as a hook: write `@hookimpl` in the line above it.
hookimpl: _HookMarker = pluggy.HookimplMarker("exchange_service")


class Response(Protocol):
    """A venue's answer, read in full and within the size limit."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names are found in any case."""

    @property
    def body(self) -> bytes:
        """The body, decompressed."""

    @property
    def url(self) -> str:
        """The URL as it was sent, with the query. It may hold a signature or a key, so put it into no text."""

    def json(self) -> Any:
        """The body as a JSON value with exact numbers, see `parse_json`. Raises VenueMalformed if it is not JSON."""

    def raise_for_status(self) -> None:
        """Raise the error that a status of 300 or more usually means. Look for your venue's own error codes first.

        An answer of a gateway in the venue's place (see `gateway_error`) is VenueUnavailable, also with 401 and 403.
        401 CredentialRejected · 403 PermissionMissing · 404 AccountUnknown · 418, 429 VenueRateLimited with the
        venue's Retry-After · 451 RegionRestricted · 408, 504 VenueTimeout · other 4xx RequestRefused ·
        503 with "maintenance" in the body VenueMaintenance · other 5xx VenueUnavailable · 3xx VenueMalformed.
        """


class Http(Protocol):
    """The guarded HTTP session: only the manifest's hosts, no redirects, no cookies, no proxy from the environment,
    bounded time and size. Failures below HTTP are raised as VenueUnavailable, VenueTimeout or VenueMalformed.

    `url` goes on the wire byte for byte, so that a signature over its query holds. It must be plain ASCII without
    blanks and `#`: percent-encode the rest yourself, or PluginFailed is raised. `params`, a mapping or pairs, are
    appended in their order as `urllib.parse.urlencode(params, quote_via=quote, safe="")` writes them: everything but
    letters, digits and `_.-~` is percent-encoded. `Response.url` tells what was sent.
    """

    async def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a GET to `url` and return the whole answer, whatever its status."""

    async def post(
        self,
        url: str,
        *,
        json: Any = None,
        data: bytes | Mapping[str, str] | None = None,
        params: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a POST to `url` and return the whole answer, whatever its status.

        The body is `json`, or `data` as a form or as bytes. Use it only for reads that a venue wants as POST.
        """

    def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, silence: float = 60.0, ping: float = 20.0
    ) -> AbstractAsyncContextManager[Socket]:
        """Open a WebSocket for the length of an `async with`, under the same guard: messages of 1 MiB at most, as
        text or binary frames, no compression. `url` begins with https:// or wss://.

        `receive` raises VenueTimeout after `silence` seconds without a message. A ping is sent every `ping` seconds,
        and the connection ends if no pong comes; 0 sends none. A refused handshake raises what
        `Response.raise_for_status` raises, and `Socket` says how a connection ends.
        """

    def lines(
        self,
        url: str,
        *,
        params: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float = 60.0,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """GET an answer that never ends, for the length of an `async with`, and read its lines of 1 MiB at most.

        They are bytes without their ends, and empty ones are left out.

        A status of 300 or more raises what `Response.raise_for_status` raises; `silence` seconds without a byte
        VenueTimeout; the end of the answer VenueUnavailable.
        """

    @property
    def client_session(self) -> Any:
        """The guarded aiohttp.ClientSession itself, for libraries that make their own calls. Never close it.

        It changes the encoding of a URL given as a text; `yarl.URL(url, encoded=True)` goes as it is.
        """


@dataclass(frozen=True, slots=True)
class VenueCall:
    """The arguments of one call of a hook: the account, its credential, a deadline, sessions and state."""

    # The listing.
    exchange: ExchangeMetadata
    # The user's account there, with the account type that the caller asks for.
    account: Account
    # The venue's environment: the request's, or the sandbox if the stored metadata hold `"sandbox": true`.
    environment: Environment
    # What the user stored, with what replace_credential has replaced since. Reveal secrets where they are used; keep
    # them in account_state only.
    credential: Credential = field(repr=False)
    # For the account's own answers, up to the listing's answer_limit.
    http: Http = field(repr=False)
    # For public market data, up to the listing's public_answer_limit.
    public_http: Http = field(repr=False)
    # The event loop's time, in seconds, at which the host ends the call; infinite for a watch.
    deadline: float
    # Shared by all accounts of the plugin.
    plugin_state: State = field(repr=False)
    # Of this account alone, whatever account type is asked for.
    account_state: State = field(repr=False)
    # Shared by the accounts whose stored credential has the same key and secrets at the venue's environment, whichever
    # users they are of: for a sequence of nonces, or a login that a second one would end. It lives while one of them is
    # in use. Other processes and replicas do not share it: what a venue wants of all of them together, such as rising
    # nonces, has to come from the clock.
    key_state: State = field(repr=False)
    # What the operator has set for the plugin, by the names of the manifest's `settings`, defaults included: a text, a
    # bool, an int or a Decimal, or a Secret. A setting without a value and without a default is absent.
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    # An address that the operator set in place of the venue's, for simulators and proxies.
    override: str = ""
    # The address from which the venue sees this call, as a name to count by; empty: the service's usual one. Count what
    # the venue counts by address for each of these.
    way: str = ""
    # What this call has reported of the venue's limits.
    reports: VenueReports = field(default_factory=VenueReports, repr=False)
    # What stores new values of the credential; the host sets it.
    replacing: Callable[[Mapping[str, str]], Awaitable[bool]] | None = field(default=None, repr=False, compare=False)

    def wants(self, account_type: str) -> bool:
        """Whether the call asks for accounts of this type. Others need not be read; the host drops them.

        True for an empty type: an account that could not be read may be of any type, and stays with its error.
        `account.account_type` holds the caller's word: one of the listing's types, ALL_ACCOUNT_TYPES, or empty for the
        listing's default.
        """
        return not account_type or self.exchange.reads(account_type, self.account.account_type)

    def url(self, name: str = "api") -> str:
        """The environment's address called `name`, without a slash at its end. Raises KeyError for another name."""
        return self.rebased(self.environment.urls[name]).rstrip("/")

    def rebased(self, url: str) -> str:
        """`url` with its scheme and host replaced by the operator's `override`, if there is one; the path stays."""
        if not self.override:
            return url
        _, _, rest = url.partition("://")
        _, slash, path = rest.partition("/")
        return self.override.rstrip("/") + slash + path

    def report_usage(self, used: int, seconds: int, *, resets_after: float | None = None) -> None:
        """Report how much of a rate limit is used, if an answer says so, for example in a header.

        `used` is in units of the listing's `RateLimit` whose window has `seconds`; `resets_after` are the seconds until
        the venue counts from zero again (default: the whole window, which is also the most). Once all is used, no
        request is sent with this key until then; nor with any, of a limit by address, if another key's call says so.
        Of several reports in one call, as from two hosts, the greatest counts. Raises TypeError if a number is of
        another type, such as a header's text, ValueError if it is not finite.
        """
        window, units = int(_at_least_zero(seconds)), min(int(_at_least_zero(used)), _MOST_UNITS)
        delay = _at_least_zero(seconds if resets_after is None else resets_after)
        if units >= self.reports.usage.get(window, (0, 0.0))[0]:
            self.reports.usage[window] = (units, delay)
        self.reports.on_report()

    def report_cooldown(self, seconds: float) -> None:
        """Report that the venue wants no requests for `seconds`, although this call may still return a balance, for
        example because only one of several accounts was refused. No request is sent until then with this key; nor for
        any account if another one's call reports the same, unless all of the listing's limits count by key. Raises as
        `report_usage` does."""
        self.reports.cooldown = max(self.reports.cooldown, _at_least_zero(seconds))
        self.reports.on_report()

    async def replace_credential(
        self,
        *,
        api_secret: str | None = None,
        passphrase: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> bool:
        """Store the given fields in place of the stored ones, for a venue that gives a new refresh token at each use.
        Fields that are not given stay, and `credential` has the new values from now on, in every call of the account.

        Call it as soon as the venue has answered, before the new token is used. Every field must be marked with
        `rotates` in the manifest. True: stored. False: the user has stored another credential meanwhile; theirs stays,
        and the next call has it. Raises VenueUnavailable if the database does not answer: the service holds the new
        values and tries on, so go on with the access token. Raises PluginFailed for a field that the manifest does not
        allow or an empty text, NotSupported where nothing is stored.
        """
        texts = {"api_secret": api_secret, "passphrase": passphrase}
        changes = {name: text for name, text in texts.items() if text is not None} | dict(metadata or {})
        if self.replacing is None:
            raise NotSupported("The credential of this call is not stored by the service, and cannot be replaced.")
        return await self.replacing(changes)

    def report_cost(self, units: int, seconds: int | None = None) -> None:
        """Report what reading this balance has really used so far, where that depends on the answer, as on its pages.

        `units` are those of the listing's `RateLimit` whose window has `seconds`; None: of each of its limits. What is
        beyond the limit's `cost` is charged at once: later calls wait for it, and this one goes on. Less gives nothing
        back. Of several reports in one call the greatest counts, so report the sum so far. Nothing happens if no limit
        has this window. Raises as `report_usage` does.
        """
        used = min(math.ceil(_at_least_zero(units)), _MOST_UNITS)
        window = 0 if seconds is None else int(_at_least_zero(seconds))
        if seconds is None or any(limit.seconds == window for limit in self.exchange.limits):
            self.reports.costs[window] = max(used, self.reports.costs.get(window, 0))
            self.reports.on_report()

    async def compute(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """What the plain function `work` makes of an answer: `await call.compute(parse.account, payload)`.

        After a large answer it runs in a thread, so that no other user waits for it; otherwise at once. Use it where a
        venue's answer is turned into rows. Raises what `work` raises.
        """
        if any(getattr(http, "has_read_much", False) for http in (self.http, self.public_http)):
            return await beside_the_loop(work, *arguments, **options)
        return work(*arguments, **options)

    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


# More units than any venue counts, and few enough to cross between processes.
_MOST_UNITS = 2**53


def _at_least_zero(number: float) -> float:
    """The number, or 0 in place of a negative one. Raises TypeError for another type, ValueError if not finite."""
    if not isinstance(number, int | float):
        raise TypeError(f"a report takes numbers, not {type(number).__name__}")
    if not math.isfinite(number):
        raise ValueError("a report takes finite numbers")
    return max(0.0, number)


@hookspec(firstresult=True)
def exchange_manifest() -> Manifest:  # type: ignore[empty-body]
    """Return the exchanges that the plugin serves. Called once, at load; must not import a venue's heavy library."""


@hookspec(firstresult=True)
def fetch_balance(call: VenueCall) -> Awaitable[Balance]:  # type: ignore[empty-body]
    """Read one account and return its balance; an `async def`. Called when the cached balance is too old.

    Raises a VenueError; those of `call.http` may pass through. Any other exception is reported as the plugin's failure,
    without its text.
    """


@hookspec(firstresult=True)
def watch_balance(call: VenueCall) -> AsyncIterator[Balance | Changed]:  # type: ignore[empty-body]
    """Optional, for venues that push: an async generator, which runs while somebody follows the account.

    Yield as soon as the venue's subscription stands: a `Balance` if the venue sends everything at once, else `Changed`.
    Then yield a whole `Balance` for each change; or `Changed`, and the host reads the account by `fetch_balance`, soon
    and within the limits. Raise a VenueError when the push breaks: the host polls meanwhile and begins the generator
    again after a pause, which grows. NotSupported says that this account has no push. Clean up in `finally`: the host
    closes the generator when nobody follows the account any more. `subscribed` shares one connection among accounts.
    """


@hookspec(firstresult=True)
def check_credential(call: VenueCall) -> Awaitable[KeyRights]:  # type: ignore[empty-body]
    """Optional, an `async def`: return what the stored key may do besides reading, if the venue says it.

    Called by `exchange-service credentials check` after the key has read a balance. Raises as `fetch_balance` does.
    """


@hookspec(firstresult=True)
def refresh_manifest() -> Awaitable[Manifest | None]:  # type: ignore[empty-body]
    """Optional, an `async def`: return a newer manifest than the one of `exchange_manifest`, or None.

    Called once, after the service has begun to serve. It may take long, but must not block the event loop.
    """
