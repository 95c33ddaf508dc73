"""Tradier over HTTP: addresses, the token, its request budget, and Tradier's errors as ours."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from exchange_service.plugin_api import (
    AccountUnknown,
    AddressNotAllowed,
    CredentialInvalid,
    CredentialRejected,
    RequestRefused,
    Response,
    VenueCall,
    VenueMalformed,
    VenueRateLimited,
    read_metadata,
    required_text,
    retry_after,
)
from exchange_service_tradier import parse

_ACCOUNT_NUMBER = re.compile(r"[0-9A-Za-z]+\Z", re.ASCII)
# The accounts of a token change seldom; asking for the profile each time would double the requests.
_PROFILE_AGE = 600.0
# Tradier counts requests by the minute, so no wait is longer; a header that asks for more tells of a wrong clock.
_WINDOW = 60.0
_MILLISECONDS = re.compile(r"\d{1,15}\Z", re.ASCII)
_LIMITED = "Tradier limits the requests of this token."


class RequestBudget:
    """What the answers say of the requests that the token may still send.

    `now` is in the event loop's time, so that a wait stays as long as it is when the machine's clock is set.
    """

    def __init__(self) -> None:
        self._closed_until = 0.0

    def check(self, now: float) -> None:
        """VenueRateLimited, with the rest of the wait, where the last answer left no request in its minute."""
        if now < self._closed_until:
            raise VenueRateLimited(_LIMITED, retry_after=self._closed_until - now)

    def note(self, headers: Mapping[str, str], now: float) -> None:
        """Remember what an answer's headers leave."""
        wait = time_to_expiry(headers, time.time())
        if wait is not None and headers.get("X-Ratelimit-Available", "").strip() == "0":
            self._closed_until = now + wait


def time_to_expiry(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until the minute that Tradier counts in is over, at most a minute; None where no header tells, or it
    is over. `now` is in seconds since 1970, as the header is in milliseconds."""
    expiry = headers.get("X-Ratelimit-Expiry", "").strip()
    wait = int(expiry) / 1000 - now if _MILLISECONDS.match(expiry) else 0.0
    return min(wait, _WINDOW) if wait > 0 else None


class TradierClient:
    """The two reads that a balance needs."""

    def __init__(self, call: VenueCall) -> None:
        token = required_text(call.credential, "api_key")
        if not token.isascii() or not token.isprintable():
            raise CredentialInvalid("api_key is no access token: it holds other than plain characters.")
        self.account_id: str = read_metadata(call.credential, account_id=str).get("account_id", "")
        if self.account_id and not _ACCOUNT_NUMBER.match(self.account_id):
            raise CredentialInvalid("extra_metadata.account_id is no account number, such as 6YA00000.")
        self._http = call.http
        self._base = call.url()
        self._state = call.account_state
        self._other_environment = "sandbox" if call.environment.name == "production" else "live"
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    async def profile(self) -> list[parse.ListedAccount]:
        """Every account of the token, closed ones among them."""

        async def ask() -> list[parse.ListedAccount]:
            return parse.listed_accounts(await self._get("/user/profile"))

        return await self._state.get("profile", ask, max_age=_PROFILE_AGE)

    async def open_accounts(self) -> list[parse.ListedAccount]:
        """The accounts of the token that are not closed; AccountUnknown where there is none."""
        found = [account for account in await self.profile() if not account.closed]
        if not found:
            # An account may be opened any time, and should not have to wait for the kept profile to age.
            self._state.forget("profile")
            raise AccountUnknown("Tradier: the token is good but shows no open account.")
        return found

    async def balances(self, number: str) -> Any:
        """One account's balances, as Tradier sends them."""
        return await self._get(f"/accounts/{quote(number, safe='')}/balances")

    async def _get(self, path: str) -> Any:
        budget = await self._state.get("request budget", _new_budget)
        clock = asyncio.get_running_loop()
        budget.check(clock.time())
        response = await self._http.get(self._base + path, headers=self._headers)
        budget.note(response.headers, clock.time())
        self._raise_for_error(response)
        return response.json()

    def _raise_for_error(self, response: Response) -> None:
        """Tradier's own words before the status: an expired token comes as HTTP 500, a foreign account as 401."""
        message = _error_message(response)
        # First of all: a limit counts requests by the access token, and may name it.
        if response.status == 429 or "quota" in message:
            wait = retry_after(response.headers)
            if wait is None:
                wait = time_to_expiry(response.headers, time.time()) or _WINDOW
            raise VenueRateLimited(_LIMITED, retry_after=wait)
        if "access token" in message or "access_token" in message:
            raise self._refused_token(expired="expired" in message)
        if response.status == 200:
            return
        if "unauthorized account" in message:
            raise AccountUnknown(
                "Tradier: the token may not read this account.",
                advice="Check the stored account_id; a number that begins with VA is one of the sandbox.",
            )
        if response.status == 401:
            raise self._refused_token(expired=False)
        if response.status == 403 and not message:
            # Tradier itself gives a reason, so it is the gateway in front that does not want us.
            raise AddressNotAllowed("Tradier's gateway refuses requests from this service's network address.")
        if response.status == 400:
            raise RequestRefused("Tradier calls our request wrong (HTTP 400).", advice="Check the stored account_id.")
        response.raise_for_status()
        raise VenueMalformed(f"Tradier answered with an unexpected status (HTTP {response.status}).")

    def _refused_token(self, *, expired: bool) -> CredentialRejected:
        if expired:
            return CredentialRejected("Tradier's access token has expired.", advice="Store a new one.")
        return CredentialRejected(
            "Tradier refuses the token.",
            advice=f"Check first whether it is one for the {self._other_environment} environment: "
            "a token works in one only.",
        )


async def _new_budget() -> RequestBudget:
    return RequestBudget()


def _error_message(response: Response) -> str:
    """Tradier's own words, in lower case, to decide by; never passed on. Empty where it sent none.

    Its gateway wraps them into a fault, and some of its servers send them bare, as plain text.
    """
    try:
        answer = response.json()
    except VenueMalformed:
        return _plain_text(response.body)
    fault = answer.get("fault") if isinstance(answer, dict) else None
    return "" if fault is None else str(fault).lower()


def _plain_text(body: bytes) -> str:
    """A body that is no JSON, unless it is a page, whose words are for people and mean nothing here."""
    words = body[:1000].decode("utf-8", "replace").strip().lower()
    return "" if words.startswith("<") else words
