"""Everything that can go wrong, as one tree. The status table in `grpc_server/status.py` has a row for each leaf.

    ServiceError                        an error for the caller: a reason, a sentence and what to do next
    ├── RequestError                    the call itself
    │   ├── FieldInvalid                a field is missing or malformed
    │   ├── ExchangeUnknown             no plugin serves this id
    │   ├── ExchangeRetired             the exchange was served once, and is not any more
    │   ├── CredentialMissing           nothing is stored for this account
    │   ├── CallerUnknown               the caller gave no valid proof of its identity
    │   ├── UserForbidden               the caller may not read this user
    │   ├── DeadlinePassed              too little time is left
    │   └── SubscriberTooSlow           the subscriber does not read
    ├── VenueError                      what a plugin may raise
    │   ├── CredentialInvalid           a field of the stored credential is missing or not accepted
    │   ├── CredentialRejected          the venue refuses the key
    │   ├── PermissionMissing           the key lacks the right to read
    │   ├── AddressNotAllowed           the venue refuses our address
    │   ├── ClockSkew                   the venue refuses our time
    │   ├── RegionRestricted            the venue refuses our region
    │   ├── AccountUnknown              the venue knows no such account
    │   ├── FeatureNotEnabled           the account lacks a feature
    │   ├── VenueRateLimited            the venue limits us
    │   ├── VenueUnavailable            the venue is down
    │   ├── VenueMaintenance            the venue says it is in maintenance
    │   ├── VenueTimeout                the venue is too slow
    │   ├── VenueMalformed              the venue answered nonsense
    │   ├── NotSupported                the venue has no such thing
    │   └── RequestRefused              the venue calls our request wrong
    └── HostError                       this service
        ├── CredentialUnreadable        a stored credential cannot be opened
        ├── CallerRateLimited           the caller asks too often
        ├── ServiceOverloaded           we are full
        ├── StoreUnavailable            the credential store is down
        ├── ShuttingDown                this replica is shutting down
        ├── StreamLifetimeReached       the stream reached its longest lifetime
        ├── PluginFailed                a plugin broke
        ├── PluginUnavailable           a plugin's process is down
        └── ServiceFailed               we broke

The message says for a person what happened and where; `advice` says what to do next. Without `advice` the caller is
given the next step of the status table. Neither holds a secret, a URL with a query, or another exception's text: raise
with `from None` where a venue's or library's error ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


class ServiceError(Exception):
    """An error for the caller: a stable `reason`, a message, and perhaps advice and a delay in seconds.

    `str(error)` is its `text`. Raises TypeError if the message or the advice is not a text.
    """

    # The name of the error on the wire, see docs/errors.md.
    reason = ""
    # Whether the last good balance may be returned instead: the error says nothing about the account.
    transient = False
    # In a client: the id of the call that failed, to look up in the service's log. Empty if the service sent none.
    request_id = ""
    # What to do next, as a sentence. None: the status table's next step is given. Empty: the message needs no advice.
    advice: str | None = None
    # The delay to recommend if none is given. None: waiting does not help.
    default_retry_after: float | None = None
    # The delay in seconds that was given, usually by the venue; None if `retry_after` is the default.
    given_delay: float | None = None
    # False if the venue gate raised it, or a plugin that keeps to its venue's limit itself: no venue was asked.
    venue_was_asked: bool = True
    # True if a poll found our own requests to the venue used up, or no slot free: nothing has failed, it is late.
    late: bool = False

    def __init__(self, message: str, *, retry_after: float | None = None, advice: str | None = None) -> None:
        # What to do next, a sentence for the caller; None: the next step of the status table.
        self.advice = None if advice is None else _sendable(advice, _LONGEST_ADVICE)
        # What happened and where, a sentence for the caller.
        self.message = _sendable(message, _LONGEST_MESSAGE - len((self.advice or "").encode()) - 1)
        super().__init__(self.text)
        delay = _capped_delay(retry_after)
        self.given_delay = delay
        # The delay to recommend, in seconds; None: waiting does not help.
        self.retry_after = self.default_retry_after if delay is None else delay

    @property
    def text(self) -> str:
        """The message, followed by the advice if it was given."""
        return f"{self.message} {self.advice}" if self.advice else self.message


# In bytes, message and advice together. A longer text does not fit into a call's trailers, which hold it twice and
# escape what is not ASCII.
_LONGEST_MESSAGE = 1000
_LONGEST_ADVICE = 300
# In seconds.
_LONGEST_DELAY = 3600.0


def _sendable(text: str, longest: int) -> str:
    """The text as valid UTF-8 of at most `longest` bytes."""
    if not isinstance(text, str):
        # Usually another exception, whose text may hold a secret.
        raise TypeError(f"an error's message is a text, not {type(text).__name__}")
    return text[:longest].encode("utf-8", "replace")[:longest].decode("utf-8", "ignore")


def _capped_delay(seconds: float | None) -> float | None:
    """The delay in seconds, capped at `_LONGEST_DELAY`; None if it is absent, negative or not finite."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        return None
    return min(float(seconds), _LONGEST_DELAY)


class RequestError(ServiceError):
    """The call itself is wrong."""


class VenueError(ServiceError):
    """What a plugin may raise: the cause is the venue, or what the user stored for it."""


class HostError(ServiceError):
    """The cause is this service."""


class FieldInvalid(RequestError):
    """A request's field is missing or malformed; `field` is its path, and `description` says what is wrong with it.

    If several are, `violations` has all of them in this form, the first one included.
    """

    reason = "FIELD_INVALID"
    # Empty if a client got no details.
    field = ""
    description = ""
    violations: tuple[tuple[str, str], ...] = ()

    def __init__(
        self, field: str, message: str, *, advice: str | None = None, more: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.violations = ((field, message), *more)
        super().__init__(" ".join(f"{name}: {text}" for name, text in self.violations), advice=advice)
        self.field = field
        self.description = message


class ExchangeUnknown(RequestError):
    """No loaded plugin serves this exchange id."""

    reason = "EXCHANGE_UNKNOWN"


class ExchangeRetired(RequestError):
    """This exchange was served once, and is not any more: it has closed, or its library has dropped it."""

    reason = "EXCHANGE_RETIRED"


class CredentialMissing(RequestError):
    """No credential is stored for this account."""

    reason = "CREDENTIAL_MISSING"


class CallerUnknown(RequestError):
    """The caller gave no valid proof of its identity."""

    reason = "CALLER_UNKNOWN"


class UserForbidden(RequestError):
    """The caller is known, but may not read this user's accounts."""

    reason = "USER_FORBIDDEN"


class DeadlinePassed(RequestError):
    """The caller's deadline has passed or leaves too little time."""

    reason = "DEADLINE_PASSED"


class SubscriberTooSlow(RequestError):
    """A subscriber did not read for too long."""

    reason = "SUBSCRIBER_TOO_SLOW"


class CredentialInvalid(VenueError):
    """A field of the stored credential is missing, or the plugin does not accept it."""

    reason = "CREDENTIAL_INVALID"
    # The field of the credential that is missing, if `required_text` has missed one.
    missing_field: str = ""


class CredentialRejected(VenueError):
    """The venue refuses the key, token or signature."""

    reason = "CREDENTIAL_REJECTED"


class PermissionMissing(VenueError):
    """The key is good, but lacks the right to read balances."""

    reason = "PERMISSION_MISSING"


class AddressNotAllowed(VenueError):
    """The venue does not accept this key from our network address."""

    reason = "ADDRESS_NOT_ALLOWED"


class ClockSkew(VenueError):
    """The venue refuses the time of our request."""

    reason = "CLOCK_SKEW"


class RegionRestricted(VenueError):
    """The venue does not serve the region we call from."""

    reason = "REGION_RESTRICTED"


class AccountUnknown(VenueError):
    """The venue knows no such account."""

    reason = "ACCOUNT_UNKNOWN"


class FeatureNotEnabled(VenueError):
    """The account exists, but lacks the feature asked for."""

    reason = "FEATURE_NOT_ENABLED"


class VenueRateLimited(VenueError):
    """The venue limits us; `retry_after` is the venue's own delay in seconds, if it gives one."""

    reason = "VENUE_RATE_LIMITED"
    transient = True
    default_retry_after = 10.0


class VenueUnavailable(VenueError):
    """The venue cannot be reached, or answers with a server error."""

    reason = "VENUE_UNAVAILABLE"
    transient = True
    default_retry_after = 5.0


class VenueMaintenance(VenueError):
    """The venue says that it is in maintenance."""

    reason = "VENUE_MAINTENANCE"
    transient = True
    default_retry_after = 60.0


class VenueTimeout(VenueError):
    """The venue did not answer in time."""

    reason = "VENUE_TIMEOUT"
    transient = True
    default_retry_after = 5.0


class VenueMalformed(VenueError):
    """The venue answered, but not with a valid balance."""

    reason = "VENUE_MALFORMED"
    transient = True


class NotSupported(VenueError):
    """The venue, or the plugin for it, has no such thing."""

    reason = "NOT_SUPPORTED"


class RequestRefused(VenueError):
    """The venue calls our request wrong."""

    reason = "REQUEST_REFUSED"


class CredentialUnreadable(HostError):
    """A stored credential is sealed and cannot be opened."""

    reason = "CREDENTIAL_UNREADABLE"


class CallerRateLimited(HostError):
    """The caller asks too often."""

    reason = "CALLER_RATE_LIMITED"
    default_retry_after = 1.0


class ServiceOverloaded(HostError):
    """This service is full."""

    reason = "SERVICE_OVERLOADED"
    default_retry_after = 1.0


class StoreUnavailable(HostError):
    """The store of credentials cannot be reached."""

    reason = "STORE_UNAVAILABLE"
    transient = True
    default_retry_after = 2.0


class ShuttingDown(HostError):
    """This replica is shutting down; another one will answer."""

    reason = "SHUTTING_DOWN"
    default_retry_after = 1.0


class StreamLifetimeReached(HostError):
    """A stream reached its longest lifetime."""

    reason = "STREAM_LIFETIME_REACHED"
    default_retry_after = 0.0


class PluginFailed(HostError):
    """A plugin broke; the message holds its name, never the exception's text."""

    reason = "PLUGIN_FAILED"
    transient = True
    # For the service's log alone: what is wrong, and what the plugin's author should write. Empty: the text says it.
    problem: str = ""


class PluginUnavailable(HostError):
    """The process that runs a plugin is down; it is being started again."""

    reason = "PLUGIN_UNAVAILABLE"
    transient = True
    default_retry_after = 1.0


class ServiceFailed(HostError):
    """This service broke; the message holds a reference to the log."""

    reason = "SERVICE_FAILED"


def leaves(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Every class of the tree that has a reason."""
    for child in root.__subclasses__():
        if child.reason:
            yield child
        yield from leaves(child)


def from_reason(reason: str, message: str, retry_after: float | None = None, advice: str | None = None) -> ServiceError:
    """The error of this `reason` with the given fields; a plain `ServiceError` if the reason is unknown."""
    for leaf in leaves():
        if leaf.reason == reason:
            error = leaf.__new__(leaf)
            ServiceError.__init__(error, message, retry_after=retry_after, advice=advice)
            return error
    return ServiceError(message, retry_after=retry_after, advice=advice)
