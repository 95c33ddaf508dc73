"""Lighter over HTTP: deployments, the optional token, pages, and Lighter's errors as ours."""

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
    VenueMalformed,
    VenueRateLimited,
    as_object,
    read_metadata,
    retry_after,
    wallet_address,
)
from exchange_service_lighter import parse
from exchange_service_lighter.tokens import Token, is_address, token

# By the stored word: the address's name in the listing, and the money that its perpetuals are reckoned in.
_DEPLOYMENTS = {"lighter": ("api", "USDC"), "robinhood": ("robinhood", "USDG")}
_WALLET_KEYS = frozenset({"wallet_address", "l1_address", "user"})
# Lighter's own numbers of sub-accounts lie just above 2^48.
_LARGEST_INDEX = 2**53
# A page costs one of 60 requests a minute; no wallet that a person looks at has more accounts than fit.
_MAX_PAGES = 10
# How long a token that Lighter refused is not sent again.
_REFUSAL_AGE = 600.0

_SUCCESS = 200
_INVALID_PARAMETER = 20001
_RESTRICTED_JURISDICTION = 20558
_ACCOUNT_NOT_FOUND = 21100
_API_KEY_NOT_FOUND = 21109
_RATE_LIMITS = range(23000, 23004)
# Which of these it is for a token is not documented; the text tells.
_CODES_OF_TOKENS = range(20000, 22000)

_REFUSED = (
    "Lighter refuses the stored token, so the accounts were read without it, as anybody can. "
    "Make another on Lighter's page of API keys, or remove it."
)


@dataclass(slots=True)
class _TokenUse:
    refused: bool = False


class LighterClient:
    """The one read that a balance needs. Addresses are in lower case; `notes` are remarks on the token."""

    def __init__(self, call: VenueCall) -> None:
        wanted = read_metadata(
            call.credential, wallet_address=str, l1_address=str, user=str, account_index=int, deployment=str
        )
        self.token = token(call.credential.api_key)
        self.index = _index(wanted)
        has_address = bool(_WALLET_KEYS & wanted.keys()) or is_address(call.credential.api_key)
        if self.index is None and not has_address:
            raise CredentialInvalid(
                "extra_metadata.wallet_address or extra_metadata.account_index is missing.",
                advice="Store one of the two.",
            )
        self.address = wallet_address(call.credential) if has_address else ""
        address_name, self.usual_collateral = _deployment(wanted)
        self.notes: tuple[str, ...] = (_expired(self.token),) if self.token and self.token.has_expired() else ()
        self._call = call
        self._url = call.url(address_name) + "/api/v1/account"

    async def accounts(self) -> list[parse.Account]:
        """Every account asked for, each once, as Lighter lists them; AccountUnknown where there is none."""
        found = await self._by_address() if self.index is None else await self._by_index(self.index)
        if not found:
            raise self._account_unknown()
        if len({account.index for account in found}) != len(found):
            # Counted twice, its money would be in the summary twice.
            raise VenueMalformed("Lighter lists an account twice.")
        return found

    async def _by_index(self, index: int) -> list[parse.Account]:
        found = list(parse.page(await self._ask(by="index", value=str(index))).accounts)
        if any(account.index != index for account in found):
            raise VenueMalformed("Lighter answered for another account than the one asked for.")
        if self.address and any(account.l1_address != self.address for account in found):
            raise AccountUnknown("The stored account_index is the number of another wallet's account at Lighter.")
        return found

    async def _by_address(self) -> list[parse.Account]:
        found: list[parse.Account] = []
        cursors: list[str] = []
        while len(cursors) < _MAX_PAGES:
            place = {"cursor": cursors[-1]} if cursors else {}
            page = parse.page(await self._ask(by="l1_address", value=self.address, **place))
            found += page.accounts
            if any(account.l1_address != self.address for account in page.accounts):
                raise VenueMalformed("Lighter answered for another wallet than the one asked for.")
            if not page.next_cursor:
                if len(found) < page.total:
                    raise VenueMalformed("Lighter lists fewer accounts of the wallet than it counts.")
                return found
            if page.next_cursor in cursors:
                raise VenueMalformed("Lighter's pages of accounts repeat themselves.")
            cursors.append(page.next_cursor)
        raise VenueMalformed(f"Lighter lists the wallet's accounts on more than {_MAX_PAGES} pages.")

    async def _ask(self, **params: str) -> Any:
        """The answer's payload. A token only moves the limit on requests, so one that is refused is left out."""
        if self.token is not None and not self.token.has_expired():
            use = await self._call.account_state.get("token", _fresh_use, max_age=_REFUSAL_AGE)
            if not use.refused:
                try:
                    return await self._get(params, {"Authorization": self.token.text.reveal()})
                except CredentialRejected:
                    use.refused = True
            self.notes = (_REFUSED,)
        return await self._get(params, {})

    async def _get(self, params: Mapping[str, str], headers: Mapping[str, str]) -> Any:
        response = await self._call.http.get(self._url, params=params, headers=headers)
        self._raise_for_error(response)
        return response.json()

    def _raise_for_error(self, response: Response) -> None:
        """Lighter's own code decides, also under HTTP 200; the status does where there is none, or Lighter is down."""
        code, message = _error(response)
        if (response.status, code) == (200, _SUCCESS):
            return
        if response.status >= 500:
            response.raise_for_status()
        if code == _ACCOUNT_NOT_FOUND:
            raise self._account_unknown()
        if code in _RATE_LIMITS or response.status == 429:
            raise VenueRateLimited("Lighter limits requests just now.", retry_after=retry_after(response.headers))
        if code == _RESTRICTED_JURISDICTION or response.status == 403:
            raise RegionRestricted("Lighter does not serve the region that this service calls from.")
        told_of_token = code in _CODES_OF_TOKENS and "auth" in message
        if code == _API_KEY_NOT_FOUND or told_of_token or response.status == 401:
            raise CredentialRejected(
                "Lighter does not show the account without a token that it takes.",
                advice="Make a read-only token on Lighter's page of API keys and store it as api_key.",
            )
        if code == _INVALID_PARAMETER or response.status == 404:
            raise RequestRefused(
                "Lighter calls the request wrong.", advice="Check the stored wallet_address and account_index."
            )
        response.raise_for_status()
        raise VenueMalformed("Lighter's answer does not say that it succeeded.")

    def _account_unknown(self) -> AccountUnknown:
        if self.index is not None:
            return AccountUnknown(
                "Lighter has no account of the stored account_index in this environment and deployment."
            )
        return AccountUnknown(
            "Lighter has no account of the stored wallet_address in this environment and deployment: one is opened "
            "by the first deposit.",
            advice="Check for a typing error, and that it is the wallet which owns the account.",
        )


async def _fresh_use() -> _TokenUse:
    return _TokenUse()


def _index(wanted: Mapping[str, Any]) -> int | None:
    index: int | None = wanted.get("account_index")
    if index is not None and not 0 <= index < _LARGEST_INDEX:
        raise CredentialInvalid("extra_metadata.account_index is no number of a Lighter account.")
    return index


def _deployment(wanted: Mapping[str, Any]) -> tuple[str, str]:
    word = wanted.get("deployment", "lighter").lower()
    if word not in _DEPLOYMENTS:
        raise CredentialInvalid("extra_metadata.deployment should be robinhood or lighter, or be left out.")
    return _DEPLOYMENTS[word]


def _expired(stored: Token) -> str:
    return (
        f"The stored token has expired ({stored.expires:%Y-%m-%d}), so the accounts are read without it, as anybody "
        "can. Make another on Lighter's page of API keys, or remove it."
    )


def _error(response: Response) -> tuple[int | None, str]:
    """Lighter's code, None where it sent none, and its text in lower case, to decide by; never passed on."""
    try:
        body = as_object(response.json(), "the answer")
    except VenueMalformed:
        return None, ""
    code = body.get("code")
    return code if type(code) is int else None, str(body.get("message", "")).lower()
