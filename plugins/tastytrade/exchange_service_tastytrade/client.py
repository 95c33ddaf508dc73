"""tastytrade over HTTP: the access token of the grant, two reads, and which VenueError each error is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from exchange_service.plugin_api import (
    AccountUnknown,
    Credential,
    CredentialInvalid,
    CredentialRejected,
    PermissionMissing,
    Response,
    Secret,
    VenueCall,
    VenueMalformed,
    VenueUnavailable,
    as_object,
    clean_text,
    gateway_error,
    raise_unexpected_status,
    read_metadata,
    require_same_accounts,
    required_text,
)
from exchange_service_tastytrade import parse

# The venue's gateway refuses every request without a name and version here.
USER_AGENT = "exchange-service-tastytrade/0.1.0"
HEADERS = {"Accept": "application/json", "User-Agent": USER_AGENT}
# Seconds. The accounts of a login change rarely, and reading the list each time would double the requests.
_ACCOUNT_LIST_AGE = 600.0
_LOGIN_KEYS = frozenset({"login", "username", "password", "remember_token"})
# In OAuth the second stands for a wrong client secret.
# witness: standard: RFC 6749, section 5.2
_REFUSED_GRANTS = ("invalid_grant", "invalid_client")
_LOGINS_RETIRED = "tastytrade retired logins by user name and password for programs on 2025-12-01."
_USE_A_GRANT = (
    "Create an OAuth application with the scope read and a grant for it, then store its client secret as api_secret "
    "and its refresh token as passphrase."
)

_GATEWAY_ADVICE = (
    "Call again later. The gateway blocks an address for some hours after repeated failed logins: wait, or call from "
    "another address."
)


class TastytradeClient:
    """The two reads that a balance needs."""

    def __init__(self, call: VenueCall) -> None:
        _reject_password_login(call.credential)
        metadata = read_metadata(call.credential, account_id=str, refresh_token=str)
        self.account_id: str = metadata.get("account_id", "")
        self._refresh_token = _refresh_token(call.credential, metadata)
        self._client_secret = Secret(clean_text(required_text(call.credential, "api_secret"), "api_secret"))
        # Whether a token was requested through this very client. If one is refused then, another one will be too.
        self.has_new_token = False
        self._call = call
        self._http = call.http
        self._state = call.account_state
        self._base = call.url()
        self._other_environment = "sandbox (cert)" if call.environment.name == "production" else "live venue"

    async def accounts(self) -> parse.Accounts:
        """All accounts of the login, or the stored account alone. Raises AccountUnknown if none of them is open."""
        listed = await self._state.get("accounts", self._list_accounts, max_age=_ACCOUNT_LIST_AGE)
        if any(isinstance(account, VenueMalformed) for account in listed.values()):
            # A broken list is not kept.
            self._state.forget("accounts")
        return self._stored_account(listed) if self.account_id else listed

    def _stored_account(self, listed: parse.Accounts) -> parse.Accounts:
        # The entry without a readable number may be that of the stored account.
        stored = listed.get(self.account_id, listed.get(""))
        if stored is None or not parse.is_open(stored):
            # The account may have been opened since the list was read.
            self._state.forget("accounts")
            raise AccountUnknown(
                "tastytrade lists no open account with the stored number for this login.",
                advice="Check the stored account_id, or leave it empty to read every open account. "
                "The sandbox has accounts of its own.",
            )
        return {self.account_id: stored}

    async def balances(self, number: str) -> Any:
        """The payload of one account's balances."""
        return await self._get(f"/accounts/{quote(number, safe='')}/balances")

    async def _list_accounts(self) -> parse.Accounts:
        accounts = await self._call.compute(parse.listed_accounts, await self._get("/customers/me/accounts"))
        if not any(map(parse.is_open, accounts.values())):
            # Raised before the list is kept, because the user may open the first account at any time.
            raise AccountUnknown("tastytrade: the grant is valid, but its login has no open account.")
        await require_same_accounts(self._state, accounts, "tastytrade")
        return accounts

    async def _get(self, path: str) -> Any:
        token = await self.token()
        response = await self._read(path, token)
        if _refuses_token(response):
            token = await self.token(refused=token)
            response = await self._read(path, token)
        self._raise_for_error(response)
        return response.json()

    async def _read(self, path: str, token: parse.AccessToken) -> Response:
        headers = {**HEADERS, "Authorization": f"Bearer {token.secret.reveal()}"}
        return await self._http.get(self._base + path, headers=headers)

    async def token(self, *, refused: parse.AccessToken | None = None) -> parse.AccessToken:
        """The access token that all calls of the account share. It is renewed before it ends.

        It is also renewed if it is the token that the venue `refused`. If another call has renewed that one already,
        the new token is returned without a request.
        """
        token = await self._state.get("access token", self._new_token)
        if token is refused or asyncio.get_running_loop().time() >= token.renew_at:
            self.forget_token()
            token = await self._state.get("access token", self._new_token)
        return token

    def forget_token(self) -> None:
        """Let the next `token` be a new one."""
        self._state.forget("access token")

    async def _new_token(self) -> parse.AccessToken:
        requested_at = asyncio.get_running_loop().time()
        grant = {
            "grant_type": "refresh_token",
            "client_secret": self._client_secret.reveal(),
            "refresh_token": self._refresh_token.reveal(),
        }
        response = await self._http.post(f"{self._base}/oauth/token", json=grant, headers=HEADERS)
        self._raise_for_refused_grant(response)
        token = parse.access_token(response.json(), requested_at)
        self.has_new_token = True
        return token

    def _raise_for_refused_grant(self, response: Response) -> None:
        """Raise the error of a refused grant. The venue does not say whether it refuses the secret or the token."""
        if response.status in (200, 201):
            return
        _raise_for_page(response)
        if response.status == 401 or _error_code(response) in _REFUSED_GRANTS:
            raise CredentialRejected(
                "tastytrade refuses the client secret or the refresh token. A grant works in one environment only.",
                advice="Check that both belong to the same OAuth application, that the grant was not revoked, and that "
                f"it is not for the {self._other_environment}.",
            )
        raise_unexpected_status(response, "tastytrade")

    def _raise_for_error(self, response: Response) -> None:
        if response.status == 200:
            return
        _raise_for_page(response)
        if response.status == 401:
            raise CredentialRejected(
                "tastytrade refuses a new access token of the stored grant.",
                advice="Create another grant, and store its refresh token.",
            )
        if response.status == 403:
            raise PermissionMissing(
                "tastytrade does not let this grant read the account.",
                advice="Check that its OAuth application has the scope read, and that the login may see the account.",
            )
        raise_unexpected_status(response, "tastytrade")


def _reject_password_login(credential: Credential) -> None:
    """Raise CredentialInvalid for a password login. It is never sent: the venue blocks addresses that try it."""
    if "@" in credential.api_key.reveal() or not _LOGIN_KEYS.isdisjoint(credential.metadata):
        raise CredentialInvalid(
            f"The stored credential is a login by user name and password. {_LOGINS_RETIRED}", advice=_USE_A_GRANT
        )


def _refresh_token(credential: Credential, metadata: Mapping[str, Any]) -> Secret:
    token = credential.passphrase.reveal().strip() or metadata.get("refresh_token", "")
    if not token:
        raise CredentialInvalid(
            f"passphrase is missing: it holds the refresh token. {_LOGINS_RETIRED}", advice=_USE_A_GRANT
        )
    return Secret(clean_text(token, "passphrase"))


def _refuses_token(response: Response) -> bool:
    """Whether a new access token may help. It does not if the gateway answered or the login itself is refused."""
    return response.status == 401 and not _is_page(response) and _error_code(response) != "invalid_credentials"


def _raise_for_page(response: Response) -> None:
    """Raise the error of a page: the gateway sends it, and it says nothing about the grant or the account."""
    error = gateway_error(response, "tastytrade")
    if isinstance(error, VenueUnavailable):
        raise VenueUnavailable(error.message, retry_after=error.given_delay, advice=_GATEWAY_ADVICE)
    if error is not None:
        raise error


def _is_page(response: Response) -> bool:
    return response.body.lstrip().startswith(b"<")


def _error_code(response: Response) -> str:
    """The code of `error`, or `error_code`, as the token endpoint sends it; empty if there is no code."""
    try:
        body = as_object(response.json(), "the error")
    except VenueMalformed:
        return ""
    error = body.get("error")
    # OAuth's own shape has the code as the text of `error`.
    code = error.get("code") if isinstance(error, dict) else error or body.get("error_code")
    return code if isinstance(code, str) else ""
