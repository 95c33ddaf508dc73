"""The commands that call a running service: exchanges, balance, watch, health, version."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Group
from rich.live import Live

from exchange_service import __version__
from exchange_service.cli import tables
from exchange_service.cli.flags import replacing
from exchange_service.cli.outcome import ExitCode, Output, console, exit_code, fail, messages, plain, run
from exchange_service.client import ExchangeServiceClient, ServiceUnreachable, is_loopback
from exchange_service.errors import ExchangeUnknown, FieldInvalid, NotSupported, ServiceError, from_reason
from exchange_service.settings import ENVIRONMENT_PREFIX
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1.exchange_service_pb2 import AccountSelector, StreamBalancesResponse

OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT", help="For people, or for programs."),
]
UserOption = Annotated[str, typer.Option("--user", "-u", envvar=f"{ENVIRONMENT_PREFIX}USER", help="Whose account.")]

AccountTypeOption = Annotated[
    str, typer.Option(help="One of the exchange's account types, or all. Default: as the exchange's listing says.")
]

# No waiting mends these: the request names something that there is not.
_NEVER = (ExchangeUnknown, FieldInvalid, NotSupported)
_DEFAULT_ADDRESS = "127.0.0.1:50051"
# There is no flag for it: a command line can be seen by others.
_TOKEN_VARIABLE = f"{ENVIRONMENT_PREFIX}TOKEN"


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how to call."""

    address: str
    plaintext: bool | None
    tls_ca: Path | None
    tls_certificate: Path | None
    tls_key: Path | None
    headers: Sequence[str] = field(repr=False)
    timeout: float

    def client(self) -> ExchangeServiceClient:
        """A client for it, with the token that the environment has."""
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


_TARGET_FLAGS = (
    _flag("address", str, _DEFAULT_ADDRESS, "Where the service listens, host:port."),
    _flag(
        "plaintext",
        bool | None,
        None,
        "Without or with TLS. Default: without on loopback, with elsewhere.",
        "--plaintext/--tls",
    ),
    _flag("tls_ca", Path | None, None, "PEM file with the certificate to trust.", exists=True),
    # Not the variables of the server's own certificate: where both run, they are two.
    _flag(
        *("tls_certificate", Path | None, None, "PEM file with the certificate that says who calls."),
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


# For a command that calls the service: flags for where and how, in place of its `target`.
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
    """A spinner for people while something takes long; nothing for programs."""
    if output is Output.TABLE and messages.is_terminal:
        with messages.status(what):
            yield
    else:
        yield


@calling
def exchanges(
    target: Target,
    asset_class: Annotated[str, typer.Option(help="Only this asset class, such as forex.")] = "",
    search: Annotated[str, typer.Option(help="Only with this text in name, id or asset types.")] = "",
    source: Annotated[str, typer.Option(help="Only custom, or only ccxt.")] = "",
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
        if reply.problems:
            messages.print(f"[yellow]{len(reply.problems)} problems with plugins; see `exchange-service plugins`.[/]")


@calling
def balance(
    target: Target,
    user: UserOption,
    exchange: Annotated[str, typer.Option("--exchange", "-e", help="The exchange's id, such as oanda.")],
    environment: Annotated[str, typer.Option(help="production or sandbox, or the venue's own word.")] = "",
    account_type: AccountTypeOption = "",
    max_age: Annotated[
        float | None, typer.Option(min=0, help="How many seconds old it may be; 0 asks the venue now.")
    ] = None,
    include_zero: Annotated[bool, typer.Option(help="Also rows that are all zero.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Read one account's balance."""
    wish = {
        "environment": environment,
        "account_type": account_type,
        "max_age": max_age,
        "include_zero": include_zero,
    }
    run(_balance(target, user, exchange, wish, output), output)


async def _balance(target: Target, user: str, exchange: str, wish: dict[str, Any], output: Output) -> None:
    async with target.client() as client, _waiting(output, f"Reading {exchange} ..."):
        reply = await client.get_balance(user, exchange, **wish)
    if output is Output.JSON:
        tables.print_json(tables.as_dict(reply))
    elif output is Output.JSONL:
        tables.print_line(tables.as_dict(reply))
    else:
        console.print(tables.balance(reply.balance))
        line = tables.summary(reply.balance)
        if line:
            console.print(f"\n{line}", soft_wrap=True)
        console.print(f"[dim]{tables.freshness(reply.freshness)}[/]")
        for fault in tables.faults(reply.balance):
            messages.print(f"[red]not read:[/] {fault}", soft_wrap=True)
        for note in reply.balance.notes:
            messages.print(f"[yellow]note:[/] {plain(note)}", soft_wrap=True)


@calling
def watch(
    target: Target,
    user: UserOption,
    exchange: Annotated[
        list[str] | None, typer.Option("--exchange", "-e", help="Only this one; can be repeated. Default: all.")
    ] = None,
    environment: Annotated[str, typer.Option(help="The environment of the named exchanges.")] = "",
    account_type: AccountTypeOption = "",
    min_interval: Annotated[
        float, typer.Option(min=0, max=3600, help="At least so many seconds between two balances of an account.")
    ] = 0.0,
    events: Annotated[int, typer.Option(min=0, help="End after so many balances and errors; 0: never.")] = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Follow a user's balances live, until interrupted."""
    if not exchange and (environment or account_type):
        fail("--environment and --account-type need --exchange", ExitCode.USAGE)
    # Each once: the service tells of an account once, however often it was named.
    names = dict.fromkeys(name.strip().lower() for name in exchange or ())
    accounts = [AccountSelector(exchange_id=name, environment=environment, account_type=account_type) for name in names]
    run(_watch(target, user, accounts, min_interval, events, output), output)


async def _watch(
    target: Target, user: str, accounts: Sequence[AccountSelector], min_interval: float, limit: int, output: Output
) -> None:
    view = _LiveView() if output is Output.TABLE and console.is_terminal else None
    count = balances = 0
    refusal: ServiceError | None = None
    # What can never be followed, of the accounts that were asked for by name.
    hopeless: set[tuple[str, str, str]] = set()

    def interrupted(error: ServiceError) -> None:
        messages.print(f"[yellow]interrupted:[/] {plain(error.text)} Trying again.", soft_wrap=True)

    async with target.client() as client:
        events = client.stream_balances(
            user, accounts, min_interval=min_interval, resume=True, on_interruption=interrupted
        )
        with Live(console=console, auto_refresh=False) if view else _Nothing() as live:
            async for event in events:
                if view is not None and isinstance(live, Live):
                    live.update(view.after(event), refresh=True)
                elif output is Output.TABLE:
                    _print_event(event)
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
                        hopeless.add((error.exchange_id, error.environment, error.account_type))
                if accounts and len(hopeless) == len(accounts):
                    break
                if limit and count >= limit:
                    break
    if refusal is not None and not balances:
        # Nothing but errors came; it has been said which.
        raise typer.Exit(exit_code(refusal))


class _Nothing:
    """Stands in for the live display where there is no terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _LiveView:
    """The newest balance of each account, as one table that is drawn again at each event."""

    def __init__(self) -> None:
        self._balances: dict[tuple[str, str, str], balance_pb2.Balance] = {}
        self._trouble: dict[tuple[str, str, str], str] = {}
        self._heard = ""

    def after(self, event: StreamBalancesResponse) -> Group:
        """The display after one more event."""
        self._heard = datetime.now().astimezone().strftime("%H:%M:%S")
        kind = event.WhichOneof("event")
        if kind == "balance":
            message = event.balance.balance
            key = (message.exchange_id, message.environment, message.account_type)
            self._balances[key] = message
            self._trouble.pop(key, None)
        elif kind == "account_error":
            error = event.account_error
            key = (error.exchange_id, error.environment, error.account_type)
            self._trouble[key] = _trouble(event)
        lines = [f"[red]{text}[/]" for text in self._trouble.values()]
        footer = f"[dim]last event {self._heard}; interrupt to end[/]"
        return Group(tables.balances(self._balances[key] for key in sorted(self._balances)), *lines, footer)


def _print_event(event: StreamBalancesResponse) -> None:
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    kind = event.WhichOneof("event")
    if kind == "balance":
        balance = event.balance.balance
        stale = f" ({tables.freshness(event.balance.freshness)})" if event.balance.freshness.HasField("stale") else ""
        for exchange, account, asset, *figures in tables.balance_lines(balance):
            named = zip(("total", "free", "used"), figures, strict=True)
            amounts = "".join(f" {name} {figure}" for name, figure in named if figure)
            console.print(f"{now} {exchange} {account} {asset}{amounts}{stale}", soft_wrap=True)
        for fault in tables.faults(balance):
            console.print(f"{now} {balance.exchange_id} not read: {fault}", soft_wrap=True)
    elif kind == "account_error":
        console.print(f"{now} {_trouble(event)}", soft_wrap=True)
    elif kind == "heartbeat":
        count = len(event.heartbeat.accounts)
        state = f"{count} account{'' if count == 1 else 's'}" if count else "no account is stored for this user yet"
        console.print(f"[dim]{now} alive, {state}[/]")


def _reason(event: StreamBalancesResponse) -> str:
    return error_reason_pb2.ErrorReason.Name(event.account_error.error.reason).removeprefix("ERROR_REASON_")


def _trouble(event: StreamBalancesResponse) -> str:
    error = event.account_error
    reason = _reason(event)
    return plain(f"{error.exchange_id} {error.environment} {reason}: {error.error.message}")


@calling
def health(target: Target) -> None:
    """Ask whether the service is serving."""
    run(_health(target))


async def _health(target: Target) -> None:
    async with target.client() as client:
        stub = health_pb2_grpc.HealthStub(client.channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=target.timeout)
        except grpc.aio.AioRpcError as error:
            raise ServiceUnreachable(
                f"The service at {target.address} did not answer ({error.code().name}).",
                advice="Start it with `exchange-service serve` or `exchange-service demo`.",
            ) from None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    console.print(name)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        messages.print("The service's log says why, and so does `exchange-service doctor` with the same settings.")
        raise typer.Exit(ExitCode.AGAIN)


def version() -> None:
    """Print the version."""
    typer.echo(f"exchange-service {__version__}")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (exchanges, balance, watch, health, version):
        app.command()(command)
