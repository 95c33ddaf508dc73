"""The service's end of the connection to a plugin's process: it calls, and believes nothing of what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError

from exchange_service.plugin_host.frame_port import FramePort
from exchange_service.plugin_host.frames import MAX_BODY, Frame, FrameError, Kind
from exchange_service.plugin_host.methods import METHODS, Method, code_name
from exchange_service.plugin_host.protocol import service_proof
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.tasks import TaskSet

# Calls that have not ended in the process, and of them those that the service waits for no longer. A process that
# does not end them has its health check to fail first, unless it means harm.
_MOST_CALLS = 16_384
_MOST_ABANDONED = 4096

# Requests of a process that are not answered yet, and the bytes of one: more than any honest plugin has.
_MOST_ASKED = 64
_LONGEST_ASKED = 128 * 1024

# Seconds until the answer that nothing was stored.
_REFUSED_PAUSE = 1.0

_CANCELLED = messages.FAILURE_CODE_CANCELLED
_DEADLINE_EXCEEDED = messages.FAILURE_CODE_DEADLINE_EXCEEDED
_INTERNAL = messages.FAILURE_CODE_INTERNAL
_RESOURCE_EXHAUSTED = messages.FAILURE_CODE_RESOURCE_EXHAUSTED
_UNAVAILABLE = messages.FAILURE_CODE_UNAVAILABLE
_UNIMPLEMENTED = messages.FAILURE_CODE_UNIMPLEMENTED
# What the other codes mean is known on this side alone.
_FROM_PROCESS = frozenset({_CANCELLED, _DEADLINE_EXCEEDED, _INTERNAL, _RESOURCE_EXHAUSTED, _UNIMPLEMENTED})


class CallFailed(Exception):
    """A call to a plugin's process has no reply. `code` is a FailureCode, `name` its name."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.name = code_name(code)
        super().__init__(self.name)


# Answers a process's request to replace a credential.
Replacing = Callable[[messages.ReplaceCredentialRequest], Awaitable[messages.ReplaceCredentialResponse]]

# An item or a reply, the end of a stream (None), or a FailureCode.
_Outcome = bytes | int | None


class _Call:
    """A call that has not ended in the process.

    `wanted`: the process may send an item; the caller waits for it, unless it has left. `over`: the process has ended
    the call, with `outcome`: a reply, the end of a stream (None), or the code that says why there is no reply. It is no
    exception: a future's is raised with the caller's frames, which hold the future and the request.
    """

    def __init__(self, *, stream: bool) -> None:
        self.stream = self.wanted = stream
        self.abandoned = self.over = False
        self.outcome: _Outcome = None
        self._answer: asyncio.Future[_Outcome] | None = None

    def wait(self) -> asyncio.Future[_Outcome]:
        """The next item, or the call's outcome."""
        self._answer = asyncio.get_running_loop().create_future()
        if self.over:
            self._answer_outcome()
        return self._answer

    def take_item(self, item: bytes) -> None:
        """The process has sent an item."""
        self.wanted = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(item)

    def finish(self, outcome: _Outcome) -> None:
        """The process has ended the call."""
        self.over, self.outcome = True, outcome
        self._answer_outcome()

    def _answer_outcome(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self.outcome)


class ProcessConnection(FramePort):
    """The connection to a process. Each call fails with UNAVAILABLE once it has ended.

    A process that sends what the rules of frames.py do not allow has its connection ended: an answer that was not asked
    for, a second answer, an item too many, more requests of its own than are answered.
    """

    def __init__(self) -> None:
        super().__init__()
        # Answers requests of the process; None: it may send none.
        self.replacing: Replacing | None = None
        # Requests of the process that are being answered, and the number of the last one.
        self._asked = TaskSet()
        self._last_asked = 0
        self._calls: dict[int, _Call] = {}
        self._last_number = 0
        self._abandoned = 0
        self._welcome: asyncio.Future[_Outcome] | None = None

    @classmethod
    async def open(cls, path: str) -> ProcessConnection:
        """Connect to the process that listens at this path. Raises CallFailed if it does not."""
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(cls, path)
        except OSError:
            raise CallFailed(_UNAVAILABLE) from None
        return connection

    async def greet(self, token: str, request: messages.ConfigureRequest) -> messages.ConfigureResponse:
        """The handshake, before any call. The token itself is not sent. Raises CallFailed if the process ends the
        connection instead."""
        self._require_open()
        self._welcome = asyncio.get_running_loop().create_future()
        greeting = messages.Greeting(proof=service_proof(token), configure=request)
        self.send(Kind.GREETING, 0, greeting.SerializeToString())
        reply: messages.ConfigureResponse = _parsed(METHODS["Configure"], await self._welcome)
        return reply

    async def call(self, name: str, request: Any, timeout: float, request_id: str = "", trace_id: str = "") -> Any:
        """The method's response, within `timeout` seconds. Raises CallFailed."""
        method = METHODS[name]
        outcome: _Outcome = _DEADLINE_EXCEEDED
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.writable()
                number, call = self._begin(method, request, timeout, request_id, trace_id)
                try:
                    outcome = await call.wait()
                finally:
                    self._abandon(number, call)
        return _parsed(method, outcome)

    async def stream(self, name: str, request: Any) -> AsyncGenerator[Any, None]:
        """The items of the method's stream, until the process or the caller ends it. Raises CallFailed.

        The process sends one when the caller has asked for it, so none waits here or on its way.
        """
        method = METHODS[name]
        await self.writable()
        number, call = self._begin(method, request, 0.0, "")
        try:
            while True:
                item = await call.wait()
                if item is None:
                    return
                yield _parsed(method, item)
                if not call.over:
                    call.wanted = True
                    self.send(Kind.MORE, number)
        finally:
            self._abandon(number, call)

    def _begin(
        self, method: Method, request: Any, timeout: float, request_id: str, trace_id: str = ""
    ) -> tuple[int, _Call]:
        self._require_open()
        body = messages.Call(
            method=method.name,
            request=request.SerializeToString(),
            timeout=timeout,
            request_id=request_id,
            trace_id=trace_id,
        ).SerializeToString()
        if len(body) > MAX_BODY or len(self._calls) >= _MOST_CALLS:
            raise CallFailed(_RESOURCE_EXHAUSTED)
        self._last_number += 1
        call = self._calls[self._last_number] = _Call(stream=method.stream)
        self.send(Kind.CALL, self._last_number, body)
        return self._last_number, call

    def _require_open(self) -> None:
        if self.ended:
            raise CallFailed(_UNAVAILABLE)

    def _abandon(self, number: int, call: _Call) -> None:
        """The caller waits no longer. The call stays known until the process has ended it."""
        if call.over or self.ended:
            return
        call.abandoned = True
        self._abandoned += 1
        self.send(Kind.CANCEL, number)
        if self._abandoned > _MOST_ABANDONED:
            self.end("it left too many calls without an end")

    def take_frame(self, frame: Frame) -> None:
        """See FramePort."""
        if frame.kind is Kind.WELCOME:
            self._take_welcome(frame)
            return
        if frame.kind is Kind.ASK:
            self._take_request(frame)
            return
        call = self._calls.get(frame.number)
        if call is None or frame.kind not in _ANSWERS[call.stream]:
            raise FrameError(f"an answer that was not asked for ({frame.kind.name})")
        if frame.kind is Kind.ITEM:
            if not call.wanted:
                raise FrameError("an item that was not asked for")
            call.take_item(frame.body)
            return
        del self._calls[frame.number]
        self._abandoned -= call.abandoned
        call.finish(_outcome(frame))

    def _take_welcome(self, frame: Frame) -> None:
        if frame.number or self._welcome is None or self._welcome.done():
            raise FrameError("an answer that was not asked for (WELCOME)")
        self._welcome.set_result(frame.body)

    def _take_request(self, frame: Frame) -> None:
        """Answer a request of the process, beside everything else."""
        if self._welcome is None or not self._welcome.done() or frame.number <= self._last_asked:
            raise FrameError("a request with the number of an earlier one, or before the welcome")
        self._last_asked = frame.number
        if self.replacing is None or len(self._asked) >= _MOST_ASKED or len(frame.body) > _LONGEST_ASKED:
            raise FrameError("a request that is not answered, too many or too long a one")
        try:
            request = messages.ReplaceCredentialRequest.FromString(frame.body)
        except DecodeError:
            raise FrameError("a request that cannot be read") from None
        self._asked.start(self._answer(frame.number, request, self.replacing), name="request of a plugin's process")

    async def _answer(self, number: int, request: messages.ReplaceCredentialRequest, replacing: Replacing) -> None:
        response = await replacing(request)
        if not response.credential_version:
            # Nothing was stored, which cost the service little: a process that asks on and on has to wait.
            await asyncio.sleep(_REFUSED_PAUSE)
        await self.writable()
        self.send(Kind.ANSWER, number, response.SerializeToString())

    def on_end(self) -> None:
        """See FramePort. A request of the process that is being answered is brought to its end: a token depends on
        it."""
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(_UNAVAILABLE)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.finish(_UNAVAILABLE)


_ANSWERS = {
    True: frozenset({Kind.ITEM, Kind.END, Kind.FAILURE}),
    False: frozenset({Kind.REPLY, Kind.FAILURE}),
}


def _outcome(frame: Frame) -> _Outcome:
    if frame.kind is not Kind.FAILURE:
        return frame.body if frame.kind is Kind.REPLY else None
    code: int = _INTERNAL
    with suppress(DecodeError):
        code = messages.CallFailure.FromString(frame.body).code
    return code if code in _FROM_PROCESS else _INTERNAL


def _parsed(method: Method, outcome: _Outcome) -> Any:
    """The response, or the item. Raises CallFailed, always another one: a raised error gathers frames."""
    if isinstance(outcome, int):
        raise CallFailed(outcome)
    with suppress(DecodeError):
        return method.read_response(outcome)
    raise CallFailed(_INTERNAL)
