"""The one table from errors to gRPC status, and how an error leaves as a google.rpc.Status."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from exchange_service import errors

DOMAIN = "exchange-service"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


@dataclass(frozen=True, slots=True)
class Row:
    """How one leaf of the error tree leaves: its code, and who acts next, for the message and the documents."""

    code: grpc.StatusCode
    who: str
    next_step: str

    @property
    def retry(self) -> bool:
        """Whether the same call can succeed later without anybody's doing."""
        return self.code in _PASSING


_C = grpc.StatusCode
_PASSING = (_C.UNAVAILABLE, _C.RESOURCE_EXHAUSTED, _C.DEADLINE_EXCEEDED, _C.ABORTED)
_CALLER, _USER, _OPERATOR, _NOBODY = "caller", "user", "operator", "nobody: try again"

TABLE: dict[type[errors.ServiceError], Row] = {
    errors.FieldInvalid: Row(_C.INVALID_ARGUMENT, _CALLER, "Correct the field and call again."),
    errors.ExchangeUnknown: Row(_C.NOT_FOUND, _CALLER, "List the exchanges to see every id."),
    errors.CredentialMissing: Row(_C.NOT_FOUND, _USER, "Store a credential for this account."),
    errors.CallerUnknown: Row(_C.UNAUTHENTICATED, _CALLER, "Send a valid token or client certificate."),
    errors.UserForbidden: Row(_C.PERMISSION_DENIED, _CALLER, "Ask for a user within your own scope."),
    errors.CredentialInvalid: Row(_C.FAILED_PRECONDITION, _USER, "Store the credential again, with the field right."),
    errors.CredentialUnreadable: Row(_C.FAILED_PRECONDITION, _OPERATOR, "Give the service the key that sealed it."),
    errors.CredentialRejected: Row(_C.FAILED_PRECONDITION, _USER, "Check the key at the venue, or store a new one."),
    errors.PermissionMissing: Row(_C.FAILED_PRECONDITION, _USER, "Give the key the right to read balances."),
    errors.AddressNotAllowed: Row(
        _C.FAILED_PRECONDITION, _USER, "Add the service's network address to the key's allow-list at the venue."
    ),
    errors.ClockSkew: Row(_C.FAILED_PRECONDITION, _OPERATOR, "Set the clock of the service's machine."),
    errors.RegionRestricted: Row(
        _C.FAILED_PRECONDITION, _OPERATOR, "Run the service from a region that the venue serves."
    ),
    errors.AccountUnknown: Row(_C.FAILED_PRECONDITION, _USER, "Check the stored account id or address."),
    errors.FeatureNotEnabled: Row(_C.FAILED_PRECONDITION, _USER, "Enable the feature at the venue."),
    errors.VenueRateLimited: Row(_C.RESOURCE_EXHAUSTED, _NOBODY, "Wait for the delay, then call again."),
    errors.CallerRateLimited: Row(_C.RESOURCE_EXHAUSTED, _CALLER, "Wait for the delay, and call less often."),
    errors.ServiceOverloaded: Row(_C.RESOURCE_EXHAUSTED, _NOBODY, "Wait for the delay, then call again."),
    errors.VenueUnavailable: Row(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.VenueMaintenance: Row(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.VenueTimeout: Row(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.VenueMalformed: Row(
        _C.UNAVAILABLE, _NOBODY, "Call again later; if it lasts, the venue has changed its interface."
    ),
    errors.StoreUnavailable: Row(_C.UNAVAILABLE, _OPERATOR, "Call again; if it lasts, look at the database."),
    errors.ShuttingDown: Row(_C.UNAVAILABLE, _NOBODY, "Call again; another replica will answer."),
    errors.StreamLifetimeReached: Row(
        _C.UNAVAILABLE, _CALLER, "Open the stream again, with the versions that you have."
    ),
    errors.DeadlinePassed: Row(_C.DEADLINE_EXCEEDED, _CALLER, "Give the call more time."),
    errors.SubscriberTooSlow: Row(_C.ABORTED, _CALLER, "Read faster, then open the stream again."),
    errors.NotSupported: Row(_C.UNIMPLEMENTED, _NOBODY, "There is nothing to wait for."),
    errors.RequestRefused: Row(_C.INTERNAL, _OPERATOR, "Report it to the plugin's author."),
    errors.PluginFailed: Row(_C.INTERNAL, _OPERATOR, "Report it to the plugin's author."),
    errors.PluginUnavailable: Row(_C.UNAVAILABLE, _NOBODY, "Call again after the delay."),
    errors.ServiceFailed: Row(_C.INTERNAL, _OPERATOR, "Look for the reference in the service's log."),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `context.abort` is given."""

    code: grpc.StatusCode
    reason: str
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def outcome(error: errors.ServiceError) -> Outcome:
    """How an error leaves: the code of the table, `REASON: sentence next step`, and the same as details."""
    row = TABLE[type(error)]
    message = f"{error.reason}: {error.message}"
    if ". " not in error.message:
        # It says what happened and no more; one of several sentences already says what to do.
        message = f"{message} {row.next_step}"
    details = [_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    if isinstance(error, errors.FieldInvalid):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    pushback: tuple[tuple[str, str], ...] = ()
    if error.retry_after is not None:
        milliseconds = round(error.retry_after * 1000)
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(milliseconds)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        pushback = ((PUSHBACK_KEY, str(milliseconds)),)
    status = status_pb2.Status(code=row.code.value[0], message=message, details=details)
    return Outcome(row.code, error.reason, message, ((DETAILS_KEY, status.SerializeToString()), *pushback))


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
