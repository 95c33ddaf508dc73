"""The one table from errors to gRPC status, and the google.rpc.Status of an error."""

from __future__ import annotations

from dataclasses import dataclass, replace

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from exchange_service import errors
from exchange_service.wire.protobuf import to_duration

DOMAIN = "exchange-service"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


@dataclass(frozen=True, slots=True)
class StatusRow:
    """How one leaf of the error tree is sent: its code, who acts next and what they do."""

    code: grpc.StatusCode
    who: str
    next_step: str

    @property
    def retry(self) -> bool:
        """Whether the same call can succeed later if nothing is changed."""
        return self.code in _RETRYABLE


_C = grpc.StatusCode
_RETRYABLE = (_C.UNAVAILABLE, _C.RESOURCE_EXHAUSTED, _C.DEADLINE_EXCEEDED, _C.ABORTED)
_CALLER, _USER, _OPERATOR, _NOBODY = "caller", "user", "operator", "nobody"

TABLE: dict[type[errors.ServiceError], StatusRow] = {
    errors.FieldInvalid: StatusRow(_C.INVALID_ARGUMENT, _CALLER, "Correct the field and call again."),
    errors.ExchangeUnknown: StatusRow(_C.NOT_FOUND, _CALLER, "List the exchanges to see every id."),
    errors.ExchangeRetired: StatusRow(
        _C.NOT_FOUND, _USER, "Remove its credential: no balance can be read there any more."
    ),
    errors.CredentialMissing: StatusRow(_C.NOT_FOUND, _USER, "Store a credential for this account."),
    errors.CallerUnknown: StatusRow(_C.UNAUTHENTICATED, _CALLER, "Send a valid token or client certificate."),
    errors.UserForbidden: StatusRow(_C.PERMISSION_DENIED, _CALLER, "Ask for a user within your own scope."),
    errors.CredentialInvalid: StatusRow(
        _C.FAILED_PRECONDITION, _USER, "Store the credential again, with the field right."
    ),
    errors.CredentialUnreadable: StatusRow(
        _C.FAILED_PRECONDITION, _OPERATOR, "Give the service the key that sealed it."
    ),
    errors.CredentialRejected: StatusRow(
        _C.FAILED_PRECONDITION, _USER, "Check the key at the venue, or store a new one."
    ),
    errors.PermissionMissing: StatusRow(_C.FAILED_PRECONDITION, _USER, "Give the key the right to read balances."),
    errors.AddressNotAllowed: StatusRow(
        _C.FAILED_PRECONDITION, _USER, "Add the service's network address to the key's allow-list at the venue."
    ),
    errors.ClockSkew: StatusRow(_C.FAILED_PRECONDITION, _OPERATOR, "Set the clock of the service's machine."),
    errors.RegionRestricted: StatusRow(
        _C.FAILED_PRECONDITION, _OPERATOR, "Run the service from a region that the venue serves."
    ),
    errors.AccountUnknown: StatusRow(_C.FAILED_PRECONDITION, _USER, "Check the stored account id or address."),
    errors.FeatureNotEnabled: StatusRow(_C.FAILED_PRECONDITION, _USER, "Enable the feature at the venue."),
    errors.VenueRateLimited: StatusRow(_C.RESOURCE_EXHAUSTED, _NOBODY, "Wait for the delay, then call again."),
    errors.CallerRateLimited: StatusRow(_C.RESOURCE_EXHAUSTED, _CALLER, "Wait for the delay, and call less often."),
    errors.ServiceOverloaded: StatusRow(_C.RESOURCE_EXHAUSTED, _NOBODY, "Wait for the delay, then call again."),
    errors.VenueUnavailable: StatusRow(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.VenueMaintenance: StatusRow(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.VenueTimeout: StatusRow(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.VenueMalformed: StatusRow(
        _C.UNAVAILABLE, _NOBODY, "Call again later; if it lasts, the venue has changed its interface."
    ),
    errors.StoreUnavailable: StatusRow(_C.UNAVAILABLE, _OPERATOR, "Call again; if it lasts, look at the database."),
    errors.ShuttingDown: StatusRow(_C.UNAVAILABLE, _NOBODY, "Call again; another replica will answer."),
    errors.StreamLifetimeReached: StatusRow(
        _C.UNAVAILABLE, _CALLER, "Open the stream again, with the versions that you have."
    ),
    errors.DeadlinePassed: StatusRow(_C.DEADLINE_EXCEEDED, _CALLER, "Give the call more time."),
    errors.SubscriberTooSlow: StatusRow(_C.ABORTED, _CALLER, "Read faster, then open the stream again."),
    errors.NotSupported: StatusRow(_C.UNIMPLEMENTED, _NOBODY, "There is nothing to wait for."),
    errors.RequestRefused: StatusRow(_C.INTERNAL, _OPERATOR, "Report it to the plugin's author."),
    errors.PluginFailed: StatusRow(_C.INTERNAL, _OPERATOR, "Report it to the plugin's author."),
    errors.PluginUnavailable: StatusRow(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.ServiceFailed: StatusRow(_C.INTERNAL, _OPERATOR, "Look for the reference in the service's log."),
}


@dataclass(frozen=True, slots=True)
class CallStatus:
    """The arguments of `context.abort`."""

    code: grpc.StatusCode
    reason: str
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]

    def fitted(self, seconds_left: float | None) -> CallStatus:
        """The same for a call with so much time left: if its delay does not fit, gRPC is told not to retry, so that the
        caller gets this error now, and not the end of its deadline later."""
        late = [
            (name, value)
            for name, value in self.trailers
            if name == PUSHBACK_KEY and seconds_left is not None and int(value) / 1000 >= seconds_left
        ]
        if not late:
            return self
        kept = tuple(item for item in self.trailers if item not in late)
        return replace(self, trailers=(*kept, (PUSHBACK_KEY, "-1")))


def status_of(error: errors.ServiceError) -> CallStatus:
    """The status of an error: the table's code, `REASON: message advice`, and the same as details in the trailers.

    Without advice of its own the error gets the table's next step.
    """
    row = TABLE[type(error)]
    advice = row.next_step if error.advice is None else error.advice
    message = f"{error.reason}: {error.message} {advice}".rstrip()
    details = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    if isinstance(error, errors.FieldInvalid):
        faults = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
            for field, text in error.violations or ((error.field, error.description),)
        ]
        details.append(_pack(error_details_pb2.BadRequest(field_violations=faults)))
    pushback: tuple[tuple[str, str], ...] = ()
    if error.retry_after is not None:
        milliseconds = round(error.retry_after * 1000)
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=to_duration(milliseconds / 1000))))
        pushback = ((PUSHBACK_KEY, str(milliseconds)),)
    status = status_pb2.Status(code=row.code.value[0], message=message, details=details)
    return CallStatus(row.code, error.reason, message, ((DETAILS_KEY, status.SerializeToString()), *pushback))


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
