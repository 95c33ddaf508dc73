"""What a refusal may mean: errors of the service with their messages, and the one for each class of CCXT's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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
)


class Meaning(NamedTuple):
    """An error of the service, its message with `{venue}` for the exchange's name, and perhaps its advice."""

    kind: type[VenueError]
    message: str
    advice: str | None = None


# By the name of CCXT's class. A class is looked up before its base class.
BY_CLASS: Mapping[str, Meaning] = {
    "BaseError": Meaning(RequestRefused, "{venue} answers with an error that CCXT does not explain."),
    "ExchangeError": Meaning(RequestRefused, "{venue} answers with an error that CCXT does not classify."),
    "AuthenticationError": Meaning(
        CredentialRejected,
        "{venue} refuses the key.",
        "Check that it is complete, valid and made in this environment.",
    ),
    "PermissionDenied": Meaning(
        PermissionMissing,
        "{venue} accepts the key but not this request.",
        "Give the key the right to read, and check its IP allow-list.",
    ),
    "AccountNotEnabled": Meaning(FeatureNotEnabled, "{venue} says that this kind of account is not enabled."),
    "AccountSuspended": Meaning(PermissionMissing, "{venue} has suspended the account.", "Ask its support."),
    "ArgumentsRequired": Meaning(NotSupported, "CCXT needs something for {venue} that cannot be stored here."),
    "BadRequest": Meaning(RequestRefused, "{venue} rejects our request as wrong."),
    "OperationRejected": Meaning(RequestRefused, "{venue} rejects our request."),
    "ManualInteractionNeeded": Meaning(
        FeatureNotEnabled, "{venue} requires its user to confirm something on its site first.", "Confirm it there."
    ),
    "RestrictedLocation": Meaning(RegionRestricted, "{venue} does not serve the region that this service calls from."),
    "NotSupported": Meaning(NotSupported, "CCXT does not support this for {venue}."),
    "InvalidProxySettings": Meaning(VenueUnavailable, "{venue} cannot be reached: CCXT refuses its proxy settings."),
    "ExchangeClosedByUser": Meaning(VenueUnavailable, "The connection to {venue} was closed while it was in use."),
    "OperationFailed": Meaning(VenueUnavailable, "{venue} could not answer."),
    "NetworkError": Meaning(VenueUnavailable, "{venue} cannot be reached."),
    "DDoSProtection": Meaning(VenueRateLimited, "{venue} limits our requests."),
    "RateLimitExceeded": Meaning(VenueRateLimited, "{venue} limits our requests."),
    "ExchangeNotAvailable": Meaning(VenueUnavailable, "{venue} cannot be reached, or cannot answer."),
    "OnMaintenance": Meaning(VenueMaintenance, "{venue} is in maintenance."),
    "InvalidNonce": Meaning(ClockSkew, "{venue} refuses the time of our request.", "Check this machine's clock."),
    "ChecksumError": Meaning(VenueMalformed, "{venue} answered with contradictory data."),
    "RequestTimeout": Meaning(VenueTimeout, "{venue} did not answer in time."),
    "BadResponse": Meaning(VenueMalformed, "{venue} answered with something that is not a balance."),
}

# Classes for which the meaning of their base class is right. A new class of CCXT, in neither table, fails a test.
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

KEY = BY_CLASS["AuthenticationError"]
RIGHT = BY_CLASS["PermissionDenied"]
CLOCK = BY_CLASS["InvalidNonce"]
REGION = BY_CLASS["RestrictedLocation"]
MAINTENANCE = BY_CLASS["OnMaintenance"]
LIMIT = BY_CLASS["RateLimitExceeded"]
OUTAGE = BY_CLASS["OperationFailed"]
FEATURE = BY_CLASS["AccountNotEnabled"]
WRONG_REQUEST = BY_CLASS["BadRequest"]

ADDRESS = Meaning(
    AddressNotAllowed,
    "{venue} refuses the address of this service{address}.",
    "Add it to the IP allow-list of the key.",
)
BANNED_ADDRESS = Meaning(AddressNotAllowed, "{venue} has banned the address of this service{address}.")
KEY_EXPIRED = Meaning(CredentialRejected, "{venue} says that the key has expired.", "Store a new one.")
KEY_FROZEN = Meaning(CredentialRejected, "{venue} has frozen the key.", "Ask its support, or store a new one.")
KEY_ELSEWHERE = Meaning(
    CredentialRejected,
    "{venue} says that the key belongs to another environment.",
    "Store it for the environment where it was made.",
)
# The answer is the same for all three, and a key of another environment is by far the most frequent cause.
KEY_ADDRESS_OR_RIGHT = Meaning(
    CredentialRejected,
    "{venue} refuses the key, the address of this service or the key's rights, and does not say which.",
    "Check first that the key exists in this environment, then its IP allow-list, then that it may read.",
)
NONCE_OR_KEY = Meaning(
    CredentialRejected,
    "{venue} refuses the key or the nonce of our request, and does not say which.",
    "Check the key, and that no other program uses it.",
)
NONCE = Meaning(
    ClockSkew,
    "{venue} refuses the nonce of our request: another program uses this key.",
    "Make a key for this service alone.",
)
