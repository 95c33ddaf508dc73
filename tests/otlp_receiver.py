"""A receiver of traces on loopback, which keeps every byte that it is sent."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it came."""

    span: Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def trace(self) -> str:
        return self.span.trace_id.hex()

    @property
    def links(self) -> list[str]:
        return [link.span_id.hex() for link in self.span.links]

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.span.events]

    @property
    def failed(self) -> bool:
        return self.span.status.code == Status.STATUS_CODE_ERROR

    @property
    def attributes(self) -> dict[str, Any]:
        return {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in self.span.attributes}


@dataclass
class Receiver:
    """Takes spans at /v1/traces. `resource` is what the last request said of the sender."""

    bodies: list[bytes] = field(default_factory=list)
    spans: list[Received] = field(default_factory=list)
    resource: dict[str, str] = field(default_factory=dict)
    url: str = ""
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Receiver:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.spans += [Received(span) for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def path_to(self, span: Received) -> list[str]:
        """The names of the spans that this one is within, the outermost first, and the id above that."""
        names, by_id = [span.name], {one.id: one for one in self.spans}
        while span.parent in by_id:
            span = by_id[span.parent]
            names.append(span.name)
        return [span.parent, *reversed(names)]

    def below(self, trace: str) -> Iterator[Received]:
        return (span for span in self.spans if span.trace == trace)
