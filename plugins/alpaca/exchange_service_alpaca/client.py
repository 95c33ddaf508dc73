"""Alpaca over HTTP: the addresses, the key, what is left of its limit, and which VenueError each refusal is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from exchange_service.plugin_api import (
    CredentialRejected,
    Response,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    as_object,
    clean_text,
    gateway_error,
    raise_unexpected_status,
    read_metadata,
    required_text,
    retry_after,
)

# witness: vendor: https://alpaca.markets/support/usage-limit-api-calls/
REQUESTS_A_MINUTE = 200
_WINDOW = 60
# Headers of each answer: how many requests are left, and when they begin again, in seconds since 1970.
# witness: vendor: https://forum.alpaca.markets/t/executing-orders/12029
_REMAINING = "X-RateLimit-Remaining"
# witness: vendor: https://forum.alpaca.markets/t/executing-orders/12029
_RESET = "X-RateLimit-Reset"
# Digits of a time in seconds since 1970, or of a number of requests. Anything longer is neither.
_LONGEST_NUMBER = 12

_CHECK_THE_KEY = "Check that the key was not regenerated, and that it is of this environment: live or paper."
# What each refusal is, by the status and the `code` of its body, or the `message` where it has no code.
_REFUSALS: Mapping[tuple[int, str], type[VenueError]] = {
    (401, "40110000"): CredentialRejected,  # witness: report: https://github.com/alpacahq/alpaca-py/issues/519
    # witness: vendor: https://alpaca.markets/learn/how-to-fix-common-trading-api-errors-at-alpaca
    (401, "unauthorized"): CredentialRejected,
    # Alpaca answers so to a request without a key that it knows, and not for the want of a right.
    (403, "forbidden"): CredentialRejected,  # witness: report: https://github.com/alpacahq/alpaca-py/issues/347
    (429, "42910000"): VenueRateLimited,  # witness: CCXT: alpaca.exceptions
}


class AlpacaClient:
    """The reads that a balance needs."""

    def __init__(self, call: VenueCall) -> None:
        read_metadata(call.credential)
        self.key_id = clean_text(required_text(call.credential, "api_key"), "api_key")
        self.secret = clean_text(required_text(call.credential, "api_secret"), "api_secret")
        self._call = call

    async def account(self) -> Any:
        """The account that the key belongs to."""
        return await self._get("/v2/account")

    async def positions(self) -> Any:
        """Every open position of it. Alpaca has no pages here."""
        return await self._get("/v2/positions")

    async def _get(self, path: str) -> Any:
        headers = {"Accept": "application/json", "APCA-API-KEY-ID": self.key_id, "APCA-API-SECRET-KEY": self.secret}
        response = await self._call.http.get(self._call.url() + path, headers=headers)
        self._report_usage(response)
        _raise_for_error(response)
        return response.json()

    def _report_usage(self, response: Response) -> None:
        """Tell the service what is left of the key's limit, which the user's own programs use up too.

        Some accounts have a greater limit, so what counts is how many requests are left.
        """
        left, until = _number(response, _REMAINING), _seconds_to_reset(response)
        if left is not None and until is not None:
            self._call.report_usage(max(0, REQUESTS_A_MINUTE - left), _WINDOW, resets_after=until)


def _raise_for_error(response: Response) -> None:
    """Raise the error of a response: the venue's own word decides first, then the status."""
    if response.status == 200:
        return
    if error := gateway_error(response, "Alpaca"):
        raise error
    kind = _REFUSALS.get((response.status, _word(response)))
    if kind is CredentialRejected:
        raise CredentialRejected("Alpaca refuses the key.", advice=_CHECK_THE_KEY)
    if kind is VenueRateLimited or response.status == 429:
        wait = retry_after(response.headers)
        raise VenueRateLimited(
            "Alpaca limits the requests of this key.",
            retry_after=_seconds_to_reset(response) if wait is None else wait,
        )
    raise_unexpected_status(response, "Alpaca")


def _word(response: Response) -> str:
    """The code of a refusal, or its message in small letters and without the full stop; empty if it has neither.

    It chooses the error and is never passed on.
    """
    try:
        found = as_object(response.json(), "the error")
    except VenueMalformed:
        return ""
    code, message = found.get("code"), found.get("message")
    if code is not None:
        return str(code)
    return message.strip().rstrip(".").lower() if isinstance(message, str) else ""


def _seconds_to_reset(response: Response) -> float | None:
    """How long until the window of the limit begins again, at most a window; None if the answer does not say."""
    reset = _number(response, _RESET)
    return None if reset is None else min(max(reset - time.time(), 0.0), float(_WINDOW))


def _number(response: Response, name: str) -> int | None:
    text = response.headers.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER else None
