"""Traces by OpenTelemetry: spans as its interface makes them, and where they are sent.

Only a service whose settings ask for traces imports this. What makes and sends spans is the extra [traces]; with
`traces=global` it is whatever the process has set, such as `opentelemetry-instrument`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from exchange_service import __version__
from exchange_service.observability.redaction import redact_text
from exchange_service.observability.tracing import CANCELLED, CLIENT, INTERNAL, SERVER, ActiveSpan, Attributes

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = structlog.get_logger(__name__)

_KINDS = {INTERNAL: SpanKind.INTERNAL, SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT}
# What W3C's trace context is sent in.
_CARRIERS = ("traceparent", "tracestate")
_LONGEST_CARRIED = 1024
_PROPAGATOR = TraceContextTextMapPropagator()
# The numbers of gRPC's statuses after which a call that we answered counts as our failure: UNKNOWN, DEADLINE_EXCEEDED,
# UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS, as OpenTelemetry's conventions say.
_OUR_FAILURES = frozenset({2, 4, 12, 13, 14, 15})
# Spans that wait to be sent, at most: more are dropped. One has about 2 kB.
MOST_WAITING = 2048
# Seconds for one request to the receiver, and those that the last spans have when the service stops.
_SEND_LIMIT, _LAST_SPANS = 5.0, 2.0
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_DEFAULT_ENDPOINT = "http://localhost:4318"
_PATH = "/v1/traces"


class TracesNotInstalled(Exception):
    """The extra [traces] is not installed; `args` has the missing module's name."""


class OpenTelemetrySpan:
    """An ActiveSpan that OpenTelemetry exports."""

    __slots__ = ("_context", "_span", "_tracer", "is_open", "private", "trace_id")

    def __init__(self, tracer: trace.Tracer, span: trace.Span, private: frozenset[str] = frozenset()) -> None:
        self._tracer = tracer
        self._span = span
        self._context: Context | None = None
        self.is_open = True
        self.private = private
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    @property
    def span_context(self) -> trace.SpanContext:
        """What links name."""
        return self._span.get_span_context()

    def child(
        self, name: str, attributes: Attributes | None = None, *, kind: str = INTERNAL, began_ago: float = 0.0
    ) -> OpenTelemetrySpan:
        """See ActiveSpan."""
        if self._context is None:
            self._context = trace.set_span_in_context(self._span)
        span = self._tracer.start_span(
            name, self._context, _KINDS[kind], _safe(attributes), start_time=_before(began_ago)
        )
        return OpenTelemetrySpan(self._tracer, span, self.private)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """See ActiveSpan."""
        self._span.add_event(name, _safe(attributes))

    def set(self, attributes: Attributes) -> None:
        """See ActiveSpan."""
        self._span.set_attributes(_safe(attributes))

    def link(self, other: ActiveSpan) -> None:
        """See ActiveSpan."""
        if isinstance(other, OpenTelemetrySpan):
            self._span.add_link(other.span_context)

    def end(self, reason: str = "", *, ended_ago: float = 0.0) -> None:
        """See ActiveSpan."""
        if reason:
            self._span.set_attribute("error.type", reason)
            if reason != CANCELLED:
                self._span.set_status(StatusCode.ERROR)
        self._finish(ended_ago)

    def end_call(self, code: int, reason: str) -> None:
        """See Tracing."""
        if not self.is_open:
            return
        self._span.set_attribute("rpc.grpc.status_code", code)
        if reason:
            self._span.set_attribute("error.type", reason)
        if code in _OUR_FAILURES:
            self._span.set_status(StatusCode.ERROR)
        self._finish(0.0)

    def _finish(self, ended_ago: float) -> None:
        if self.is_open:
            self.is_open = False
            self._span.end(_before(ended_ago))
            # Links may name it for hours; its attributes are not kept for so long.
            self._span, self._context = trace.NonRecordingSpan(self.span_context), None


class OpenTelemetryTracing:
    """A Tracing by a tracer of OpenTelemetry. `stop` sends what waits, and is called once."""

    def __init__(self, tracer: trace.Tracer, stop: Callable[[], None] = lambda: None) -> None:
        self._tracer = tracer
        self.stop = stop

    def begin_call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]] | None, *, began_ago: float = 0.0
    ) -> OpenTelemetrySpan | None:
        """See Tracing."""
        service, _, name = method.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        return self._begin(method, _caller_context(metadata or ()), SpanKind.SERVER, attributes, (), began_ago)

    def end_call(self, span: ActiveSpan, code: int, reason: str) -> None:
        """See Tracing."""
        if isinstance(span, OpenTelemetrySpan):
            span.end_call(code, reason)

    def begin_root(
        self, name: str, attributes: Attributes, link: ActiveSpan | None = None, *, began_ago: float = 0.0
    ) -> OpenTelemetrySpan | None:
        """See Tracing."""
        links = (Link(link.span_context),) if isinstance(link, OpenTelemetrySpan) else ()
        return self._begin(name, _NO_PARENT, SpanKind.INTERNAL, attributes, links, began_ago)

    def _begin(
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link],
        began_ago: float,
    ) -> OpenTelemetrySpan | None:
        span = self._tracer.start_span(
            name, context, kind, _safe(attributes), links=links, start_time=_before(began_ago)
        )
        return OpenTelemetrySpan(self._tracer, span) if span.is_recording() else None


_NO_PARENT = trace.set_span_in_context(trace.INVALID_SPAN)


def _caller_context(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """The caller's own span as the parent, if the metadata name one."""
    carried = {
        name: value
        for name, value in metadata
        if name in _CARRIERS and isinstance(value, str) and len(value) <= _LONGEST_CARRIED
    }
    return _PROPAGATOR.extract(carried, _NO_PARENT) if "traceparent" in carried else _NO_PARENT


def _before(seconds: float) -> int:
    """So many seconds ago, in nanoseconds since the epoch."""
    return time.time_ns() - int(seconds * 1e9)


# What others have written: a caller, or a plugin. All else are our own words.
_OF_OTHERS = frozenset({"exchange_service.request_id", "url.path"})


def _safe(attributes: Attributes | None) -> dict[str, str | int | float | bool]:
    """The attributes without the secrets of open accounts, which should not be in them anyway."""
    return {
        name: redact_text(str(value), runs=False) if name in _OF_OTHERS else value
        for name, value in (attributes or {}).items()
    }


def open_tracing(kind: str, endpoint: str | None, ratio: float) -> OpenTelemetryTracing:
    """The tracing of a service: "otlp" sends spans to `endpoint`, the base URL of a receiver (None: what
    OpenTelemetry's own variables say, else this machine), and `ratio` is the share of traces that are kept where no
    caller has decided; "global" uses what the process has set. Raises TracesNotInstalled."""
    if kind == "global":
        return OpenTelemetryTracing(trace.get_tracer("exchange_service", __version__))
    try:
        sdk, export, resources, sampling = map(
            import_module,
            (
                "opentelemetry.sdk.trace",
                "opentelemetry.sdk.trace.export",
                "opentelemetry.sdk.resources",
                "opentelemetry.sdk.trace.sampling",
            ),
        )
        exporter = _open_exporter(endpoint)
    except ModuleNotFoundError as error:
        raise TracesNotInstalled(error.name) from None
    # Ours says once what these say for each batch; theirs may quote headers.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    provider = sdk.TracerProvider(
        sampler=sampling.ParentBased(sampling.TraceIdRatioBased(ratio)),
        resource=resources.Resource.create(_own_resource(os.environ)),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(export.BatchSpanProcessor(exporter, max_queue_size=MOST_WAITING))
    tracer = provider.get_tracer("exchange_service", __version__)
    return OpenTelemetryTracing(tracer, lambda: _stop(provider.shutdown, exporter.shutdown))


def _own_resource(environment: Mapping[str, str]) -> dict[str, str]:
    """What sends the spans, as far as OpenTelemetry's own variables do not say it."""
    named = f"OTEL_SERVICE_NAME {environment.get('OTEL_RESOURCE_ATTRIBUTES', '')}"
    own = {"service.name": "exchange-service", "service.version": __version__}
    return {
        name: value
        for name, value in own.items()
        if f"{name}=" not in named and not (name == "service.name" and environment.get("OTEL_SERVICE_NAME"))
    }


def _open_exporter(endpoint: str | None) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    url = None if endpoint is None else endpoint.rstrip("/").removesuffix(_PATH) + _PATH
    inner = OTLPSpanExporter(endpoint=url, timeout=_SEND_LIMIT)
    receiver = _host_of(endpoint)

    class QuietExporter(SpanExporter):
        """Tells once that the receiver does not take spans, and once that it does again."""

        lost = 0

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result = inner.export(spans)
            # Anything: the thread that sends must go on, and its library's lines are switched off.
            except Exception:
                result = SpanExportResult.FAILURE
            if result is SpanExportResult.SUCCESS:
                if self.lost:
                    log.info("traces.sent_again", receiver=receiver, lost=self.lost)
                self.lost = 0
            else:
                if not self.lost:
                    log.warning("traces.not_sent", receiver=receiver)
                self.lost += len(spans)
            return result

        def shutdown(self) -> None:
            inner.shutdown()  # type: ignore[no-untyped-call]

    return QuietExporter()


def _host_of(endpoint: str | None) -> str:
    """The receiver's host and port, without what else its URL may hold."""
    named = endpoint or next(filter(None, map(os.environ.get, _ENDPOINT_VARIABLES)), _DEFAULT_ENDPOINT)
    with suppress(ValueError):
        return urlsplit(named).netloc.rpartition("@")[2]
    return ""


def _stop(shut_down: Callable[[], None], give_up: Callable[[], None]) -> None:
    """Send what waits, for two seconds at most. A receiver that does not answer holds up no stop."""
    # A daemon: the library may wait for half a minute.
    thread = threading.Thread(target=_quietly, args=(shut_down,), name="last spans", daemon=True)
    thread.start()
    thread.join(_LAST_SPANS)
    if thread.is_alive():
        _quietly(give_up)


def _quietly(work: Callable[[], Any]) -> None:
    with suppress(Exception):
        work()
