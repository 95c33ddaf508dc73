"""The commands that read from a running service once, exchanges and balance, and the options of all that call it."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from exchange_service.cli import tables
from exchange_service.cli.outcome import ExitCode, Output, console, fail, messages, plain, run
from exchange_service.cli.signatures import replacing
from exchange_service.client import ExchangeServiceClient, is_loopback
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.v1 import exchange_pb2
from exchange_service.v1.exchange_service_pb2 import (
    ListExchangesResponse,
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

# The help of an option that several commands have.
ACCOUNT_TYPE = "One of the exchange's account types, or all. Default: the one that the exchange's listing names."

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


def option(name: str, kind: Any, default: Any, text: str, **more: Any) -> inspect.Parameter:
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
        tables.print_json(_catalogue(reply, entries))
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


def _catalogue(first: ListExchangesResponse, entries: Sequence[exchange_pb2.Exchange]) -> dict[str, Any]:
    """The whole answer as JSON: the entries of all pages, and what the first page says beside them. Every name is there
    in every answer."""
    stats = first.stats
    return {
        "exchanges": [tables.as_dict(entry) for entry in entries],
        "matching_count": first.matching_count,
        "stats": {"total": stats.total, "custom": stats.custom, "ccxt": stats.ccxt},
        "problems": [tables.as_dict(problem) for problem in first.problems],
        "retired": [tables.as_dict(gone) for gone in first.retired],
        "etag": first.etag,
    }


_BALANCE_OPTIONS = (
    option("environment", str, "", "production, sandbox, or the venue's own name for one of them."),
    option("account_type", str, "", ACCOUNT_TYPE),
    option("max_age", float | None, None, "The oldest acceptable balance in seconds; 0 asks the venue now.", min=0),
    option("include_zero", bool, False, "Also show rows whose amounts are all zero."),
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


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (exchanges, balance):
        app.command()(command)
