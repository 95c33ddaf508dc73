"""Lighter over HTTP: deployments, the optional token, pages, and which VenueError each error is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exchange_service.plugin_api import (
    AccountUnknown,
    CredentialInvalid,
    CredentialRejected,
    RegionRestricted,
    RequestRefused,
    Response,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    as_object,
    check_unique,
    gateway_error,
    read_metadata,
    require_account,
    retry_after,
    wallet_address,
)
from exchange_service_lighter import parse
from exchange_service_lighter.tokens import Token, is_address, token

# By stored deployment: the names of its addresses in the listing, and the collateral of its perpetuals.
# witness: report: https://docs.rs/crate/df-lighter-core/latest/source/src/account/holdings/account.rs
_DEPLOYMENTS: Mapping[str, tuple[str, str, str]] = {
    "lighter": ("api", "push", "USDC"),
    "robinhood": ("robinhood", "robinhood push", "USDG"),
}
_WALLET_KEYS = frozenset({"wallet_address", "l1_address", "user"})
# Lighter's own numbers of sub-accounts lie just above 2^48.
_LARGEST_INDEX = 2**53
# A page costs one of 60 requests a minute. No user's wallet has more accounts than fit on these pages.
_MAX_PAGES = 10
_MAX_ACCOUNTS = 200
# Seconds for which a token that Lighter refused is not sent again.
_REFUSAL_AGE = 600.0

_SUCCESS = 200
# Which error each of Lighter's codes is.
_BY_CODE: Mapping[int, type[VenueError]] = {
    20001: RequestRefused,  # witness: report: lev7finance/lighter-ts docs/verified-facts.md
    20558: RegionRestricted,  # witness: test data: lev7finance/lighter-ts test/fixtures/ws/handshake.json
    21100: AccountUnknown,  # witness: report: elliottech/lighter-python#132
    # witness: report: JKorf/Lighter.Net Lighter.Net/LighterErrors.cs
    21102: CredentialRejected,
    21107: CredentialRejected,
    21109: CredentialRejected,
    21110: CredentialRejected,
    21120: CredentialRejected,
    # witness: CCXT: lighter.exceptions
    23000: VenueRateLimited,
    23001: VenueRateLimited,
    23002: VenueRateLimited,
    23003: VenueRateLimited,
}
# The documents do not say which of these codes a refused token has. The message tells.
_CODES_OF_TOKENS = range(20000, 22000)

_REFUSED = (
    "Lighter refuses the stored token, so the accounts were read without it, as anybody can read them. "
    "Make another token on Lighter's page of API keys, or remove the stored one."
)


@dataclass(slots=True)
class _TokenState:
    refused: bool = False


class LighterClient:
    """The one read that a balance needs. Addresses are in lower case; `notes` are sentences on the stored token."""

    def __init__(self, call: VenueCall) -> None:
        metadata = read_metadata(
            call.credential, wallet_address=str, l1_address=str, user=str, account_index=int, deployment=str
        )
        self.token = token(call.credential.api_key)
        self.index = _index(metadata)
        has_address = bool(_WALLET_KEYS & metadata.keys()) or is_address(call.credential.api_key)
        if self.index is None and not has_address:
            raise CredentialInvalid(
                "extra_metadata.wallet_address or extra_metadata.account_index is missing.",
                advice="Store one of them.",
            )
        self.address = wallet_address(call.credential) if has_address else ""
        address_name, push_name, self.usual_collateral = _deployment(metadata)
        # Read-only: it is also open to regions where Lighter takes no orders.
        self.push_url = call.url(push_name) + "?readonly=true"
        self.notes: tuple[str, ...] = (_expiry_note(self.token),) if self.token and self.token.has_expired() else ()
        self._call = call
        self._url = call.url(address_name) + "/api/v1/account"

    async def accounts(self) -> list[parse.Account]:
        """The accounts of the wallet or the index, each once. Raises AccountUnknown if there is none."""
        accounts = await self._by_address() if self.index is None else await self._by_index(self.index)
        if not accounts:
            raise self._account_unknown()
        check_unique((account.index for account in accounts), "Lighter lists an account twice.")
        return accounts

    async def _by_index(self, index: int) -> list[parse.Account]:
        accounts = list((await self._page(by="index", value=str(index))).accounts)
        for account in accounts:
            require_account(index, account.index, "Lighter")
        if self.address and any(account.l1_address != self.address for account in accounts):
            raise AccountUnknown("The stored account_index belongs to an account of another wallet at Lighter.")
        return accounts

    async def _by_address(self) -> list[parse.Account]:
        accounts: list[parse.Account] = []
        cursors: list[str] = []
        while len(cursors) < _MAX_PAGES:
            cursor = {"cursor": cursors[-1]} if cursors else {}
            page = await self._page(by="l1_address", value=self.address, **cursor)
            accounts += page.accounts
            if len(accounts) > _MAX_ACCOUNTS:
                raise VenueMalformed(f"Lighter lists more than {_MAX_ACCOUNTS} accounts of the wallet.")
            if any(account.l1_address != self.address for account in page.accounts):
                raise VenueMalformed("Lighter answered for another wallet than the requested one.")
            if not page.next_cursor:
                if len(accounts) < page.total:
                    raise VenueMalformed("Lighter lists fewer accounts of the wallet than it counts.")
                return accounts
            if page.next_cursor in cursors:
                raise VenueMalformed("Lighter's pages of accounts repeat themselves.")
            cursors.append(page.next_cursor)
        raise VenueMalformed(f"Lighter lists the wallet's accounts on more than {_MAX_PAGES} pages.")

    async def _page(self, **params: str) -> parse.Page:
        return await self._call.compute(parse.page, await self._read(**params))

    async def _read(self, **params: str) -> Any:
        """The payload. A token only raises the limit on requests, so the read is repeated without a refused token."""
        if self.token is not None and not self.token.has_expired():
            state = await self._call.account_state.get("token", _new_token_state, max_age=_REFUSAL_AGE)
            if not state.refused:
                try:
                    return await self._get(params, {"Authorization": self.token.text.reveal()})
                except CredentialRejected:
                    state.refused = True
            self.notes = (_REFUSED,)
        return await self._get(params, {})

    async def _get(self, params: Mapping[str, str], headers: Mapping[str, str]) -> Any:
        response = await self._call.http.get(self._url, params=params, headers=headers)
        self._raise_for_error(response)
        return response.json()

    def _raise_for_error(self, response: Response) -> None:
        """Raise the error of a response. Lighter's code decides; without one, or from 500, the status does."""
        code, message = _error(response)
        if (response.status, code) == (200, _SUCCESS):
            return
        if response.status >= 500:
            response.raise_for_status()
        if error := gateway_error(response, "Lighter"):
            raise error
        kind = None if code is None else _BY_CODE.get(code)
        if kind is AccountUnknown:
            raise self._account_unknown()
        if kind is VenueRateLimited or response.status == 429:
            raise VenueRateLimited("Lighter limits our requests.", retry_after=retry_after(response.headers))
        if kind is RegionRestricted or response.status == 403:
            raise RegionRestricted("Lighter does not serve the region that this service calls from.")
        token_refused = code in _CODES_OF_TOKENS and "auth" in message
        if kind is CredentialRejected or token_refused or response.status == 401:
            raise CredentialRejected(
                "Lighter does not show the account without a valid token.",
                advice="Make a read-only token on Lighter's page of API keys and store it as api_key.",
            )
        if kind is RequestRefused or response.status == 404:
            raise RequestRefused(
                "Lighter rejects our request.", advice="Check the stored wallet_address and account_index."
            )
        response.raise_for_status()
        raise VenueMalformed("Lighter's answer does not say that it succeeded.")

    def _account_unknown(self) -> AccountUnknown:
        if self.index is not None:
            return AccountUnknown(
                "Lighter has no account with the stored account_index in this environment and deployment.",
                advice="Check the number and extra_metadata.deployment (lighter or robinhood), or store the "
                "wallet_address in its place. The testnet has accounts of its own.",
            )
        return AccountUnknown(
            "Lighter has no account of the stored wallet_address in this environment and deployment: the first deposit "
            "opens one.",
            advice="Check for a typing error, that the wallet is the one that owns the account, and "
            "extra_metadata.deployment (lighter or robinhood). The testnet has accounts of its own.",
        )


async def _new_token_state() -> _TokenState:
    return _TokenState()


def _index(metadata: Mapping[str, Any]) -> int | None:
    index: int | None = metadata.get("account_index")
    if index is not None and not 0 <= index < _LARGEST_INDEX:
        raise CredentialInvalid("extra_metadata.account_index is not a number of a Lighter account.")
    return index


def _deployment(metadata: Mapping[str, Any]) -> tuple[str, str, str]:
    name = metadata.get("deployment", "lighter").lower()
    if name not in _DEPLOYMENTS:
        raise CredentialInvalid("extra_metadata.deployment should be robinhood or lighter, or be left out.")
    return _DEPLOYMENTS[name]


def _expiry_note(stored: Token) -> str:
    return (
        f"The stored token expired on {stored.expires:%Y-%m-%d}, so the accounts are read without it, as anybody can "
        "read them. Make another token on Lighter's page of API keys, or remove the stored one."
    )


def _error(response: Response) -> tuple[int | None, str]:
    """Lighter's code, or None, and its message in lower case. They choose the error and are never passed on."""
    try:
        body = as_object(response.json(), "the answer")
    except VenueMalformed:
        return None, ""
    code = body.get("code")
    message = body.get("message")
    return code if type(code) is int else None, message.lower() if isinstance(message, str) else ""
