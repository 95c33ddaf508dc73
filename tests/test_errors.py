"""The error tree and the reasons on the wire are one and the same."""

from __future__ import annotations

import math
from typing import Any

import pytest

from exchange_service import errors
from exchange_service.errors import ServiceError, from_reason, leaves
from exchange_service.plugin_host.protocol import read_error, write_error
from exchange_service.v1 import error_reason_pb2
from exchange_service.wire.balances import fault_message, read_fault

PREFIX = "ERROR_REASON_"
LEAVES = [leaf for leaf in leaves() if leaf.__module__ == errors.__name__]


def test_every_leaf_has_a_reason_of_its_own() -> None:
    reasons = [leaf.reason for leaf in LEAVES]
    assert len(set(reasons)) == len(reasons)


def test_the_reasons_are_exactly_those_of_the_proto() -> None:
    of_the_proto = {name.removeprefix(PREFIX) for name, _ in error_reason_pb2.ErrorReason.items()}
    assert {leaf.reason for leaf in LEAVES} == of_the_proto - {"UNSPECIFIED"}


def test_a_reason_is_its_classs_name_in_capitals() -> None:
    for leaf in LEAVES:
        assert leaf.reason.replace("_", "") == leaf.__name__.upper()


def test_a_class_is_a_leaf_or_a_branch() -> None:
    for leaf in LEAVES:
        below = [kind for kind in leaf.__subclasses__() if kind.__module__ == errors.__name__]
        assert below == [], f"{leaf.__name__} has a reason and classes below it"


def test_the_drawing_shows_every_class_of_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = {word for line in errors.__doc__.splitlines() for word in line.split()}
    assert {leaf.__name__ for leaf in LEAVES} <= drawn


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.reason)
def test_an_error_comes_back_from_its_reason(leaf: type[ServiceError]) -> None:
    error = from_reason(leaf.reason, "What happened.", 7.5)
    assert type(error) is leaf
    assert error.message == str(error) == "What happened."
    assert error.retry_after == 7.5


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.reason)
def test_without_a_delay_the_default_of_the_error_is_recommended(leaf: type[ServiceError]) -> None:
    assert from_reason(leaf.reason, "What happened.").retry_after == leaf.default_retry_after


def test_an_unknown_reason_is_a_plain_error_with_the_message() -> None:
    error = from_reason("OF_TOMORROW", "What happened.", 3)
    assert type(error) is ServiceError
    assert (error.message, error.retry_after) == ("What happened.", 3)


def test_a_delay_of_zero_is_a_delay() -> None:
    assert errors.VenueRateLimited("Wait.", retry_after=0).retry_after == 0


def test_an_error_that_does_not_concern_the_account_is_transient() -> None:
    transient = {leaf.reason for leaf in LEAVES if leaf.transient}
    assert transient == {
        "STORE_UNAVAILABLE",
        "VENUE_RATE_LIMITED",
        "VENUE_UNAVAILABLE",
        "VENUE_MAINTENANCE",
        "VENUE_TIMEOUT",
        "VENUE_MALFORMED",
        "PLUGIN_FAILED",
        "PLUGIN_UNAVAILABLE",
    }


def test_a_field_error_names_the_field() -> None:
    error = errors.FieldInvalid("page_size", "must not be negative.")
    assert (error.field, error.description) == ("page_size", "must not be negative.")
    assert error.message == "page_size: must not be negative."


@pytest.mark.parametrize(
    ("given", "expected"), [(7, 7.0), (0, 0.0), (1e300, 3600.0), (-1, 5.0), (math.inf, 5.0), ("x", 5.0)]
)
def test_a_delay_is_one_that_can_be_sent_and_waited_for(given: Any, expected: float) -> None:
    assert errors.VenueUnavailable("It is down.", retry_after=given).retry_after == expected


@pytest.mark.parametrize("letter", ["x", "é", "貨", "\N{GRINNING FACE}", "\ud800"])
def test_a_message_is_one_that_can_be_sent(letter: str) -> None:
    error = errors.VenueUnavailable("half \ud800 of a character" + letter * 20_000)
    # gRPC spells out what is not ASCII in three bytes for one, beside the details, and takes 8 KiB.
    assert 500 < len(error.message.encode()) <= 1000
    assert str(error) == error.message


def test_another_exception_is_no_message() -> None:
    with pytest.raises(TypeError) as raised:
        errors.VenueUnavailable(ValueError("signature=48be"))  # type: ignore[arg-type]
    assert "signature" not in str(raised.value)


@pytest.mark.parametrize("letter", ["x", "é", "\ud800"])
def test_message_and_advice_together_are_as_long_as_a_message_alone(letter: str) -> None:
    error = errors.VenueUnavailable(letter * 20_000, advice=letter * 20_000)
    assert error.advice
    assert len(error.advice.encode()) <= 300
    assert 900 < len(error.text.encode()) <= 1000


def test_the_text_of_an_error_is_its_message_and_its_advice() -> None:
    error = errors.CredentialMissing("Nothing is stored.", advice="Add it.")
    assert (error.message, error.advice) == ("Nothing is stored.", "Add it.")
    assert str(error) == error.text == "Nothing is stored. Add it."


@pytest.mark.parametrize("advice", [None, ""])
def test_an_error_without_advice_is_its_message(advice: str | None) -> None:
    error = errors.CredentialMissing("Nothing is stored.", advice=advice)
    assert (error.text, error.advice) == ("Nothing is stored.", advice)


def test_another_exception_is_no_advice() -> None:
    with pytest.raises(TypeError) as raised:
        errors.VenueUnavailable("It is down.", advice=ValueError("signature=48be"))  # type: ignore[arg-type]
    assert "signature" not in str(raised.value)


@pytest.mark.parametrize("advice", [None, "", "Add it."])
def test_advice_comes_back_from_the_wire_apart_from_the_message(advice: str | None) -> None:
    fault = fault_message(errors.CredentialMissing("Nothing is stored.", advice=advice))
    assert fault.message == ("Nothing is stored. Add it." if advice else "Nothing is stored.")
    error = read_fault(fault)
    assert (type(error), error.message, error.advice) == (errors.CredentialMissing, "Nothing is stored.", advice)


def test_advice_comes_back_from_a_plugins_process() -> None:
    error = read_error(write_error(errors.CredentialRejected("It is refused.", advice="Store another.")), "acme")
    assert (type(error), error.message, error.advice) == (errors.CredentialRejected, "It is refused.", "Store another.")
