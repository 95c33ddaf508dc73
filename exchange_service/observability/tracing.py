"""Spans, as the code that makes them knows them: without a library, and for nothing if the call is not traced.

What is in progress has a current span, which tasks inherit. Code asks for a child of it, and gets None where nothing is
traced: then it does nothing more. `spans.py` makes of them what is exported; a plugin's process, which reaches no
network but its venue's, keeps them (`RecordedSpan`) and sends them to the service with its reply.

A span never holds a query, a header, a body, an error's text, a user's id or an account's number: its attributes are
those that this project writes, and the path of a request is masked (`masked_path`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context, ContextVar, Token, copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from exchange_service.errors import ServiceError

Attributes: TypeAlias = Mapping[str, str | int | float | bool]

# What a span is about: ours, or a call that we answer, or one that we make.
INTERNAL, SERVER, CLIENT = "internal", "server", "client"
# The reason of a span that was cancelled, as of a fetch that no caller waits for any more.
CANCELLED = "CANCELLED"
MASK = "*"
# Spans of one call that a plugin's process sends: a fetch of many pages has some tens of requests.
MOST_SPANS = 64
_MOST_SEGMENTS, _LONGEST_PATH = 16, 200

# A segment of a path that says what is asked for: a word with a small letter in it and no digit, or a version. An
# account's number, a key or an address has digits, an asset's code only capitals.
_WORD = re.compile(r"(?=[^a-z]*[a-z])[A-Za-z_.-]{1,40}\Z")
_VERSION = re.compile(r"(?:v\d{1,2}(?:\.\d)?|\d)\Z")
# Behind these stands whose it is, which may be a word too.
_OWNERS = frozenset(
    {
        *("account-id", "account_balances", "accounts", "address", "addresses", "customers", "members", "portfolios"),
        *("profiles", "sub-account", "sub-accounts", "sub_accounts", "subaccount", "subaccounts", "trading-accounts"),
        *("users", "vaults", "wallets", "whitelists"),
    }
)


class ActiveSpan(Protocol):
    """A span in progress. After `end` it takes nothing more, and is nobody's parent."""

    trace_id: str
    is_open: bool
    # Texts that no path shows, such as an account's number.
    private: frozenset[str]

    def child(
        self, name: str, attributes: Attributes | None = None, *, kind: str = INTERNAL, began_ago: float = 0.0
    ) -> ActiveSpan:
        """A span within this one, which began so many seconds ago."""

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Something that happened now."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def link(self, other: ActiveSpan) -> None:
        """What this one waits for is done in another span."""

    def end(self, reason: str = "", *, ended_ago: float = 0.0) -> None:
        """It has ended, so many seconds ago; `reason` says why it failed, and is empty if it did not."""


class Tracing(Protocol):
    """Begins traces."""

    def begin_call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]] | None, *, began_ago: float = 0.0
    ) -> ActiveSpan | None:
        """The span of a call of this method, such as "exchange_service.v1.ExchangeService/GetBalance", within the
        caller's own if the metadata name that; None if it is not traced."""

    def end_call(self, span: ActiveSpan, code: int, reason: str) -> None:
        """The call has ended with gRPC's status of this number; `reason` is empty if it went well."""

    def begin_root(
        self, name: str, attributes: Attributes, link: ActiveSpan | None = None, *, began_ago: float = 0.0
    ) -> ActiveSpan | None:
        """The first span of a trace of its own, which comes of the work of the span `link`; None if not traced."""


_current: ContextVar[ActiveSpan | None] = ContextVar("current_span", default=None)


def current_span() -> ActiveSpan | None:
    """The span of what is in progress; None if nothing is traced."""
    span = _current.get()
    return span if span is not None and span.is_open else None


def origin_span() -> ActiveSpan | None:
    """The span in which this task was begun, though it may have ended: to link to, and nobody's parent."""
    return _current.get()


def use_span(span: ActiveSpan | None) -> Token[ActiveSpan | None]:
    """Make it the current one of this task, and of those that it begins."""
    return _current.set(span)


def leave_span(token: Token[ActiveSpan | None]) -> None:
    """Make the one before `use_span` the current one again."""
    _current.reset(token)


def context_with(span: ActiveSpan | None) -> Context | None:
    """The context for a task that works within this span; None, for a task as any other, if there is no span."""
    if span is None:
        return None
    context = copy_context()
    context.run(_current.set, span)
    return context


def child_span(name: str, attributes: Attributes, *, kind: str = INTERNAL) -> ActiveSpan | None:
    """A new span within the current one; None if nothing is traced."""
    parent = current_span()
    return None if parent is None else parent.child(name, attributes, kind=kind)


def add_event(name: str, **attributes: str | int | float | bool) -> None:
    """Note in the current span, if there is one, that something happened."""
    span = current_span()
    if span is not None:
        span.event(name, attributes)


def annotate(**attributes: str | int | float | bool) -> None:
    """Add attributes to the current span, if there is one; their names get the project's prefix."""
    span = current_span()
    if span is not None:
        span.set({f"exchange_service.{name}": value for name, value in attributes.items()})


def end_span() -> None:
    """End the current span, if there is one, before its work ends."""
    span = current_span()
    if span is not None:
        span.end()


class Within:
    """The body of a `with` works within this span, which ends with it; None: nothing is traced, and nothing done."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: ActiveSpan | None) -> None:
        self._span = span

    def __enter__(self) -> ActiveSpan | None:
        if self._span is not None:
            self._token = use_span(self._span)
        return self._span

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if self._span is not None:
            leave_span(self._token)
            self._span.end(reason_of(error))


def reason_of(error: BaseException | None) -> str:
    """An error as a span tells it: a reason of the error tree, or the class's name, and never its text."""
    if error is None:
        return ""
    if isinstance(error, ServiceError):
        return error.reason
    return CANCELLED if type(error).__name__ == "CancelledError" else type(error).__name__


def masked_path(path: str, private: Iterable[str] = ()) -> str:
    """A URL's path of which only words and versions are shown: what else stands there may be an account's number, an
    address or a key. `private`: texts that are hidden even if they are words."""
    hidden = {text.casefold() for text in private}
    segments = path.partition("?")[0].split("/")[1:]
    shown, owner = [], False
    for segment in segments[:_MOST_SEGMENTS]:
        is_word = _WORD.match(segment) is not None and not owner and segment.casefold() not in hidden
        shown.append(segment if not segment or is_word or _VERSION.match(segment) else MASK)
        owner = segment.casefold() in _OWNERS
    more = ["…"] if len(segments) > _MOST_SEGMENTS else []
    return f"/{'/'.join((*shown, *more))}"[:_LONGEST_PATH]


def private_texts(values: Iterable[object]) -> frozenset[str]:
    """The texts among these, and within mappings and lists of them."""
    found, left = set(), list(values)
    while left:
        value = left.pop()
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, Sequence) and not isinstance(value, bytes):
            left.extend(value)
    return frozenset(found - {""})


@dataclass(slots=True)
class RecordedSpan:
    """A span of a plugin's process, kept until its call's reply. Times are by the monotonic clock."""

    trace_id: str
    # All spans of the call, the call itself excepted.
    spans: list[RecordedSpan]
    name: str = ""
    # The place of its parent among the spans, counted from 1; 0 for the call itself.
    parent: int = 0
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)
    kind: str = INTERNAL
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    reason: str = ""
    is_open: bool = True
    private: frozenset[str] = frozenset()
    # Its own place among the spans; 0 for the call itself, and for those that are not kept.
    place: int = 0

    @classmethod
    def of_call(cls, trace_id: str) -> RecordedSpan:
        """The call, of which the service has a span of its own."""
        return cls(trace_id, [])

    def child(
        self, name: str, attributes: Attributes | None = None, *, kind: str = INTERNAL, began_ago: float = 0.0
    ) -> RecordedSpan:
        """See ActiveSpan."""
        span = RecordedSpan(self.trace_id, self.spans, name, self.place, dict(attributes or {}), kind)
        span.private = self.private
        span.began -= began_ago
        if len(self.spans) < MOST_SPANS:
            self.spans.append(span)
            span.place = len(self.spans)
        return span

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Not kept: what happens within a process has spans."""

    def set(self, attributes: Attributes) -> None:
        """See ActiveSpan."""
        self.attributes.update(attributes)

    def link(self, other: ActiveSpan) -> None:
        """Not kept."""

    def end(self, reason: str = "", *, ended_ago: float = 0.0) -> None:
        """See ActiveSpan."""
        if self.is_open:
            self.is_open, self.reason, self.ended = False, reason, time.monotonic() - ended_ago
