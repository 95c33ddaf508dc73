"""Reading what a user stored: the field, or an error with its name and never its value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.errors import CredentialInvalid
from exchange_service.model import SECRET_FIELDS, Credential, Secret
from exchange_service.plugin_kit.credential_fields import read_metadata, required_text, wallet_address

ADDRESS = "0x00000000000000000000000000000000000000aA"


def stored(**metadata: Any) -> Credential:
    return Credential(metadata=metadata)


@pytest.mark.parametrize("field", SECRET_FIELDS)
def test_a_field_is_read_without_the_blanks_of_a_paste(field: str) -> None:
    credential = Credential(**{field: Secret("  a token\n")})
    assert required_text(credential, field) == "a token"


@pytest.mark.parametrize("field", SECRET_FIELDS)
@pytest.mark.parametrize("value", ["", " ", "\n\t"])
def test_an_empty_field_is_named(field: str, value: str) -> None:
    with pytest.raises(CredentialInvalid, match=f"{field} is missing"):
        required_text(Credential(**{field: Secret(value)}), field)


@pytest.mark.parametrize("value", ["caf\u00e9", "two\nlines", "a\x00b"])
def test_a_plain_field_refuses_what_no_header_can_carry(value: str) -> None:
    credential = Credential(api_key=Secret(value))
    assert required_text(credential, "api_key") == value
    with pytest.raises(CredentialInvalid, match="api_key holds other than plain characters") as invalid:
        required_text(credential, "api_key", plain=True)
    assert value not in invalid.value.message


def test_metadata_are_read_by_an_allow_list() -> None:
    metadata = read_metadata(stored(account_id=" 12-3 ", index=7, closed=True), account_id=str, index=int, closed=bool)
    assert metadata == {"account_id": "12-3", "index": 7, "closed": True}


def test_the_names_that_the_host_reads_are_allowed_everywhere() -> None:
    assert read_metadata(stored(sandbox=True, environment="live")) == {"sandbox": True, "environment": "live"}


@pytest.mark.parametrize("name", ["urls", "verify", "headers", "apiKey", "__class__", "options"])
def test_an_unknown_name_is_refused_and_the_known_names_are_listed(name: str) -> None:
    with pytest.raises(CredentialInvalid) as invalid:
        read_metadata(stored(**{name: "https://elsewhere.example"}), account_id=str)
    assert name in invalid.value.message
    assert "account_id" in invalid.value.message
    assert "elsewhere" not in invalid.value.message


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_value_counts_as_missing(value: Any) -> None:
    assert read_metadata(stored(account_id=value), account_id=str) == {}


def test_an_account_number_stored_as_a_number_is_a_text() -> None:
    assert read_metadata(stored(account_id=123456), account_id=str) == {"account_id": "123456"}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (str, True),
        (str, 1.5),
        (str, ["a"]),
        (str, {"a": "b"}),
        (int, True),
        (int, 1.5),
        (int, [1]),
        (bool, 1),
        (bool, "true"),
    ],
)
def test_another_type_is_refused_with_the_fields_name_and_not_its_value(kind: type, value: Any) -> None:
    with pytest.raises(CredentialInvalid, match=f"^extra_metadata.field should be of type {kind.__name__}.$"):
        read_metadata(stored(field=value), field=kind)


@pytest.mark.parametrize(
    "value", ["a" * 1025, "two\nlines", "a\x00b", "a\u202eb"], ids=["long", "line", "zero", "turned"]
)
def test_a_text_that_is_too_long_or_has_control_characters_is_refused(value: str) -> None:
    with pytest.raises(CredentialInvalid, match=r"extra_metadata\.account_id is too long, or not plain text"):
        read_metadata(stored(account_id=value), account_id=str)


@pytest.mark.parametrize("name", ["wallet_address", "l1_address", "user"])
def test_a_wallet_is_read_under_each_of_its_names_in_lower_case(name: str) -> None:
    assert wallet_address(stored(**{name: ADDRESS})) == ADDRESS.lower()


def test_an_api_key_that_is_an_address_is_the_wallet_if_the_metadata_has_no_wallet() -> None:
    assert wallet_address(Credential(Secret(f" {ADDRESS} "))) == ADDRESS.lower()


def test_a_named_wallet_comes_before_the_api_key() -> None:
    other = "0x" + "b" * 40
    assert wallet_address(Credential(Secret(ADDRESS), metadata={"wallet_address": other})) == other


@pytest.mark.parametrize("value", ["0x12", ADDRESS[2:], ADDRESS + "0", "0x" + "g" * 40, "0x" + "１" * 40, 5, [ADDRESS]])
def test_a_wallet_that_is_not_an_address_is_refused_with_the_fields_name(value: Any) -> None:
    with pytest.raises(CredentialInvalid, match=r"^extra_metadata\.wallet_address is not a wallet address"):
        wallet_address(stored(wallet_address=value))


@given(st.text(max_size=60))
def test_any_other_api_key_is_not_a_wallet_and_is_not_in_the_message(key: str) -> None:
    with pytest.raises(CredentialInvalid) as invalid:
        wallet_address(Credential(Secret(key + "?")))
    assert invalid.value.text == "extra_metadata.wallet_address is missing. Store the main wallet's address there."


def test_two_names_with_different_wallets_are_refused_and_with_the_same_wallet_accepted() -> None:
    first, second = "0x" + "aA" * 20, "0x" + "b" * 40
    same = Credential(metadata={"wallet_address": f" {first} ", "user": first.lower()})
    assert wallet_address(same) == first.lower()
    with pytest.raises(CredentialInvalid, match="wallet_address and user"):
        wallet_address(Credential(metadata={"wallet_address": first, "user": second}))
