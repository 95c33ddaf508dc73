"""Our methods without gRPC's transport: the same wrapped handlers, called within this process.

So a call over another transport has the same authentication, quotas, deadlines, statuses and metrics as one over gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor

from exchange_service.errors import ShuttingDown
from exchange_service.grpc_server.handler_wrapper import Context, Handler, find_status
from exchange_service.grpc_server.methods import ServiceMethods
from exchange_service.grpc_server.status import CallStatus

Metadata = Sequence[tuple[str, str]]
# The bytes of a message, or what makes them of another form, which is called for known callers only.
Request = bytes | Callable[[], bytes]


class CallEnded(Exception):
    """The call has failed. `status` is what a gRPC client would get: code, reason, message and trailers."""

    def __init__(self, status: CallStatus) -> None:
        super().__init__(status.message)
        self.status = status


class DirectCalls:
    """Calls methods by their paths, such as "/exchange_service.v1.ExchangeService/GetBalance".

    Requests and replies are serialized messages; a request may also be a function that returns it, or raises
    FieldInvalid. Metadata has lower-case names, as in gRPC. `timeout` is in seconds; a
    unary call without one has the service's own.
    """

    def __init__(self, services: Sequence[ServiceMethods]) -> None:
        """`services` have wrapped handlers."""
        described = [(service, method) for service in services for method in service.descriptor.methods]
        self.methods: Mapping[str, MethodDescriptor] = MappingProxyType(
            {f"/{service.name}/{method.name}": method for service, method in described}
        )
        self._handlers: dict[str, Handler] = {
            f"/{service.name}/{method.name}": service.handlers[method.name] for service, method in described
        }
        self._closed = False

    def close(self) -> None:
        """Refuse calls from now on with SHUTTING_DOWN. Those in progress go on."""
        self._closed = True

    async def unary(
        self, path: str, request: Request, metadata: Metadata = (), *, timeout: float | None = None
    ) -> bytes:
        """Call a method with one reply. Raises CallEnded, and KeyError for an unknown path.

        The call ends at once if the caller's task is cancelled.
        """
        call = self._begin(path, request, metadata, timeout)
        try:
            return await call.reply()
        finally:
            await call.end()

    async def stream(
        self, path: str, request: Request, metadata: Metadata = (), *, timeout: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Call a method with a stream of replies. Raises CallEnded when the stream ends with an error, and KeyError for
        an unknown path.

        The handler waits while no message is asked for, and ends as for a slow subscriber if that takes too long.
        `aclose` ends the handler at once.
        """
        call = self._begin(path, request, metadata, timeout)
        try:
            while (message := await call.next_message()) is not None:
                yield message
            await call.reply()
        finally:
            await call.end()

    def _begin(self, path: str, request: Request, metadata: Metadata, timeout: float | None) -> _Call:
        handler = self._handlers[path]
        if self._closed:
            raise CallEnded(find_status(ShuttingDown("This replica of the service is shutting down.")))
        return _Call(handler, request, metadata, timeout)


class _Call:
    """One call in a task of its own, which the handler wrapper needs."""

    def __init__(self, handler: Handler, request: Request, metadata: Metadata, timeout: float | None) -> None:
        self._context = _Context(metadata, timeout)
        self._task: asyncio.Task[Any] = asyncio.ensure_future(_run(handler, request, self._context))
        self._task.add_done_callback(lambda _: self._context.messages.put_nowait(None))

    async def next_message(self) -> bytes | None:
        """The next message of a stream; None if the handler has ended."""
        message = await self._context.messages.get()
        self._context.message_taken()
        return message

    async def reply(self) -> bytes:
        """The handler's result. Raises CallEnded if it failed."""
        await asyncio.wait({self._task})
        if self._context.status is not None:
            raise CallEnded(self._context.status)
        reply: bytes = self._task.result()
        return reply

    async def end(self) -> None:
        """End the handler if it still runs, and wait for that."""
        self._context.leave()
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            # Looked at, so that asyncio does not log it as an exception that nobody has seen.
            self._task.exception()


async def _run(handler: Handler, request: Request, context: _Context) -> Any:
    """The handler's result; None if the context has the status with which the call failed, or the caller has left.

    A task keeps the exception that ends it, whose traceback holds the frames of the call, and these hold the task. All
    of that, the caller's token too, would stay in memory until the collector of all objects comes, which it seldom
    does.
    """
    try:
        return await handler(request, cast("Context", context))
    except grpc.aio.AbortError:
        return None
    except asyncio.CancelledError:
        if not context.cancelled():
            raise
        return None


class _Context:
    """What handlers get in the place of gRPC's context: those of its methods that they use."""

    def __init__(self, metadata: Metadata, timeout: float | None) -> None:
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.status: CallStatus | None = None
        self._metadata = metadata
        self._loop = asyncio.get_running_loop()
        self._deadline = None if timeout is None else self._loop.time() + timeout
        self._taken: asyncio.Future[None] | None = None
        self._left = False

    def leave(self) -> None:
        """The caller waits for nothing any more."""
        self._left = True

    def message_taken(self) -> None:
        """The caller has taken the message that is being written."""
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    def invocation_metadata(self) -> Metadata:
        """What the caller sent beside the request."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Empty: there is no client certificate."""
        return {}

    def cancelled(self) -> bool:
        """Whether the caller has left."""
        return self._left

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """A reply has no trailers here: the caller knows its request id."""

    async def write(self, message: bytes) -> None:
        """Hand a message over, and wait until it is taken."""
        self._taken = self._loop.create_future()
        self.messages.put_nowait(message)
        await self._taken

    async def abort(
        self, code: grpc.StatusCode, message: str, trailers: tuple[tuple[str, str | bytes], ...] = ()
    ) -> NoReturn:
        """End the call with this status, whose message begins with its reason."""
        self.status = CallStatus(code, message.partition(":")[0], message, trailers)
        raise grpc.aio.AbortError("The call has ended with an error.")
