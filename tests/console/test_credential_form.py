"""The form of a listing, what is sent of it, and what of that is never shown again; and a check in words."""

from __future__ import annotations

from typing import Any

import pytest

from exchange_service.accounts.v1.account_service_pb2 import AccountCheck, KeyRights, StoredAccount
from exchange_service.console import credential_form as form_module
from exchange_service.console.credential_form import CredentialForm, Typed, credential_form, field_faults, text_parts
from exchange_service.console.outcomes import check_outcome
from exchange_service.v1.balance_pb2 import AccountFault, AssetBalance, Balance, Summary, VenueAccount
from exchange_service.v1.exchange_pb2 import CredentialField, Environment, Exchange

SECRET = "a-secret-that-nobody-sees"
VENUE = Exchange(
    id="venue",
    name="Venue",
    credential_fields=[
        CredentialField(name="api_key", label="Key", required=True, secret=True),
        CredentialField(name="api_secret", label="Private key", secret=True, private_keys=["ed25519"]),
        CredentialField(name="wallet_address", label="Wallet", description="0x and 40 digits."),
    ],
    environments=[Environment(name="production", aliases=["live"]), Environment(name="sandbox", aliases=["paper"])],
)


def typed(**values: str) -> Typed:
    return Typed.from_form({f"field.{name}": value for name, value in values.items()}, VENUE)


def shown(**options: Any) -> CredentialForm:
    return credential_form(VENUE, **options)


class TestForm:
    def test_each_field_is_an_input_of_its_kind(self) -> None:
        key, secret, wallet = shown().inputs
        assert (key.label, key.required, key.secret, key.lines) == ("Key", True, True, False)
        assert (secret.secret, secret.lines) == (True, True)
        assert (wallet.secret, wallet.help, wallet.described_by) == (False, "0x and 40 digits.", f"{wallet.id}-help")

    def test_the_wanted_environment_is_chosen_by_its_name_or_an_alias(self) -> None:
        assert shown().environment.name == "production"
        assert shown(typed=Typed({}, "sandbox")).environment.name == "sandbox"
        assert shown(typed=Typed({}, "paper")).environment.name == "sandbox"
        assert shown(typed=Typed({}, "mars")).environment.name == "production"

    def test_what_is_stored_already_is_marked(self) -> None:
        stored = [
            StoredAccount(exchange_id="venue", environment="sandbox"),
            StoredAccount(exchange_id="other", environment="production"),
        ]
        assert [item.connected for item in shown(stored=stored).environments] == [False, True]

    def test_a_fault_stands_beside_its_field_and_describes_it(self) -> None:
        faults = field_faults({"fields.wallet_address": "it is too short.", "user_id": "It is missing."}, VENUE)
        assert faults == {"wallet_address": "It is too short."}
        wallet = shown(faults=faults, typed=typed(wallet_address="0x12")).inputs[2]
        assert (wallet.fault, wallet.value) == ("It is too short.", "0x12")
        assert wallet.described_by == f"{wallet.id}-fault {wallet.id}-help"

    def test_addresses_in_the_instructions_are_links_without_the_full_stop(self) -> None:
        parts = [(part.text, part.link) for part in text_parts("Open https://venue.example/api. Then <b>choose</b>.")]
        assert parts == [
            ("Open ", ""),
            ("https://venue.example/api", "https://venue.example/api"),
            (". Then <b>choose</b>.", ""),
        ]


class TestRequest:
    def test_it_holds_what_was_typed_without_blanks_around_it(self) -> None:
        form = {"field.api_key": "  key ", "field.wallet_address": " ", "environment": "sandbox", "skip_check": "yes"}
        request = Typed.from_form(form, VENUE).request("alice", VENUE)
        assert (request.user_id, request.exchange_id, request.environment) == ("alice", "venue", "sandbox")
        assert dict(request.fields) == {"api_key": "key"}
        assert request.skip_check

    def test_lines_of_a_key_end_as_in_a_file(self) -> None:
        assert typed(api_secret="-----BEGIN\r\nabc\r\n-----END\r\n").values == {
            "api_secret": "-----BEGIN\nabc\n-----END"
        }

    @pytest.mark.threat("T88", attack=True)
    def test_a_name_that_the_listing_does_not_have_is_not_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        form = {
            "field.api_key": "key",
            **{f"field.{name}": "http://169.254.169.254/" for name in ("base_url", "sandbox", "proxies", "urls.api")},
        }
        with monkeypatch.context() as off:
            off.setattr(Typed, "from_form", classmethod(take_every_field))
            assert "base_url" in Typed.from_form(form, VENUE).request("alice", VENUE).fields
        assert dict(Typed.from_form(form, VENUE).request("alice", VENUE).fields) == {"api_key": "key"}


def take_every_field(_: type[Typed], form: dict[str, str], __: Exchange) -> Typed:
    return Typed({name.removeprefix("field."): value for name, value in form.items()})


class TestSecret:
    @pytest.mark.threat("T89", attack=True)
    @pytest.mark.parametrize("name", ["api_key", "api_secret"])
    def test_it_is_gone_from_the_form_that_is_shown_again(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        with monkeypatch.context() as off:
            off.setattr(form_module, "_may_echo", lambda *_: True)
            assert SECRET in str(shown(typed=typed(**{name: SECRET})))
        form = shown(typed=typed(**{name: SECRET}))
        assert SECRET not in str(form)
        (input_,) = [item for item in form.inputs if item.notice]
        assert (input_.input_name, input_.value) == (f"field.{name}", "")
        assert input_.described_by == f"{input_.id}-notice"

    @pytest.mark.threat("T89")
    def test_a_key_in_a_field_that_is_no_secret_is_gone_too_once_it_is_refused(self) -> None:
        key = "0x" + "ab" * 32
        form = shown(typed=typed(wallet_address=key), faults={"wallet_address": "It is no address."})
        assert key not in str(form)
        assert form.inputs[2].notice

    def test_what_was_typed_has_no_values_in_its_repr(self) -> None:
        assert repr(typed(api_key=SECRET)) == "Typed(api_key)"


class TestOutcome:
    def test_it_shows_every_account_that_the_key_sees_to_the_last_digit(self) -> None:
        broker = VenueAccount(id="001", label="Primary", type="forex", summary=Summary(currency="EUR", total="1.10"))
        broker.assets.add(asset="EUR", total="1.10")
        wallet = VenueAccount(type="spot", assets=[AssetBalance(asset=f"C{n}", total="0.30") for n in range(9)])
        refused = VenueAccount(id="002", error=AccountFault(message="The venue refuses the account."))
        balance = Balance(venue_accounts=[broker, wallet, refused])
        seen = check_outcome(AccountCheck(balance=balance)).accounts
        assert [account.title for account in seen] == ["Primary · 001", "Account", "002"]
        assert [(figure.label, figure.amount, figure.currency) for figure in seen[0].figures] == [
            ("Total", "1.10", "EUR")
        ]
        assert (seen[0].rows, len(seen[1].rows), seen[1].more_rows) == ((), 8, 1)
        assert seen[2].error == "The venue refuses the account."

    def test_an_amount_that_the_venue_does_not_say_is_no_zero(self) -> None:
        account = VenueAccount(type="spot", assets=[AssetBalance(asset="BTC", free="2"), AssetBalance(asset="ETH")])
        (seen,) = check_outcome(AccountCheck(balance=Balance(venue_accounts=[account]))).accounts
        assert [(row.label, row.amount, row.currency) for row in seen.rows] == [
            ("BTC", "2", "free"),
            ("ETH", "", "not said"),
        ]

    def test_rights_beyond_reading_are_warnings_and_unknown_ones_are_not_good(self) -> None:
        rights = check_outcome(AccountCheck(rights=KeyRights(trade=True))).rights
        assert [(right.label, right.word, right.tone) for right in rights] == [
            ("Read balances", "yes", "good"),
            ("Place orders", "yes", "warning"),
            ("Withdraw money", "the venue does not say", "quiet"),
        ]
        assert check_outcome(AccountCheck()).rights == ()
