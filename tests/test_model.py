"""The nouns: what they hold, and what they refuse to hold."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import FrozenInstanceError
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.errors import AccountUnknown
from exchange_service.model import (
    CASH,
    HOLDING,
    Account,
    AssetBalance,
    Balance,
    Credential,
    Environment,
    ExchangeMetadata,
    RateLimit,
    Secret,
    Summary,
    VenueAccount,
)

LISTING = ExchangeMetadata(
    id="venue",
    name="Venue",
    asset_class="Crypto",
    asset_types="Spot",
    market_hours="24/7 Trading",
    environments=(
        Environment("production", {"api": "https://venue.example"}, aliases=("live",)),
        Environment("sandbox", {"api": "https://test.venue.example"}, aliases=("testnet", "practice")),
    ),
)


@given(st.text("abcdefghij", min_size=10, max_size=40))
def test_a_secret_shows_itself_only_when_revealed(value: str) -> None:
    secret = Secret(value)
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r:>40}", " ".join(map(str, [secret])), repr([secret])]
    assert all(value not in text for text in shown)
    assert secret.reveal() == value


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret("s3cret"))
    with pytest.raises(TypeError):
        copy.deepcopy(Secret("s3cret"))


def test_secrets_are_equal_if_their_texts_are() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(Secret("a")) == hash(Secret("a"))


def test_limits_are_members_of_a_set_whatever_account_types_cost() -> None:
    limit, dear = RateLimit("key", 10, 1), RateLimit("key", 10, 1, costs={"funding": 5})
    assert len({limit, dear, RateLimit("key", 10, 1), RateLimit("key", 10, 1, costs={"funding": 5})}) == 2


def test_an_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret(" ")


def test_a_credential_shows_neither_its_secrets_nor_its_metadata() -> None:
    credential = Credential(Secret("the-key"), Secret("the-secret"), Secret("the-phrase"), {"token": "the-token"})
    assert "the-" not in repr(credential)


def test_an_empty_credential_has_empty_fields() -> None:
    credential = Credential()
    assert not credential.api_key
    assert dict(credential.metadata) == {}


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("", "production"),
        ("  ", "production"),
        ("production", "production"),
        ("LIVE", "production"),
        (" Practice ", "sandbox"),
        ("testnet", "sandbox"),
        ("sandbox", "sandbox"),
    ],
)
def test_an_environment_is_found_by_name_or_alias_in_any_case(word: str, name: str) -> None:
    environment = LISTING.environment(word)
    assert environment is not None
    assert environment.name == name


@pytest.mark.parametrize("word", ["prod", "staging", "live,practice", "https://venue.example"])
def test_an_unknown_environment_is_not_found(word: str) -> None:
    assert LISTING.environment(word) is None


def test_an_account_is_production_by_default() -> None:
    assert Account("alice", "venue") == Account("alice", "venue", "production")
    assert Account("alice", "venue") != Account("alice", "venue", "sandbox")


@pytest.mark.parametrize("figure", ["total", "free", "used", "debt"])
@pytest.mark.parametrize("value", [1, 1.5, "1", True])
def test_a_row_takes_exact_numbers_only(figure: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"AssetBalance.{figure} must be a Decimal"):
        AssetBalance("EUR", **{figure: value})


@pytest.mark.parametrize("figure", ["total", "available", "equity", "margin_used", "unrealised_pnl", "cash"])
@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_a_summary_takes_finite_numbers_only(figure: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"Summary.{figure} must be a finite number"):
        Summary("EUR", **{figure: Decimal(value)})


def test_a_figure_that_is_not_stated_is_unknown_and_not_zero() -> None:
    row = AssetBalance("EUR", total=Decimal(1))
    assert (row.free, row.used, row.debt) == (None, None, None)
    assert Summary("EUR").total is None


@pytest.mark.parametrize(
    ("total", "free", "used", "differs"),
    [
        ("2", "1", "1", False),
        ("2", "1", "0.5", True),
        ("2", "1", None, False),
        ("2", "3", None, True),
        ("2", None, "3", True),
        ("-1", "0", None, True),
        ("2", None, None, False),
        (None, "3", "1", False),
    ],
)
def test_a_part_that_is_larger_than_the_total_is_a_mismatch_as_is_a_sum_that_differs(
    total: str | None, free: str | None, used: str | None, differs: bool
) -> None:
    amounts = [None if amount is None else Decimal(amount) for amount in (total, free, used)]
    assert AssetBalance("EUR", *amounts).mismatch() is differs


@pytest.mark.parametrize("kind", ["", CASH, HOLDING])
def test_a_row_is_of_one_of_these_kinds(kind: str) -> None:
    assert AssetBalance("USD", kind=kind).identity == ("USD", "", kind)


@pytest.mark.parametrize("kind", ["Cash", "money", None, 1, ["cash"]])
def test_a_row_of_another_kind_is_refused_with_those_there_are(kind: Any) -> None:
    expected = 'AssetBalance.kind must be CASH ("cash"), HOLDING ("holding") or empty'
    with pytest.raises(ValueError, match=re.escape(expected)):
        AssetBalance("USD", kind=kind)


def test_a_row_is_zero_when_all_that_is_known_is() -> None:
    zero = Decimal("0.000")
    assert AssetBalance("EUR", total=zero, free=zero).is_zero()
    assert not AssetBalance("EUR", total=zero, debt=Decimal("0.1")).is_zero()


def test_a_row_without_a_known_figure_is_not_zero() -> None:
    assert not AssetBalance("EUR").is_zero()


def test_a_venue_account_has_figures_or_an_error() -> None:
    error = AccountUnknown("No such account.")
    assert VenueAccount(id="1", error=error).error is error
    with pytest.raises(ValueError, match="either figures or an error"):
        VenueAccount(id="1", assets=(AssetBalance("EUR", total=Decimal(1)),), error=error)
    with pytest.raises(ValueError, match="either figures or an error"):
        VenueAccount(id="1", summary=Summary("EUR"), error=error)


def test_an_accounts_identity_is_its_id_type_and_sub_account() -> None:
    spot, futures = VenueAccount(id="1", type="spot"), VenueAccount(id="1", type="futures")
    assert spot.identity != futures.identity
    assert spot.identity == VenueAccount(id="1", type="spot", label="Another name").identity


def test_the_rows_of_a_balance_come_with_the_account_that_holds_them() -> None:
    row = AssetBalance("EUR", total=Decimal(1))
    spot, futures = VenueAccount(id="s", assets=(row,)), VenueAccount(id="f", assets=(row, row))
    held = [(account.id, asset.asset) for account, asset in Balance((spot, futures)).rows()]
    assert held == [("s", "EUR"), ("f", "EUR"), ("f", "EUR")]


def test_the_values_are_immutable() -> None:
    row: Any = AssetBalance("EUR", total=Decimal(1))
    with pytest.raises(FrozenInstanceError):
        row.total = Decimal(2)


@pytest.mark.parametrize("text", ["1E+999999", "0E-999999", "1E+101", "1E-101", "1" * 251])
@pytest.mark.parametrize("kind", [AssetBalance, Summary])
def test_an_amount_that_would_fill_the_memory_when_written_out_is_refused(kind: Any, text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        kind("USD", total=Decimal(text))


@pytest.mark.parametrize(
    ("name", "aliases"),
    [
        ("", ("live",)),
        ("production", ("live",)),
        ("sandbox", ("testnet", "practice")),
        ("Practice", ("testnet", "practice")),
        ("moon", ()),
    ],
)
def test_an_environments_aliases_are_found_by_its_name_or_any_of_them(name: str, aliases: tuple[str, ...]) -> None:
    assert LISTING.environment_aliases(name) == aliases
