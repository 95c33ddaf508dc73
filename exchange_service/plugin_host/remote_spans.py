"""Makes spans of the service out of what a plugin's process says that it did for a call. Nothing of it is believed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import isfinite

from exchange_service.observability.tracing import (
    CLIENT,
    INTERNAL,
    MASK,
    MOST_SPANS,
    ActiveSpan,
    Attributes,
    masked_path,
)
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.venues.registry import Listing

_HOOK = re.compile(r"plugin\.[a-z_]{1,40}\Z")
_METHOD = re.compile(r"[A-Z]{3,7}\Z")
_ERROR = re.compile(r"[A-Za-z_]{1,40}\Z|[1-5]\d\d\Z")


def rebuild_spans(
    spans: Sequence[messages.Span], call: ActiveSpan, age: float, listing: Listing, hosts: Iterable[str]
) -> None:
    """Put the spans of a process below that of its `call`, which began `age` seconds ago. `hosts` are those that the
    process may reach: another one is not shown."""
    known = frozenset(hosts)
    made: list[ActiveSpan | None] = []
    for span in spans[:MOST_SPANS]:
        # A parent comes before its children, and has ended by then: what is made below it is still within it.
        parent = made[span.parent - 1] if 0 < span.parent <= len(made) else call
        made.append(None if parent is None else _rebuild(span, parent, age, listing, known))
    for one, span in zip(reversed(made), reversed(spans[: len(made)]), strict=True):
        if one is not None:
            error = span.error if _ERROR.match(span.error) else ""
            one.end(error, ended_ago=_within(span.ended_ago, _within(span.began_ago, age)))


def _rebuild(
    span: messages.Span, parent: ActiveSpan, age: float, listing: Listing, hosts: frozenset[str]
) -> ActiveSpan | None:
    began_ago = _within(span.began_ago, age)
    if _HOOK.match(span.name):
        attributes: dict[str, str | int | float | bool] = {
            "exchange_service.plugin": listing.plugin.info.name,
            "exchange_service.exchange": listing.metadata.id,
        }
        return parent.child(span.name, attributes, kind=INTERNAL, began_ago=began_ago)
    if _METHOD.match(span.name):
        return parent.child(span.name, _of_request(span, hosts, parent.private), kind=CLIENT, began_ago=began_ago)
    return None


def _of_request(span: messages.Span, hosts: frozenset[str], private: frozenset[str]) -> Attributes:
    attributes: dict[str, str | int | float | bool] = {
        "http.request.method": span.name,
        "server.address": span.host if span.host in hosts else MASK,
        "url.path": masked_path(span.path, private),
    }
    if 0 < span.port < 65536:
        attributes["server.port"] = span.port
    if 100 <= span.status < 600:
        attributes["http.response.status_code"] = span.status
    return attributes


def _within(seconds: float, most: float) -> float:
    return min(max(0.0, seconds), most) if isfinite(seconds) else 0.0
