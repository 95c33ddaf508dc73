"""Model to bytes to messages: no digit is lost, unknown is never zero, and other bytes are not a balance."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.errors import (
    CredentialMissing,
    CredentialRejected,
    ServiceError,
    ServiceFailed,
    UserForbidden,
    VenueError,
    VenueRateLimited,
    VenueUnavailable,
    leaves,
)
from exchange_service.model import CASH, HOLDING, Account, AssetBalance, Balance, Summary, VenueAccount
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.wire.balances import fetched_balance, kind_name, read_fetched
from exchange_service.wire.events import (
    AccountState,
    account_error_event,
    account_state,
    balance_event,
    heartbeat_event,
)
from exchange_service.wire.protobuf import (
    encode_field,
    encode_varint,
    from_datetime,
    to_datetime,
    to_duration,
    to_seconds,
    to_timestamp,
)
from exchange_service.wire.replies import Source, fresh_field, get_balance_reply
from exchange_service.wire.stored import (
    RowIdentity,
    StoredBalance,
    StoredBounds,
    decode_error,
    decode_stored,
    encode_error,
    row_totals,
    store_balance,
    with_known_rows,
)

ALICE = Account("alice", "fakex")
NOW = 1_800_000_000.25
BOUNDS = StoredBounds(longest_pause=60.0, now=lambda: NOW)
AMOUNT = re.compile(r"-?\d+(\.\d+)?\Z", re.ASCII)
NAMES: tuple[Any, ...] = ("total", "free", "used", "debt")


def stored(balance: Balance, at: float = NOW, previous: StoredBalance | None = None) -> StoredBalance:
    return store_balance(ALICE, fetched_balance(balance), at, previous)


def message(data: bytes) -> Any:
    return balance_pb2.Balance.FromString(data)


def row(asset: str, total: str | None = None, kind: str = "", **amounts: str) -> AssetBalance:
    texts = ({"total": total} if total is not None else {}) | amounts
    known: dict[str, Any] = {name: Decimal(text) for name, text in texts.items()}
    return AssetBalance(asset, kind=kind, **known)


def one(*rows: AssetBalance, **changes: Any) -> Balance:
    return Balance((VenueAccount("1", "spot", "main", assets=rows),), **changes)


class TestAmounts:
    @pytest.mark.parametrize(
        ("amount", "text"),
        [
            ("1E+3", "1000"),
            ("1E-8", "0.00000001"),
            ("-3.50", "-3.50"),
            ("0.000", "0.000"),
            ("0E-8", "0.00000000"),
            ("123456789012345678901234567890.123456789012345678", "123456789012345678901234567890.123456789012345678"),
        ],
    )
    def test_an_amount_is_written_without_an_exponent_and_with_its_digits(self, amount: str, text: str) -> None:
        (account,) = message(stored(one(row("BTC", amount))).data).venue_accounts
        assert account.assets[0].total == text

    def test_an_unknown_amount_is_absent_and_zero_is_present(self) -> None:
        (account,) = message(stored(one(row("BTC", "0"))).data).venue_accounts
        result = account.assets[0]
        assert result.HasField("total")
        assert result.total == "0"
        assert not any(result.HasField(name) for name in ("free", "used", "debt"))

    def test_an_unknown_figure_of_a_summary_is_absent_and_zero_is_present(self) -> None:
        balance = Balance((), Summary("USD", total=Decimal(0), equity=Decimal("-1.5")))
        summary = message(stored(balance).data).summary
        known = {name for name in ("total", "available", "equity", "margin_used", "cash") if summary.HasField(name)}
        assert known == {"total", "equity"}
        assert (summary.currency, summary.total, summary.equity) == ("USD", "0", "-1.5")

    def test_a_balance_without_a_summary_is_sent_without_one(self) -> None:
        assert not message(stored(one(row("BTC", "1"))).data).HasField("summary")


class TestBalance:
    def test_every_field_of_the_model_arrives(self) -> None:
        when = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
        balance = Balance(
            (
                VenueAccount(
                    "101-004",
                    "margin",
                    "sub",
                    "My account",
                    (AssetBalance("BTC", Decimal(4), Decimal(3), Decimal(2), Decimal(1), "XXBT", CASH),),
                    Summary("USD", *(Decimal(number) for number in range(1, 8))),
                    venue_time=when,
                ),
                VenueAccount("102", error=VenueRateLimited("Wait.", retry_after=2.5)),
            ),
            Summary("EUR", total=Decimal(9)),
            venue_time=when,
            notes=("one", "two"),
        )
        result = message(stored(balance).data)
        assert (result.user_id, result.exchange_id, result.environment) == ("alice", "fakex", "production")
        assert result.fetch_time.ToJsonString() == "2027-01-15T08:00:00.250Z"
        assert result.venue_time.ToDatetime(UTC) == when
        assert list(result.notes) == ["one", "two"]
        assert (result.summary.currency, result.summary.total) == ("EUR", "9")
        first, second = result.venue_accounts
        assert (first.id, first.type, first.sub_account, first.label) == ("101-004", "margin", "sub", "My account")
        assert first.venue_time.ToDatetime(UTC) == when
        (asset,) = first.assets
        assert (asset.asset, asset.venue_asset, asset.kind) == ("BTC", "XXBT", balance_pb2.ASSET_KIND_CASH)
        assert (asset.account_type, asset.sub_account) == ("margin", "sub")
        assert (asset.total, asset.free, asset.used, asset.debt) == ("4", "3", "2", "1")
        figures = [item.name for item in fields(Summary) if item.name != "currency"]
        assert [getattr(first.summary, name) for name in figures] == [str(number) for number in range(1, 8)]
        assert second.error.reason == error_reason_pb2.ERROR_REASON_VENUE_RATE_LIMITED
        assert second.error.message == "Wait."
        assert second.error.retry_delay.ToTimedelta().total_seconds() == 2.5
        assert not second.HasField("summary")

    def test_without_a_code_of_the_venues_own_the_assets_code_is_used(self) -> None:
        (account,) = message(stored(one(row("EUR", "1"))).data).venue_accounts
        assert account.assets[0].venue_asset == "EUR"

    def test_compact_drops_only_the_rows_whose_every_known_amount_is_zero(self) -> None:
        rows = (
            row("ALL-ZERO", "0.000", free="0", used="-0"),
            row("ONLY-TOTAL", "0"),
            row("DEBT", "0", debt="0.1"),
            row("UNKNOWN"),
            row("NEGATIVE", "-1"),
            row("TINY", "0.000000000000000001"),
        )
        result = stored(one(*rows))
        remaining = [asset.asset for asset in message(result.compact).venue_accounts[0].assets]
        assert remaining == ["DEBT", "UNKNOWN", "NEGATIVE", "TINY"]
        assert len(message(result.data).venue_accounts[0].assets) == len(rows)
        rest = message(result.compact)
        for side in (rest, whole := message(result.data)):
            for account in side.venue_accounts:
                del account.assets[:]
        assert rest == whole

    @pytest.mark.parametrize("digit", "123456789")
    def test_a_row_with_one_digit_other_than_zero_stays(self, digit: str) -> None:
        result = message(stored(one(row("BTC", f"0.000{digit}"), row("ETH", "0.0000"))).compact)
        assert [asset.asset for asset in result.venue_accounts[0].assets] == ["BTC"]


class TestVersion:
    balance = one(row("BTC", "1"))

    def test_the_first_is_the_time_in_microseconds(self) -> None:
        assert stored(self.balance).version == 1_800_000_000_250_000
        assert message(stored(self.balance).data).version == 1_800_000_000_250_000

    def test_equal_content_has_the_same_version_whatever_the_times(self) -> None:
        first = stored(self.balance)
        when = datetime(2026, 1, 1, tzinfo=UTC)
        later = replace(
            self.balance,
            venue_time=when,
            venue_accounts=(replace(self.balance.venue_accounts[0], venue_time=when),),
        )
        second = stored(later, NOW + 10, first)
        assert second.version == first.version
        assert second.fetch_time == NOW + 10

    @pytest.mark.parametrize("written", [("1.0", "10", "0.50"), ("1.000", "10.0", "0.5"), ("1", "10.00", "0.500")])
    def test_a_figure_that_is_written_with_more_zeros_is_the_same_content(self, written: tuple[str, str, str]) -> None:
        def balance(total: str, free: str, equity: str) -> Balance:
            summary = Summary("USD", equity=Decimal(equity))
            whole = one(row("BTC", total, free=free), summary=summary)
            return replace(whole, venue_accounts=(replace(whole.venue_accounts[0], summary=summary),))

        first = stored(balance("1", "10", "0.5"))
        again = stored(balance(*written), NOW + 10, first)
        assert again.version == first.version
        # The venue's own digits stay.
        assert message(again.data).venue_accounts[0].assets[0].total == written[0]
        assert stored(balance("1", "100", "0.5"), NOW + 10, first).version > first.version

    @pytest.mark.parametrize(
        "changed",
        [
            one(row("BTC", "10")),
            one(row("BTC", "1.01")),
            one(row("BTC", "1", free="1")),
            one(row("BTC", "1"), notes=("news",)),
            one(row("BTC", "1"), summary=Summary("USD")),
            one(),
            Balance((VenueAccount("1", "spot", "main", error=VenueUnavailable("Down.")),)),
        ],
    )
    def test_any_other_content_raises_it(self, changed: Balance) -> None:
        first = stored(self.balance)
        assert stored(changed, NOW + 10, first).version == 1_800_000_010_250_000

    def test_a_clock_that_went_back_raises_it_by_one(self) -> None:
        first = stored(self.balance)
        assert stored(one(row("BTC", "2")), NOW - 3600, first).version == first.version + 1


class TestStored:
    good = stored(one(row("BTC", "1.50")))

    def test_an_encoded_balance_is_decoded(self) -> None:
        result = decode_stored(ALICE, self.good.encode(), BOUNDS)
        assert result == self.good

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"\x00" + good.data,
            b"\x02" + good.data,
            b"\x02" + good.encode()[1:],
            b"\x03" + good.data,
            good.data,
            b"\x01",
            b"\x03",
            good.header_prefix,
            good.encode()[:-1],
            b"\x01\xff" + good.data,
            b"null",
            b'\x01{"total": {}}',
            bytes(range(256)),
        ],
    )
    def test_other_bytes_are_refused(self, raw: bytes) -> None:
        assert decode_stored(ALICE, raw, BOUNDS) is None

    @pytest.mark.parametrize(
        "other",
        [Account("bob", "fakex"), Account("alice", "fakey"), Account("alice", "fakex", "sandbox")],
    )
    def test_another_accounts_balance_is_refused(self, other: Account) -> None:
        assert decode_stored(other, self.good.encode(), BOUNDS) is None

    @given(st.binary(max_size=200))
    def test_no_bytes_raise(self, raw: bytes) -> None:
        assert decode_stored(ALICE, b"\x03" + raw, BOUNDS) is None or message(raw[16:]).user_id == "alice"

    def test_it_begins_with_the_format_and_the_version_that_a_compare_and_set_expects(self) -> None:
        assert self.good.header_prefix == b"\x03" + self.good.version.to_bytes(8, "big")
        assert self.good.encode().startswith(self.good.header_prefix)
        assert replace(self.good, pause=12.5).encode().startswith(self.good.header_prefix)

    def test_a_header_of_another_version_than_the_messages_is_refused(self) -> None:
        assert decode_stored(ALICE, replace(self.good, version=self.good.version + 1).encode(), BOUNDS) is None

    def test_the_bytes_of_a_known_balance_are_not_read_again_but_believed_as_others_are(self) -> None:
        raw, long = self.good.encode(), replace(self.good, pause=60.5)
        assert decode_stored(ALICE, raw, BOUNDS, self.good) is self.good
        assert decode_stored(replace(ALICE, user_id="bob"), raw, BOUNDS, self.good) is None
        assert decode_stored(ALICE, long.encode(), BOUNDS, long) is None
        other = stored(one(row("BTC", "1.51")))
        assert decode_stored(ALICE, raw, BOUNDS, other) == self.good

    def test_the_digest_that_a_balance_was_stored_with_is_that_of_its_bytes(self) -> None:
        assert replace(self.good, known_digest=b"").digest == self.good.digest == self.good.known_digest

    @pytest.mark.parametrize("pause", [-1.0, 60.5, 86_400.0, float("nan"), float("inf")])
    def test_a_poll_interval_that_no_feed_uses_is_refused(self, pause: float) -> None:
        assert decode_stored(ALICE, replace(self.good, pause=pause).encode(), BOUNDS) is None

    def test_the_poll_interval_is_stored(self) -> None:
        result = decode_stored(ALICE, replace(self.good, pause=12.5).encode(), BOUNDS)
        assert result is not None
        assert result.pause == 12.5

    def test_a_version_more_than_a_day_ahead_of_the_clock_is_refused(self) -> None:
        for ahead, believed in ((86_000, True), (87_000, False), (10**9, False)):
            ahead_of_us = stored(one(row("BTC", "1.50")), NOW + ahead)
            assert (decode_stored(ALICE, ahead_of_us.encode(), BOUNDS) is not None) == believed

    # Other tests derive classes of their own.
    @pytest.mark.parametrize("kind", [kind for kind in leaves(VenueError) if kind.__module__ == VenueError.__module__])
    def test_every_error_of_a_venue_is_stored_by_its_reason_and_told_with_a_text_of_ours(
        self, kind: type[VenueError]
    ) -> None:
        stored_error = encode_error(kind("What the venue said of alice.", retry_after=2.5, advice="Do this."))
        assert b"alice" not in stored_error
        error = decode_error(stored_error, "Fakex")
        assert type(error) is kind
        assert "Fakex" in error.message
        assert error.advice is None
        assert error.retry_after == (2.5 if kind.transient else None)

    @pytest.mark.parametrize("kind", [UserForbidden, ServiceFailed, CredentialMissing])
    def test_an_error_that_no_venue_gives_is_not_taken_from_the_cache(self, kind: type[ServiceError]) -> None:
        assert decode_error(encode_error(kind("Forged.")), "Fakex") is None

    @given(st.binary(max_size=50))
    def test_other_bytes_are_not_an_error(self, raw: bytes) -> None:
        for tail in (raw, b"\x03" + raw, encode_error(VenueRateLimited("x")) + raw):
            error = decode_error(tail, "Fakex")
            assert error is None or error.message == "Fakex limits our requests."


class TestKnownRows:
    def send(self, *balances: Balance) -> list[dict[str, dict[str, str]]]:
        """What a feed sends for each balance: the row, by account and asset, to its known amounts."""
        known: dict[RowIdentity, Any] = {}
        sent = []
        for balance in balances:
            data, known = with_known_rows(stored(balance), known)
            sent.append(
                {
                    f"{account.id}:{asset.asset}": {
                        name: getattr(asset, name) for name in NAMES if asset.HasField(name)
                    }
                    for account in message(data).venue_accounts
                    for asset in account.assets
                }
            )
        return sent

    def test_a_row_that_is_gone_stands_at_zero_for_each_amount_that_it_had(self) -> None:
        both = one(row("BTC", "1"), row("ETH", "2", free="1.5"))
        sent = self.send(both, one(row("BTC", "1")), one(row("BTC", "1")), both)
        zero = {"1:BTC": {"total": "1"}, "1:ETH": {"total": "0", "free": "0"}}
        assert sent[1:3] == [zero, zero]
        assert sent[3] == sent[0] == {"1:BTC": {"total": "1"}, "1:ETH": {"total": "2", "free": "1.5"}}

    def test_a_known_row_that_becomes_zero_stays_as_the_venue_writes_it(self) -> None:
        sent = self.send(one(row("BTC", "1")), one(row("BTC", "0.00")))
        assert sent[1] == {"1:BTC": {"total": "0.00"}}

    def test_a_zero_row_that_was_never_reported_stays_out(self) -> None:
        assert self.send(one(row("BTC", "0"))) == [{}]

    def test_an_account_with_an_error_adds_no_row_and_is_not_forgotten(self) -> None:
        good = one(row("BTC", "1"), row("ETH", "2"))
        refused = Balance((VenueAccount("1", "spot", "main", error=CredentialRejected("No.")),))
        sent = self.send(good, refused, one(row("BTC", "1")))
        assert sent[1] == {}
        assert sent[2] == {"1:BTC": {"total": "1"}, "1:ETH": {"total": "0"}}

    def test_an_account_that_is_gone_adds_no_row(self) -> None:
        other = VenueAccount("2", "spot", assets=(row("ETH", "2"),))
        first = one(row("BTC", "1")).venue_accounts[0]
        sent = self.send(Balance((first, other)), Balance((first,)))
        assert sent[1] == {"1:BTC": {"total": "1"}}

    def test_one_asset_in_two_accounts_is_two_rows(self) -> None:
        def both(*assets: tuple[AssetBalance, ...]) -> Balance:
            return Balance(tuple(VenueAccount(str(number), assets=held) for number, held in enumerate(assets)))

        sent = self.send(both((row("BTC", "1"),), (row("BTC", "2"),)), both((), (row("BTC", "2"),)))
        assert sent[1] == {"0:BTC": {"total": "0"}, "1:BTC": {"total": "2"}}

    def test_a_kind_survives_the_way_between_processes(self) -> None:
        balance = one(row("USD", "1", kind=CASH), row("USD", "2", kind=HOLDING), row("USD", "3"))
        assert [held.kind for _, held in read_fetched(fetched_balance(balance)).rows()] == [CASH, HOLDING, ""]

    def test_one_asset_of_two_kinds_is_two_rows(self) -> None:
        both = stored(one(row("USD", "1", kind=CASH), row("USD", "2", kind=HOLDING)))
        _, known = with_known_rows(both, {})
        data, known = with_known_rows(stored(one(row("USD", "1", kind=CASH))), known)
        rows = message(data).venue_accounts[0].assets
        assert [(held.kind, held.total) for held in rows] == [
            (balance_pb2.ASSET_KIND_CASH, "1"),
            (balance_pb2.ASSET_KIND_HOLDING, "0"),
        ]
        assert sorted(row_totals(both).values()) == [Decimal(1), Decimal(2)]

    @pytest.mark.parametrize(("before", "now"), [("", CASH), (CASH, ""), ("", HOLDING)])
    def test_a_row_whose_kind_is_said_from_now_on_does_not_stand_at_zero_beside_itself(
        self, before: str, now: str
    ) -> None:
        _, known = with_known_rows(stored(one(row("USD", "1", kind=before))), {})
        data, _ = with_known_rows(stored(one(row("USD", "2", kind=now))), known)
        assert [held.total for held in message(data).venue_accounts[0].assets] == ["2"]

    def test_of_a_row_without_a_kind_and_one_with_it_the_one_that_is_gone_stands_at_zero(self) -> None:
        _, known = with_known_rows(stored(one(row("USD", "1", kind=CASH), row("USD", "5"))), {})
        data, _ = with_known_rows(stored(one(row("USD", "1", kind=CASH))), known)
        assert [held.total for held in message(data).venue_accounts[0].assets] == ["1", "0"]

    def test_the_zero_row_has_the_identity_of_the_row_that_is_gone(self) -> None:
        held = AssetBalance("BTC", total=Decimal(1), venue_asset="XXBT")
        _, known = with_known_rows(stored(one(held)), {})
        data, _ = with_known_rows(stored(one()), known)
        (asset,) = message(data).venue_accounts[0].assets
        assert (asset.venue_asset, asset.account_type, asset.sub_account) == ("XXBT", "spot", "main")


class TestReplies:
    good = stored(one(row("BTC", "1.50"), notes=("x" * 300,)))

    def test_a_reply_is_the_stored_balance_and_its_freshness(self) -> None:
        error = VenueUnavailable("It is down.", retry_after=5)
        reply = messages.GetBalanceResponse.FromString(
            get_balance_reply(self.good, Source.LAST_GOOD, 12.5, error, include_zero=True)
        )
        assert reply.balance == message(self.good.data)
        assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
        assert reply.freshness.age.ToTimedelta().total_seconds() == 12.5
        assert reply.freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
        assert reply.freshness.stale.message == "It is down."

    def test_a_reply_without_an_error_is_not_stale(self) -> None:
        reply = messages.GetBalanceResponse.FromString(
            get_balance_reply(self.good, Source.CACHE, -1.0, None, include_zero=True)
        )
        assert not reply.freshness.HasField("stale")
        assert reply.freshness.age.ToTimedelta().total_seconds() == 0

    @pytest.mark.parametrize("source", Source)
    @pytest.mark.parametrize("age", [0.0, 1e-9, 0.5, 1.0, 5.75, 127.0, 128.25, 299.999_999_999, 1e6])
    def test_the_freshness_field_is_what_protobuf_writes(self, source: Source, age: float) -> None:
        freshness = messages.GetBalanceResponse.FromString(fresh_field(source, age)).freshness
        assert freshness.source == source.value
        assert freshness.HasField("age")
        assert freshness.age.seconds + freshness.age.nanos / 1e9 == pytest.approx(age, abs=1e-9)
        assert fresh_field(source, age) == messages.GetBalanceResponse(freshness=freshness).SerializeToString()

    def test_a_balance_event_holds_the_stored_balance_and_its_freshness(self) -> None:
        event = messages.StreamBalancesResponse.FromString(balance_event(self.good.data, Source.VENUE, 1.0, None))
        assert event.WhichOneof("event") == "balance"
        assert event.balance.balance == message(self.good.data)
        assert event.balance.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE

    def test_an_error_event_names_its_account(self) -> None:
        event = messages.StreamBalancesResponse.FromString(account_error_event(ALICE, CredentialRejected("No."), 7))
        assert event.account_error.exchange_id == "fakex"
        assert event.account_error.error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REJECTED
        assert not event.account_error.error.HasField("retry_delay")
        assert event.account_error.last_version == 7

    def test_a_heartbeat_has_the_clock_and_the_accounts_states(self) -> None:
        states = [
            AccountState(ALICE, 7, 1.5, None),
            AccountState(Account("alice", "fakey"), 0, None, CredentialRejected("No.")),
        ]
        beat = messages.StreamBalancesResponse.FromString(heartbeat_event(NOW, map(account_state, states))).heartbeat
        assert beat.server_time.ToJsonString() == "2027-01-15T08:00:00.250Z"
        first, second = beat.accounts
        assert (first.version, first.age.ToTimedelta().total_seconds(), first.HasField("error")) == (7, 1.5, False)
        assert (second.version, second.HasField("age")) == (0, False)
        assert second.error.message == "No."

    @pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16_383, 16_384, 300_000])
    def test_a_balance_of_any_length_is_framed_right(self, size: int) -> None:
        result = stored(Balance((), notes=("x" * size,)))
        reply = messages.GetBalanceResponse.FromString(
            get_balance_reply(result, Source.CACHE, 0, None, include_zero=True)
        )
        event = messages.StreamBalancesResponse.FromString(balance_event(result.data, Source.CACHE, 0, None))
        assert len(reply.balance.notes[0]) == len(event.balance.balance.notes[0]) == size


class TestProtobuf:
    """Conversions to and from protobuf's own shapes."""

    @given(st.integers(min_value=0, max_value=2**63 - 1))
    def test_a_varint_is_what_protobuf_writes(self, value: int) -> None:
        assert Int64Value(value=value).SerializeToString() == (b"\x08" + encode_varint(value) if value else b"")

    @given(st.integers(min_value=1, max_value=15), st.binary(max_size=300))
    def test_a_field_has_its_tag_its_length_and_its_bytes(self, number: int, payload: bytes) -> None:
        encoded = encode_field(number, payload)
        assert encoded[0] == number << 3 | 2
        assert encoded[1:].removesuffix(payload) == encode_varint(len(payload))

    def test_a_field_is_read_by_protobuf(self) -> None:
        assert BytesValue.FromString(encode_field(1, b"x" * 200)).value == b"x" * 200

    @pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.25, 1.5, 86_400.000001])
    def test_a_span_survives_a_duration(self, seconds: float) -> None:
        assert to_seconds(to_duration(seconds)) == pytest.approx(seconds, abs=1e-9)

    def test_a_negative_span_counts_as_zero(self) -> None:
        assert to_duration(-1.5) == Duration()

    @pytest.mark.parametrize("seconds", [NOW, 0.0, -1.5, 1_700_000_000.123456])
    def test_an_instant_survives_a_timestamp(self, seconds: float) -> None:
        assert to_seconds(to_timestamp(seconds)) == pytest.approx(seconds, abs=1e-6)
        assert 0 <= to_timestamp(seconds).nanos < 1_000_000_000

    def test_a_datetime_survives_a_timestamp(self) -> None:
        instant = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
        assert to_datetime(from_datetime(instant)) == instant


amounts = st.none() | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40).filter(
    lambda amount: abs(amount.adjusted()) <= 60
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
kinds = st.sampled_from(["", CASH, HOLDING])
rows = st.lists(
    st.builds(AssetBalance, texts.filter(bool), amounts, amounts, amounts, amounts, venue_asset=texts, kind=kinds),
    max_size=4,
    unique_by=lambda held: held.identity,
)
accounts = st.lists(
    st.builds(VenueAccount, texts, texts, texts, texts, rows.map(tuple)),
    max_size=3,
    unique_by=lambda account: account.identity,
)


@given(accounts.map(tuple).map(Balance))
def test_from_model_to_bytes_to_message_no_digit_is_lost(balance: Balance) -> None:
    first = stored(balance)
    again = decode_stored(ALICE, first.encode(), BOUNDS)
    assert again is not None
    reply = messages.GetBalanceResponse.FromString(get_balance_reply(again, Source.CACHE, 0, None, include_zero=True))
    assert len(reply.balance.venue_accounts) == len(balance.venue_accounts)
    for account, sent in zip(balance.venue_accounts, reply.balance.venue_accounts, strict=True):
        assert (sent.id, sent.type, sent.sub_account, sent.label) == (*account.identity, account.label)
        for held, arrived in zip(account.assets, sent.assets, strict=True):
            assert (arrived.asset, kind_name(arrived)) == (held.asset, held.kind)
            for name in NAMES:
                amount = getattr(held, name)
                assert arrived.HasField(name) == (amount is not None)
                if amount is not None:
                    text = getattr(arrived, name)
                    assert AMOUNT.match(text), text
                    assert Decimal(text) == amount
                    # Not only the value: the digits after the point are the venue's too.
                    assert len(text.partition(".")[2]) == max(0, -amount.as_tuple().exponent)
