"""Aster's errors as ours. Its own words decide, and are never passed on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from exchange_service.plugin_api import (
    AddressNotAllowed,
    ClockSkew,
    CredentialRejected,
    RegionRestricted,
    RequestRefused,
    Response,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueUnavailable,
    retry_after,
)

_KEY_REFUSED = (
    "Aster refuses the key: it is wrong or expired, lacks the right to read, or is bound to other addresses than this "
    "service's."
)
_SIGNATURE_REFUSED = (
    "Aster refuses the signature. Check api_secret, and for an agent also wallet_address, that the agent is registered "
    "in this environment, and that it has not expired."
)
_TIME_REFUSED = "Aster refuses the time of our requests, also by its own clock. Check this service's clock."
_NONCE_REFUSED = (
    "Aster refuses the nonce of our requests, also by its own clock. Another program may be signing for the same "
    "wallet: give this service an agent that nothing else uses."
)
_AGENT_UNKNOWN = (
    "Aster knows no such agent of the wallet: it has expired, or is registered in the other environment or for another "
    "wallet. Check wallet_address and api_secret, or register a new agent."
)
_TROUBLE = "Aster has trouble and did not answer the request."
_BY_CODE: dict[int, tuple[type[VenueError], str]] = {
    -1001: (VenueUnavailable, _TROUBLE),
    -1002: (CredentialRejected, _KEY_REFUSED),
    -1011: (AddressNotAllowed, "Aster does not take this key from this service's address: add it to the key's list."),
    -1016: (VenueUnavailable, _TROUBLE),
    -1021: (ClockSkew, _TIME_REFUSED),
    -1022: (CredentialRejected, _SIGNATURE_REFUSED),
    -2014: (CredentialRejected, "Aster refuses the format of the key. Check api_key, or store a new key."),
    -2015: (CredentialRejected, _KEY_REFUSED),
    -4225: (ClockSkew, _NONCE_REFUSED),
}
# A code for everything: an agent's refusals have been seen under it, told apart by their words alone.
_UNKNOWN_ERROR = -1000
_BY_WORD: dict[str, tuple[type[VenueError], str]] = {
    "nonce": (ClockSkew, _NONCE_REFUSED),
    "signature": (CredentialRejected, _SIGNATURE_REFUSED),
    "agent": (CredentialRejected, _AGENT_UNKNOWN),
}
_TOO_MANY_REQUESTS = -1003
# Wrong parameters of all kinds.
_REQUEST_CODES = range(-1199, -1099)
_OK = 200

_FIREWALL = (
    "Aster's firewall refuses requests from this service's address (HTTP 403): there were too many, or it does not "
    "serve the address's region."
)
_REGION = "Aster does not serve the region of this service's address (HTTP 403)."
_REGION_WORDS = (b"country", b"region", b"restricted location")
# Seconds. Weight is counted by the minute; a ban lasts two minutes at least; the firewall does not say.
_LIMIT_DELAY = 60.0
_BAN_DELAY = 120.0
_FIREWALL_DELAY = 300.0
# The end of a ban in a text, in milliseconds since 1970: 13 digits from 2001 to 2286.
_BAN_END = re.compile(r"until\D{0,20}(\d{13})(?!\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Aster's own error: its code, and its words in lower case."""

    code: int
    words: str


def read_answer(response: Response, venue_milliseconds: int) -> Any:
    """The JSON of an answer, or the error that it is. The venue's time is for bans that name their end."""
    payload = response.json() if response.status == 200 else _json_or_nothing(response)
    refusal = _refusal(payload)
    if response.status != 200 or (refusal is not None and refusal.code != _OK):
        _raise(response, refusal, venue_milliseconds)
    return payload


def is_ban(response: Response) -> bool:
    """Whether the venue has shut our address out, and each further request would lengthen that."""
    refusal = _refusal(_json_or_nothing(response))
    return response.status == 418 or (refusal is not None and _BAN_END.search(refusal.words) is not None)


def _refusal(payload: Any) -> _Refusal | None:
    if not isinstance(payload, dict):
        return None
    code = payload.get("code")
    if isinstance(code, str) and re.fullmatch(r"-?[0-9]{1,6}", code):
        code = int(code)
    if type(code) is not int:
        return None
    return _Refusal(code, str(payload.get("msg", "")).lower())


def _json_or_nothing(response: Response) -> Any:
    try:
        return response.json()
    except VenueMalformed:
        return None


def _raise(response: Response, refusal: _Refusal | None, venue_milliseconds: int) -> NoReturn:
    status = response.status
    if status in (418, 429) or (refusal is not None and refusal.code == _TOO_MANY_REQUESTS):
        delay = _limit_delay(response, refusal, venue_milliseconds)
        raise VenueRateLimited("Aster limits the requests from this service's address.", retry_after=delay)
    if status < 500 and refusal is not None:
        _raise_for_refusal(refusal)
    if status == 403 and _json_or_nothing(response) is None:
        # A page for people: not Aster itself has answered, but what stands before it.
        _raise_for_firewall(response)
    if status == 404:
        # No account stands in a path, so it is the path itself that is not known.
        raise RequestRefused("Aster does not know the address that was asked (HTTP 404): its interface has changed.")
    response.raise_for_status()
    if refusal is not None:
        raise VenueMalformed(f"Aster answered with an error that is not known here ({refusal.code}).")
    raise VenueMalformed(f"Aster answered with an unexpected status (HTTP {status}).")


def _raise_for_refusal(refusal: _Refusal) -> None:
    """The error of a known code, or of words that stand beside a code which says nothing."""
    if refusal.code in _BY_CODE:
        kind, sentence = _BY_CODE[refusal.code]
        raise kind(sentence)
    if refusal.code in _REQUEST_CODES:
        raise RequestRefused(f"Aster calls our request wrong ({refusal.code}).")
    for word, (kind, sentence) in _BY_WORD.items():
        if word in refusal.words:
            raise kind(sentence)
    if refusal.code == _UNKNOWN_ERROR:
        raise VenueUnavailable(_TROUBLE)


def _raise_for_firewall(response: Response) -> NoReturn:
    page = response.body[:8192].lower()
    if any(word in page for word in _REGION_WORDS):
        raise RegionRestricted(_REGION)
    # Nobody has looked at the key, and the usual cause passes: the last good balance may be shown meanwhile.
    raise VenueRateLimited(_FIREWALL, retry_after=_delay_of(response, _FIREWALL_DELAY))


def _limit_delay(response: Response, refusal: _Refusal | None, venue_milliseconds: int) -> float:
    end = _BAN_END.search(refusal.words) if refusal else None
    if end:
        return max(1.0, (int(end[1]) - venue_milliseconds) / 1000)
    return _delay_of(response, _BAN_DELAY if response.status == 418 else _LIMIT_DELAY)


def _delay_of(response: Response, otherwise: float) -> float:
    asked = retry_after(response.headers)
    return otherwise if asked is None else asked
