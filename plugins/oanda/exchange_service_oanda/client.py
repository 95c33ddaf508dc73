"""OANDA over HTTP: the addresses, the token, and which VenueError each of OANDA's errors is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from exchange_service.plugin_api import (
    AccountUnknown,
    CredentialInvalid,
    CredentialRejected,
    Response,
    VenueCall,
    VenueMalformed,
    as_object,
    clean_text,
    gateway_error,
    raise_unexpected_status,
    read_metadata,
    require_same_accounts,
    required_text,
)
from exchange_service_oanda import parse

# Seconds. The accounts of a token change rarely, and reading the list each time would double the requests.
_ACCOUNT_LIST_AGE = 600.0
_ACCOUNT_ID = re.compile(r"[0-9A-Za-z]+(-[0-9A-Za-z]+)*\Z", re.ASCII)

# Messages with their advice.
_STORED_ACCOUNT_REFUSED = (
    "OANDA does not know this account, or the token may not read it.",
    "Check the stored account_id. Practice and live have accounts of their own.",
)
_LISTED_ACCOUNT_REFUSED = (
    "OANDA lists this account but does not show it: it may be closed, or belong to another platform such as MT4.",
    "Check the account at OANDA.",
)
_LIST_REFUSED = (
    "OANDA does not list the accounts of this token.",
    "Store the account_id of the account to read.",
)


@dataclass(slots=True)
class LastRead:
    """What the last read of a token found: its accounts, and by account whether it had open trades."""

    accounts: Collection[str] = ()
    holding: dict[str, bool] = field(default_factory=dict)


class OandaClient:
    """The two reads that a balance needs, and the stream that tells when to read again."""

    def __init__(self, call: VenueCall) -> None:
        token = clean_text(required_text(call.credential, "api_key"), "api_key")
        self.account_id: str = read_metadata(call.credential, account_id=str).get("account_id", "")
        if self.account_id.isdigit():
            raise CredentialInvalid(
                "extra_metadata.account_id is of the retired v1 interface, or a login of MT4 or MT5. "
                "A v20 id looks like 101-004-7654321-001."
            )
        if self.account_id and not _ACCOUNT_ID.match(self.account_id):
            raise CredentialInvalid("extra_metadata.account_id is not a v20 account id, such as 101-004-7654321-001.")
        self._call = call
        self._http = call.http
        self._state = call.account_state
        self._base = call.url()
        self._stream_base = call.url("push")
        self._other_environment = "practice" if call.environment.name == "production" else "live"
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    async def accounts(self) -> Mapping[str, str | VenueMalformed]:
        """The stored account, or all accounts of the token, by their ids. Raises AccountUnknown if it has none."""
        if self.account_id:
            return {self.account_id: self.account_id}
        accounts = await self._state.get("accounts", self._list_accounts, max_age=_ACCOUNT_LIST_AGE)
        if any(isinstance(account, VenueMalformed) for account in accounts.values()):
            # A broken list is not kept.
            self._state.forget("accounts")
        return accounts

    async def summary(self, account_id: str) -> Any:
        """The payload of one account's summary."""
        refusal = _STORED_ACCOUNT_REFUSED if account_id == self.account_id else _LISTED_ACCOUNT_REFUSED
        return await self._get(f"{_path(account_id)}/summary", refusal)

    def transactions(self, account_id: str, *, silence: float) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The lines of one account's transactions and of the heartbeats between them, see `Http.lines`."""
        url = f"{self._stream_base}{_path(account_id)}/transactions/stream"
        return self._http.lines(url, headers=self._headers, silence=silence)

    async def last_read(self) -> LastRead:
        """What was read last, shared by all calls of this user."""
        return await self._state.get("last read", _nothing_read)

    async def _list_accounts(self) -> Mapping[str, str | VenueMalformed]:
        accounts = await self._call.compute(parse.listed_accounts, await self._get("/v3/accounts", _LIST_REFUSED))
        await require_same_accounts(self._state, map(parse.owner, accounts), "OANDA")
        if not accounts:
            # Raised before the list is kept, because the user may open the first account at any time.
            raise AccountUnknown(
                "OANDA: the token is valid but has no account.", advice="Check that its login has a v20 one."
            )
        return accounts

    async def _get(self, path: str, refusal: tuple[str, str]) -> Any:
        response = await self._http.get(self._base + path, headers=self._headers)
        self._raise_for_error(response, refusal)
        return response.json()

    def _raise_for_error(self, response: Response, refusal: tuple[str, str]) -> None:
        """Raise the error of a response. OANDA's message decides first; `refusal` is for a refused account."""
        status = response.status
        if status == 200:
            return
        if error := gateway_error(response, "OANDA"):
            raise error
        message = _error_message(response)
        if status in (401, 403) and "forbidden" in message:
            # The token is valid, but the account belongs to somebody else.
            raise AccountUnknown(refusal[0], advice=refusal[1])
        if status == 401 or (status == 403 and message):
            raise CredentialRejected(
                "OANDA refuses the token. A token works in one environment only.",
                advice=f"Check first whether it is a token for {self._other_environment} accounts.",
            )
        if status == 404 or (status == 400 and "accountid" in message):
            raise AccountUnknown(refusal[0], advice=refusal[1])
        raise_unexpected_status(response, "OANDA")


async def _nothing_read() -> LastRead:
    return LastRead()


def _path(account_id: str) -> str:
    return f"/v3/accounts/{quote(account_id, safe='')}"


def _error_message(response: Response) -> str:
    """OANDA's message in lower case, empty if it sent none. It chooses the error and is never passed on."""
    try:
        message = as_object(response.json(), "the error").get("errorMessage")
    except VenueMalformed:
        return ""
    return message.lower() if isinstance(message, str) else ""
