"""Balance messages: what a plugin answers, from the model to a message and back."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from typing import Literal, NewType, TypeAlias, get_args

from google.protobuf.message import DecodeError

from exchange_service.amounts import format_amount
from exchange_service.errors import ServiceError, from_reason
from exchange_service.model import CASH, HOLDING, AssetBalance, Balance, Summary, VenueAccount
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.wire.protobuf import from_datetime, to_datetime, to_duration, to_seconds

# Half of the largest message that the server sends, so that the rows which a feed remembers fit too.
_MAX_BALANCE = 2 * 1024 * 1024
AmountName: TypeAlias = Literal["total", "free", "used", "debt"]
AMOUNTS: tuple[AmountName, ...] = ("total", "free", "used", "debt")
# A plugin's answer: a serialised `Balance` without the fields that the service adds: the account, the fetch time and
# the version. It is made in the process that runs the plugin.
FetchedBalance = NewType("FetchedBalance", bytes)
_SUMMARY_AMOUNTS = tuple(item.name for item in fields(Summary) if item.name != "currency")
AddedName: TypeAlias = Literal["user_id", "exchange_id", "environment", "account_type", "fetch_time", "version"]
_KINDS: dict[str, balance_pb2.AssetKind.ValueType] = {
    "": balance_pb2.ASSET_KIND_UNSPECIFIED,
    CASH: balance_pb2.ASSET_KIND_CASH,
    HOLDING: balance_pb2.ASSET_KIND_HOLDING,
}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}
ADDED_LATER: frozenset[AddedName] = frozenset(get_args(AddedName))


def fetched_balance(balance: Balance) -> FetchedBalance:
    """A plugin's answer as bytes.

    Raises TypeError, ValueError, ArithmeticError or AttributeError if the balance cannot be serialised.
    """
    data = _balance_message(balance).SerializeToString(deterministic=True)
    if len(data) > _MAX_BALANCE:
        raise ValueError("the balance is larger than a reply can be")
    return FetchedBalance(data)


def rows_of(fetched: FetchedBalance) -> int:
    """The number of rows and venue accounts in a plugin's answer. Raises ValueError if the bytes are not an answer."""
    message = parse_fetched(fetched)
    return len(message.venue_accounts) + sum(len(account.assets) for account in message.venue_accounts)


def read_fetched(fetched: FetchedBalance) -> Balance:
    """The balance that `fetched_balance` serialised. Raises ValueError for other bytes."""
    message = parse_fetched(fetched)
    return Balance(
        tuple(_venue_account(entry) for entry in message.venue_accounts),
        _summary(message.summary) if message.HasField("summary") else None,
        _venue_time(message),
        tuple(message.notes),
    )


def parse_fetched(fetched: FetchedBalance) -> balance_pb2.Balance:
    """A plugin's answer as a message. Raises ValueError if the bytes are not an answer."""
    if len(fetched) > _MAX_BALANCE:
        raise ValueError("the balance is larger than a reply can be")
    try:
        message = balance_pb2.Balance.FromString(fetched)
    except DecodeError:
        raise ValueError("the bytes are not a balance") from None
    if {field.name for field, _ in message.ListFields()} & ADDED_LATER:
        raise ValueError("the balance holds fields that only the service sets")
    return message


def fault_message(error: ServiceError) -> balance_pb2.AccountFault:
    """An error as a message to send beside data: its reason, its message with the advice, and its delay."""
    name = f"ERROR_REASON_{error.reason or 'UNSPECIFIED'}"
    reason = error_reason_pb2.ErrorReason.Value(name)
    fault = balance_pb2.AccountFault(reason=reason, message=error.text, advice=error.advice)
    if error.retry_after is not None:
        fault.retry_delay.CopyFrom(to_duration(error.retry_after))
    return fault


def read_fault(fault: balance_pb2.AccountFault) -> ServiceError:
    """The error that `fault_message` wrote. Raises ValueError if its reason is not in ErrorReason."""
    reason = error_reason_pb2.ErrorReason.Name(fault.reason).removeprefix("ERROR_REASON_")
    delay = to_seconds(fault.retry_delay) if fault.HasField("retry_delay") else None
    advice = fault.advice if fault.HasField("advice") else None
    return from_reason(reason, fault.message.removesuffix(f" {advice}" if advice else ""), delay, advice)


# Each message is written where it belongs: one that is made apart is copied with all that it holds.
def _balance_message(balance: Balance) -> balance_pb2.Balance:
    message = balance_pb2.Balance(notes=balance.notes)
    for account in balance.venue_accounts:
        # A plugin may leave a text out that is only shown.
        _write_venue_account(account, message.venue_accounts.add(label=account.label))
    if balance.venue_time is not None:
        message.venue_time.CopyFrom(from_datetime(balance.venue_time))
    if balance.summary is not None:
        _write_summary(balance.summary, message.summary)
    return message


def _write_venue_account(account: VenueAccount, message: balance_pb2.VenueAccount) -> None:
    message.id, message.type, message.sub_account = account.id, account.type, account.sub_account
    for row in account.assets:
        amounts = {name: format_amount(value) for name in AMOUNTS if (value := getattr(row, name)) is not None}
        message.assets.add(
            asset=row.asset,
            venue_asset=row.venue_asset or row.asset,
            account_type=account.type,
            sub_account=account.sub_account,
            venue_account_id=account.id,
            mismatch=row.mismatch(),
            kind=_KINDS[row.kind],
            **amounts,
        )
    if account.summary is not None:
        _write_summary(account.summary, message.summary)
    if account.error is not None:
        message.error.CopyFrom(fault_message(account.error))
    if account.venue_time is not None:
        message.venue_time.CopyFrom(from_datetime(account.venue_time))


def _write_summary(summary: Summary, message: balance_pb2.Summary) -> None:
    message.currency = summary.currency or ""
    for name in _SUMMARY_AMOUNTS:
        value = getattr(summary, name)
        if value is not None:
            setattr(message, name, format_amount(value))


def _venue_account(message: balance_pb2.VenueAccount) -> VenueAccount:
    return VenueAccount(
        id=message.id,
        type=message.type,
        sub_account=message.sub_account,
        label=message.label,
        assets=tuple(_row(row) for row in message.assets),
        summary=_summary(message.summary) if message.HasField("summary") else None,
        error=read_fault(message.error) if message.HasField("error") else None,
        venue_time=_venue_time(message),
    )


def _row(message: balance_pb2.AssetBalance) -> AssetBalance:
    amounts = {name: Decimal(getattr(message, name)) for name in AMOUNTS if message.HasField(name)}
    venue_asset = "" if message.venue_asset == message.asset else message.venue_asset
    return AssetBalance(message.asset, venue_asset=venue_asset, kind=kind_name(message), **amounts)


def kind_name(row: balance_pb2.AssetBalance) -> str:
    """A row's kind as the model has it: "cash", "holding", or empty if it says nothing, or a newer release's kind."""
    return _KIND_NAMES.get(row.kind, "")


def _summary(message: balance_pb2.Summary) -> Summary:
    known = {field.name: Decimal(value) for field, value in message.ListFields() if field.name != "currency"}
    return Summary(message.currency, **known)


def _venue_time(message: balance_pb2.Balance | balance_pb2.VenueAccount) -> datetime | None:
    return to_datetime(message.venue_time) if message.HasField("venue_time") else None
