"""OANDA over HTTP: addresses, the token, and OANDA's errors as ours."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from exchange_service.plugin_api import (
    AccountUnknown,
    AddressNotAllowed,
    CredentialInvalid,
    CredentialRejected,
    Response,
    VenueCall,
    VenueMalformed,
    as_object,
    read_metadata,
    required_text,
)
from exchange_service_oanda import parse

# The accounts of a token change seldom; asking for the list each time would double the requests.
_ACCOUNT_LIST_AGE = 600.0
_ACCOUNT_ID = re.compile(r"[0-9A-Za-z]+(-[0-9A-Za-z]+)*\Z", re.ASCII)

_NOT_YOURS = ("OANDA knows no such account, or the token may not read it.", "Check the stored account_id.")
_NOT_SHOWN = ("OANDA lists this account and does not show it.", "Check that it is open, and not of another platform.")
_NOT_LISTED = ("OANDA does not list the accounts of this token.", "Store the account_id of the one to read.")


class OandaClient:
    """The two reads that a balance needs."""

    def __init__(self, call: VenueCall) -> None:
        token = required_text(call.credential, "api_key")
        if not token.isascii() or not token.isprintable():
            raise CredentialInvalid("api_key is no personal access token: it holds other than plain characters.")
        self.account_id: str = read_metadata(call.credential, account_id=str).get("account_id", "")
        if self.account_id.isdigit():
            raise CredentialInvalid(
                "extra_metadata.account_id is of the retired v1 interface; a v20 id looks like 101-004-7654321-001."
            )
        if self.account_id and not _ACCOUNT_ID.match(self.account_id):
            raise CredentialInvalid("extra_metadata.account_id is no account id, such as 101-004-7654321-001.")
        self._http = call.http
        self._state = call.account_state
        self._base = call.url()
        self._other_environment = "practice" if call.environment.name == "production" else "live"
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    async def account_ids(self) -> list[str]:
        """The stored account id, or those of all accounts that the token may read; AccountUnknown where there is
        none."""
        if self.account_id:
            return [self.account_id]
        return await self._state.get("account ids", self._listed_ids, max_age=_ACCOUNT_LIST_AGE)

    async def summary(self, account_id: str) -> Any:
        """One account's summary, as OANDA sends it."""
        refusal = _NOT_YOURS if account_id == self.account_id else _NOT_SHOWN
        return await self._get(f"/v3/accounts/{quote(account_id, safe='')}/summary", refusal)

    async def _listed_ids(self) -> list[str]:
        ids = parse.account_ids(await self._get("/v3/accounts", _NOT_LISTED))
        if not ids:
            # Raised here and not by the caller: a failure is not kept, and the first account may be opened any time.
            raise AccountUnknown("OANDA: the token reads no account.", advice="Check that its login has a v20 one.")
        return ids

    async def _get(self, path: str, refusal: tuple[str, str]) -> Any:
        response = await self._http.get(self._base + path, headers=self._headers)
        self._raise_for_error(response, refusal)
        return response.json()

    def _raise_for_error(self, response: Response, refusal: tuple[str, str]) -> None:
        """OANDA's own words first; the rest is as everywhere. `refusal`: message and advice for an account."""
        status = response.status
        if status == 200:
            return
        message = _error_message(response)
        if status in (401, 403) and "forbidden" in message:
            # The token is good, and the account is somebody else's.
            raise AccountUnknown(refusal[0], advice=refusal[1])
        if status == 401 or (status == 403 and message):
            raise CredentialRejected(
                "OANDA refuses the token.",
                advice=f"Check first whether it is one for {self._other_environment} accounts: "
                "a token works in one environment only.",
            )
        if status == 403:
            # OANDA itself gives a reason, so it is the gateway in front that does not want us.
            raise AddressNotAllowed("OANDA's gateway refuses requests from this service's network address.")
        if status == 404 or (status == 400 and "accountid" in message):
            raise AccountUnknown(refusal[0], advice=refusal[1])
        response.raise_for_status()
        raise VenueMalformed(f"OANDA answered with an unexpected status (HTTP {status}).")


def _error_message(response: Response) -> str:
    """OANDA's own words, in lower case, to decide by; never passed on. Empty where it sent none."""
    try:
        return str(as_object(response.json(), "the error").get("errorMessage") or "").lower()
    except VenueMalformed:
        return ""
