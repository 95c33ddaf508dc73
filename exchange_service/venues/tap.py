"""Sees what passes through guarded sessions, for the author of a plugin. The service opens its sessions without a tap,
and such a session has nothing of this: no hook is called and nothing is compared."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp

# Bytes of one answer that are kept: more than any session reads of an account's.
MOST_KEPT = 64 * 1024 * 1024
# Messages of one connection that are kept.
MOST_MESSAGES = 1000


@dataclass(frozen=True, slots=True)
class SeenMessage:
    """A message of a WebSocket, or a part of an answer that goes on. `sent`: by the plugin. `at` is by
    `time.perf_counter`."""

    sent: bool
    text: str = field(repr=False)
    at: float


@dataclass(slots=True)
class SeenRequest:
    """A request and its answer as they were on the wire. They hold secrets, and `repr` shows neither.

    Times are by `time.perf_counter`: when it began, and when the answer had been read; None while it has not. `status`
    is None without an answer, and `failure` the class of the exception that ended it.
    """

    method: str
    url: str = field(repr=False)
    began: float
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    status: int | None = None
    answer_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    answer: bytearray = field(default_factory=bytearray, repr=False)
    ended: float | None = None
    failure: str = ""
    messages: list[SeenMessage] = field(default_factory=list, repr=False)

    @property
    def is_socket(self) -> bool:
        """Whether it opened a WebSocket."""
        return self.status == 101

    @property
    def seconds(self) -> float | None:
        """How long it took until the answer was read; None if that has not happened."""
        return None if self.ended is None else self.ended - self.began

    def add_message(self, text: str, *, sent: bool) -> None:
        """Keep a message, if there are not very many."""
        if len(self.messages) < MOST_MESSAGES:
            self.messages.append(SeenMessage(sent, text, time.perf_counter()))


class HttpTap:
    """Keeps what the sessions that were opened with it send and receive, also for those who use `client_session`."""

    def __init__(self) -> None:
        self.requests: list[SeenRequest] = []
        self._by_response: WeakKeyDictionary[Any, SeenRequest] = WeakKeyDictionary()

    def trace_configs(self) -> list[aiohttp.TraceConfig]:
        """The hooks of the library for one session."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._on_start)
        trace.on_request_headers_sent.append(self._on_headers)
        trace.on_request_chunk_sent.append(self._on_chunk)
        trace.on_request_end.append(self._on_end)
        trace.on_request_exception.append(self._on_exception)
        return [trace]

    async def _on_start(self, _session: Any, context: SimpleNamespace, start: aiohttp.TraceRequestStartParams) -> None:
        seen = SeenRequest(start.method, str(start.url), time.perf_counter(), tuple(start.headers.items()))
        context.seen = seen
        self.requests.append(seen)

    async def _on_headers(
        self, _session: Any, context: SimpleNamespace, sent: aiohttp.TraceRequestHeadersSentParams
    ) -> None:
        context.seen.headers = tuple(sent.headers.items())

    async def _on_chunk(
        self, _session: Any, context: SimpleNamespace, sent: aiohttp.TraceRequestChunkSentParams
    ) -> None:
        context.seen.body += sent.chunk

    async def _on_end(self, _session: Any, context: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
        seen, response = context.seen, end.response
        seen.status, seen.answer_headers = response.status, response.headers
        self._by_response[response] = seen
        if seen.is_socket:
            seen.ended = time.perf_counter()
        else:
            response.content = _TappedContent(response.content, seen)  # type: ignore[assignment]

    async def _on_exception(
        self, _session: Any, context: SimpleNamespace, failed: aiohttp.TraceRequestExceptionParams
    ) -> None:
        context.seen.failure = type(failed.exception).__name__
        context.seen.ended = time.perf_counter()

    def socket_class(self, base: type[aiohttp.ClientWebSocketResponse]) -> type[aiohttp.ClientWebSocketResponse]:
        """The class of a session's WebSockets, whose messages are kept."""
        tap = self

        class TappedSocket(base):  # type: ignore[misc, valid-type]
            async def send_str(self, data: str, *arguments: Any, **options: Any) -> None:
                tap._add(self, data, sent=True)
                await super().send_str(data, *arguments, **options)

            async def send_bytes(self, data: Any, *arguments: Any, **options: Any) -> None:
                tap._add(self, bytes(data).decode(errors="replace"), sent=True)
                await super().send_bytes(data, *arguments, **options)

            async def receive(self, *arguments: Any, **options: Any) -> Any:
                message = await super().receive(*arguments, **options)
                if message.type is aiohttp.WSMsgType.TEXT:
                    tap._add(self, str(message.data), sent=False)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    tap._add(self, bytes(message.data).decode(errors="replace"), sent=False)
                return message

        return TappedSocket

    def _add(self, socket: Any, text: str, *, sent: bool) -> None:
        seen = self._by_response.get(socket._response)
        if seen is not None:
            seen.add_message(text, sent=sent)


class _TappedContent:
    """The stream of an answer's body, of which every piece that is read is kept too."""

    def __init__(self, content: aiohttp.StreamReader, seen: SeenRequest) -> None:
        self._content = content
        self._seen = seen

    async def read(self, *arguments: Any) -> bytes:
        return self._keep(await self._content.read(*arguments))

    async def readany(self) -> bytes:
        return self._keep(await self._content.readany())

    async def readline(self, *arguments: Any, **options: Any) -> bytes:
        return self._keep(await self._content.readline(*arguments, **options))

    def _keep(self, piece: bytes) -> bytes:
        seen = self._seen
        if len(seen.answer) < MOST_KEPT:
            seen.answer += piece
        if not piece or self._content.at_eof():
            seen.ended = time.perf_counter()
        return piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)
