"""The status table: every leaf of the error tree has its row, and leaves with exactly the promised details."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from exchange_service import errors
from exchange_service.errors import FieldInvalid, ServiceError
from exchange_service.grpc_server.status import DETAILS_KEY, PUSHBACK_KEY, TABLE, status_of
from exchange_service.v1 import error_reason_pb2
from tests.harness import unpacked

# As the wire style says it: code, reason, and whether there is always a delay to respect.
EXPECTED = """
INVALID_ARGUMENT     FIELD_INVALID            -
NOT_FOUND            EXCHANGE_UNKNOWN         -
NOT_FOUND            EXCHANGE_RETIRED         -
NOT_FOUND            CREDENTIAL_MISSING       -
UNAUTHENTICATED      CALLER_UNKNOWN           -
PERMISSION_DENIED    USER_FORBIDDEN           -
FAILED_PRECONDITION  CREDENTIAL_INVALID       -
FAILED_PRECONDITION  CREDENTIAL_UNREADABLE    -
FAILED_PRECONDITION  CREDENTIAL_REJECTED      -
FAILED_PRECONDITION  PERMISSION_MISSING       -
FAILED_PRECONDITION  ADDRESS_NOT_ALLOWED      -
FAILED_PRECONDITION  CLOCK_SKEW               -
FAILED_PRECONDITION  REGION_RESTRICTED        -
FAILED_PRECONDITION  ACCOUNT_UNKNOWN          -
FAILED_PRECONDITION  FEATURE_NOT_ENABLED      -
RESOURCE_EXHAUSTED   VENUE_RATE_LIMITED       delay
RESOURCE_EXHAUSTED   CALLER_RATE_LIMITED      delay
RESOURCE_EXHAUSTED   SERVICE_OVERLOADED       delay
UNAVAILABLE          VENUE_UNAVAILABLE        delay
UNAVAILABLE          VENUE_MAINTENANCE        delay
UNAVAILABLE          VENUE_TIMEOUT            delay
UNAVAILABLE          VENUE_MALFORMED          -
UNAVAILABLE          STORE_UNAVAILABLE        delay
UNAVAILABLE          SHUTTING_DOWN            delay
UNAVAILABLE          STREAM_LIFETIME_REACHED  delay
DEADLINE_EXCEEDED    DEADLINE_PASSED          -
ABORTED              SUBSCRIBER_TOO_SLOW      -
UNIMPLEMENTED        NOT_SUPPORTED            -
INTERNAL             REQUEST_REFUSED          -
INTERNAL             PLUGIN_FAILED            -
INTERNAL             SERVICE_FAILED           -
UNAVAILABLE          PLUGIN_UNAVAILABLE       delay
"""
ROWS = [line.split() for line in EXPECTED.split("\n") if line]


def _leaf(reason: str) -> type[ServiceError]:
    """The class of our own with this reason."""
    (match,) = [
        leaf for leaf in errors.leaves() if leaf.reason == reason and leaf.__module__ == "exchange_service.errors"
    ]
    return match


def _made(reason: str, message: str = "Something happened.", retry_after: float | None = None) -> ServiceError:
    leaf = _leaf(reason)
    if leaf is FieldInvalid:
        return FieldInvalid("user_id", "it is required.")
    return leaf(message, retry_after=retry_after)


def _status(error: ServiceError) -> status_pb2.Status:
    return status_pb2.Status.FromString(bytes(dict(status_of(error).trailers)[DETAILS_KEY]))  # type: ignore[arg-type]


def test_the_table_and_the_tree_have_the_same_leaves() -> None:
    ours = {leaf for leaf in errors.leaves() if leaf.__module__ == "exchange_service.errors"}
    assert set(TABLE) == ours


def test_the_tree_the_table_here_and_the_enum_have_the_same_reasons() -> None:
    reasons = {reason for _, reason, _ in ROWS}
    assert {leaf.reason for leaf in TABLE} == reasons
    enum = {
        name.removeprefix("ERROR_REASON_")
        for name in error_reason_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_name
    }
    assert enum == reasons | {"UNSPECIFIED"}
    assert len(ROWS) == len(reasons)


@pytest.mark.parametrize(("code", "reason", "delay"), ROWS, ids=[row[1] for row in ROWS])
class TestEach:
    def test_it_leaves_with_its_code_and_one_error_info(self, code: str, reason: str, delay: str) -> None:
        end = status_of(_made(reason))
        assert end.code.name == code
        assert end.message.startswith(f"{reason}: ")
        status = _status(_made(reason))
        assert (status.code, status.message) == (code_pb2.Code.Value(code), end.message)
        (info,) = [detail for detail in unpacked(status) if isinstance(detail, error_details_pb2.ErrorInfo)]
        assert (info.reason, info.domain) == (reason, "exchange-service")

    def test_a_delay_is_there_where_waiting_helps(self, code: str, reason: str, delay: str) -> None:
        names = [type(detail).__name__ for detail in unpacked(_status(_made(reason)))]
        pushback = dict(status_of(_made(reason)).trailers).get(PUSHBACK_KEY)
        assert ("RetryInfo" in names) == (delay == "delay") == (pushback is not None)
        assert names.count("RetryInfo") <= 1
        assert ("BadRequest" in names) == (reason == "FIELD_INVALID")

    def test_it_names_the_role_that_acts_and_the_next_step(self, code: str, reason: str, delay: str) -> None:
        row = TABLE[_leaf(reason)]
        assert row.who
        assert row.next_step.endswith(".")
        if reason != "FIELD_INVALID":
            assert status_of(_made(reason, "It happened.")).message == f"{reason}: It happened. {row.next_step}"


def test_the_given_delay_is_in_the_details_and_in_the_pushback_trailer() -> None:
    error = errors.VenueRateLimited("Too many.", retry_after=7.25)
    (retry,) = [detail for detail in unpacked(_status(error)) if isinstance(detail, error_details_pb2.RetryInfo)]
    assert retry.retry_delay.ToTimedelta().total_seconds() == 7.25
    assert dict(status_of(error).trailers)[PUSHBACK_KEY] == "7250"


def test_a_bad_field_is_named_with_its_path() -> None:
    (bad,) = [
        detail
        for detail in unpacked(_status(FieldInvalid("accounts[3].exchange_id", "it is required.")))
        if isinstance(detail, error_details_pb2.BadRequest)
    ]
    (violation,) = bad.field_violations
    assert (violation.field, violation.description) == ("accounts[3].exchange_id", "it is required.")


def test_the_errors_own_advice_replaces_the_tables_next_step() -> None:
    error = errors.CredentialMissing("Nothing is stored.", advice="Add it.")
    assert status_of(error).message == "CREDENTIAL_MISSING: Nothing is stored. Add it."


def test_empty_advice_means_that_there_is_nothing_to_do() -> None:
    assert status_of(errors.NotSupported("It has none.", advice="")).message == "NOT_SUPPORTED: It has none."


def test_a_message_of_several_sentences_without_advice_is_given_the_next_step() -> None:
    error = errors.CredentialRejected("The token has expired. It was made in May.")
    next_step = TABLE[errors.CredentialRejected].next_step
    assert status_of(error).message == f"CREDENTIAL_REJECTED: {error.message} {next_step}"


@pytest.mark.parametrize(("left", "sent"), [(None, "7250"), (8.0, "7250"), (7.25, "-1"), (1.0, "-1"), (0.0, "-1")])
def test_a_delay_that_does_not_fit_into_the_deadline_ends_grpcs_own_retries(left: float | None, sent: str) -> None:
    status = status_of(errors.VenueUnavailable("It is down.", retry_after=7.25)).fitted(left)
    assert dict(status.trailers)[PUSHBACK_KEY] == sent
    assert len(status.trailers) == 2
    without = status_of(errors.CredentialMissing("Nothing is stored."))
    assert without.fitted(left) == without
