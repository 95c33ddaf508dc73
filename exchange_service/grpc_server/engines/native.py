"""The engine of pygrpc-native: HTTP/2 and gRPC's framing run in Rust, outside of Python's lock.

It serves plaintext alone, and has no limit on connections, their age or their idle time. Calls come in batches from a
thread, each batch in one callback of the event loop. Reflection and unknown methods go to a server of grpcio behind it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import structlog
from pygrpc_native import EVENT_CANCEL, STREAM_FULL, STREAM_SENT, NativeGrpcFront

from exchange_service.errors import ShuttingDown
from exchange_service.grpc_server import health
from exchange_service.grpc_server.engines.engine import (
    MAX_REPLY,
    MAX_REQUEST,
    PING_EVERY,
    PING_TIMEOUT,
    BindError,
    Offer,
    with_port,
)
from exchange_service.grpc_server.handler_wrapper import (
    MOST_FIELDS,
    Context,
    FewFields,
    Handler,
    Look,
    Quick,
    UnknownMethods,
    find_status,
    refusal_of_fields,
)
from exchange_service.grpc_server.status import PUSHBACK_KEY, CallStatus
from exchange_service.observability.tracebacks import raised_at
from exchange_service.socket_folder import make_socket_folder

log = structlog.get_logger(__name__)

# Calls that one callback of the event loop takes at most.
_BATCH = 64
# Streams that begin or end in one round of the event loop, each of which takes about 0.1 ms of it.
_STREAMS_A_ROUND = 16
# Pauses in seconds while a subscriber reads nothing: they double from the first to the longest, so that thousands of
# such subscribers cost little.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.25
# Seconds that the last answers have to be sent.
_FLUSH = 0.2
# Where the server behind this one listens, in a folder of its own.
_SOCKET = "grpcio"
# The server behind this one has one connection for the calls of all clients.
_FALLBACK_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.max_send_message_length", MAX_REPLY),
    ("grpc.max_concurrent_streams", 10_000),
)

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
# Its kind, the call's number, the method's, the request, the peer, and metadata, peer and seconds until the deadline.
_Event: TypeAlias = tuple[int, int, int, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class _Method:
    path: str
    handler: Handler
    streaming: bool
    quick: Quick | None = None


class _Call:
    """One call, and what its handler gets in the place of gRPC's context: those of its methods that handlers use."""

    __slots__ = ("_cancelled", "_deadline", "_front", "_id", "_metadata", "_trailers", "task")

    def __init__(self, front: NativeGrpcFront, call_id: int, metadata: Metadata, deadline: float | None) -> None:
        """`deadline` is in time.monotonic's seconds."""
        self.task: asyncio.Task[None] | None = None
        self._front = front
        self._id = call_id
        self._metadata = metadata
        self._deadline = deadline
        self._trailers: Metadata | None = None
        self._cancelled = False

    def invocation_metadata(self) -> Metadata:
        """What the caller sent beside the request; bytes for names that end with -bin."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Empty: there is no client certificate."""
        return {}

    def cancelled(self) -> bool:
        """Whether the caller has left, or its deadline has come."""
        return self._cancelled

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Metadata to send after the reply."""
        self._trailers = metadata

    async def write(self, message: bytes) -> None:
        """Send a message of a stream, and wait while the subscriber does not read. Cancelled if the call has ended."""
        sent = self._front.stream_try_send(self._id, message)
        pause = _FIRST_PAUSE
        while sent == STREAM_FULL:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            sent = self._front.stream_try_send(self._id, message)
        if sent != STREAM_SENT:
            self._cancelled = True
            raise asyncio.CancelledError

    def try_write(self, message: bytes) -> bool:
        """Send a message of a stream if that is possible without waiting; False if not, or if the call has ended."""
        return self._front.stream_try_send(self._id, message) == STREAM_SENT

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Metadata = ()) -> NoReturn:
        """End the call with this status."""
        self.fail(code, message, trailers)
        raise grpc.aio.AbortError("The call has ended with an error.")

    def fail(self, code: grpc.StatusCode, message: str, trailers: Metadata = ()) -> None:
        """End the call with this status. Nothing happens if it has ended."""
        # The library reserves the delay's name for itself; RetryInfo, in the details, has the delay too.
        sent = [item for item in trailers if item[0] != PUSHBACK_KEY]
        self._front.fail(self._id, code.value[0], message, sent)

    def respond(self, reply: bytes) -> None:
        """End a unary call with its reply."""
        if len(reply) > MAX_REPLY:
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, f"The reply is larger than {MAX_REPLY} bytes.")
        else:
            self._front.respond(self._id, reply, None, self._trailers)

    def end_stream(self) -> None:
        """End a stream without an error."""
        self._front.stream_end(self._id, self._trailers)

    def note_leaving(self) -> None:
        """The caller has left, or its deadline has come, and `cancel` follows."""
        self._cancelled = True

    def cancel(self) -> None:
        """The caller has left, or its deadline has come."""
        self._cancelled = True
        # A task that is cancelled before its first step keeps the exception, and with it the frame that has this call.
        task, self.task = self.task, None
        if task is not None:
            task.cancel()


class NativeEngine:
    """A listening server in Rust. Handlers run on the event loop that made it."""

    def __init__(self, front: NativeGrpcFront, methods: Sequence[_Method], address: str, states: health.Health) -> None:
        """Begins to take calls. `states` are told if it can take none any more."""
        self.address = address
        self._front = front
        self._methods = methods
        self._states = states
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, _Call] = {}
        # What begins and ends streams, in the order in which they came and left.
        self._steps: deque[Callable[[], None]] = deque()
        # Only while it stops: done once the last call has ended or the grace is over. No call is taken from then on.
        self._closing: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._receive, name="native-engine", daemon=True)
        self._thread.start()

    async def stop(self, grace: float) -> None:
        """Open no new streams, give the calls in progress up to `grace` seconds, and end the rest.

        The library cannot tell clients to go elsewhere before it closes their connections. So unary calls that come
        meanwhile are served too, and it ends as soon as no call is in progress. Those that come after that are told
        that the service ends. A second stop does nothing.
        """
        if self._closing is not None:
            return
        self._closing = self._loop.create_future()
        self._note_idle()
        await asyncio.wait({self._closing}, timeout=grace)
        if not self._closing.done():
            self._closing.set_result(None)
        for call in list(self._calls.values()):
            call.cancel()
        # Closing cuts off what is not sent yet, also of calls that have just ended, and nothing tells when it is.
        await asyncio.sleep(_FLUSH)
        await self._loop.run_in_executor(None, self._close)

    def _close(self) -> None:
        self._front.close()
        self._thread.join()

    def _receive(self) -> None:
        """Hand the calls over to the event loop. Runs in its own thread."""
        try:
            while (events := self._front.recv_batch_details(_BATCH)) is not None:
                self._loop.call_soon_threadsafe(self._take, cast("list[_Event]", events), time.monotonic())
        except Exception as error:
            # No call can be served any more. If the loop was closed without a stop, nobody is left to tell either.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_no_more_calls, error)
            self._front.close()

    def _on_no_more_calls(self, error: Exception) -> None:
        log.error("engine.failed", error=type(error).__name__, at=raised_at(error))
        self._states.end_serving()

    def _take(self, events: Sequence[_Event], came: float) -> None:
        for event in events:
            try:
                self._take_one(event, came)
            except Exception as error:
                # It must not take the other calls of the batch with it.
                self._fail(event[1], error)

    def _take_one(self, event: _Event, came: float) -> None:
        kind, call_id, method_id, request, _, details = event
        if kind == EVENT_CANCEL:
            self._on_cancel(call_id)
            return
        metadata, _, remaining = details
        method = self._methods[method_id]
        look: Look | None = None
        if method.quick is not None and len(request) <= MAX_REQUEST and not self._takes_none():
            quick = method.quick(request, metadata, remaining)
            if isinstance(quick, bytes):
                self._front.respond(call_id, quick)
                return
            look = quick
        call = _Call(self._front, call_id, metadata, None if remaining is None else came + remaining)
        if look is None:
            self._begin(call, call_id, method, request)
        else:
            self._calls[call_id] = call
            look.reading.add_done_callback(lambda _: self._on_looked(look, call, call_id, method, request))

    def _on_looked(self, look: Look, call: _Call, call_id: int, method: _Method, request: bytes) -> None:
        if call.cancelled():
            return
        try:
            reply = look.reply()
            if reply is None:
                self._begin(call, call_id, method, request)
            else:
                self._front.respond(call_id, reply)
                self._ended(call_id)
        except Exception as error:
            self._fail(call_id, error)

    def _takes_none(self) -> bool:
        """Whether it is about to close: what begins now would be cut off."""
        return self._closing is not None and self._closing.done()

    def _fail(self, call_id: int, error: Exception) -> None:
        """Our own handlers end with a status; never send the text of another exception."""
        log.error("call.failed", error=type(error).__name__, at=raised_at(error))
        self._ended(call_id)
        self._front.fail(call_id, grpc.StatusCode.INTERNAL.value[0], "The service failed.", [])

    def _begin(self, call: _Call, call_id: int, method: _Method, request: bytes) -> None:
        refusal = self._refusal(call, method, request)
        if refusal is not None:
            call.fail(refusal.code, refusal.message, refusal.trailers)
            self._ended(call_id)
            return
        self._calls[call_id] = call
        beginning = partial(self._start, call, call_id, method, request)
        if method.streaming:
            self._do_in_turn(beginning)
        else:
            beginning()

    def _do_in_turn(self, step: Callable[[], None]) -> None:
        """Do this in the next round of the event loop, or in a later one if many wait: thousands of streams come back
        or leave at once, and would hold up everybody's calls for as long as all of that takes."""
        self._steps.append(step)
        if len(self._steps) == 1:
            self._loop.call_soon(self._do_some)

    def _do_some(self) -> None:
        steps = self._steps
        try:
            for _ in range(min(_STREAMS_A_ROUND, len(steps))):
                steps.popleft()()
        finally:
            if steps:
                self._loop.call_soon(self._do_some)

    def _start(self, call: _Call, call_id: int, method: _Method, request: bytes) -> None:
        if call.cancelled():
            return
        try:
            call.task = self._loop.create_task(self._run(call, call_id, method, request))
        except Exception as error:
            self._fail(call_id, error)

    def _refusal(self, call: _Call, method: _Method, request: bytes) -> CallStatus | None:
        """Why the call is not even begun; None if it is."""
        if len(request) > MAX_REQUEST:
            message = f"The request is larger than max ({len(request)} vs. {MAX_REQUEST})"
            return CallStatus(grpc.StatusCode.RESOURCE_EXHAUSTED, "", message, ())
        if len(call.invocation_metadata()) > MOST_FIELDS:
            return refusal_of_fields()
        if self._takes_none() or (method.streaming and self._closing is not None):
            return find_status(ShuttingDown("This replica of the service is shutting down."))
        return None

    def _on_cancel(self, call_id: int) -> None:
        if (call := self._calls.get(call_id)) is not None:
            call.note_leaving()
            self._do_in_turn(call.cancel)
            # A task that is cancelled before its first step does not even get to its end.
            self._ended(call_id)

    async def _run(self, call: _Call, call_id: int, method: _Method, request: bytes) -> None:
        try:
            await self._answer(call, method, request)
        finally:
            self._ended(call_id)

    async def _answer(self, call: _Call, method: _Method, request: bytes) -> None:
        try:
            reply = await method.handler(request, cast("Context", call))
        except grpc.aio.AbortError:
            return
        except asyncio.CancelledError:
            # Not raised again, and nobody waits for the task: it would keep the exception, whose traceback holds the
            # frames of the call, and these hold the task. All of that, the caller's token too, would stay in memory
            # until the collector of all objects comes, which it seldom does.
            call.fail(grpc.StatusCode.CANCELLED, "The call was cancelled.")
            return
        except Exception as error:
            log.error("call.failed", method=method.path, error=type(error).__name__, at=raised_at(error))
            # Our own handlers end with a status; never send the text of another exception.
            call.fail(grpc.StatusCode.INTERNAL, "The service failed.")
            return
        if method.streaming:
            call.end_stream()
        else:
            call.respond(reply)

    def _ended(self, call_id: int) -> None:
        self._calls.pop(call_id, None)
        self._note_idle()

    def _note_idle(self) -> None:
        if self._closing is not None and not self._calls and not self._closing.done():
            self._closing.set_result(None)


@dataclass(slots=True)
class _WithFallback:
    """The engine, and the server of grpcio behind it."""

    engine: NativeEngine
    fallback: grpc.aio.Server
    folder: Path

    @property
    def address(self) -> str:
        """The address with the port in use."""
        return self.engine.address

    async def stop(self, grace: float) -> None:
        """Open no new streams, give the calls in progress up to `grace` seconds, and end the rest."""
        try:
            await asyncio.gather(self.engine.stop(grace), self.fallback.stop(grace))
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def _methods(offer: Offer) -> list[_Method]:
    own = [
        _Method(
            f"/{service.name}/{method.name}",
            service.handlers[method.name],
            method.server_streaming,
            service.quick.get(method.name),
        )
        for service in offer.services
        for method in service.descriptor.methods
    ]
    states = offer.health
    return [
        *own,
        _Method(f"/{health.NAME}/Check", states.check, False),
        _Method(f"/{health.NAME}/Watch", states.watch, True),
    ]


async def listen(offer: Offer, address: str) -> _WithFallback:
    """Start to listen on `address`. Raises BindError if that fails."""
    methods = _methods(offer)
    front = _open_front(methods, address, offer.limits.streams)
    try:
        fallback, folder = await _start_fallback(offer)
    except BaseException as error:
        front.close()
        if not isinstance(error, OSError | RuntimeError):
            raise
        raise BindError(
            f"Cannot listen on {address}: engine=native needs a socket in {tempfile.gettempdir()}, and cannot make it."
        ) from None
    front.set_fallback(str(folder / _SOCKET))
    front.start()
    engine = NativeEngine(front, methods, with_port(address, front.bound_port), offer.health)
    return _WithFallback(engine, fallback, folder)


def _open_front(methods: Sequence[_Method], address: str, streams: int) -> NativeGrpcFront:
    try:
        return NativeGrpcFront(
            address,
            [(method.path, method.streaming) for method in methods],
            call_details=True,
            delay_stream_headers=True,
            keepalive_time_ms=round(PING_EVERY * 1000),
            keepalive_timeout_ms=round(PING_TIMEOUT * 1000),
            max_concurrent_streams=streams,
        )
    except OSError:
        raise BindError.of(address) from None


async def _start_fallback(offer: Offer) -> tuple[grpc.aio.Server, Path]:
    """The server of grpcio, and the folder of its socket. Raises OSError or RuntimeError if there is no room for it."""
    folder = make_socket_folder("exchange-service-", _SOCKET)
    try:
        server = grpc.aio.server(options=_FALLBACK_OPTIONS)
        handlers = [FewFields(), offer.reflection, UnknownMethods(offer.metrics)]
        server.add_generic_rpc_handlers([handler for handler in handlers if handler is not None])
        server.add_insecure_port(f"unix:{folder / _SOCKET}")
        await server.start()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return server, folder
