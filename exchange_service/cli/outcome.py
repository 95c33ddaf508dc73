"""Running a command: it prints its result, and a failure becomes a sentence and an exit code."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.segment import Segment

from exchange_service import errors
from exchange_service.client import ServiceUnreachable
from exchange_service.printable import printable

if TYPE_CHECKING:
    # Commands that read no settings need not import it.
    from pydantic import ValidationError

# The width of output into a file or a pipe: wider than any line, so that a program finds each line whole.
_WIDE = 100_000
# The end of a line, with the blanks that fill a table's last column and a terminal's codes for colours between them.
_LINE_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+(?=\n|\Z)")


def _close_stdout() -> typer.Exit:
    """The exit for a reader that closes our output early, as `head` does. The rest of the output must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return typer.Exit(0)


class _Pipeable(Console):
    """The library's console, which shows no escape sequence of a foreign text that nobody has looked at."""

    def on_broken_pipe(self) -> None:
        raise _close_stdout()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and leave it to the terminal to break a line that is too long for it, instead of cutting it."""
        super().print(*objects, **{"crop": False} | options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        text = super()._render_buffer(
            segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)
            for segment in buffer
        )
        return _LINE_END.sub(lambda end: end[0].replace(" ", ""), text)


def _make_console(*, stderr: bool = False) -> Console:
    made = _Pipeable(stderr=stderr, emoji=False)
    return made if made.is_terminal else _Pipeable(stderr=stderr, emoji=False, width=_WIDE)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON that a terminal can show: letters as they are, and what is not printable escaped."""
    return printable(json.dumps(value, indent=indent, ensure_ascii=False), keep="\n")


def echo(text: str) -> None:
    """Print a line for programs."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        raise _close_stdout() from None


console = _make_console()
# Messages for people go to standard error, so that programs can read standard output.
messages = _make_console(stderr=True)


class Output(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


class ExitCode(IntEnum):
    """The exit codes of every command."""

    BUG = 1
    USAGE = 2
    MISSING = 3
    ACT = 4
    AGAIN = 5


_MISSING = (errors.ExchangeUnknown, errors.ExchangeRetired, errors.CredentialMissing, errors.NotSupported)
_AGAIN = (
    errors.VenueRateLimited,
    errors.CallerRateLimited,
    errors.ServiceOverloaded,
    errors.VenueUnavailable,
    errors.VenueMaintenance,
    errors.VenueTimeout,
    errors.VenueMalformed,
    errors.StoreUnavailable,
    errors.ShuttingDown,
    errors.StreamLifetimeReached,
    errors.DeadlinePassed,
    errors.SubscriberTooSlow,
    ServiceUnreachable,
)
_BUG = (errors.ServiceFailed, errors.PluginFailed, errors.RequestRefused)


def exit_code(error: errors.ServiceError) -> ExitCode:
    """The exit code for an error; ACT, that a person must act, if no other fits."""
    if isinstance(error, errors.FieldInvalid):
        return ExitCode.USAGE
    if isinstance(error, _MISSING):
        return ExitCode.MISSING
    if isinstance(error, _AGAIN):
        return ExitCode.AGAIN
    return ExitCode.BUG if isinstance(error, _BUG) else ExitCode.ACT


def fail(message: str, code: ExitCode) -> NoReturn:
    """Print a sentence and exit."""
    messages.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True)
    raise typer.Exit(code)


def plain(text: str) -> str:
    """A foreign text in a form that is safe to print: without markup, and without control characters."""
    return escape(printable(text))


def run(
    work: Coroutine[Any, Any, None],
    output: Output = Output.TABLE,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run a command to its end. A failure becomes a sentence, or one JSON object for programs, and an exit code."""
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(work)
    except errors.ServiceError as error:
        if output is Output.TABLE:
            wait = f" (Wait {error.retry_after:.3g} s.)" if error.retry_after else ""
            fail(error.text + wait, exit_code(error))
        fault = {"reason": error.reason, "message": error.text, "retry_after": error.retry_after}
        typer.echo(json_text({"error": fault}), err=True)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def describe(invalid: ValidationError) -> str:
    """What is wrong with the settings, by their names and without their values."""
    faults = []
    for item in invalid.errors(include_input=False):
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "there is no such setting"
        faults.append(f"{'.'.join(map(str, item['loc']))}: {text}")
    return "; ".join(faults)


def missing_text(names: Sequence[str]) -> str:
    """A sentence that names the missing fields; empty if there are none."""
    if not names:
        return ""
    return f"{', '.join(names)} missing; store it again with `exchange-service credentials add`."
