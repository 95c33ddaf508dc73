"""Spans of the requests to venues, made by a plugin through `call.http` or by a venue's library through the session.

A session has these hooks only if the service makes traces. A span tells the method, the host, the masked path and the
status; never a query, a header or a body.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from exchange_service.observability.tracing import CLIENT, ActiveSpan, current_span, masked_path, reason_of

# What a WebSocket begins with.
_SWITCHING = 101
_FAILED = 400


def request_traces() -> list[aiohttp.TraceConfig]:
    """The hooks of aiohttp for one session."""
    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(_on_start)
    trace.on_request_end.append(_on_end)
    trace.on_request_exception.append(_on_exception)
    return [trace]


async def _on_start(_session: Any, context: SimpleNamespace, start: aiohttp.TraceRequestStartParams) -> None:
    parent = current_span()
    context.span = None if parent is None else _begin(parent, start.method, start.url)


def _begin(parent: ActiveSpan, method: str, url: URL) -> ActiveSpan:
    attributes: dict[str, str | int | float | bool] = {
        "http.request.method": method,
        "server.address": url.host or "",
        "url.path": masked_path(url.raw_path, parent.private),
    }
    if url.port is not None and not url.is_default_port():
        attributes["server.port"] = url.port
    return parent.child(method, attributes, kind=CLIENT)


async def _on_end(_session: Any, context: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
    span, response = context.span, end.response
    if span is None:
        return
    span.set({"http.response.status_code": response.status})
    if response.status == _SWITCHING or not isinstance(response, TracedResponse):
        span.end()
    else:
        # It ends when the body has been read.
        response.span = span


async def _on_exception(_session: Any, context: SimpleNamespace, failed: aiohttp.TraceRequestExceptionParams) -> None:
    # None too if the request failed before it began.
    span = getattr(context, "span", None)
    if span is not None:
        span.end(reason_of(failed.exception))


class TracedResponse(aiohttp.ClientResponse):
    """A response whose span ends when its body has been read, or is given up. A base of the session's own class."""

    span: ActiveSpan | None = None

    def end_span(self, reason: str = "") -> None:
        """Nothing happens if there is no span, or if it has ended."""
        span, self.span = self.span, None
        if span is not None:
            span.end(reason or (str(self.status) if self.status >= _FAILED else ""))


def traced_response(base: type[aiohttp.ClientResponse]) -> type[aiohttp.ClientResponse]:
    """The response class of a session whose requests have spans."""

    class Traced(base, TracedResponse):  # type: ignore[misc, valid-type]
        async def read(self) -> bytes:
            try:
                body: bytes = await super().read()
            except BaseException as error:
                self.end_span(reason_of(error))
                raise
            self.end_span()
            return body

        def release(self) -> Any:
            self.end_span()
            return super().release()

        def close(self) -> None:
            self.end_span()
            super().close()

    return Traced
