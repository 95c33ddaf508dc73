"""Structured log lines on standard error; standard output is for the output of commands.

Every line passes `redaction.redact` before it is rendered: our own in the last processor, those of other libraries in
the one handler.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO, cast

from exchange_service.observability.redaction import is_own_name, is_own_word, redact, redact_text
from exchange_service.observability.tracing import current_span
from exchange_service.printable import printable

# Below INFO these libraries log statements with their parameters, requests with their headers, or whole answers.
QUOTING_LOGGERS = ("aiosqlite", "ccxt", "psycopg", "redis", "sqlalchemy", "urllib3")

REQUEST_ID, TRACE_ID = "request_id", "trace_id"
_TRACE_ID = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(slots=True)
class CallMark:
    """The request id of the log lines of one call.

    Empty it when the call ends: work that the call has started, such as a feed that others have joined, may outlive it,
    and its later lines do not belong to the call.
    """

    request_id: str


# Set once at the beginning of a call; the call's tasks inherit it. structlog's `bind_contextvars` takes four times as
# long.
current_call: ContextVar[CallMark | None] = ContextVar("current_call", default=None)


def current_request_id() -> str:
    """The id of the call that is being handled; empty outside of calls."""
    mark = current_call.get()
    return mark.request_id if mark is not None else ""


def configure_logging(level: str = "warning", style: str = "auto", stream: TextIO | None = None) -> None:
    """Write lines of `level` and above, in the `style` "console" or "json"; "auto" is console on a terminal.

    `stream` replaces standard error for our own lines.
    """
    # Late: a command that only calls a service writes no such lines.
    import structlog

    for_people = style == "console" or (style == "auto" and sys.stderr.isatty())
    listen_to_libraries()
    visible: list[Any] = []
    renderer: Any = structlog.processors.JSONRenderer()
    if for_people:
        visible = [make_visible]
        # The pretty formatter would show the values of local variables.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact_event,
            *visible,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream or cast("TextIO", StandardError())),
        cache_logger_on_first_use=False,
    )


def add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: add the current request id, and the trace's if the call is traced. Lines of a plugin's
    process keep those that they have."""
    request_id = current_request_id()
    if request_id:
        event.setdefault(REQUEST_ID, request_id)
    span = current_span()
    if span is not None:
        event.setdefault(TRACE_ID, span.trace_id)
    return event


def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor: hide the secrets of an event."""
    return {_redact_name(name): _redact_field(name, value) for name, value in event.items()}


def make_visible(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor for terminals: escape what would move the cursor or forge a line. JSON does so itself."""
    return {printable(name): _make_visible(name, value) for name, value in event.items()}


def _make_visible(name: str, value: Any) -> Any:
    # A traceback has several lines. What is no text is shown by its `repr`.
    return printable(value, keep="\n\t" if name == "exception" else "") if isinstance(value, str) else value


def _redact_name(name: str) -> str:
    return name if is_own_name(name) else redact_text(name)


def _redact_field(name: str, value: Any) -> Any:
    if name == REQUEST_ID and isinstance(value, str):
        # Most request ids are UUIDs, which look like keys.
        return redact_text(value, runs=False)
    if name == TRACE_ID and isinstance(value, str) and _TRACE_ID.match(value):
        # It looks like a key, and is known to all who take part in the trace.
        return redact_text(value, runs=False)
    if is_own_word(name, value):
        # None of these is a secret, and a text that a user has stored must not hide them in everybody's lines.
        return redact_text(value, held=False)
    return redact(value, name)


class StandardError:
    """A stream that writes to what `sys.stderr` is at that moment.

    A line that cannot be written, because the disk is full or its reader has gone, is lost: what it is about goes on.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


class LibraryLines(logging.Handler):
    """Writes the records of libraries, without their secrets, to standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.addFilter(_is_harmless)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            request_id = current_request_id()
            call = f" {REQUEST_ID}={redact_text(request_id, runs=False)}" if request_id else ""
            # Tracebacks have several lines.
            sys.stderr.write(printable(f"{redact(self.format(record))}{call}", keep="\n\t") + "\n")
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Drop a line that cannot be written: the standard library would print its arguments in full."""


def _is_harmless(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.INFO or record.name.partition(".")[0] not in QUOTING_LOGGERS


def listen_to_libraries() -> None:
    """Write other libraries' records, without their secrets."""
    root = logging.getLogger()
    if not any(isinstance(handler, LibraryLines) for handler in root.handlers):
        root.addHandler(LibraryLines())
