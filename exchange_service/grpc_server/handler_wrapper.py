"""The outermost wrapper of our handlers: it turns errors into statuses, and gives each call a request id and a count.

Our errors are sent as the status table says, and every other exception without its text. grpc.aio would send an
unhandled exception's text to the client, and a venue library's text can hold a signed URL.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog

from exchange_service.deadlines import ANSWER_MARGIN, Deadline, set_deadline
from exchange_service.errors import DeadlinePassed, FieldInvalid, ServiceError, ServiceFailed, ShuttingDown
from exchange_service.grpc_server.status import CallStatus, status_of
from exchange_service.grpc_server.turns import Openings
from exchange_service.observability.logs import CallMark, current_call, current_request_id
from exchange_service.observability.metrics import OTHER, WELL, Metrics
from exchange_service.observability.tracebacks import raised_at
from exchange_service.observability.tracing import ActiveSpan, Tracing, use_span

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
# What the caller sent beside the request, with lower-case names.
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Look:
    """A read that was begun for a call and that others may share: wait until `reading` is done, without cancelling it,
    then call `reply` once. It gives the reply, or None if the method's handler must be called."""

    reading: asyncio.Future[Any]
    reply: Callable[[], bytes | None]


# The reply to a request's bytes if it is ready; None if the method's handler must be called, as for whatever is not
# entirely ordinary; or a look, after which it may be ready. The last argument is the time until the caller's
# deadline in seconds, None without one. It neither waits nor raises, and needs no task of its own.
Quick: TypeAlias = Callable[[bytes, Metadata, float | None], bytes | Look | None]
# Seconds that a call should have left for a look, which takes 0.6 s at the longest: a read and the removal of a damaged
# value. The handler that begins after it must still be able to tell why it is late. A stop waits for longer than that.
LOOK_TIME = 1.0


REQUEST_ID_KEY = "x-request-id"
_MAX_REQUEST_ID = 128

# A Weyl sequence from a random start: it does not repeat for 2**48 calls, and is much faster than a random number.
_BITS = (1 << 48) - 1
_STEP = 0x9E3779B97F4B
_numbers = itertools.count(secrets.randbits(48), _STEP)


def new_request_id() -> str:
    """An id of 12 hexadecimal digits, for a call that did not send an id."""
    return f"{next(_numbers) & _BITS:012x}"


def given_request_id(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The id that the caller sent; empty if there is no id, or one that cannot be logged or sent back."""
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY:
            text = value if isinstance(value, str) else ""
            return text if len(text) <= _MAX_REQUEST_ID and _can_be_sent(text) else ""
    return ""


def _can_be_sent(text: str) -> bool:
    """Whether it can be sent as metadata. gRPC fails calls with other metadata, and writes to stderr."""
    return text.isascii() and text.isprintable() and not text.isspace()


# Seconds before the deadline at which a call is ended that has not ended by itself. What has a reason of its own for
# being late has told it by then.
_LAST_MOMENT = ANSWER_MARGIN * 0.6


class _LastMoment:
    """Ends the handling of a call shortly before its caller's deadline, whatever it waits for: what gRPC itself ends at
    a deadline gets no reason."""

    __slots__ = ("_deadline", "_has_come", "_timer")

    def __init__(self, task: asyncio.Task[Any], remaining: float | None) -> None:
        """`remaining`: seconds until the deadline; None without one."""
        self._has_come = False
        self._deadline: Deadline | None = None
        self._timer: asyncio.TimerHandle | None = None
        if remaining is not None:
            loop = task.get_loop()
            self._deadline = set_deadline(loop.time() + remaining)
            # If too little is left, then as soon as the call has to wait for anything.
            self._timer = loop.call_at(self._deadline.at - _LAST_MOMENT, self._end, task)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._has_come = True
        task.cancel()

    def reason(self) -> Exception | None:
        """Why the call was ended here: by what it waited for, if that is known. None if it was not."""
        if not self._has_come or self._deadline is None:
            return None
        late = self._deadline.late
        return late() if late is not None else DeadlinePassed("The call's deadline has come.")

    def call_off(self) -> None:
        """The call has ended, or is about to."""
        if self._timer is not None:
            self._timer.cancel()


class HandlerWrapper:
    """Wraps the handlers of our own services. Health and reflection are not wrapped.

    Each handler is wrapped once, when it is registered, because interceptors would be walked again for every call.
    A unary call without a deadline gets `call_timeout` seconds.
    """

    def __init__(
        self,
        metrics: Metrics | None = None,
        call_timeout: float = 10.0,
        openings: Openings | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`tracing`: what begins the spans of calls; None without traces."""
        self._metrics = metrics or Metrics()
        self._tracing = tracing
        self._call_timeout = call_timeout
        self._openings = openings if openings is not None else Openings()
        self._running: set[asyncio.Task[Any]] = set()
        self._ending = False

    def running(self) -> int:
        """The number of calls in progress, open streams included."""
        return len(self._running)

    def end_all(self) -> None:
        """End every call in progress with SHUTTING_DOWN, and those that come from now on."""
        self._ending = True
        for task in self._running:
            task.cancel()

    async def wait_until_idle(self, timeout: float) -> None:
        """Wait until no handler runs, for at most `timeout` seconds. grpc's own stop does not wait for handlers."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout)

    def wrap_quick(self, path: str, quick: Quick) -> Quick:
        """The quick answers of a method, by its name or path, counted as its calls; none once calls are ended, or where
        making one fails: the handler says what is wrong."""
        metrics, openings, method = self._metrics, self._openings, path.rpartition("/")[2]

        def counted(reply: bytes | None, began: float) -> bytes | None:
            if reply is not None:
                openings.call_came()
                metrics.call_ended(method, WELL, time.monotonic() - began)
            return reply

        def report(error: Exception) -> None:
            log.error("call.no_quick_answer", method=method, error=type(error).__name__, at=raised_at(error))

        def after(look: Look, began: float) -> bytes | None:
            try:
                return counted(None if self._ending else look.reply(), began)
            except Exception as error:
                report(error)
                return None

        def answer(data: bytes, metadata: Metadata, remaining: float | None) -> bytes | Look | None:
            if self._ending or len(metadata) > MOST_FIELDS:
                return None
            began = time.monotonic()
            try:
                reply = quick(data, metadata, remaining)
            except Exception as error:
                report(error)
                return None
            if isinstance(reply, Look):
                return Look(reply.reading, partial(after, reply, began))
            return counted(reply, began)

        return answer if self._tracing is None else _traced(self._tracing, path, answer)

    def wrap(self, path: str, inner: Handler, *, streaming: bool = False) -> Handler:
        """The wrapped handler of a method, by its name or by its path, such as "package.Service/Method"."""
        metrics, running, openings, tracing = self._metrics, self._running, self._openings, self._tracing
        method = path.rpartition("/")[2]
        metrics.method_served(method)
        without_deadline = None if streaming else self._call_timeout

        async def handle(request: Any, context: Context) -> Any:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            openings.call_came()
            began = time.monotonic()
            code, failure = WELL, ""
            given = given_request_id(context.invocation_metadata())
            mark = CallMark(given or new_request_id())
            span = None if tracing is None else _begin_span(tracing, path, context, mark.request_id)
            # Each call has its own task, and therefore its own context.
            current_call.set(mark)
            # Read once: gRPC counts by the wall clock, which may be set meanwhile.
            remaining = context.time_remaining()
            last_moment = _LastMoment(task, without_deadline if remaining is None else remaining)
            try:
                if self._ending:
                    raise _ending()
                reply = await inner(request, context)
                if given:
                    # Sent only to a caller that uses ids, because a trailer on each call has a cost.
                    context.set_trailing_metadata(((REQUEST_ID_KEY, given),))
                return reply
            except grpc.aio.AbortError:
                code = grpc.StatusCode.UNKNOWN.name
                raise
            except (Exception, asyncio.CancelledError) as error:
                reason = self._reason_of(error, context, last_moment)
                if reason is None:
                    # Re-raised: if a cancelled call returned, what grpc keeps for it would leak.
                    code = grpc.StatusCode.CANCELLED.name
                    raise
                end = find_status(reason)
                code, failure = end.code.name, end.reason
                # It holds the frames of the whole call.
                error.__traceback__ = None
                last_moment.call_off()
                metrics.call_failed(end.reason)
                await _abort(context, end, (REQUEST_ID_KEY, mark.request_id))
            finally:
                last_moment.call_off()
                running.discard(task)
                metrics.call_ended(method, code, time.monotonic() - began)
                if tracing is not None and span is not None:
                    tracing.end_call(span, grpc.StatusCode[code].value[0], failure)
                mark.request_id = ""
                # gRPC's context holds the exception that ends a failed call, and that holds this frame: together they
                # would stay in memory until the collector of all objects comes, which it seldom does.
                del context

        return handle

    def _reason_of(
        self, error: Exception | asyncio.CancelledError, context: Context, last_moment: _LastMoment
    ) -> Exception | None:
        """What the caller is told of the error that ended the handler; None if the caller has cancelled the call."""
        if isinstance(error, Exception):
            return error
        reason = _ending() if self._ending else last_moment.reason()
        task = asyncio.current_task()
        if reason is None or task is None or context.cancelled():
            return None
        # It was us who cancelled it.
        task.uncancel()
        return reason


def _begin_span(tracing: Tracing, path: str, context: Context, request_id: str) -> ActiveSpan | None:
    """The call's span, within which its task works from now on; None if it is not traced."""
    span = tracing.begin_call(path, context.invocation_metadata())
    if span is not None:
        span.set({"exchange_service.request_id": request_id})
    use_span(span)
    return span


def _traced(tracing: Tracing, path: str, quick: Quick) -> Quick:
    """The same quick answers, each with a span. What they leave to the handler has its span there."""

    def note(metadata: Metadata, began: float) -> None:
        span = tracing.begin_call(path, metadata, began_ago=time.monotonic() - began)
        if span is not None:
            # It has no request id: a caller that sends one is answered by the handler.
            span.set({"exchange_service.at_once": True})
            tracing.end_call(span, 0, "")

    def after(look: Look, metadata: Metadata, began: float) -> bytes | None:
        reply = look.reply()
        if reply is not None:
            note(metadata, began)
        return reply

    def answer(data: bytes, metadata: Metadata, remaining: float | None) -> bytes | Look | None:
        began = time.monotonic()
        reply = quick(data, metadata, remaining)
        if isinstance(reply, Look):
            return Look(reply.reading, partial(after, reply, metadata, began))
        if reply is not None:
            note(metadata, began)
        return reply

    return answer


def _ending() -> ShuttingDown:
    return ShuttingDown("This replica of the service is shutting down.")


# Fields of metadata that a call may have: what clients, tracing and proxies add is some tens.
MOST_FIELDS = 128


class FewFields(grpc.GenericRpcHandler):
    """The first generic handler: it ends a call with too many fields of metadata before its request is awaited.

    gRPC limits their length on the wire alone. There a field that is repeated takes one byte, and here a hundred, and
    the whole is made again each time that somebody looks at it.
    """

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """A handler that refuses; None, which leaves the call to the other handlers, for an ordinary one."""
        if len(details.invocation_metadata or ()) <= MOST_FIELDS:
            return None
        # This kind of handler begins before the request has come.
        return grpc.stream_stream_rpc_method_handler(_refuse_fields)


def refusal_of_fields() -> CallStatus:
    """The status of a call with too many fields of metadata."""
    return find_status(FieldInvalid("metadata", f"it should have at most {MOST_FIELDS} fields."))


async def _refuse_fields(_: Any, context: Context) -> None:
    end = refusal_of_fields()
    # Not by `abort`: its exception would hold the fields until the next collection of garbage.
    context.set_code(end.code)
    context.set_details(end.message)
    context.set_trailing_metadata(end.trailers)


class UnknownMethods(grpc.GenericRpcHandler):
    """The last generic handler: it serves no method, and counts the calls of unknown methods."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()

    def service(self, details: grpc.HandlerCallDetails) -> None:
        """None, which gRPC answers with UNIMPLEMENTED."""
        self._metrics.call_ended(OTHER, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)


async def abort(context: Context, error: Exception) -> NoReturn:
    """End the call with our error as the status table says, or with a reference to the log for another exception."""
    await _abort(context, find_status(error))


async def _abort(context: Context, end: CallStatus, *more: tuple[str, str]) -> NoReturn:
    end = end.fitted(context.time_remaining())
    try:
        await context.abort(end.code, end.message, (*end.trailers, *more))
    finally:
        # As in `HandlerWrapper.wrap`.
        del context


def find_status(error: Exception) -> CallStatus:
    """The status with which a call that raised this exception ends."""
    try:
        return status_of(error if isinstance(error, ServiceError) else _log_failure(error))
    except Exception as failure:
        # The table lacks the error, or it cannot be serialised. That exception's text must not be sent either.
        return status_of(_log_failure(failure))


def _log_failure(error: Exception) -> ServiceFailed:
    # Outside of our own calls, as in reflection, there is no current id.
    request_id = current_request_id() or new_request_id()
    log.error("call.failed", request_id=request_id, error=type(error).__name__, at=raised_at(error))
    return ServiceFailed(f"The service failed under the reference {request_id}.")
