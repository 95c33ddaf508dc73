"""Kraken Futures over HTTP: the signed requests, and which VenueError each of the venue's errors is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from exchange_service.plugin_api import (
    ClockSkew,
    CredentialRejected,
    FeatureNotEnabled,
    PermissionMissing,
    RequestRefused,
    Response,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueUnavailable,
    as_object,
    clean_text,
    raise_unexpected_status,
    read_metadata,
    require_account,
    required_text,
    text,
)
from exchange_service_krakenfutures.signing import Nonces, decode_secret, signature

NAME = "Kraken Futures"
ACCOUNTS = "/derivatives/api/v3/accounts"
KEY = "/api/auth/v1/api-keys/v3/check"
# A right that a key does not have, of the answer about the key.
NO_ACCESS = "NO_ACCESS"

# What each error of the venue is: the VenueError, its message, and what the user can do about it.
# witness: vendor: https://docs.kraken.com/api/docs/futures-api/trading/get-accounts
_ERRORS: Mapping[str, tuple[type[VenueError], str, str | None]] = {
    "accountInactive": (
        FeatureNotEnabled,
        "Kraken Futures says that the account is inactive.",
        "Activate futures trading at Kraken, and transfer something to the account.",
    ),
    "apiLimitExceeded": (VenueRateLimited, "Kraken Futures's request limit is reached.", None),
    "authenticationError": (
        CredentialRejected,
        "Kraken Futures refuses the key or its signature.",
        "Check that the key is not of Kraken's spot exchange, that api_secret belongs to it, and where it may be used.",
    ),
    "nonceBelowThreshold": (
        ClockSkew,
        "Kraken Futures refuses the nonce of our request: another program may use the same key.",
        "Give this service a key that nothing else uses, and set the clock of its machine by NTP.",
    ),
    "nonceDuplicate": (
        ClockSkew,
        "Kraken Futures has seen the nonce of our request before: another program may use the same key.",
        "Give this service a key that nothing else uses.",
    ),
    "invalidArgument": (RequestRefused, "Kraken Futures calls our request wrong.", None),
    "requiredArgumentMissing": (RequestRefused, "Kraken Futures calls our request wrong.", None),
    "Json Parse Error": (RequestRefused, "Kraken Futures calls our request wrong.", None),
    "notFound": (RequestRefused, "Kraken Futures does not know our request.", None),
    "marketUnavailable": (VenueUnavailable, "Kraken Futures is not available.", None),
    "Server Error": (VenueUnavailable, "Kraken Futures failed to answer.", None),
    "Unavailable": (VenueUnavailable, "Kraken Futures is not available.", None),
    "unknownError": (VenueUnavailable, "Kraken Futures failed to answer.", None),
}


class KrakenfuturesClient:
    """The two reads: the accounts of a key, and what the key may do."""

    def __init__(self, call: VenueCall) -> None:
        # What is stored for CCXT's exchange of this id may hold these. They choose nothing here: one request reads all.
        read_metadata(call.credential, defaultType=str, subType=str, marginMode=str)
        self._call = call
        self.key = clean_text(required_text(call.credential, "api_key", plain=True), "api_key")
        self.secret = decode_secret(clean_text(required_text(call.credential, "api_secret", plain=True), "api_secret"))

    async def accounts(self) -> Any:
        """The payload of all accounts."""
        response = await self._get(ACCOUNTS)
        if error := _named_error(response):
            raise await self._explain(error)
        if response.status != 200:
            raise_unexpected_status(response, NAME)
        answer = as_object(response.json(), "the answer")
        if answer.get("result") != "success":
            raise VenueMalformed("Kraken Futures's answer is no success, and names no error that is known.")
        return answer

    async def key_details(self) -> Mapping[str, Any]:
        """What the venue says about the key itself, for which a key needs no right."""
        response = await self._get(KEY)
        if error := _named_error(response):
            raise error
        if response.status != 200:
            raise_unexpected_status(response, NAME)
        answer = as_object(response.json(), "the key")
        require_account(self.key, text(answer, "apiKey", "the key"), NAME)
        return answer

    async def _explain(self, error: VenueError) -> VenueError:
        """The error that a refusal is: a key that exists and may read nothing is refused like one that does not."""
        if not isinstance(error, CredentialRejected):
            return error
        try:
            rights = as_object((await self.key_details()).get("permissions"), "permissions")
        except VenueError:
            return error
        if rights.get("general") != NO_ACCESS:
            return error
        return PermissionMissing(
            "Kraken Futures does not let this key read accounts.",
            advice='Make another one with "Read Only" access to the general API.',
        )

    async def _get(self, path: str) -> Response:
        # Two users may have stored the same key, so its nonces belong to the key and not to an account.
        nonce = (await self._call.key_state.get("nonces", Nonces.new)).next()
        headers = {
            "Accept": "application/json",
            "APIKey": self.key,
            "Nonce": nonce,
            "Authent": signature(self.secret, nonce, path),
        }
        return await self._call.http.get(self._call.url() + path, headers=headers)


def _named_error(response: Response) -> VenueError | None:
    """The error that the answer names, whatever its status: most come with 200. None: it names none that is known."""
    try:
        answer = response.json()
    except VenueMalformed:
        return None
    if not isinstance(answer, dict) or answer.get("result") != "error":
        return None
    others = answer.get("errors")
    listed: list[Any] = others if isinstance(others, list) else []
    for word in (answer.get("error"), *listed):
        if isinstance(word, str) and word in _ERRORS:
            kind, message, advice = _ERRORS[word]
            return kind(message, advice=advice)
    # Errors with a number are of requests that the venue could not read: https://github.com/ccxt/ccxt/issues/19896
    return RequestRefused("Kraken Futures calls our request wrong.") if listed else None


def login_of(client: KrakenfuturesClient) -> str:
    """What tells the connections of different keys apart. It holds the secret."""
    return json.dumps([client.key, client.secret.hex()])
