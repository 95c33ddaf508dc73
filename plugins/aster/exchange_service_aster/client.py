"""Aster over HTTP: two hosts, signed queries, one clock, shared limits, and which VenueError each error is."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

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
    gateway_error,
    raise_unexpected_status,
    retry_after,
)
from exchange_service_aster import parse
from exchange_service_aster.clock import VenueClock
from exchange_service_aster.scheme import AgentScheme, HmacScheme, read_scheme

# The header with the weight used in this minute by all requests from one address. __init__ has the limit.
_WEIGHT_HEADER = "X-MBX-USED-WEIGHT-1M"
# Seconds for which a measured clock serves all requests that were refused for their time.
_CLOCK_AGE = 1.0
# Seconds, for answers that state no delay: weight is counted by the minute, and a ban lasts at least two minutes.
_LIMIT_DELAY = 60.0
_BAN_DELAY = 120.0
_FIREWALL_DELAY = 300.0
# Seconds. After this a banned host is tried again, even if its message names a later end: it may be wrong.
_LONGEST_BAN = 3600.0
# The end of a ban in a message, in milliseconds since 1970, which have 13 digits from 2001 to 2286.
_BAN_END = re.compile(r"until\D{0,20}(\d{13})(?!\d)", re.ASCII)

_SUCCESS = 200
_UNKNOWN_ERROR = -1000
_TOO_MANY_REQUESTS = -1003
# Wrong parameters of any kind.
_REQUEST_CODES = range(-1199, -1099)

_LIMITED = "Aster limits the requests from this service's address."


class _Refusal(NamedTuple):
    """Which error one of Aster's codes or messages is."""

    kind: type[VenueError]
    message: str
    advice: str | None = None

    def error(self) -> VenueError:
        return self.kind(self.message, advice=self.advice)


_KEY_REFUSED = _Refusal(
    CredentialRejected,
    "Aster refuses the key: it is wrong or expired, lacks the right to read, or is bound to other network addresses.",
    "Check the key on Aster's API page.",
)
_SIGNATURE_REFUSED = _Refusal(
    CredentialRejected,
    "Aster refuses the signature.",
    "Check api_secret, and for an agent also wallet_address, that the agent is registered in this environment, and "
    "that it has not expired.",
)
_AGENT_UNKNOWN = _Refusal(
    CredentialRejected,
    "Aster does not know this agent of the wallet: it has expired, or is registered in the other environment or for "
    "another wallet.",
    "Check wallet_address and api_secret, or register a new agent.",
)
_TIME_REFUSED = _Refusal(
    ClockSkew,
    "Aster refuses the time of our requests, even by its own clock.",
    "Check this service's clock.",
)
_NONCE_REFUSED = _Refusal(
    ClockSkew,
    "Aster refuses the nonce of our requests, even by its own clock. Another program may sign with the same agent or "
    "wallet.",
    "Give this service an agent that nothing else uses.",
)
_TROUBLE = _Refusal(VenueUnavailable, "Aster could not answer the request.")
# witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md
_BY_CODE: dict[int, _Refusal] = {
    -1001: _TROUBLE,
    -1002: _KEY_REFUSED,
    -1006: _TROUBLE,
    -1007: _Refusal(VenueTimeout, "Aster did not answer in time."),
    -1011: _Refusal(
        AddressNotAllowed, "Aster refuses this key from our network address.", "Add the address to the key's list."
    ),
    -1016: _TROUBLE,
    -1021: _TIME_REFUSED,  # witness: vendor: asterdex/api-docs V1(Legacy)/EN/aster-finance-futures-api.md
    -1022: _SIGNATURE_REFUSED,
    -2014: _Refusal(CredentialRejected, "Aster refuses the format of the key.", "Check api_key, or store a new key."),
    -2015: _KEY_REFUSED,
    -4225: _NONCE_REFUSED,
}
# Refusals of agents have been seen with the code of unknown errors. Only the message tells them apart.
_BY_WORD: dict[str, _Refusal] = {
    "nonce": _NONCE_REFUSED,  # witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md
    "signature": _SIGNATURE_REFUSED,  # witness: unproven: seen in a public list of changes that names no repository
    "agent": _AGENT_UNKNOWN,  # witness: report: NoFxAiOS/nofx#41
}
_FIREWALL = (
    "Aster's firewall refuses requests from this service's address (HTTP 403): there were too many, or it does not "
    "serve the address's region."
)
_REGION = "Aster does not serve the region of this service's address (HTTP 403)."
# witness: unproven: looked for in the vendor's pages and in public reports
_REGION_WORDS = (b"your country", b"your region", b"restricted location")


@dataclass(slots=True)
class Prices:
    """Whether prices alone move the account's figures, as the last read has found. Until then they may."""

    may_move: bool = True


class AsterClient:
    """What a balance and a check of the key need, and the keys of the streams that tell when to read again."""

    def __init__(self, call: VenueCall, scheme: HmacScheme | AgentScheme, clock: VenueClock) -> None:
        self.scheme = scheme
        self._call = call
        self._clock = clock
        self._futures = call.url()
        self._spot = call.url("spot")

    @classmethod
    async def open(cls, call: VenueCall) -> AsterClient:
        """The client of a call. Raises CredentialInvalid if the stored credential fits no scheme."""
        scheme = await read_scheme(call)
        return cls(call, scheme, await call.plugin_state.get(f"clock {call.url()}", _new_clock))

    async def futures_account(self) -> Any:
        """The payload of the futures account."""
        return await self._signed_get(self._futures, self.scheme.futures_path)

    async def spot_account(self) -> Any:
        """The payload of the spot account."""
        return await self._signed_get(self._spot, self.scheme.spot_path)

    async def agents(self) -> Any:
        """The payload of the wallet's agents. Only an agent may read it."""
        return await self._signed_get(self._futures, "/fapi/v3/agent")

    async def listen_key(self, account_type: str) -> str:
        """The key of the account's stream, good for another hour. It stays the same while it is renewed in time.

        A POST renews it as well as Aster's PUT does, whose parameters V3 wants in a body. It changes nothing of the
        account.
        """
        if account_type == parse.SPOT:
            return parse.listen_key(await self._in_time(self._post, self._spot, self.scheme.spot_key_path))
        return parse.listen_key(await self._in_time(self._post, self._futures, self.scheme.futures_key_path))

    def stream_address(self, account_type: str) -> str:
        """Where the account's stream is."""
        return self._call.url("spot_push" if account_type == parse.SPOT else "push")

    async def prices(self) -> Prices:
        """What the last read found, shared by all calls for this account."""
        return await self._call.account_state.get(f"prices {self._call.account.account_type}", _new_prices)

    async def _signed_get(self, base: str, path: str) -> Any:
        return await self._in_time(self._get, base, path)

    async def _in_time(self, send: Callable[[str], Awaitable[Response]], base: str, path: str) -> Any:
        try:
            return self._read(await send(base + path))
        except ClockSkew:
            # Repeat the request once, by the venue's clock and with a new nonce. A second refusal has another cause.
            await self._call.plugin_state.get(f"measured {self._futures}", self._measure_clock, max_age=_CLOCK_AGE)
        return self._read(await send(base + path))

    async def _get(self, url: str) -> Response:
        return await self._call.http.get(f"{url}?{self.scheme.query(self._clock)}", headers=self.scheme.headers)

    async def _post(self, url: str) -> Response:
        headers = {**self.scheme.headers, "Content-Type": "application/x-www-form-urlencoded"}
        return await self._call.http.post(url, data=self.scheme.form(self._clock).encode(), headers=headers)

    async def _measure_clock(self) -> None:
        began = time.time_ns()
        response = await self._call.public_http.get(self._futures + "/fapi/v1/time")
        ended = time.time_ns()
        self._clock.set(parse.server_time(self._read(response)), began, ended)

    def _read(self, response: Response) -> Any:
        """The payload of a response. Raises its error, which may also have status 200."""
        used = _used_weight(response)
        if used:
            self._call.report_usage(used, 60, resets_after=60 - self._clock.milliseconds() // 1000 % 60)
        payload = response.json() if response.status == 200 else _json_or_nothing(response)
        code, message = _error(payload)
        if response.status in (418, 429) or code == _TOO_MANY_REQUESTS:
            self._raise_for_limit(response, message)
        if response.status != 200 or code not in (None, _SUCCESS):
            _raise_for_error(response, code, message)
        return payload

    def _raise_for_limit(self, response: Response, message: str) -> NoReturn:
        end = _BAN_END.search(message)
        banned = response.status == 418 or end is not None
        if end:
            delay = min(max(1.0, (int(end[1]) - self._clock.milliseconds()) / 1000), _LONGEST_BAN)
        else:
            delay = _delay(response, _BAN_DELAY if banned else _LIMIT_DELAY)
        if banned:
            # Also if the other host still answers: the ban is of the service's address, for all accounts.
            self._call.report_cooldown(delay)
        raise VenueRateLimited(_LIMITED, retry_after=delay)


async def _new_clock() -> VenueClock:
    return VenueClock()


async def _new_prices() -> Prices:
    return Prices()


def _used_weight(response: Response) -> int:
    """The weight used in this minute; zero if the header is missing or unreadable."""
    value = response.headers.get(_WEIGHT_HEADER, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else 0


def _json_or_nothing(response: Response) -> Any:
    try:
        return response.json()
    except VenueMalformed:
        return None


def _error(payload: Any) -> tuple[int | None, str]:
    """Aster's code, or None, and its message in lower case. They choose the error and are never passed on."""
    if not isinstance(payload, dict):
        return None, ""
    code = payload.get("code")
    if isinstance(code, str) and re.fullmatch(r"-?[0-9]{1,6}", code):
        code = int(code)
    message = payload.get("msg")
    return code if type(code) is int else None, message.lower() if isinstance(message, str) else ""


def _raise_for_error(response: Response, code: int | None, message: str) -> NoReturn:
    """Raise the error of a response: by Aster's code and message, or by the status without a code or from 500."""
    status = response.status
    if code is not None and status < 500:
        _raise_for_code(code, message)
    if status == 403 and _json_or_nothing(response) is None:
        # An HTML page: the firewall in front of Aster has answered.
        _raise_for_firewall(response)
    if error := gateway_error(response, "Aster"):
        raise error
    if status == 404:
        # No path contains an account, so Aster does not know the path itself.
        raise RequestRefused("Aster does not know the path of our request (HTTP 404): its interface has changed.")
    if code is None:
        raise_unexpected_status(response, "Aster")
    response.raise_for_status()
    raise VenueMalformed(f"Aster answered with an unknown error ({code}).")


def _raise_for_code(code: int, message: str) -> None:
    if code in _BY_CODE:
        raise _BY_CODE[code].error()
    if code in _REQUEST_CODES:
        raise RequestRefused(f"Aster rejects our request ({code}).")
    for word, refusal in _BY_WORD.items():
        if word in message:
            raise refusal.error()
    if code == _UNKNOWN_ERROR:
        raise _TROUBLE.error()


def _raise_for_firewall(response: Response) -> NoReturn:
    page = response.body[:8192].lower()
    if any(word in page for word in _REGION_WORDS):
        raise RegionRestricted(_REGION)
    # Aster has not judged the key, and the usual cause passes, so the last good balance may be shown.
    raise VenueRateLimited(_FIREWALL, retry_after=_delay(response, _FIREWALL_DELAY))


def _delay(response: Response, default: float) -> float:
    """The delay in seconds that the response asks for, or the default."""
    stated = retry_after(response.headers)
    return default if stated is None else stated
