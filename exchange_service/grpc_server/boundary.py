"""The outermost boundary: our errors leave by the status table, every other exception without its text. Each call gets
its request id here, and is counted.

grpc.aio would send an unhandled exception's text to the client, and a venue library's text can hold a signed URL.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog

from exchange_service.errors import ServiceError, ServiceFailed
from exchange_service.grpc_server.status import CallStatus, status_of
from exchange_service.observability.logs import CallMark, current_call, current_request_id
from exchange_service.observability.metrics import OTHER, WELL, Metrics

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


REQUEST_ID_KEY = "x-request-id"
_LONGEST_REQUEST_ID = 128

# From a random place by steps that never come back to it: as good to search for as a random number, and much quicker.
_BITS = (1 << 48) - 1
_STEP = 0x9E3779B97F4B
_numbers = itertools.count(secrets.randbits(48), _STEP)


def new_request_id() -> str:
    """An id for a call that brought none, of 12 hexadecimal digits."""
    return f"{next(_numbers) & _BITS:012x}"


def given_request_id(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The caller's own id; empty where he sent none, or none that can be logged."""
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY:
            text = value if isinstance(value, str) else ""
            return text if len(text) <= _LONGEST_REQUEST_ID and text.isprintable() and not text.isspace() else ""
    return ""


class Boundary:
    """Wraps the handlers of our own service; health and reflection keep their own manners.

    Each handler is wrapped once, when it is registered: interceptors would be gone through anew with every call.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._running: set[asyncio.Task[Any]] = set()

    def running(self) -> int:
        """How many calls are being handled, open streams among them."""
        return len(self._running)

    async def drained(self, timeout: float) -> None:
        """Wait until no handler runs any more, for at most `timeout` seconds: grpc's own stop does not."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout)

    def bounded(self, method: str, inner: Handler) -> Handler:
        """The handler of a method, within the boundary."""
        metrics, running = self._metrics, self._running

        async def handle(request: Any, context: Context) -> Any:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            began = time.monotonic()
            code = WELL
            given = given_request_id(context.invocation_metadata())
            mark = CallMark(given or new_request_id())
            # Each call has a task, and so a context, of its own.
            current_call.set(mark)
            try:
                reply = await inner(request, context)
                if given:
                    # Only who cares for one gets it: a trailer on each call is not free.
                    context.set_trailing_metadata(((REQUEST_ID_KEY, given),))
                return reply
            except grpc.aio.AbortError:
                code = grpc.StatusCode.UNKNOWN.name
                raise
            except asyncio.CancelledError:
                # A cancelled call must end as one: returning instead leaks what grpc keeps for it.
                code = grpc.StatusCode.CANCELLED.name
                raise
            except Exception as error:
                end = ending(error)
                code = end.code.name
                metrics.call_failed(end.reason)
                await context.abort(end.code, end.message, (*end.trailers, (REQUEST_ID_KEY, mark.request_id)))
            finally:
                running.discard(task)
                metrics.call_ended(method, code, time.monotonic() - began)
                mark.request_id = ""

        return handle


class UnknownMethods(grpc.GenericRpcHandler):
    """The last that is asked for a handler: it has none, and counts."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()

    def service(self, details: grpc.HandlerCallDetails) -> None:
        """None, which gRPC answers with UNIMPLEMENTED."""
        self._metrics.call_ended(OTHER, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)


async def abort(context: Context, error: Exception) -> NoReturn:
    """End the call with our error as the table has it, or for any other exception with a reference to the log."""
    end = ending(error)
    await context.abort(end.code, end.message, end.trailers)


def ending(error: Exception) -> CallStatus:
    """How a call ends that met this exception."""
    try:
        return status_of(error if isinstance(error, ServiceError) else _logged(error))
    except Exception as failure:
        # An error that the table does not have, or that cannot be written: what failed here would leave with its text.
        return status_of(_logged(failure))


def _logged(error: Exception) -> ServiceFailed:
    # Outside of a call of ours, as in reflection, there is none yet.
    request_id = current_request_id() or new_request_id()
    log.error("call.failed", request_id=request_id, error=type(error).__name__, at=_frames(error))
    return ServiceFailed(f"The service failed, and logged it under {request_id}.")


def _frames(error: BaseException) -> list[str]:
    """The places that the exception passed, without its text or any value."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return frames[-8:]
