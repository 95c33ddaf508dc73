"""CCXT's exceptions as the service's errors.

The class of the exception decides, and for some the HTTP status and the venue's own code. The text of CCXT's exceptions
is never passed on, because it holds the whole signed address.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from exchange_service.plugin_api import (
    AddressNotAllowed,
    ClockSkew,
    CredentialRejected,
    FeatureNotEnabled,
    NotSupported,
    PermissionMissing,
    RegionRestricted,
    RequestRefused,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
    retry_after,
)
from exchange_service_ccxt_generic.answers import Answer
from exchange_service_ccxt_generic.exact_json import exact_json


class _Failure(NamedTuple):
    """An error of the service, its message with `{venue}` for the exchange's name, and perhaps its advice."""

    kind: type[VenueError]
    message: str
    advice: str | None = None


# By the name of CCXT's class. A class is looked up before its base class.
ROWS: Mapping[str, _Failure] = {
    "BaseError": _Failure(RequestRefused, "{venue} answers with an error that CCXT does not explain."),
    "ExchangeError": _Failure(RequestRefused, "{venue} answers with an error that CCXT does not classify."),
    "AuthenticationError": _Failure(
        CredentialRejected,
        "{venue} refuses the key.",
        "Check that it is complete, valid and made in this environment.",
    ),
    "PermissionDenied": _Failure(
        PermissionMissing,
        "{venue} accepts the key but not this request.",
        "Give the key the right to read, and check its IP allow-list.",
    ),
    "AccountNotEnabled": _Failure(FeatureNotEnabled, "{venue} says that this kind of account is not enabled."),
    "AccountSuspended": _Failure(PermissionMissing, "{venue} has suspended the account.", "Ask its support."),
    "ArgumentsRequired": _Failure(NotSupported, "CCXT needs something for {venue} that cannot be stored here."),
    "BadRequest": _Failure(RequestRefused, "{venue} rejects our request as wrong."),
    "OperationRejected": _Failure(RequestRefused, "{venue} rejects our request."),
    "ManualInteractionNeeded": _Failure(
        FeatureNotEnabled, "{venue} requires its user to confirm something on its site first.", "Confirm it there."
    ),
    "RestrictedLocation": _Failure(RegionRestricted, "{venue} does not serve the region that this service calls from."),
    "NotSupported": _Failure(NotSupported, "CCXT does not support this for {venue}."),
    "InvalidProxySettings": _Failure(VenueUnavailable, "{venue} cannot be reached: CCXT refuses its proxy settings."),
    "ExchangeClosedByUser": _Failure(VenueUnavailable, "The connection to {venue} was closed while it was in use."),
    "OperationFailed": _Failure(VenueUnavailable, "{venue} could not answer."),
    "NetworkError": _Failure(VenueUnavailable, "{venue} cannot be reached."),
    "DDoSProtection": _Failure(VenueRateLimited, "{venue} limits our requests."),
    "RateLimitExceeded": _Failure(VenueRateLimited, "{venue} limits our requests."),
    "ExchangeNotAvailable": _Failure(VenueUnavailable, "{venue} cannot be reached, or cannot answer."),
    "OnMaintenance": _Failure(VenueMaintenance, "{venue} is in maintenance."),
    "InvalidNonce": _Failure(ClockSkew, "{venue} refuses the time of our request.", "Check this machine's clock."),
    "ChecksumError": _Failure(VenueMalformed, "{venue} answered with contradictory data."),
    "RequestTimeout": _Failure(VenueTimeout, "{venue} did not answer in time."),
    "BadResponse": _Failure(VenueMalformed, "{venue} answered with something that is not a balance."),
}

# Classes for which the row of their base class is right. A new class of CCXT, in neither table, fails a test.
INHERITED = frozenset(
    {
        "BadSymbol",
        "NoChange",
        "MarginModeAlreadySet",
        "MarketClosed",
        "InsufficientFunds",
        "InvalidAddress",
        "AddressPending",
        "InvalidOrder",
        "OrderNotFound",
        "OrderNotCached",
        "OrderImmediatelyFillable",
        "OrderNotFillable",
        "DuplicateOrderId",
        "ContractUnavailable",
        "NullResponse",
        "CancelPending",
        "UnsubscribeError",
    }
)

# CCXT takes each of these statuses for an outage, or decides by the body.
_STATUS_ROWS: Mapping[int, _Failure] = {
    418: ROWS["RateLimitExceeded"],
    429: ROWS["RateLimitExceeded"],
    451: ROWS["RestrictedLocation"],
}
_OUTAGE_STATUS_ROWS: Mapping[int, _Failure] = {
    400: ROWS["BadRequest"],
    403: _Failure(
        PermissionMissing,
        "{venue} forbids the request (HTTP 403), or a gateway before it refuses our address or region.",
        "Give the key the right to read, and check its IP allow-list.",
    ),
    404: ROWS["BadRequest"],
    405: ROWS["BadRequest"],
    409: ROWS["BadRequest"],
    410: ROWS["BadRequest"],
}

# For answers that CCXT does not classify.
_PLAIN_STATUS_ROWS: Mapping[int, _Failure] = {401: ROWS["AuthenticationError"], 403: _OUTAGE_STATUS_ROWS[403]}

# In a page with status 403: the gateway of several venues does not serve the country of our address.
_REGION_BLOCKED = "block access from your country"

_ADDRESS_REFUSED = _Failure(
    AddressNotAllowed,
    "{venue} refuses the address of this service.",
    "Add it to the IP allow-list of the key.",
)
_KEY_ELSEWHERE = _Failure(
    CredentialRejected,
    "{venue} says that the key belongs to another environment.",
    "Store it for the environment where it was made.",
)
_KEY_EXPIRED = _Failure(CredentialRejected, "{venue} says that the key has expired.", "Store a new one.")

# The venues' own codes that CCXT does not know, classifies wrongly, or does not distinguish.
_BINANCE: Mapping[str, _Failure] = {
    "-1002": ROWS["PermissionDenied"],
    "-1003": ROWS["RateLimitExceeded"],
    "-1021": ROWS["InvalidNonce"],
    "-1022": ROWS["AuthenticationError"],
    "-2008": ROWS["AuthenticationError"],
    "-2014": ROWS["AuthenticationError"],
    # CCXT takes this for a ban once a key has worked, so a revoked key would be sent again and again.
    "-2015": _Failure(
        CredentialRejected,
        "{venue} refuses the key (-2015).",
        "Check first that the key exists in this environment, then its IP allow-list, then that it may read.",
    ),
    "-3003": ROWS["AccountNotEnabled"],
}
_BYBIT: Mapping[str, _Failure] = {
    "10009": _Failure(AddressNotAllowed, "{venue} has banned the address of this service."),
    "10010": _ADDRESS_REFUSED,
    "10016": ROWS["OperationFailed"],
    "10020": ROWS["AccountNotEnabled"],
    "10024": ROWS["RestrictedLocation"],
    "10028": ROWS["AccountNotEnabled"],
    "33004": _KEY_EXPIRED,
}
_OKX: Mapping[str, _Failure] = {
    "50030": ROWS["PermissionDenied"],
    "50061": ROWS["RateLimitExceeded"],
    "50100": _Failure(CredentialRejected, "{venue} has frozen the key.", "Ask its support, or store a new one."),
    "50101": _KEY_ELSEWHERE,
    "50110": _ADDRESS_REFUSED,
    "50112": ROWS["InvalidNonce"],
    "50119": ROWS["AuthenticationError"],
    "50120": ROWS["PermissionDenied"],
    "50121": _ADDRESS_REFUSED,
}
_KRAKEN: Mapping[str, _Failure] = {
    "EAPI:Invalid nonce": _Failure(
        ClockSkew,
        "{venue} refuses the nonce of our request.",
        "Check this machine's clock, and that no other program uses the key.",
    ),
    "EAPI:Invalid signature": ROWS["AuthenticationError"],
    "EAPI:Feature disabled": ROWS["AccountNotEnabled"],
    "EAuth:Rate limit exceeded": ROWS["RateLimitExceeded"],
    "EAuth:Too many requests": ROWS["RateLimitExceeded"],
}
# The signature is wrong. CCXT knows the code but compares it with the HTTP status.
_APEX: Mapping[str, _Failure] = {"20006": ROWS["AuthenticationError"]}

_BINANCES = ("binance", "binancecoinm", "binanceus", "binanceusdm")
_BYBITS = ("bybit", "bybiteu", "bybitid")
# Seconds. A later end of the limit is not believed.
_LONGEST_DELAY = 300.0
# When Bybit's limit ends, in milliseconds since 1970; it sends no Retry-After.
_BYBIT_LIMIT_END = "x-bapi-limit-reset-timestamp"

_CODE_ROWS: Mapping[str, Mapping[str, _Failure]] = {
    "apex": _APEX,
    **dict.fromkeys(_BINANCES, _BINANCE),
    **dict.fromkeys(_BYBITS, _BYBIT),
    "kraken": _KRAKEN,
    **dict.fromkeys(("okx", "okxus", "myokx"), _OKX),
}
# Names of fields with an error's code or message, and the values that mean no error.
_NAMES_AN_ERROR = re.compile(r"err|code|msg|mess|reason|desc|\A(rc|mc)\Z", re.IGNORECASE)
_NO_ERRORS: tuple[Any, ...] = (None, "", 0, "0", [], {})
# The fields with the code of an answer, or with a list of codes.
_CODE_FIELDS = ("code", "retCode", "error")


def translate(error: BaseException, answer: Answer, exchange_id: str, venue: str) -> VenueError:
    """The VenueError for an error of CCXT. `answer` is what the venue sent before CCXT raised it."""
    row = _row(error, answer, exchange_id)
    delay = retry_after(answer.headers) if row.kind.transient else None
    if delay is None and row.kind is VenueRateLimited and exchange_id in _BYBITS:
        delay = _until_limit_ends(answer)
    return row.kind(row.message.format(venue=venue), retry_after=delay, advice=row.advice)


def _until_limit_ends(answer: Answer) -> float | None:
    """Seconds until Bybit's limit ends; None if the header is missing or not believed."""
    ends = next((text for name, text in answer.headers.items() if name.lower() == _BYBIT_LIMIT_END), "")
    if not ends.isdecimal() or len(ends) != 13:
        return None
    # Half a second more, because the clocks may differ.
    seconds = int(ends) / 1000 - time.time() + 0.5
    return seconds if 0 < seconds <= _LONGEST_DELAY else None


def _row(error: BaseException, answer: Answer, exchange_id: str) -> _Failure:
    name = next(base.__name__ for base in type(error).__mro__ if base.__name__ in ROWS)
    if answer.status in _STATUS_ROWS:
        return _STATUS_ROWS[answer.status]
    if answer.status == 403 and _REGION_BLOCKED in answer.body.lower():
        return ROWS["RestrictedLocation"]
    if row := _code_row(exchange_id, answer.body):
        return row
    if answer.status == 403 and exchange_id in _BINANCES and not answer.is_json:
        # The page of Binance's firewall after too many requests. A missing right has another status.
        return ROWS["RateLimitExceeded"]
    if name == "ExchangeNotAvailable" and answer.status in _OUTAGE_STATUS_ROWS:
        return _OUTAGE_STATUS_ROWS[answer.status]
    if type(error).__name__ == "ExchangeError" and _below_http(error):
        return ROWS["BadResponse"]
    if name == "ExchangeNotAvailable" and answer.status == 503 and "maintenance" in answer.body.lower():
        return ROWS["OnMaintenance"]
    if ROWS[name].kind is RequestRefused:
        return _row_by_status(name, answer)
    return ROWS[name]


def _row_by_status(name: str, answer: Answer) -> _Failure:
    """The row for an error that CCXT does not explain, or takes for our mistake: the status may say more."""
    if 200 <= answer.status < 300 and not _names_an_error(answer):
        return ROWS["BadResponse"]
    if answer.status >= 500:
        return ROWS["OperationFailed"]
    return _PLAIN_STATUS_ROWS.get(answer.status, ROWS[name]) if name == "ExchangeError" else ROWS[name]


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


def _code_row(exchange_id: str, body: str) -> _Failure | None:
    """The row for the code in an error body, if the exchange's codes are known here."""
    rows = _CODE_ROWS.get(exchange_id)
    if rows is None:
        return None
    try:
        value = exact_json(body)
    except VenueMalformed:
        return None
    if not isinstance(value, dict):
        return None
    codes = [value.get(name) for name in _CODE_FIELDS]
    texts = [str(code) for entry in codes for code in (entry if isinstance(entry, list) else [entry])]
    return next((rows[text] for text in texts if text in rows), None)
