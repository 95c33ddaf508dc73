"""Tradier over HTTP: the addresses, the token and its request budget, and which VenueError each error is."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from exchange_service.plugin_api import (
    AccountUnknown,
    CredentialInvalid,
    CredentialRejected,
    RequestRefused,
    Response,
    VenueCall,
    VenueMalformed,
    VenueRateLimited,
    clean_text,
    gateway_error,
    raise_unexpected_status,
    read_metadata,
    require_same_accounts,
    required_text,
    retry_after,
)
from exchange_service_tradier import parse

_ACCOUNT_NUMBER = re.compile(r"[0-9A-Za-z]+\Z", re.ASCII)
# Seconds. The accounts of a token change rarely, and reading the profile each time would double the requests.
_PROFILE_AGE = 600.0
# Seconds. Tradier counts requests by the minute. A header that asks for a longer wait comes from a wrong clock.
_WINDOW = 60.0
_MILLISECONDS = re.compile(r"\d{1,15}\Z", re.ASCII)
# By account number.
Profile = Mapping[str, parse.ListedAccount | VenueMalformed]
_LIMITED = "Tradier limits the requests of this token."


class RequestBudget:
    """How many requests the token may still send, by the headers of its answers.

    `now` is in the event loop's time, so that setting the machine's clock does not change a wait.
    """

    def __init__(self) -> None:
        self._blocked_until = 0.0

    def check(self, now: float) -> None:
        """Raise VenueRateLimited with the remaining wait, if the last answer left no request in its minute."""
        if now < self._blocked_until:
            raise VenueRateLimited(_LIMITED, retry_after=self._blocked_until - now)

    def record(self, headers: Mapping[str, str], now: float) -> float:
        """Record what the headers of an answer say. Returns the seconds to wait if no request is left, otherwise 0."""
        wait = time_to_expiry(headers, time.time())
        if wait is None or headers.get("X-Ratelimit-Available", "").strip() != "0":
            return 0.0
        self._blocked_until = now + wait
        return wait


def time_to_expiry(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until Tradier's current minute ends, at most 60; None without the header, or if the minute has ended.

    `now` is in seconds since 1970.
    """
    expiry = headers.get("X-Ratelimit-Expiry", "").strip()
    wait = int(expiry) / 1000 - now if _MILLISECONDS.match(expiry) else 0.0
    return min(wait, _WINDOW) if wait > 0 else None


class Positions:
    """Which accounts had positions when they were last read."""

    def __init__(self) -> None:
        self._held: dict[str, bool] = {}

    @property
    def may_be_held(self) -> bool:
        """Whether there are positions, as far as is known: also if nothing was read yet."""
        return not self._held or any(self._held.values())

    def note(self, held: Mapping[str, bool]) -> None:
        """Keep what was read, by account number."""
        self._held = dict(held)


class TradierClient:
    """The two reads that a balance needs, and the session that tells when to read again."""

    def __init__(self, call: VenueCall) -> None:
        self.token = token = clean_text(required_text(call.credential, "api_key"), "api_key")
        self.account_id: str = read_metadata(call.credential, account_id=str).get("account_id", "")
        if self.account_id and not _ACCOUNT_NUMBER.match(self.account_id):
            raise CredentialInvalid("extra_metadata.account_id is not an account number, such as 6YA00000.")
        self._call = call
        self.compute = call.compute
        self._http = call.http
        self._base = call.url()
        self._state = call.account_state
        self._other_environment = "sandbox" if call.environment.name == "production" else "live"
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    async def profile(self) -> Profile:
        """Every account of the token by its number, also closed ones, or the error why it cannot be read."""

        async def fetch() -> Profile:
            payload = await self._get("/user/profile")
            listed = await self.compute(parse.listed_accounts, payload)
            await require_same_accounts(self._state, (parse.owner(payload), *listed), "Tradier")
            return listed

        profile = await self._state.get("profile", fetch, max_age=_PROFILE_AGE)
        broken = any(isinstance(account, VenueMalformed) for account in profile.values())
        if broken or not any(map(parse.is_open, profile.values())):
            # A broken profile is not kept. Neither is one without an open account: the user may open one at any time.
            self._state.forget("profile")
        return profile

    async def balances(self, number: str) -> Any:
        """The payload of one account's balances."""
        return await self._get(f"/accounts/{quote(number, safe='')}/balances")

    async def event_session(self) -> str | None:
        """The id of a new session for account events, to be used within five minutes; None if Tradier refuses another
        one. The request changes nothing of an account."""
        response = await self._send(self._http.post, "/accounts/events/session")
        if parse.SESSIONS_LIMITED in response.body[:1000].lower():
            return None
        self._raise_for_error(response)
        return parse.session_id(response.json())

    async def positions(self) -> Positions:
        """What the last read found, shared by all calls for this account."""
        return await self._state.get(f"positions {self._call.account.account_type}", _no_positions)

    async def _get(self, path: str) -> Any:
        response = await self._send(self._http.get, path)
        self._raise_for_error(response)
        return response.json()

    async def _send(self, send: Callable[..., Awaitable[Response]], path: str) -> Response:
        budget = await self._state.get("request budget", _new_budget)
        loop = asyncio.get_running_loop()
        budget.check(loop.time())
        response = await send(self._base + path, headers=self._headers)
        # The budget stops this process at once, the cooldown stops the other replicas once the call has ended.
        self._call.report_cooldown(budget.record(response.headers, loop.time()))
        return response

    def _raise_for_error(self, response: Response) -> None:
        """Raise the error of a response. The message decides before the status: an expired token has HTTP 500."""
        message = _error_message(response)
        # Before the token: the message of a limit may name the access token, by which requests are counted.
        if response.status == 429 or "quota" in message:
            wait = retry_after(response.headers)
            if wait is None:
                wait = time_to_expiry(response.headers, time.time()) or _WINDOW
            raise VenueRateLimited(_LIMITED, retry_after=wait)
        if "access token" in message or "access_token" in message:
            raise self._token_error(expired="expired" in message)
        if response.status == 200:
            return
        if "unauthorized account" in message:
            raise AccountUnknown(
                "Tradier: the token may not read this account. A number that begins with VA belongs to the sandbox.",
                advice="Check the stored account_id, or leave it empty to read every account of the token. An account "
                "of another login needs that login's token.",
            )
        if error := gateway_error(response, "Tradier"):
            raise error
        if response.status == 401:
            raise self._token_error(expired=False)
        if response.status == 400:
            raise RequestRefused("Tradier rejects our request (HTTP 400).", advice="Check the stored account_id.")
        raise_unexpected_status(response, "Tradier")

    def _token_error(self, *, expired: bool) -> CredentialRejected:
        if expired:
            return CredentialRejected("Tradier's access token has expired.", advice="Store a new one.")
        return CredentialRejected(
            "Tradier refuses the token. A token works in one environment only.",
            advice=f"Check first whether it is for the {self._other_environment} environment.",
        )


async def _new_budget() -> RequestBudget:
    return RequestBudget()


async def _no_positions() -> Positions:
    return Positions()


def _error_message(response: Response) -> str:
    """Tradier's message in lower case, empty if it sent none. It chooses the error and is never passed on.

    The gateway sends the message in a fault, and some servers send it as plain text.
    """
    try:
        answer = response.json()
    except VenueMalformed:
        return _plain_text(response.body)
    fault = answer.get("fault") if isinstance(answer, dict) else None
    return "" if fault is None else _plain_text(response.body)


def _plain_text(body: bytes) -> str:
    """The text of a body that is not JSON; empty if it is an HTML page, which says nothing about the account."""
    message = body[:1000].decode("utf-8", "replace").strip().lower()
    return "" if message.startswith("<") else message
