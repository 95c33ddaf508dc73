"""`watch`: a user's balances as they change, for people as a table or lines, for programs as JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, TypeAlias

import typer
from rich.console import Group
from rich.live import Live

from exchange_service.cli import tables
from exchange_service.cli.calls import ACCOUNT_TYPE, OutputOption, Target, UserOption, calling, option
from exchange_service.cli.outcome import ExitCode, Output, console, exit_code, fail, messages, plain, run
from exchange_service.cli.signatures import replacing
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

# Waiting does not help: the request names something that does not exist.
_NEVER = (ExchangeUnknown, ExchangeRetired, FieldInvalid, NotSupported)
# Of several errors the first of these is the exit code: the one that waiting helps least.
_WORST_FIRST = (ExitCode.BUG, ExitCode.ACT, ExitCode.MISSING, ExitCode.USAGE, ExitCode.AGAIN)
# A stream that names an account which the caller has already begins with a heartbeat, which tells what it follows. The
# service ignores an account that the stream does not follow.
ASK_FOR_HEARTBEAT = AccountSelector(exchange_id="-", unconfirmed=True)

_AccountName: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """Which accounts of the named exchanges to follow, how often to show each, and when to end."""

    environment: str
    account_type: str
    min_interval: float
    events: int
    until_balance: bool
    within: float


_WATCH_OPTIONS = (
    option("environment", str, "", "The environment of the named exchanges."),
    option("account_type", str, "", ACCOUNT_TYPE),
    option(
        *("min_interval", float, 0.0, "The least number of seconds between two balances of an account."),
        min=0,
        max=3600,
    ),
    option("events", int, 0, "End after this number of balances and errors; 0: never.", min=0),
    option(
        *("until_balance", bool, False),
        "End when each account has given a balance or an error. Exit code 0 if all are balances, else that of the "
        "worst error; 3 if the user has no account.",
    ),
    option(
        *("within", float, 0.0),
        "End after this number of seconds; 0: never. Exit code 5 if an account of --until-balance has given nothing.",
        min=0,
    ),
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
    progress = Progress(len(accounts))
    try:
        async with asyncio.timeout(options.within or None):
            await _follow(target, user, accounts, options, output, progress)
    except TimeoutError:
        if options.until_balance and (missing := progress.missing()):
            names = ", ".join(missing)
            messages.print(f"[yellow]nothing yet from:[/] {names}. Give it more time by --within.", soft_wrap=True)
    code = progress.code_of_all() if options.until_balance else progress.code_without_balances()
    if code:
        # The errors were printed as they came.
        raise typer.Exit(code)


async def _follow(
    target: Target,
    user: str,
    accounts: Sequence[AccountSelector],
    options: WatchOptions,
    output: Output,
    progress: Progress,
) -> None:
    """Print the events, until the options say that it is enough, or nothing can come any more."""

    def report_interruption(error: ServiceError) -> None:
        messages.print(f"[yellow]interrupted:[/] {plain(error.text)} Trying again.", soft_wrap=True)

    printer = _Printer(output)
    async with target.client() as client:
        events = client.stream_balances(
            user,
            accounts,
            min_interval=options.min_interval,
            known=[ASK_FOR_HEARTBEAT] if options.until_balance else [],
            resume=True,
            on_interruption=report_interruption,
        )
        with printer:
            async for event in events:
                printer.print(event)
                progress.note(event)
                if progress.has_no_account():
                    printer.note_no_account(user, waits=not options.until_balance)
                if progress.is_hopeless() or (options.events and progress.count >= options.events):
                    break
                if options.until_balance and progress.is_complete():
                    break


class Progress:
    """What the accounts of a stream have given so far. `named` is the number of accounts that the stream names, 0 for
    all accounts of a user, which a heartbeat tells."""

    def __init__(self, named: int) -> None:
        self._named = named
        # The accounts that the newest heartbeat has told; None before the first.
        self._told: set[_AccountName] | None = None
        # Of each account its last event: an error, or None for a balance.
        self._last: dict[_AccountName, ServiceError | None] = {}
        self._latest_error: ServiceError | None = None
        self._balances = 0
        # Balances and errors.
        self.count = 0

    def note(self, event: StreamBalancesResponse) -> None:
        """Take in one more event."""
        if event.HasField("balance"):
            self._last[_name_of(event.balance.balance)] = None
            self._balances += 1
            self.count += 1
        elif event.HasField("account_error"):
            self._latest_error = from_reason(_reason(event), event.account_error.error.message)
            self._last[_name_of(event.account_error)] = self._latest_error
            self.count += 1
        elif event.HasField("heartbeat"):
            self._told = {_name_of(state) for state in event.heartbeat.accounts}

    def has_no_account(self) -> bool:
        """Whether the stream follows all accounts of a user that has none."""
        return not self._named and self._told == set()

    def is_hopeless(self) -> bool:
        """Whether none of the named accounts can ever be followed."""
        never = sum(isinstance(error, _NEVER) for error in self._last.values())
        return 0 < self._named <= never

    def is_complete(self) -> bool:
        """Whether each account has given a balance or an error."""
        if self._named:
            return len(self._last) >= self._named
        return self._told is not None and self._told <= self._last.keys()

    def missing(self) -> list[str]:
        """The names of the accounts that have given nothing, as far as they are known."""
        return sorted(_shown_name(name) for name in (self._told or set()) - self._last.keys())

    def code_of_all(self) -> ExitCode | None:
        """The exit code of `--until-balance`; None if each account's last event is a balance."""
        codes = {exit_code(error) for error in self._last.values() if error is not None}
        if self.has_no_account():
            codes.add(ExitCode.MISSING)
        elif not self.is_complete() and not self.is_hopeless():
            codes.add(ExitCode.AGAIN)
        return next((code for code in _WORST_FIRST if code in codes), None)

    def code_without_balances(self) -> ExitCode | None:
        """The exit code of the last error if nothing else has come; None if a balance has, or nothing at all."""
        return exit_code(self._latest_error) if self._latest_error is not None and not self._balances else None


class _Printer:
    """Prints events: as a table that is redrawn if a person looks at a terminal, as lines, or as JSON lines."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._view = LiveView() if output is Output.TABLE and console.is_terminal else None
        self._live = Live(console=console, auto_refresh=False) if self._view else None
        self._lines = EventLines()
        self._noted = False

    def __enter__(self) -> None:
        display: AbstractContextManager[object] = self._live or nullcontext()
        display.__enter__()

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def print(self, event: StreamBalancesResponse) -> None:
        """Print one event."""
        if self._view is not None and self._live is not None:
            self._live.update(self._view.after(event), refresh=True)
        elif self._output is Output.TABLE:
            for line in self._lines.after(event):
                console.print(line, soft_wrap=True)
        else:
            tables.print_line(tables.as_dict(event))

    def note_no_account(self, user: str, *, waits: bool) -> None:
        """Say once that the user has no account, and what to do."""
        if not self._noted:
            self._noted = True
            then = " An account that is added now is shown here." if waits else ""
            advice = f"Add one with `exchange-service credentials add --user {plain(user)}`.{then}"
            # Above the table that is redrawn, which standard error would tear.
            where = messages if self._live is None else self._live.console
            where.print(f"[yellow]note:[/] no account is stored for {plain(user)}. {advice}", soft_wrap=True)


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
    """Add the command."""
    app.command()(watch)
