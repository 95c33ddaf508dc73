"""Replies as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.outcome import Output, console, echo, json_text, plain
from exchange_service.v1 import balance_pb2, error_reason_pb2, exchange_pb2
from exchange_service.wire.protobuf import to_seconds

_AVAILABILITY = {
    exchange_pb2.AVAILABILITY_AVAILABLE: "[green]available[/]",
    exchange_pb2.AVAILABILITY_DEGRADED: "[yellow]degraded[/]",
    exchange_pb2.AVAILABILITY_UNAVAILABLE: "[red]unavailable[/]",
}
_SOURCES = {
    balance_pb2.BALANCE_SOURCE_VENUE: "from the venue",
    balance_pb2.BALANCE_SOURCE_CACHE: "from the cache",
    balance_pb2.BALANCE_SOURCE_LAST_GOOD: "last good value",
}
KINDS = {balance_pb2.ASSET_KIND_CASH: "cash", balance_pb2.ASSET_KIND_HOLDING: "holding"}
AMOUNT_COLUMNS = ("total", "free", "used")
_POLLED_BECAUSE = {
    balance_pb2.POLLING_REASON_NO_PUSH: "this venue's balances are not pushed",
    balance_pb2.POLLING_REASON_STARTING: "the push is being set up",
    balance_pb2.POLLING_REASON_BROKEN: "the push broke and is tried again",
    balance_pb2.POLLING_REASON_NO_ROOM: "the venue pushes no further account now",
    balance_pb2.POLLING_REASON_REFUSED: "the venue does not push this account",
    balance_pb2.POLLING_REASON_SWITCHED_OFF: "the operator has switched pushes off",
}


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON values, with the field names of the protos."""
    return MessageToDict(message, preserving_proto_field_name=True)


def print_json(value: Any) -> None:
    """One JSON value, indented."""
    echo(json_text(value, indent=2))


def print_line(value: Any) -> None:
    """One JSON value on a line."""
    echo(json_text(value))


def print_list(entries: Sequence[Mapping[str, Any]], output: Output, make_table: Callable[[], Columns]) -> None:
    """Print a list: as one JSON array, as a JSON object on each line, or as a table for people."""
    if output is Output.JSON:
        print_json(entries)
    elif output is Output.JSONL:
        for entry in entries:
            print_line(entry)
    else:
        console.print(make_table())


def exchanges(entries: Iterable[exchange_pb2.Exchange]) -> Columns:
    """The exchanges as a table."""
    table = Columns(
        Column("id", whole=True),
        Column("name"),
        Column("asset class", spare=3),
        Column("asset types", spare=1),
        Column("credential", spare=2),
        Column("status", whole=True),
    )
    for entry in entries:
        needed = ", ".join(field.name + ("" if field.required else "?") for field in entry.credential_fields)
        status = _AVAILABILITY.get(entry.status.availability, "unknown")
        texts = (entry.id, entry.name, entry.asset_class, entry.asset_types, needed)
        table.add(*(plain(text) for text in texts), status)
    return table


def balance(message: balance_pb2.Balance) -> Columns:
    """One balance as a table: a line for each asset and for each account that could not be read. `summaries` gives the
    figures of accounts as a whole."""
    return _balance_table((line for line in balance_lines(message) if not line.is_summary), "account", "asset")


def balances(messages: Iterable[balance_pb2.Balance]) -> Columns:
    """Several balances in one table, also with a line for each account's equity."""
    lines = (line for message in messages for line in balance_lines(message))
    return _balance_table(lines, "exchange", "account", "asset")


class BalanceLine(NamedTuple):
    """A line of a balance's table: texts that may be shown, with rich's markup.

    A summary's line has its equity as `total`, which `asset` says, and what is available beside it: a summary has other
    figures than an asset, so `free` and `used` are empty.
    """

    exchange: str
    account: str
    asset: str
    total: str = ""
    free: str = ""
    used: str = ""
    kind: str = ""
    available: str = ""
    is_summary: bool = False


def _balance_table(shown: Iterable[BalanceLine], *names: str) -> Columns:
    """These columns and the amounts, and the kinds of rows if one has a kind."""
    lines = list(shown)
    kinds = ("kind",) if any(line.kind for line in lines) else ()
    table = Columns(
        *(Column(name, whole=True, group=name != "asset") for name in names),
        *(Column(name, whole=True) for name in kinds),
        *(Column(name, whole=True, right=True) for name in AMOUNT_COLUMNS),
    )
    for line in lines:
        table.add(*(getattr(line, name) for name in (*names, *kinds, *AMOUNT_COLUMNS)))
    return table


def balance_lines(message: balance_pb2.Balance) -> Iterator[BalanceLine]:
    """The lines of a balance's table; "-" stands for an amount that the venue does not report."""
    exchange_id = plain(message.exchange_id)
    for account in message.venue_accounts:
        name = _account_name(account)
        if account.HasField("error"):
            reason = error_reason_pb2.ErrorReason.Name(account.error.reason).removeprefix("ERROR_REASON_")
            yield BalanceLine(exchange_id, name, f"[red]{reason}[/]")
        elif not account.assets:
            yield BalanceLine(exchange_id, name, "[dim]nothing held[/]")
        for row in account.assets:
            yield BalanceLine(exchange_id, name, plain(row.asset), *_amounts(row), kind=KINDS.get(row.kind, ""))
        if account.HasField("summary") and account.summary.HasField("equity"):
            figures = account.summary
            available = plain(figures.available) if figures.HasField("available") else "-"
            label = f"[dim]equity {plain(figures.currency)}[/]"
            yield BalanceLine(exchange_id, name, label, plain(figures.equity), available=available, is_summary=True)


def _account_name(account: balance_pb2.VenueAccount) -> str:
    return plain(" ".join(part for part in (account.type, account.id, account.sub_account) if part))


def _amounts(row: balance_pb2.AssetBalance) -> tuple[str, str, str]:
    return (
        plain(row.total) if row.HasField("total") else "-",
        plain(row.free) if row.HasField("free") else "-",
        plain(row.used) if row.HasField("used") else "-",
    )


def faults(message: balance_pb2.Balance) -> Iterator[str]:
    """A sentence for each venue account that could not be read."""
    for account in message.venue_accounts:
        if account.HasField("error"):
            name = " ".join(part for part in (account.type, account.id, account.sub_account) if part)
            yield plain(f"{name}: {account.error.message}")


def summary(message: balance_pb2.Balance) -> str:
    """The summary in a line; empty if the balance has none."""
    return _figures(message.summary) if message.HasField("summary") else ""


def summaries(message: balance_pb2.Balance) -> Iterator[str]:
    """Every summary, each in a line: of each account by its name, then of the whole balance. The summary of a single
    account is left out if the whole balance has the same."""
    accounts = [account for account in message.venue_accounts if account.HasField("summary")]
    whole = summary(message)
    if len(message.venue_accounts) > 1 or [_figures(account.summary) for account in accounts] != [whole]:
        for account in accounts:
            yield f"[dim]{_account_name(account)}:[/] {_figures(account.summary)}"
        whole = whole and f"[dim]all accounts:[/] {whole}"
    if whole:
        yield whole


def _figures(message: balance_pb2.Summary) -> str:
    figures = as_dict(message)
    currency = figures.pop("currency", "")
    named = (f"{name.replace('_', ' ')} {plain(str(figure))}" for name, figure in figures.items())
    return f"{plain(currency)}  " + "  ".join(named)


def freshness(value: balance_pb2.Freshness) -> str:
    """The source and the age of a balance, in a line."""
    line = f"{_SOURCES.get(value.source, 'unknown')}, {to_seconds(value.age):.1f} s old"
    if value.HasField("stale"):
        reason = error_reason_pb2.ErrorReason.Name(value.stale.reason).removeprefix("ERROR_REASON_")
        line += f"; [yellow]stale, {reason}: {plain(value.stale.message)}[/]"
    if value.HasField("delivery"):
        line += f"; {delivery(value.delivery)}"
    return line


def delivery(value: balance_pb2.Delivery) -> str:
    """How changes of an account reach the service: "pushed", or "polled" and why."""
    if value.mode == balance_pb2.DELIVERY_MODE_PUSHED:
        return "pushed"
    # A newer service may have further reasons.
    reason = _POLLED_BECAUSE.get(value.polling_reason, "the service gives another reason")
    return f"polled ({reason})"
