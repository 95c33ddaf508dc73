"""CCXT's exceptions as the service's errors.

The text of CCXT's exceptions is never passed on: it holds the whole signed address. What decides is the class of the
exception, and for some the HTTP status and the venue's own code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from exchange_service.plugin_api import (
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
from exchange_service_ccxt_generic.exact import Answer

_Row = tuple[type[VenueError], str]

# By the name of CCXT's class; `{venue}` is the exchange's name. A class is looked up before the one it derives from.
ROWS: Mapping[str, _Row] = {
    "BaseError": (RequestRefused, "{venue} answers with an error that CCXT does not explain."),
    "ExchangeError": (RequestRefused, "{venue} answers with an error that CCXT does not tell apart."),
    "AuthenticationError": (
        CredentialRejected,
        "{venue} refuses the key. Check that it is complete, in force and of this environment.",
    ),
    "PermissionDenied": (
        PermissionMissing,
        "{venue} takes the key but not this request. Give the key the right to read, and check its IP allow-list.",
    ),
    "AccountNotEnabled": (FeatureNotEnabled, "{venue} says that this kind of account is not enabled."),
    "AccountSuspended": (PermissionMissing, "{venue} has suspended the account. Ask its support."),
    "ArgumentsRequired": (NotSupported, "CCXT needs something for {venue} that cannot be stored here."),
    "BadRequest": (RequestRefused, "{venue} calls our request wrong."),
    "OperationRejected": (RequestRefused, "{venue} rejects our request."),
    "ManualInteractionNeeded": (FeatureNotEnabled, "{venue} wants its user to confirm something on its site first."),
    "RestrictedLocation": (RegionRestricted, "{venue} does not serve the region that this service calls from."),
    "NotSupported": (NotSupported, "CCXT does not support this for {venue}."),
    "InvalidProxySettings": (VenueUnavailable, "{venue} cannot be reached: CCXT refuses its proxy settings."),
    "ExchangeClosedByUser": (VenueUnavailable, "The connection to {venue} was closed while it was in use."),
    "OperationFailed": (VenueUnavailable, "{venue} could not answer."),
    "NetworkError": (VenueUnavailable, "{venue} cannot be reached."),
    "DDoSProtection": (VenueRateLimited, "{venue} limits our requests."),
    "RateLimitExceeded": (VenueRateLimited, "{venue} limits our requests."),
    "ExchangeNotAvailable": (VenueUnavailable, "{venue} cannot be reached, or has trouble."),
    "OnMaintenance": (VenueMaintenance, "{venue} is in maintenance."),
    "InvalidNonce": (ClockSkew, "{venue} refuses the time of our request. Check this machine's clock."),
    "ChecksumError": (VenueMalformed, "{venue} answered with data that contradict themselves."),
    "RequestTimeout": (VenueTimeout, "{venue} did not answer in time."),
    "BadResponse": (VenueMalformed, "{venue} answered with something that is no balance."),
}

# Classes for which the row of the class they derive from is right. One in neither table fails a test: CCXT has grown.
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

# CCXT takes each of these statuses for an outage, or for whatever the body reminds it of.
_STATUS_ROWS: Mapping[int, _Row] = {
    418: ROWS["RateLimitExceeded"],
    429: ROWS["RateLimitExceeded"],
    451: ROWS["RestrictedLocation"],
}
_OUTAGE_STATUS_ROWS: Mapping[int, _Row] = {
    400: ROWS["BadRequest"],
    403: (
        PermissionMissing,
        "{venue} forbids the request (HTTP 403). Give the key the right to read, and check its IP allow-list; "
        "a gateway before the venue may also refuse our address or region.",
    ),
    404: ROWS["BadRequest"],
    405: ROWS["BadRequest"],
    409: ROWS["BadRequest"],
    410: ROWS["BadRequest"],
}

_BINANCE = frozenset({"binance", "binancecoinm", "binanceus", "binanceusdm"})
# CCXT calls this code a ban once a key has worked, so that a revoked key would be asked for again and again.
_BINANCE_ROWS: Mapping[int, _Row] = {
    -2015: (
        CredentialRejected,
        "{venue} refuses the key (-2015). Check first that the key exists and is of this environment, then its IP "
        "allow-list, then that it may read.",
    ),
}


def translated(error: BaseException, answer: Answer, exchange_id: str, venue: str) -> VenueError:
    """Our error for one of CCXT's, `answer` being what the venue sent before it was raised."""
    kind, sentence = _row(error, answer, exchange_id)
    return kind(sentence.format(venue=venue), retry_after=retry_after(answer.headers) if kind.transient else None)


def _row(error: BaseException, answer: Answer, exchange_id: str) -> _Row:
    name = next(base.__name__ for base in type(error).__mro__ if base.__name__ in ROWS)
    if answer.status in _STATUS_ROWS:
        return _STATUS_ROWS[answer.status]
    if exchange_id in _BINANCE and (row := _BINANCE_ROWS.get(_code(answer.body))):
        return row
    if name == "ExchangeNotAvailable" and answer.status in _OUTAGE_STATUS_ROWS:
        return _OUTAGE_STATUS_ROWS[answer.status]
    if type(error).__name__ == "ExchangeError" and _below_http(error):
        return ROWS["BadResponse"]
    if name == "ExchangeNotAvailable" and answer.status == 503 and "maintenance" in answer.body.lower():
        return ROWS["OnMaintenance"]
    if ROWS[name][0] is RequestRefused and 200 <= answer.status < 300 and not _is_said(answer):
        return ROWS["BadResponse"]
    return ROWS[name]


def _is_said(answer: Answer) -> bool:
    """Whether the answer is an object with something in it; `[]` and `{}` are nonsense and no refusal."""
    if not answer.is_json:
        return True
    value = answer.value()
    return isinstance(value, dict) and bool(value)


def _below_http(error: BaseException) -> bool:
    """Whether CCXT made this of a broken body or an answer that is not HTTP."""
    return type(error.__cause__).__module__.startswith("aiohttp")


def _code(body: str) -> int:
    """The `code` of an error body; 0 where there is none."""
    try:
        value = json.loads(body)
        return int(value["code"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
