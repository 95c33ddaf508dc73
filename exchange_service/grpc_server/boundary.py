"""The outermost boundary: our errors leave by the status table, every other exception without its text.

grpc.aio would send an unhandled exception's text to the client, and a venue library's text can hold a signed URL.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog

from exchange_service.errors import ServiceError, ServiceFailed
from exchange_service.grpc_server.status import outcome

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our own service; health and reflection keep their own manners."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"
        self._running: set[asyncio.Task[Any]] = set()

    async def drained(self, timeout: float) -> None:
        """Wait until no handler runs any more, for at most `timeout` seconds: grpc's own stop does not."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(self._prefix):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._bounded(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._bounded(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _bounded(self, inner: Handler) -> Handler:
        async def handle(request: Any, context: Context) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            try:
                return await inner(request, context)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                # A cancelled call must end as one: returning instead leaks what grpc keeps for it.
                raise
            except Exception as error:
                await abort(context, error)
            finally:
                self._running.discard(task)

        return handle


async def abort(context: Context, error: Exception) -> NoReturn:
    """End the call with our error as the table has it, or for any other exception with a reference to the log."""
    try:
        end = outcome(error if isinstance(error, ServiceError) else _logged(error))
    except Exception as failure:
        # An error that the table does not have, or that cannot be written: what failed here would leave with its text.
        end = outcome(_logged(failure))
    await context.abort(end.code, end.message, end.trailers)


def _logged(error: Exception) -> ServiceFailed:
    reference = uuid.uuid4().hex[:12]
    log.error("call.failed", reference=reference, error=type(error).__name__, at=_frames(error))
    return ServiceFailed(f"The service failed; its log has more under {reference}.")


def _frames(error: BaseException) -> list[str]:
    """The places that the exception passed, without its text or any value."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return frames[-8:]
