"""Errors of calls: the service's own reason, or why nothing answered, with what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from exchange_service.errors import DeadlinePassed, FieldInvalid, ServiceError, from_reason

# Of gRPC's own text.
_LONGEST_TEXT = 400
_START = "Start it with `exchange-service serve` or `exchange-service demo`."


class ServiceUnreachable(ServiceError):
    """Nothing answers at the service's address, or something other than this service does."""


class FailedCall(Protocol):
    """What gRPC raises for a call that failed, async or not."""

    def code(self) -> grpc.StatusCode:
        """The status."""

    def details(self) -> str | None:
        """gRPC's text."""

    def trailing_metadata(self) -> Iterable[Any] | None:
        """The trailers, pairs of name and value."""


def translate(error: FailedCall, address: str, *, tls: bool) -> ServiceError:
    """The error of a call to the service at `address`: of the reason that it gives, else why it did not answer."""
    # A tuple first: `dict` takes the object that older releases of grpcio return for a mapping.
    trailers: dict[str, Any] = dict(tuple(error.trailing_metadata() or ()))
    translated = from_details(trailers.get("grpc-status-details-bin"))
    if translated is not None:
        translated.request_id = str(trailers.get("x-request-id", ""))
        return translated
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlinePassed(f"The service at {address} did not answer in time.", advice="Give the call more time.")
    text = error.details() or ""
    cause, advice = _cause(text, tls=tls)
    told = f"{cause} " if cause else ""
    return ServiceUnreachable(
        f"The service at {address} did not answer. {told}gRPC says: {error.code().name}: {text[:_LONGEST_TEXT]}.",
        advice=advice,
    )


def is_from_service(error: FailedCall) -> bool:
    """Whether the service itself has answered so."""
    return any(name == "grpc-status-details-bin" for name, _ in tuple(error.trailing_metadata() or ()))


def unreachable(error: ServiceError) -> ServiceError:
    """The error of a first call that nothing has answered in time, in place of DeadlinePassed."""
    if isinstance(error, DeadlinePassed):
        return ServiceUnreachable(error.message, advice="Check the address and its port, and TLS on both sides.")
    return error


def _cause(text: str, *, tls: bool) -> tuple[str, str]:
    """What gRPC's text means, as a sentence, and what to do; an empty sentence if gRPC's text says it."""
    for sign, cause, advice in _TLS_CAUSES if tls else _PLAINTEXT_CAUSES:
        if sign in text:
            return cause, advice
    for sign, advice in _LOOKUPS:
        if sign in text:
            return "", advice
    return "", _START


_CLOSED = "It closed the connection, as a service does that wants a client certificate."
_TLS_CAUSES = (
    (
        "certificate has expired",
        "Its certificate has expired.",
        "Renew the service's certificate, and check this machine's clock.",
    ),
    (
        "certificate is not yet valid",
        "Its certificate is not valid yet.",
        "Check the clocks of this machine and of the service.",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "No authority that this client trusts has signed its certificate.",
        "Give the certificate of its authority as tls_ca.",
    ),
    (
        "Hostname Verification Check failed",
        "Its certificate is for another name than the address's.",
        "Call it by a name in its certificate, or give that name as tls_name.",
    ),
    # As older releases of grpcio say the line above.
    (
        "is not in peer certificate",
        "Its certificate is for another name than the address's.",
        "Call it by a name in its certificate, or give that name as tls_name.",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "It does not speak TLS, and this client does.",
        "Set tls_certificate and tls_key at the service, or call it with tls=False if the network is trusted.",
    ),
    (
        "Failed to create security handshaker",
        "A file of tls_ca, tls_certificate or tls_key cannot be used.",
        "Give PEM files, and the key that belongs to the certificate.",
    ),
    (
        "empty address list",
        "A file of tls_ca, tls_certificate or tls_key cannot be used.",
        "Give PEM files, and the key that belongs to the certificate.",
    ),
    ("Socket closed", _CLOSED, "Give one as tls_certificate and tls_key, of an authority that the service trusts."),
    ("CERTIFICATE_REQUIRED", _CLOSED, "Give one as tls_certificate and tls_key."),
)
_WANTS_TLS = "Give tls=True, or tls_ca with the certificate of its authority."
_PLAINTEXT_CAUSES = (
    ("Socket closed", "It closed the connection, as a service does that wants TLS.", _WANTS_TLS),
    ("Connection reset", "It closed the connection, as a service does that wants TLS.", _WANTS_TLS),
    (
        "Failed parsing HTTP/2",
        "What answers there is not a gRPC service without TLS.",
        f"Check the address and its port. {_WANTS_TLS}",
    ),
)
_LOOKUPS = (
    ("lookup", "Check the name, and this machine's DNS."),
    ("DNS", "Check the name, and this machine's DNS."),
)


def from_details(details: object) -> ServiceError | None:
    """The error in a trailer; None if there is none, or one that this service did not write."""
    if not isinstance(details, bytes):
        return None
    with suppress(DecodeError):
        return _from_status(status_pb2.Status.FromString(details))
    return None


def _from_status(status: status_pb2.Status) -> ServiceError:
    reason, retry_after = "", None
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            reason = error_details_pb2.ErrorInfo.FromString(detail.value).reason
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after = delay.seconds + delay.nanos / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            faults = error_details_pb2.BadRequest.FromString(detail.value).field_violations
            violations = [(fault.field, fault.description) for fault in faults]
    # The message of a status ends with its advice.
    error = from_reason(reason, status.message, retry_after, advice="")
    if isinstance(error, FieldInvalid) and violations:
        error.field, error.description = violations[0]
        error.violations = tuple(violations)
    return error
