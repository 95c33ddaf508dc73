"""A venue with signed requests and several accounts, as plugins were written for version 1. Never edit it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    ANSWER_LIMIT,
    API_VERSION,
    ASSET_CLASSES,
    CASH,
    HOLDING,
    KEY_KINDS,
    PRODUCTION,
    SANDBOX,
    SECRET_FIELDS,
    Account,
    AccountUnknown,
    AddressNotAllowed,
    AssetBalance,
    Balance,
    Capabilities,
    ClockSkew,
    Credential,
    CredentialField,
    CredentialInvalid,
    CredentialRejected,
    Environment,
    ExchangeMetadata,
    FeatureNotEnabled,
    Http,
    KeyRights,
    Manifest,
    NotSupported,
    PermissionMissing,
    PluginSetting,
    PrivateKey,
    RateLimit,
    RegionRestricted,
    RequestRefused,
    Response,
    Secret,
    State,
    Summary,
    VenueAccount,
    VenueCall,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueReports,
    VenueTimeout,
    VenueUnavailable,
    amount,
    as_list,
    as_object,
    beside_the_loop,
    check_unique,
    clean_text,
    combined_summary,
    exact_difference,
    exact_sum,
    gateway_error,
    gather_accounts,
    hookimpl,
    hookspec,
    iso_time,
    milliseconds,
    parse_amount,
    parse_json,
    private_key,
    raise_unexpected_status,
    read_account_list,
    read_metadata,
    require_account,
    require_same_accounts,
    required_amount,
    required_iso_time,
    required_milliseconds,
    required_seconds,
    required_text,
    retry_after,
    seconds,
    text,
)

LEDGER = ExchangeMetadata(
    id="ledger_of_version_1",
    name="Ledger of Version One",
    asset_class=ASSET_CLASSES[2],
    asset_types="Stocks, Cash",
    market_hours="Market Hours",
    environments=(
        Environment(PRODUCTION, {"api": "https://api.ledger-one.example/v1/"}, aliases=("live",)),
        Environment(SANDBOX, {"api": "https://sandbox.ledger-one.example/v1"}, aliases=("practice",)),
    ),
    credential_fields=(
        CredentialField("api_key", "API key", description="Under Settings, API."),
        CredentialField("api_secret", "Secret", required=False, private_keys=tuple(KEY_KINDS)),
        CredentialField("account_id", "Account", required=False, secret=False),
    ),
    icon="i-heroicons-book-open",
    color_class="bg-blue-500/20 text-blue-500",
    instructions="Under Settings, API, make a key with the right to read.",
    ip_whitelist="Optional.",
    account_types=("cash", "margin"),
    default_account_types=("cash",),
    capabilities=Capabilities(sandbox=True, several_accounts=True),
    documentation_url="https://docs.ledger-one.example",
    credential_url="https://ledger-one.example/keys",
    countries=("US",),
    limits=(
        RateLimit("address", 1200, 60, cost=3, costs={"margin": 4, ALL_ACCOUNT_TYPES: 5}),
        RateLimit("key", 50, 1, cost=3, costs={ALL_ACCOUNT_TYPES: 5}),
    ),
    answer_limit=2 * ANSWER_LIMIT,
    public_answer_limit=4 * ANSWER_LIMIT,
)
SETTINGS = (
    PluginSetting("application", "The name that Ledger shows its customers for this service.", default="A service"),
    PluginSetting("application_secret", "The secret of the application at Ledger.", secret=True),
)
# The venue's words for what went wrong.
REFUSALS: Mapping[str, type[VenueError]] = {
    "key": CredentialRejected,
    "right": PermissionMissing,
    "address": AddressNotAllowed,
    "clock": ClockSkew,
    "region": RegionRestricted,
    "account": AccountUnknown,
    "feature": FeatureNotEnabled,
    "request": RequestRefused,
    "nothing": NotSupported,
    "down": VenueUnavailable,
    "maintenance": VenueMaintenance,
    "slow": VenueTimeout,
}


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(LEDGER,), settings=SETTINGS)


@hookimpl
async def refresh_manifest() -> Manifest | None:
    return Manifest(1, (LEDGER,), notes=("Ledger has no newer list.",), settings=SETTINGS)


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    reader = Reader(call)
    stored = read_metadata(call.credential, account_id=str).get("account_id")
    offset = await call.plugin_state.get("offset", reader.offset, max_age=60.0)
    answer = as_object(await reader.ask("accounts", offset), "the accounts")
    entries = as_list(answer.get("accounts"), "accounts")
    await require_same_accounts(call.account_state, [answer.get("owner")], "Ledger", kind="owner")
    listed = read_account_list(entries, account_number, listed_account)
    broken = [VenueAccount(number, error=item) for number, item in listed.items() if isinstance(item, VenueMalformed)]
    good = {number: item for number, item in listed.items() if not isinstance(item, VenueMalformed)}
    if stored is not None:
        good = {number: item for number, item in good.items() if number == stored}
    wanted = {number: item for number, item in good.items() if call.wants(item.type)}
    if not wanted and not broken:
        raise FeatureNotEnabled("Ledger shows no such account behind this key.")

    async def read(number: str) -> VenueAccount:
        payload = await reader.ask(f"accounts/{quote(number, safe='')}", offset)
        account = await call.compute(parse_account, payload, wanted[number])
        require_account(number, account.id, "Ledger")
        return account

    accounts = (*broken, *await gather_accounts(list(wanted), read, unread=lambda number: wanted[number]))
    call.report_cost(1 + len(wanted), 60)
    return Balance(accounts, summary=combined_summary(accounts), notes=tuple(notes(call, accounts)))


@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    reader = Reader(call)
    payload = as_object(await reader.ask("key", 0.0), "the key")
    trade = payload.get("trade")
    return KeyRights(trade=trade if isinstance(trade, bool) else None, expires=key_end(payload))


class Reader:
    """Sends the signed requests of one call."""

    def __init__(self, call: VenueCall) -> None:
        self.call = call
        self.http: Http = call.http
        self.key = Secret(clean_text(required_text(call.credential, "api_key", plain=True), "api_key"))
        self.secret = secret_of(call.credential)

    async def offset(self) -> float:
        response = await self.call.public_http.get(f"{self.call.url()}/time")
        check(response)
        now = required_seconds(as_object(parse_json(response.body), "the time"), "time", "the time")
        return now.timestamp() - time.time()

    async def ask(self, path: str, offset: float) -> Any:
        query = urlencode({"at": int((time.time() + offset) * 1000)}, quote_via=quote, safe="")
        signature = await beside_the_loop(sign, self.secret.reveal(), query)
        count = await self.call.key_state.get("count", first_number)
        headers = {"Authorization": f"Bearer {self.key.reveal()}", "X-Number": str(next(count))}
        headers |= of_application(self.call.settings)
        url = f"{self.call.url()}/{path}?{query}&signature={signature}"
        response = await self.http.get(url, headers=headers)
        check(response)
        used = response.headers.get("X-Used", "")
        if used.isdigit():
            self.call.report_usage(int(used), 60, resets_after=30.0)
        return response.json()


async def first_number() -> Iterator[int]:
    return itertools.count(1)


def of_application(settings: Mapping[str, Any]) -> dict[str, str]:
    secret = settings.get("application_secret")
    signed = {"X-Application-Secret": secret.reveal()} if isinstance(secret, Secret) else {}
    return {"X-Application": str(settings["application"]), **signed}


def secret_of(credential: Credential) -> Secret:
    stored = credential.api_secret.reveal()
    key: PrivateKey | None = private_key(stored, "api_secret", list(KEY_KINDS)) if stored else None
    if stored and key is None and len(stored) < 4:
        raise CredentialInvalid("api_secret is too short.", advice="Copy it again.")
    return Secret(key.pem if key else stored)


def sign(secret: str, query: str) -> str:
    return hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()


def check(response: Response) -> None:
    if response.status == 200:
        return
    if error := gateway_error(response, "Ledger"):
        raise error
    if response.status == 429:
        raise VenueRateLimited("Ledger limits our requests.", retry_after=retry_after(response.headers))
    if response.status == 400:
        word = text(as_object(response.json(), "the refusal"), "error", "the refusal")
        raise REFUSALS.get(word, RequestRefused)("Ledger refuses the request.")
    raise_unexpected_status(response, "Ledger")


def account_number(entry: Mapping[str, Any]) -> str:
    return text(entry, "number", "accounts[]")


def listed_account(entry: Mapping[str, Any]) -> VenueAccount:
    kind = text(entry, "kind", "accounts[]")
    if kind not in LEDGER.account_types:
        raise VenueMalformed(f"accounts[].kind is of another kind: {kind[:20]!r}.")
    return VenueAccount(account_number(entry), kind, label=str(entry.get("label") or "")[:100])


def parse_account(payload: Any, listed: VenueAccount) -> VenueAccount:
    where = "the account"
    entry = as_object(payload, where)
    rows = [as_object(row, "holdings[]") for row in as_list(entry.get("holdings"), "holdings")]
    check_unique([text(row, "code", "holdings[]") for row in rows], "Ledger lists a holding twice.")
    currency, cash = text(entry, "currency", where), required_amount(entry, "cash", where)
    worth = [parse_amount(row.get("worth"), "holdings[].worth") for row in rows]
    if any(item is None for item in worth):
        raise VenueMalformed("holdings[].worth is missing.")
    total = exact_sum([cash, *(item for item in worth if item is not None)])
    return VenueAccount(
        text(entry, "number", where),
        listed.type,
        label=listed.label,
        assets=(AssetBalance(currency, total=cash, kind=CASH), *map(holding, rows)),
        summary=Summary(currency, total=total, cash=cash, margin_used=amount(entry, "margin", where)),
        venue_time=milliseconds(entry, "at", where) or seconds(entry, "at_s", where) or iso_time(entry, "since", where),
    )


def holding(row: Mapping[str, Any]) -> AssetBalance:
    total, reserved = required_amount(row, "total", "holdings[]"), required_amount(row, "reserved", "holdings[]")
    free = exact_difference(total, reserved)
    return AssetBalance(text(row, "code", "holdings[]"), total=total, free=free, used=reserved, kind=HOLDING)


def key_end(payload: Mapping[str, Any]) -> datetime:
    if "expires_ms" in payload:
        return required_milliseconds(payload, "expires_ms", "the key").astimezone(UTC)
    return required_iso_time(payload, "expires", "the key")


def notes(call: VenueCall, accounts: tuple[VenueAccount, ...]) -> list[str]:
    account: Account = call.account
    if account.account_type == ALL_ACCOUNT_TYPES and len(accounts) > 1:
        return ["Ledger's accounts do not overlap."]
    return []


def about(call: VenueCall) -> str:
    """What version the page of this release has, and what the call has kept and reported."""
    states: tuple[State, State] = (call.plugin_state, call.account_state)
    reports: VenueReports = call.reports
    names = ", ".join(SECRET_FIELDS)
    return f"{hookspec.project_name} {API_VERSION}: {names}, {len(states)} states, {reports.cooldown:g} s"
