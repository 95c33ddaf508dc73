"""Aster over HTTP: two hosts, signed queries, one clock, the limits that count for all, and Aster's errors as ours."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from exchange_service.plugin_api import (
    AddressNotAllowed,
    ClockSkew,
    CredentialRejected,
    RegionRestricted,
    RequestRefused,
    Response,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
    retry_after,
)
from exchange_service_aster import parse
from exchange_service_aster.clock import VenueClock
from exchange_service_aster.scheme import AgentScheme, HmacScheme, read_scheme

# All accounts behind one network address share this weight a minute; who goes on beyond it is banned.
_WEIGHT_LIMIT = 2400
_WEIGHT_HEADER = "X-MBX-USED-WEIGHT-1M"
# Seconds for which a measured clock is good for all requests that were refused for the time.
_CLOCK_AGE = 1.0
# Seconds, where Aster gives none: weight is counted by the minute, a ban lasts two minutes at least, and the firewall
# does not say.
_LIMIT_DELAY = 60.0
_BAN_DELAY = 120.0
_FIREWALL_DELAY = 300.0
# However late the end that a text names, the host is tried again after this: the text may be wrong.
_LONGEST_BAN = 3600.0
# The end of a ban in a text, in milliseconds since 1970: 13 digits from 2001 to 2286.
_BAN_END = re.compile(r"until\D{0,20}(\d{13})(?!\d)", re.ASCII)

_SUCCESS = 200
_UNKNOWN_ERROR = -1000
_TOO_MANY_REQUESTS = -1003
# Wrong parameters of all kinds.
_REQUEST_CODES = range(-1199, -1099)

_LIMITED = "Aster limits the requests from this service's address."
_KEY_REFUSED = (
    "Aster refuses the key: it is wrong or expired, lacks the right to read, or is bound to other addresses than this "
    "service's."
)
_SIGNATURE_REFUSED = (
    "Aster refuses the signature.",
    "Check api_secret, and for an agent also wallet_address, that the agent is registered "
    "in this environment, and that it has not expired.",
)
_AGENT_UNKNOWN = (
    "Aster knows no such agent of the wallet: it has expired, or is registered in the other environment or for another "
    "wallet.",
    "Check wallet_address and api_secret, or register a new agent.",
)
_TIME_REFUSED = "Aster refuses the time of our requests, also by its own clock."
_NONCE_REFUSED = (
    "Aster refuses the nonce of our requests, also by its own clock. Another program may use the same agent or wallet.",
    "Give this service an agent that nothing else uses.",
)
_TROUBLE = "Aster has trouble and did not answer the request."
_BY_CODE: dict[int, tuple[type[VenueError], str | tuple[str, str]]] = {
    -1001: (VenueUnavailable, _TROUBLE),
    -1002: (CredentialRejected, _KEY_REFUSED),
    -1006: (VenueUnavailable, _TROUBLE),
    -1007: (VenueTimeout, "Aster did not answer in time."),
    -1011: (AddressNotAllowed, "Aster does not take this key from this service's address."),
    -1016: (VenueUnavailable, _TROUBLE),
    -1021: (ClockSkew, _TIME_REFUSED),
    -1022: (CredentialRejected, _SIGNATURE_REFUSED),
    -2014: (CredentialRejected, ("Aster refuses the format of the key.", "Check api_key, or store a new key.")),
    -2015: (CredentialRejected, _KEY_REFUSED),
    -4225: (ClockSkew, _NONCE_REFUSED),
}
# An agent's refusals have been seen under the code for everything, told apart by their words alone.
_BY_WORD: dict[str, tuple[type[VenueError], str | tuple[str, str]]] = {
    "nonce": (ClockSkew, _NONCE_REFUSED),
    "signature": (CredentialRejected, _SIGNATURE_REFUSED),
    "agent": (CredentialRejected, _AGENT_UNKNOWN),
}
_FIREWALL = (
    "Aster's firewall refuses requests from this service's address (HTTP 403): there were too many, or it does not "
    "serve the address's region."
)
_REGION = "Aster does not serve the region of this service's address (HTTP 403)."
_REGION_WORDS = (b"your country", b"your region", b"restricted location")


@dataclass(slots=True)
class _Shared:
    """What all accounts of one environment share."""

    clock: VenueClock = field(default_factory=VenueClock)
    # Until when the host at an address must not be asked, in monotonic seconds.
    shut_until: dict[str, float] = field(default_factory=dict)


class AsterClient:
    """The reads that a balance and a check of the key need."""

    def __init__(self, call: VenueCall, scheme: HmacScheme | AgentScheme, shared: _Shared) -> None:
        self.scheme = scheme
        self._call = call
        self._clock = shared.clock
        self._shut_until = shared.shut_until
        self._futures = call.url()
        self._spot = call.url("spot")

    @classmethod
    async def open(cls, call: VenueCall) -> AsterClient:
        """The client of a call; CredentialInvalid where what is stored fits no scheme."""
        scheme = await read_scheme(call)
        return cls(call, scheme, await call.plugin_state.get(f"shared {call.url()}", _new_shared))

    async def futures_account(self) -> Any:
        """The futures account, as Aster sends it."""
        return await self._signed_get(self._futures, self.scheme.futures_path)

    async def spot_account(self) -> Any:
        """The spot account, as Aster sends it."""
        return await self._signed_get(self._spot, self.scheme.spot_path)

    async def agents(self) -> Any:
        """The wallet's agents, as Aster sends them. For agents only."""
        return await self._signed_get(self._futures, "/fapi/v3/agent")

    async def _signed_get(self, base: str, path: str) -> Any:
        try:
            return await self._ask(base, path)
        except ClockSkew:
            # Once more by the venue's own clock, and with a fresh nonce. A second refusal has another cause.
            await self._call.plugin_state.get(f"measured {self._futures}", self._measure_clock, max_age=_CLOCK_AGE)
        return await self._ask(base, path)

    async def _ask(self, base: str, path: str) -> Any:
        self._refuse_while_shut(base)
        url = f"{base}{path}?{self.scheme.query(self._clock)}"
        return self._read(base, await self._call.http.get(url, headers=self.scheme.headers))

    async def _measure_clock(self) -> None:
        self._refuse_while_shut(self._futures)
        began = time.time_ns()
        response = await self._call.public_http.get(self._futures + "/fapi/v1/time")
        ended = time.time_ns()
        self._clock.set(parse.server_time(self._read(self._futures, response)), began, ended)

    def _read(self, base: str, response: Response) -> Any:
        """The answer's payload, or the error that it is, also under HTTP 200."""
        if _used_weight(response) >= _WEIGHT_LIMIT:
            self._shut(base, 60 - self._clock.milliseconds() // 1000 % 60)
        payload = response.json() if response.status == 200 else _json_or_nothing(response)
        code, words = _error(payload)
        if response.status in (418, 429) or code == _TOO_MANY_REQUESTS:
            self._raise_for_limit(base, response, words)
        if response.status != 200 or code not in (None, _SUCCESS):
            _raise_for_error(response, code, words)
        return payload

    def _raise_for_limit(self, base: str, response: Response, words: str) -> NoReturn:
        end = _BAN_END.search(words)
        banned = response.status == 418 or end is not None
        if end:
            delay = min(max(1.0, (int(end[1]) - self._clock.milliseconds()) / 1000), _LONGEST_BAN)
        else:
            delay = _delay(response, _BAN_DELAY if banned else _LIMIT_DELAY)
        if banned:
            self._shut(base, delay)
        raise VenueRateLimited(_LIMITED, retry_after=delay)

    def _shut(self, base: str, seconds: float) -> None:
        """Let no account ask this host for so long."""
        self._shut_until[base] = max(time.monotonic() + seconds, self._shut_until.get(base, 0.0))

    def _refuse_while_shut(self, base: str) -> None:
        delay = self._shut_until.get(base, 0.0) - time.monotonic()
        if delay > 0:
            raise VenueRateLimited(_LIMITED, retry_after=delay)


async def _new_shared() -> _Shared:
    return _Shared()


def _used_weight(response: Response) -> int:
    """The weight used in this minute; zero where Aster does not say."""
    value = response.headers.get(_WEIGHT_HEADER, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else 0


def _json_or_nothing(response: Response) -> Any:
    try:
        return response.json()
    except VenueMalformed:
        return None


def _error(payload: Any) -> tuple[int | None, str]:
    """Aster's code, None where it sent none, and its text in lower case, to decide by; never passed on."""
    if not isinstance(payload, dict):
        return None, ""
    code = payload.get("code")
    if isinstance(code, str) and re.fullmatch(r"-?[0-9]{1,6}", code):
        code = int(code)
    return code if type(code) is int else None, str(payload.get("msg", "")).lower()


def _raise_for_error(response: Response, code: int | None, words: str) -> NoReturn:
    """Aster's own code decides, then its words; the status does where there are none, or Aster is down."""
    status = response.status
    if code is not None and status < 500:
        _raise_for_code(code, words)
    if status == 403 and _json_or_nothing(response) is None:
        # A page for people: not Aster itself has answered, but what stands before it.
        _raise_for_firewall(response)
    if status == 404:
        # No account stands in a path, so it is the path itself that is not known.
        raise RequestRefused("Aster does not know the address that was asked (HTTP 404): its interface has changed.")
    response.raise_for_status()
    if code is not None:
        raise VenueMalformed(f"Aster answered with an error that is not known here ({code}).")
    raise VenueMalformed(f"Aster answered with an unexpected status (HTTP {status}).")


def _raise_for_code(code: int, words: str) -> None:
    if code in _BY_CODE:
        raise _error_of(*_BY_CODE[code])
    if code in _REQUEST_CODES:
        raise RequestRefused(f"Aster calls our request wrong ({code}).")
    for word, (kind, sentence) in _BY_WORD.items():
        if word in words:
            raise _error_of(kind, sentence)
    if code == _UNKNOWN_ERROR:
        raise VenueUnavailable(_TROUBLE)


def _error_of(kind: type[VenueError], sentence: str | tuple[str, str]) -> VenueError:
    """The error; `sentence` is its message, or its message and advice."""
    return kind(sentence) if isinstance(sentence, str) else kind(sentence[0], advice=sentence[1])


def _raise_for_firewall(response: Response) -> NoReturn:
    page = response.body[:8192].lower()
    if any(word in page for word in _REGION_WORDS):
        raise RegionRestricted(_REGION)
    # Nobody has looked at the key, and the usual cause passes: the last good balance may be shown meanwhile.
    raise VenueRateLimited(_FIREWALL, retry_after=_delay(response, _FIREWALL_DELAY))


def _delay(response: Response, otherwise: float) -> float:
    asked = retry_after(response.headers)
    return otherwise if asked is None else asked
