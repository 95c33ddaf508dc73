"""The process's end of the connection: it answers the service's calls with a `PluginServer`."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from exchange_service.observability.logs import CallMark, current_call
from exchange_service.observability.tracing import RecordedSpan, use_span
from exchange_service.plugin_host.frame_port import FramePort
from exchange_service.plugin_host.frames import MAX_BODY, Frame, FrameError, Kind
from exchange_service.plugin_host.methods import METHODS, Method
from exchange_service.plugin_host.protocol import service_proof
from exchange_service.plugin_host.server import PluginServer
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages

# Seconds that a connection has to greet, and how many may be open that have not.
_GREETING_LIMIT = 5.0
_MOST_UNGREETED = 8
# Seconds for which an answer of the service is waited for: longer than it waits for its database.
_ANSWER_LIMIT = 15.0
# Calls that run at once: more than the service has open.
_MOST_CALLS = 20_000

log = structlog.get_logger(__name__)


class _TooLarge(Exception):
    """A message has more bytes than a frame may have."""


class Listener:
    """Accepts connections until one of them proves that it knows the token: this one is answered, and no other ever
    after."""

    def __init__(self, plugin_server: PluginServer, token: str) -> None:
        self.plugin_server = plugin_server
        self._token = token
        self._server: asyncio.Server | None = None
        self._ungreeted: set[ServiceConnection] = set()
        self._service: ServiceConnection | None = None
        plugin_server.ask_service = self._ask

    async def _ask(self, request: messages.ReplaceCredentialRequest) -> messages.ReplaceCredentialResponse | None:
        """The service's answer; None if the connection is not there any more, or no answer comes."""
        return None if self._service is None else await self._service.ask(request)

    async def open(self, path: str) -> None:
        """Listen on a Unix socket at this path."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: ServiceConnection(self), path)

    def admit(self, connection: ServiceConnection) -> bool:
        """Whether a connection may try to greet."""
        if self._service is not None or len(self._ungreeted) >= _MOST_UNGREETED:
            return False
        self._ungreeted.add(connection)
        return True

    def greet(self, connection: ServiceConnection, proof: bytes) -> bool:
        """Whether this is the service's connection. Then the others are ended, and none is accepted any more."""
        if not hmac.compare_digest(proof, service_proof(self._token)):
            return False
        self._service = connection
        self._ungreeted.discard(connection)
        self._close_door()
        return True

    def leave(self, connection: ServiceConnection) -> None:
        """A connection has ended."""
        self._ungreeted.discard(connection)

    def _close_door(self) -> None:
        if self._server is not None:
            self._server.close()
        for other in list(self._ungreeted):
            other.end()

    def close(self) -> None:
        """End every connection, and the calls that run."""
        self._close_door()
        if self._service is not None:
            self._service.end()


class ServiceConnection(FramePort):
    """A connection that is the service's once its greeting has proved that it knows the token. Until then it may do
    nothing else."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        self._greeting: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._last_number = 0
        self._calls: dict[int, asyncio.Task[None]] = {}
        # Requests of this process that the service has not answered.
        self._asked: dict[int, asyncio.Future[messages.ReplaceCredentialResponse | None]] = {}
        self._last_asked = 0
        # For each stream how many of its items the service wants and has not got.
        self._wanted: dict[int, asyncio.Semaphore] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if self._listener.admit(self):
            self._greeting = asyncio.get_running_loop().call_later(_GREETING_LIMIT, self.end)
        else:
            self.end()

    def on_end(self) -> None:
        """See FramePort."""
        self._listener.leave(self)
        for work in (self._greeting, *self._calls.values()):
            if work is not None:
                work.cancel()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)

    async def ask(self, request: messages.ReplaceCredentialRequest) -> messages.ReplaceCredentialResponse | None:
        """The service's answer to a request of this process; None if none comes."""
        if self.ended:
            return None
        self._last_asked += 1
        number = self._last_asked
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(Kind.ASK, number, request.SerializeToString())
        try:
            async with asyncio.timeout(_ANSWER_LIMIT):
                reply: messages.ReplaceCredentialResponse | None = await answer
                return reply
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def take_frame(self, frame: Frame) -> None:
        """See FramePort."""
        if not isinstance(self._greeting, asyncio.Task):
            self._take_greeting(frame)
        elif not self._greeting.done():
            raise FrameError("a frame before the welcome")
        elif frame.kind is Kind.CALL:
            self._take_call(frame)
        elif frame.kind is Kind.CANCEL:
            if (task := self._calls.get(frame.number)) is not None:
                task.cancel()
        elif frame.kind is Kind.MORE:
            if (wanted := self._wanted.get(frame.number)) is not None:
                wanted.release()
        elif frame.kind is Kind.ANSWER:
            if (answer := self._asked.get(frame.number)) is not None and not answer.done():
                answer.set_result(_parsed(messages.ReplaceCredentialResponse, frame.body))
        else:
            raise FrameError(f"a frame that a service does not send ({frame.kind.name})")

    def _take_greeting(self, frame: Frame) -> None:
        if frame.kind is not Kind.GREETING:
            raise FrameError("no greeting")
        greeting = _parsed(messages.Greeting, frame.body)
        if greeting is None or not self._listener.greet(self, greeting.proof):
            raise FrameError("a greeting without the proof")
        if self._greeting is not None:
            self._greeting.cancel()
        self._greeting = asyncio.create_task(self._welcome(greeting.configure), name="handshake")

    async def _welcome(self, request: messages.ConfigureRequest) -> None:
        try:
            reply = await self._listener.plugin_server.configure(request)
        except Exception as error:
            log.error("plugin_host.failed", error=type(error).__name__)
            self.end()
        else:
            self.send(Kind.WELCOME, 0, reply.SerializeToString())

    def _take_call(self, frame: Frame) -> None:
        if frame.number <= self._last_number:
            raise FrameError("a call with the number of an earlier one")
        self._last_number = frame.number
        call = _parsed(messages.Call, frame.body)
        method = None if call is None else METHODS.get(call.method)
        request = None if method is None else _parsed(method.request, call.request)
        if call is None or method is None:
            unknown = messages.FAILURE_CODE_INTERNAL if call is None else messages.FAILURE_CODE_UNIMPLEMENTED
            self._fail(frame.number, unknown)
        elif request is None:
            self._fail(frame.number, messages.FAILURE_CODE_INTERNAL)
        elif len(self._calls) >= _MOST_CALLS:
            self._fail(frame.number, messages.FAILURE_CODE_RESOURCE_EXHAUSTED)
        else:
            task = asyncio.create_task(self._run(frame.number, method, request, call), name=f"call of {method.name}")
            self._calls[frame.number] = task
            task.add_done_callback(lambda done: self._forget(frame.number, done))

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        """A call's task has ended. One that failed, or was cancelled, has sent nothing that ends the call."""
        del self._calls[number]
        self._wanted.pop(number, None)
        if task.cancelled():
            self._fail(number, messages.FAILURE_CODE_CANCELLED)
        elif isinstance(error := task.exception(), _TooLarge):
            self._fail(number, messages.FAILURE_CODE_RESOURCE_EXHAUSTED)
        elif error is not None:
            self._fail(number, messages.FAILURE_CODE_INTERNAL, error)

    def _fail(self, number: int, code: messages.FailureCode.ValueType, error: BaseException | None = None) -> None:
        """End a call without a reply. The error's text stays here: it may hold a credential."""
        if error is not None:
            log.error("plugin_host.failed", error=type(error).__name__)
        self.send(Kind.FAILURE, number, messages.CallFailure(code=code).SerializeToString())

    async def _run(self, number: int, method: Method, request: Any, call: messages.Call) -> None:
        mark = CallMark(call.request_id)
        current_call.set(mark)
        span = RecordedSpan.of_call(call.trace_id) if call.trace_id else None
        use_span(span)
        answer = getattr(self._listener.plugin_server, _ANSWERS[method.name])
        try:
            async with asyncio.timeout(call.timeout or None):
                if method.stream:
                    await self._send_items(number, answer(request))
                else:
                    await self._send(Kind.REPLY, number, await answer(request))
        # Not the task's error: its frames hold the timeout, which holds the task, and the request stays with them.
        except TimeoutError:
            self._fail(number, messages.FAILURE_CODE_DEADLINE_EXCEEDED)
        finally:
            mark.request_id = ""
            if span is not None:
                span.end()

    async def _send_items(self, number: int, items: AsyncGenerator[Any, None]) -> None:
        """Send each item when the service wants one more, so that what comes meanwhile is one balance, the last."""
        wanted = self._wanted[number] = asyncio.Semaphore(1)
        async with aclosing(items):
            while await wanted.acquire() and (item := await anext(items, None)) is not None:
                await self._send(Kind.ITEM, number, item)
        self.send(Kind.END, number)

    async def _send(self, kind: Kind, number: int, message: Any) -> None:
        body = message.SerializeToString()
        if len(body) > MAX_BODY:
            raise _TooLarge
        await self.writable()
        self.send(kind, number, body)


# The methods of PluginServer. They are looked up at each call.
_ANSWERS = {
    "Configure": "configure",
    "CheckHealth": "check_health",
    "FetchBalance": "fetch_balance",
    "WatchBalance": "watch_balance",
    "CheckCredential": "check_credential",
    "ForgetAccount": "forget_account",
}


def _parsed(kind: type[Any], body: bytes) -> Any:
    """The message, or None if the bytes are not one."""
    try:
        return kind.FromString(body)
    except DecodeError:
        return None
