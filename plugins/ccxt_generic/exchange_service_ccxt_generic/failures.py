"""CCXT's exceptions as the service's errors.

The venue's own code decides first, then its sentence, then the class of the exception and, for some, the HTTP status.
The text of CCXT's exceptions is never passed on, because it holds the whole signed address.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from exchange_service.plugin_api import (
    AddressNotAllowed,
    CredentialInvalid,
    CredentialRejected,
    PermissionMissing,
    RequestRefused,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    gateway_error,
    retry_after,
)
from exchange_service_ccxt_generic.answers import Answer, may_be_error
from exchange_service_ccxt_generic.codes import CODES, GROWING_NONCES, SISTERS
from exchange_service_ccxt_generic.error_members import ErrorMembers, error_members
from exchange_service_ccxt_generic.exact_json import exact_json
from exchange_service_ccxt_generic.meanings import BY_CLASS, CLOCK, MAINTENANCE, NONCE, REGION, Meaning
from exchange_service_ccxt_generic.messages import meaning_of, named_address

# CCXT takes each of these statuses for an outage, or decides by the body.
_BY_STATUS: Mapping[int, Meaning] = {
    418: BY_CLASS["RateLimitExceeded"],
    429: BY_CLASS["RateLimitExceeded"],
    451: REGION,
}
_BY_OUTAGE_STATUS: Mapping[int, Meaning] = {
    400: BY_CLASS["BadRequest"],
    403: Meaning(
        PermissionMissing,
        "{venue} forbids the request (HTTP 403).",
        "Give the key the right to read, and check its IP allow-list.",
    ),
    404: BY_CLASS["BadRequest"],
    405: BY_CLASS["BadRequest"],
    409: BY_CLASS["BadRequest"],
    410: BY_CLASS["BadRequest"],
}
# For answers that CCXT does not classify.
_BY_PLAIN_STATUS: Mapping[int, Meaning] = {401: BY_CLASS["AuthenticationError"], 403: _BY_OUTAGE_STATUS[403]}

_BYBITS = ("bybit", "bybiteu", "bybitid")
# A page with status 403 is the firewall's after too many requests. A missing right has another status.
# witness: vendor: https://developers.binance.com/docs/binance-spot-api-docs/rest-api/http-return-codes
_FIREWALLS_LIMIT = ("binance", "binancecoinm", "binanceus", "binanceusdm")
# What CCXT reads in a page, at exchanges whose pages it knows.
_KNOWN_PAGES = (VenueMaintenance, VenueRateLimited)
# Seconds. A later end of the limit is not believed.
_LONGEST_DELAY = 300.0
# When Bybit's limit ends, in milliseconds since 1970; it sends no Retry-After.
_BYBIT_LIMIT_END = "x-bapi-limit-reset-timestamp"

# Names of fields with an error's code or message, and the values that mean no error.
_NAMES_AN_ERROR = re.compile(r"err|code|msg|mess|reason|desc|\A(rc|mc)\Z", re.IGNORECASE)
_NO_ERRORS: tuple[Any, ...] = (None, "", 0, "0", [], {})

# The fields of a stored credential, by the words that CCXT has for them.
_FIELDS: Mapping[str, str] = {
    "apiKey": "api_key",
    "secret": "api_secret",
    "privateKey": "api_secret",
    "password": "passphrase",
    "passphrase": "passphrase",
    "uid": "extra_metadata.uid",
    "accountId": "extra_metadata.account_id",
    "login": "extra_metadata.login",
    "walletAddress": "extra_metadata.wallet_address",
    "account-key": "api_key",
}


class _Refusal(NamedTuple):
    """What CCXT raised, by the name of its class in `BY_CLASS`, and the venue's answer that led to it."""

    error: BaseException
    name: str
    answer: Answer
    exchange_id: str
    said: ErrorMembers


def translate(error: BaseException, answer: Answer, exchange_id: str, venue: str) -> VenueError:
    """The VenueError for an error of CCXT. `answer` is what the venue sent before CCXT raised it."""
    name = next(base.__name__ for base in type(error).__mro__ if base.__name__ in BY_CLASS)
    refusal = _Refusal(error, name, answer, exchange_id, _said(answer))
    if gateways := _gateway_error(refusal, venue):
        return gateways
    meaning = _meaning(refusal)
    delay = retry_after(answer.headers) if meaning.kind.transient else None
    if delay is None and meaning.kind is VenueRateLimited and exchange_id in _BYBITS:
        delay = _until_limit_ends(answer)
    told = " | ".join((refusal.said.text, *refusal.said.addresses)) if meaning.kind is AddressNotAllowed else ""
    address = f", {found}" if (found := named_address(told)) else ""
    message = meaning.message.format(venue=venue, address=address)
    return meaning.kind(message, retry_after=delay, advice=_advice(meaning, exchange_id))


def refused_before_sending(error: BaseException, venue: str) -> CredentialInvalid:
    """The error for what CCXT refuses before it sends any request: then it has read only what the user stored."""
    text = " ".join(part for part in error.args if isinstance(part, str))
    named = [ours for theirs, ours in _FIELDS.items() if re.search(rf"(?<!\w){theirs}(?!\w)", text)]
    fields = " or ".join(dict.fromkeys(named)) or "the stored key"
    return CredentialInvalid(
        f"CCXT cannot use {fields} for {venue}, so no request was sent.",
        advice="Store it again, complete and in the form in which the venue shows it.",
    )


def _advice(meaning: Meaning, exchange_id: str) -> str | None:
    """The meaning's advice. For a refused key also the exchanges of the same brand, to which it may belong."""
    sisters = SISTERS.get(exchange_id, ())
    if meaning.kind is not CredentialRejected or not sisters or not meaning.advice:
        return meaning.advice
    return f"{meaning.advice} A key of {' or '.join(sisters)} is stored under that id."


def _until_limit_ends(answer: Answer) -> float | None:
    """Seconds until Bybit's limit ends; None if the header is missing or not believed."""
    ends = next((text for name, text in answer.headers.items() if name.lower() == _BYBIT_LIMIT_END), "")
    if not ends.isdecimal() or len(ends) != 13:
        return None
    # Half a second more, because the clocks may differ.
    seconds = int(ends) / 1000 - time.time() + 0.5
    return seconds if 0 < seconds <= _LONGEST_DELAY else None


def _said(answer: Answer) -> ErrorMembers:
    if not may_be_error(answer.size):
        return ErrorMembers()
    try:
        return error_members(exact_json(answer.body))
    except VenueMalformed:
        return ErrorMembers()


def _gateway_error(refusal: _Refusal, venue: str) -> VenueError | None:
    """The error of an answer that a gateway sent in the venue's place; None for the venue's own answers."""
    answer = refusal.answer
    error = gateway_error(answer, venue) if answer.status else None
    firewall = answer.status == 403 and not answer.is_json and refusal.exchange_id in _FIREWALLS_LIMIT
    if error is not None and error.transient and (firewall or BY_CLASS[refusal.name].kind in _KNOWN_PAGES):
        return None
    return error


def _meaning(refusal: _Refusal) -> Meaning:
    name, answer = refusal.name, refusal.answer
    if answer.status in _BY_STATUS:
        return _BY_STATUS[answer.status]
    if meaning := _by_code(refusal) or meaning_of(refusal.said.text, _class_of_words(refusal)):
        return _of_shared_key(meaning, refusal)
    if answer.status == 403 and refusal.exchange_id in _FIREWALLS_LIMIT and not answer.is_json:
        return BY_CLASS["RateLimitExceeded"]
    if name == "ExchangeNotAvailable" and answer.status in _BY_OUTAGE_STATUS:
        return _BY_OUTAGE_STATUS[answer.status]
    if type(refusal.error).__name__ == "ExchangeError" and _below_http(refusal.error):
        return BY_CLASS["BadResponse"]
    if name == "ExchangeNotAvailable" and answer.status == 503 and "maintenance" in answer.body.lower():
        return MAINTENANCE
    if BY_CLASS[name].kind is RequestRefused:
        return _by_status(name, answer)
    return _of_shared_key(BY_CLASS[name], refusal)


def _by_code(refusal: _Refusal) -> Meaning | None:
    """The meaning of the venue's code, if it is known here."""
    known = CODES.get(refusal.exchange_id, {})
    return next((known[code] for code in refusal.said.codes if code in known), None)


def _class_of_words(refusal: _Refusal) -> str:
    """The class that says how far the venue's sentence is believed; empty if it does not count.

    A server's trouble is no refusal, whatever it says; and a success with no error in it is not one either.
    """
    if refusal.answer.status >= 500 and refusal.name in ("ExchangeNotAvailable", "OperationFailed"):
        return ""
    if 200 <= refusal.answer.status < 300 and not _names_an_error(refusal.answer):
        return ""
    return refusal.name


def _of_shared_key(meaning: Meaning, refusal: _Refusal) -> Meaning:
    """The meaning, or that of a nonce where a refused time means that another program uses the key."""
    return NONCE if meaning is CLOCK and refusal.exchange_id in GROWING_NONCES else meaning


def _by_status(name: str, answer: Answer) -> Meaning:
    """The meaning of an error that CCXT does not explain, or takes for our mistake: the status may say more."""
    if 200 <= answer.status < 300 and not _names_an_error(answer):
        return BY_CLASS["BadResponse"]
    if answer.status >= 500:
        return BY_CLASS["OperationFailed"]
    return _BY_PLAIN_STATUS.get(answer.status, BY_CLASS[name]) if name == "ExchangeError" else BY_CLASS[name]


def _names_an_error(answer: Answer) -> bool:
    """Whether the answer is an object that names an error. `[]`, `{}` and other objects are malformed, not refusals."""
    if not answer.is_json:
        return True
    value = answer.value()
    return isinstance(value, dict) and any(
        _NAMES_AN_ERROR.search(name) and content not in _NO_ERRORS for name, content in value.items()
    )


def _below_http(error: BaseException) -> bool:
    """Whether CCXT raised this for a broken body, or an answer that is not HTTP."""
    return type(error.__cause__).__module__.startswith("aiohttp")
