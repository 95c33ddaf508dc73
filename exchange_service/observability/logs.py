"""Log lines: structured, on standard error, so that standard output stays what programs read.

Whatever is written passes `redaction.redacted` last before it is rendered: our own lines as their last processor, other
libraries' lines in the one handler.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO, cast

import structlog

from exchange_service.observability.redaction import redacted, redacted_text

# Below INFO these quote statements with their parameters, requests with their headers, or whole answers.
QUOTING_LOGGERS = ("aiosqlite", "ccxt", "psycopg", "redis", "sqlalchemy", "urllib3")

REQUEST_ID = "request_id"


@dataclass(slots=True)
class CallMark:
    """Marks the lines of one call. Empty it when the call ends: what a call has started may outlive it, such as a feed
    that others have joined, and speaks for itself from then on."""

    request_id: str


# Set with its own `set`, once at the beginning of a call: the call's tasks inherit it. structlog's `bind_contextvars`
# would take four times as long, for every call.
current_call: ContextVar[CallMark | None] = ContextVar("current_call", default=None)


def current_request_id() -> str:
    """Which call is being handled; empty where none is."""
    mark = current_call.get()
    return mark.request_id if mark is not None else ""


def configure_logging(level: str = "warning", style: str = "auto", stream: TextIO | None = None) -> None:
    """Lines of `level` and above; `style` is "console" for people, "json", or "auto" for what fits standard error.

    `stream` is where our own lines go in the place of standard error.
    """
    for_people = style == "console" or (style == "auto" and sys.stderr.isatty())
    _listen_to_libraries()
    renderer: Any = structlog.processors.JSONRenderer()
    if for_people:
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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream or cast("TextIO", StandardError())),
        cache_logger_on_first_use=False,
    )


def add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the event with the call that it belongs to. One that came with it stays, as in the lines
    of a plugin's process."""
    request_id = current_request_id()
    if request_id:
        event.setdefault(REQUEST_ID, request_id)
    return event


def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor: the event without its secrets."""
    return {redacted(name): _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: Any) -> Any:
    if name == REQUEST_ID and isinstance(value, str):
        # Most callers' are UUIDs, which look like keys.
        return redacted_text(value, runs=False)
    return redacted(value, name)


class StandardError:
    """Standard error, whatever that is at the time."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class LibraryLines(logging.Handler):
    """Writes the standard library's records to standard error, without their secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.addFilter(_quotes_nothing)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            request_id = current_request_id()
            call = f" {REQUEST_ID}={redacted_text(request_id, runs=False)}" if request_id else ""
            sys.stderr.write(f"{redacted(self.format(record))}{call}\n")
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """A line that cannot be written is lost: the standard library would print its arguments in full."""


def _quotes_nothing(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.INFO or record.name.partition(".")[0] not in QUOTING_LOGGERS


def _listen_to_libraries() -> None:
    """Let other libraries' warnings through, by one handler of ours."""
    root = logging.getLogger()
    if not any(isinstance(handler, LibraryLines) for handler in root.handlers):
        root.addHandler(LibraryLines())
