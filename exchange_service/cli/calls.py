"""The commands that read from a running service: exchanges, balance, watch."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import grpc
import typer
from rich.console import Group
from rich.live import Live

from exchange_service.cli import tables
from exchange_service.cli.outcome import ExitCode, Output, console, exit_code, fail, messages, plain, run
from exchange_service.cli.signatures import replacing
from exchange_service.client import ExchangeServiceClient, is_loopback
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.errors import (
    ExchangeRetired,
    ExchangeUnknown,
    FieldInvalid,
    NotSupported,
    ServiceError,
    from_reason,
)
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    AccountSelector,
    AccountState,
    BalanceEvent,
    StreamBalancesResponse,
)

OutputOption = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        envvar=f"{ENVIRONMENT_PREFIX}OUTPUT",
        help="table is for people, json and jsonl are for programs.",
    ),
]
UserOption = Annotated[
    str, typer.Option("--user", "-u", envvar=f"{ENVIRONMENT_PREFIX}USER", help="The user that owns the account.")
]

_ACCOUNT_TYPE = "One of the exchange's account types, or all. Default: the one that the exchange's listing names."

# Waiting does not help: the request names something that does not exist.
_NEVER = (ExchangeUnknown, ExchangeRetired, FieldInvalid, NotSupported)
_DEFAULT_ADDRESS = "127.0.0.1:50051"
# There is no flag for it, because other users of the machine can see a command line.
_TOKEN_VARIABLE = f"{ENVIRONMENT_PREFIX}TOKEN"


@dataclass(frozen=True, slots=True)
class Target:
    """The address of the service, and how to call it."""

    address: str
    plaintext: bool | None
    tls_ca: Path | None
    tls_certificate: Path | None
    tls_key: Path | None
    headers: Sequence[str] = field(repr=False)
    timeout: float

    def client(self) -> ExchangeServiceClient:
        """A client for it, with the token from the environment. Ends the command for options that contradict."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            fail("give --tls-certificate and --tls-key, or neither", ExitCode.USAGE)
        files = (self.tls_ca, self.tls_key, self.tls_certificate)
        plaintext = self.plaintext if self.plaintext is not None else is_loopback(self.address) and not any(files)
        credentials = None
        if not plaintext:
            credentials = grpc.ssl_channel_credentials(*(file.read_bytes() if file else None for file in files))
        token, metadata = os.environ.get(_TOKEN_VARIABLE, "").strip(), _metadata(self.headers)
        try:
            return ExchangeServiceClient(
                self.address, credentials=credentials, metadata=metadata, token=token, timeout=self.timeout
            )
        except ValueError:
            fail(f"a token is not sent to {self.address} in plaintext; use --tls", ExitCode.USAGE)


def _flag(
    name: str, kind: Any, default: Any, text: str, *declarations: str, variable: str = "", **more: Any
) -> inspect.Parameter:
    option = typer.Option(*declarations, envvar=f"{ENVIRONMENT_PREFIX}{variable or name.upper()}", help=text, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _option(name: str, kind: Any, default: Any, text: str, **more: Any) -> inspect.Parameter:
    """An option of a command; unlike a flag it has no environment variable."""
    annotation = Annotated[kind, typer.Option(help=text, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_TARGET_FLAGS = (
    _flag("address", str, _DEFAULT_ADDRESS, "Where the service listens, host:port."),
    _flag(
        "plaintext",
        bool | None,
        None,
        "Whether to call without TLS. Default: without TLS on loopback, with TLS elsewhere.",
        "--plaintext/--tls",
    ),
    _flag("tls_ca", Path | None, None, "PEM file with the certificate authority to trust.", exists=True),
    # Not the variables of the server's own certificate, because both may be set on one machine.
    _flag(
        *("tls_certificate", Path | None, None, "PEM file with the client certificate that identifies the caller."),
        variable="CLIENT_CERTIFICATE",
        exists=True,
    ),
    _flag("tls_key", Path | None, None, "PEM file with its private key.", variable="CLIENT_KEY", exists=True),
    _flag("header", list[str] | None, None, "Metadata for each call, name=value; can be repeated."),
    _flag("timeout", float, 15.0, "Seconds that a call may take.", min=0.001),
)


def _target(values: dict[str, Any]) -> Target:
    headers = values.pop("header") or ()
    return Target(headers=headers, **values)


# Gives a command that calls the service the flags above in place of its `target` parameter.
calling = replacing("target", _TARGET_FLAGS, _target)


def _metadata(headers: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals or not name:
            # The value may be a token, so it is not repeated.
            fail("--header should be name=value", ExitCode.USAGE)
        pairs.append((name.strip().lower(), value))
    return pairs


@asynccontextmanager
async def _waiting(output: Output, what: str) -> AsyncIterator[None]:
    """Show a spinner to people while a call takes long; show nothing to programs."""
    if output is Output.TABLE and messages.is_terminal:
        with messages.status(what):
            yield
    else:
        yield


@calling
def exchanges(
    target: Target,
    asset_class: Annotated[str, typer.Option(help="Only this asset class, such as forex.")] = "",
    search: Annotated[str, typer.Option(help="Only exchanges with this text in their name, id or asset types.")] = "",
    source: Annotated[str, typer.Option(help="Only exchanges from this source: custom or ccxt.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the exchanges and brokers that the service can connect to."""
    if source not in ("", "custom", "ccxt"):
        fail("--source should be custom or ccxt", ExitCode.USAGE)
    run(_exchanges(target, asset_class, search, source, output), output)


async def _exchanges(target: Target, asset_class: str, search: str, source: str, output: Output) -> None:
    async with target.client() as client, _waiting(output, "Listing exchanges ..."):
        reply = await client.list_exchanges(asset_class=asset_class, search=search, source=source)
        entries = list(reply.exchanges)
        token = reply.next_page_token
        while token:
            page = await client.list_exchanges(asset_class=asset_class, search=search, source=source, page_token=token)
            entries.extend(page.exchanges)
            token = page.next_page_token
    if output is Output.JSON:
        tables.print_json([tables.as_dict(entry) for entry in entries])
    elif output is Output.JSONL:
        for entry in entries:
            tables.print_line(tables.as_dict(entry))
    else:
        if entries:
            console.print(tables.exchanges(entries))
        stats = reply.stats
        console.print(f"[dim]{len(entries)} of {stats.total} exchanges ({stats.custom} custom, {stats.ccxt} ccxt)[/]")
        for gone in reply.retired:
            text = f"[yellow]{plain(gone.name)} is not served any more.[/] {plain(gone.reason)}"
            messages.print(text, soft_wrap=True)
        if reply.problems:
            messages.print(f"[yellow]{len(reply.problems)} problems with plugins; see `exchange-service plugins`.[/]")


_BALANCE_OPTIONS = (
    _option("environment", str, "", "production, sandbox, or the venue's own name for one of them."),
    _option("account_type", str, "", _ACCOUNT_TYPE),
    _option("max_age", float | None, None, "The oldest acceptable balance in seconds; 0 asks the venue now.", min=0),
    _option("include_zero", bool, False, "Also show rows whose amounts are all zero."),
)


@calling
@replacing("options", _BALANCE_OPTIONS, dict)
def balance(
    target: Target,
    user: UserOption,
    exchange: Annotated[str, typer.Option("--exchange", "-e", help="The exchange's id, such as oanda.")],
    options: dict[str, Any],
    output: OutputOption = Output.TABLE,
) -> None:
    """Read one account's balance."""
    run(_balance(target, user, exchange, options, output), output)


async def _balance(target: Target, user: str, exchange: str, options: dict[str, Any], output: Output) -> None:
    async with target.client() as client, _waiting(output, f"Reading {exchange} ..."):
        reply = await client.get_balance(user, exchange, **options)
    if output is Output.JSON:
        tables.print_json(tables.as_dict(reply))
    elif output is Output.JSONL:
        tables.print_line(tables.as_dict(reply))
    else:
        console.print(tables.balance(reply.balance))
        for number, line in enumerate(tables.summaries(reply.balance)):
            console.print(line if number else f"\n{line}", soft_wrap=True)
        console.print(f"[dim]{tables.freshness(reply.freshness)}[/]")
        for fault in tables.faults(reply.balance):
            messages.print(f"[red]not read:[/] {fault}", soft_wrap=True)
        for note in reply.balance.notes:
            messages.print(f"[yellow]note:[/] {plain(note)}", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """Which accounts of the named exchanges to follow, how often to show each, and after how many events to end."""

    environment: str
    account_type: str
    min_interval: float
    events: int


_WATCH_OPTIONS = (
    _option("environment", str, "", "The environment of the named exchanges."),
    _option("account_type", str, "", _ACCOUNT_TYPE),
    _option(
        *("min_interval", float, 0.0, "The least number of seconds between two balances of an account."),
        min=0,
        max=3600,
    ),
    _option("events", int, 0, "End after this number of balances and errors; 0: never.", min=0),
)


@calling
@replacing("options", _WATCH_OPTIONS, lambda values: WatchOptions(**values))
def watch(
    target: Target,
    user: UserOption,
    options: WatchOptions,
    exchange: Annotated[
        list[str] | None, typer.Option("--exchange", "-e", help="Only this exchange; can be repeated. Default: all.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Follow a user's balances live, until interrupted."""
    environment, account_type = options.environment, options.account_type
    if not exchange and (environment or account_type):
        fail("--environment and --account-type need --exchange", ExitCode.USAGE)
    # Without repetitions: the service reports an account once, even if it is named twice.
    names = dict.fromkeys(name.strip().lower() for name in exchange or ())
    accounts = [AccountSelector(exchange_id=name, environment=environment, account_type=account_type) for name in names]
    run(_watch(target, user, accounts, options, output), output)


async def _watch(
    target: Target, user: str, accounts: Sequence[AccountSelector], options: WatchOptions, output: Output
) -> None:
    view = LiveView() if output is Output.TABLE and console.is_terminal else None
    lines = EventLines()
    count = balances = 0
    refusal: ServiceError | None = None
    # The named accounts that can never be followed.
    impossible: set[tuple[str, str, str]] = set()

    def report_interruption(error: ServiceError) -> None:
        messages.print(f"[yellow]interrupted:[/] {plain(error.text)} Trying again.", soft_wrap=True)

    async with target.client() as client:
        events = client.stream_balances(
            user, accounts, min_interval=options.min_interval, resume=True, on_interruption=report_interruption
        )
        with Live(console=console, auto_refresh=False) if view else _NoDisplay() as live:
            async for event in events:
                if view is not None and isinstance(live, Live):
                    live.update(view.after(event), refresh=True)
                elif output is Output.TABLE:
                    for line in lines.after(event):
                        console.print(line, soft_wrap=True)
                else:
                    tables.print_line(tables.as_dict(event))
                kind = event.WhichOneof("event")
                count += kind in ("balance", "account_error")
                if kind == "balance":
                    balances += 1
                elif kind == "account_error":
                    refusal = from_reason(_reason(event), event.account_error.error.message)
                    if isinstance(refusal, _NEVER):
                        error = event.account_error
                        impossible.add((error.exchange_id, error.environment, error.account_type))
                if accounts and len(impossible) == len(accounts):
                    break
                if options.events and count >= options.events:
                    break
    if refusal is not None and not balances:
        # Only errors came, and they were printed.
        raise typer.Exit(exit_code(refusal))


class _NoDisplay:
    """Takes the place of the live display if there is no terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_AccountName: TypeAlias = tuple[str, str, str]


class Deliveries:
    """How changes of each account reach the service, as the events tell it."""

    def __init__(self) -> None:
        self._now: dict[_AccountName, str] = {}

    def after(self, event: StreamBalancesResponse) -> dict[_AccountName, str]:
        """What is new or has changed with one more event: "pushed", or "polled" and why."""
        changes = {account: text for account, text in _told_deliveries(event) if self._now.get(account) != text}
        self._now |= changes
        return changes

    def lines(self) -> list[str]:
        """A line for each way, with its accounts."""
        by_text: dict[str, list[str]] = {}
        for account, text in sorted(self._now.items()):
            by_text.setdefault(text, []).append(_shown_name(account))
        return [f"{text}: {', '.join(names)}" for text, names in sorted(by_text.items())]


def _told_deliveries(event: StreamBalancesResponse) -> Iterator[tuple[_AccountName, str]]:
    if event.HasField("balance") and event.balance.freshness.HasField("delivery"):
        yield _name_of(event.balance.balance), tables.delivery(event.balance.freshness.delivery)
    for state in event.heartbeat.accounts:
        if state.HasField("delivery"):
            yield _name_of(state), tables.delivery(state.delivery)


def _name_of(message: balance_pb2.Balance | AccountErrorEvent | AccountState) -> _AccountName:
    return message.exchange_id, message.environment, message.account_type


def _shown_name(account: _AccountName) -> str:
    return plain(" ".join(part for part in account if part not in ("", "production")))


class LiveView:
    """The newest balance of each account, as one table that is redrawn at each event."""

    def __init__(self) -> None:
        self._balances: dict[_AccountName, balance_pb2.Balance] = {}
        self._errors: dict[_AccountName, str] = {}
        self._deliveries = Deliveries()
        self._last_event = ""

    def after(self, event: StreamBalancesResponse) -> Group:
        """The display after one more event."""
        self._last_event = datetime.now().astimezone().strftime("%H:%M:%S")
        self._deliveries.after(event)
        kind = event.WhichOneof("event")
        if kind == "balance":
            message = event.balance.balance
            self._balances[_name_of(message)] = message
            self._errors.pop(_name_of(message), None)
        elif kind == "account_error":
            self._errors[_name_of(event.account_error)] = _describe_error(event)
        lines = [f"[red]{text}[/]" for text in self._errors.values()]
        lines += [f"[dim]{text}[/]" for text in self._deliveries.lines()]
        footer = f"[dim]last event {self._last_event}; press Ctrl-C to end[/]"
        return Group(tables.balances(self._balances[key] for key in sorted(self._balances)), *lines, footer)


class EventLines:
    """Events as lines, for where there is no display that could be redrawn."""

    def __init__(self) -> None:
        self._deliveries = Deliveries()

    def after(self, event: StreamBalancesResponse) -> Iterator[str]:
        """The lines of one more event, marked up."""
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        for account, text in self._deliveries.after(event).items():
            yield f"{now} {_shown_name(account)} {text}"
        kind = event.WhichOneof("event")
        if kind == "balance":
            yield from (f"{now} {line}" for line in _balance_lines(event.balance))
        elif kind == "account_error":
            yield f"{now} {_describe_error(event)}"
        elif kind == "heartbeat":
            count = len(event.heartbeat.accounts)
            state = f"{count} account{'' if count == 1 else 's'}" if count else "no account is stored for this user yet"
            yield f"[dim]{now} alive, {state}[/]"


def _balance_lines(event: BalanceEvent) -> Iterator[str]:
    balance, freshness = event.balance, event.freshness
    stale = f" ({tables.freshness(freshness)})" if freshness.HasField("stale") else ""
    for line in tables.balance_lines(balance):
        if line.is_summary:
            yield f"{line.exchange} {line.account} {line.asset} {line.total} available {line.available}{stale}"
            continue
        kind = f" {line.kind}" if line.kind else ""
        named = ((name, getattr(line, name)) for name in tables.AMOUNT_COLUMNS)
        amounts = "".join(f" {name} {figure}" for name, figure in named if figure)
        yield f"{line.exchange} {line.account} {line.asset}{kind}{amounts}{stale}"
    for fault in tables.faults(balance):
        yield f"{plain(balance.exchange_id)} not read: {fault}"


def _reason(event: StreamBalancesResponse) -> str:
    return error_reason_pb2.ErrorReason.Name(event.account_error.error.reason).removeprefix("ERROR_REASON_")


def _describe_error(event: StreamBalancesResponse) -> str:
    error = event.account_error
    reason = _reason(event)
    return plain(f"{error.exchange_id} {error.environment} {reason}: {error.error.message}")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (exchanges, balance, watch):
        app.command()(command)
