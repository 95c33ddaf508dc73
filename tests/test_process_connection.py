"""Both ends of the connection to a plugin's process, each against another end that sends what it likes."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exchange_service.plugin_host import answering, connection
from exchange_service.plugin_host.answering import Listener
from exchange_service.plugin_host.connection import CallFailed, ProcessConnection
from exchange_service.plugin_host.frames import MAX_BODY, Frame, FrameReader, Kind, write_frame
from exchange_service.plugin_host.methods import code_name
from exchange_service.plugin_host.protocol import OTHER_VERSION, PROTOCOL, process_proof, service_proof
from exchange_service.plugin_host.server import PluginServer
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.venues.manifests import write_manifest
from tests.harness import PATIENCE, ScriptedPlugin, loaded

HEALTH = messages.CheckHealthRequest()
FETCH = messages.FetchBalanceRequest()
WATCH = messages.WatchBalanceRequest()
TOKEN = "the-token"


class RawEnd:
    """The other end: frames as they come, and any bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._frames = reader, writer, FrameReader()

    async def frame(self) -> Frame:
        """The next frame."""
        frame = await self._next()
        assert frame is not None, "the connection has ended"
        return frame

    async def ended(self) -> bool:
        """Whether nothing more comes, and the connection ends."""
        return await self._next() is None

    async def _next(self) -> Frame | None:
        async with asyncio.timeout(PATIENCE):
            while (frame := self._frames.read()) is None:
                try:
                    data = await self._reader.read(65536)
                except ConnectionError:
                    return None
                if not data:
                    return None
                self._frames.feed(data)
            return frame

    def send(self, kind: Kind, number: int, body: bytes = b"") -> None:
        self._writer.write(write_frame(kind, number, body))

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def called() -> AsyncIterator[tuple[ProcessConnection, RawEnd]]:
    """The service's end, and a process that a test plays."""
    ours, theirs = socket.socketpair()
    _, end = await asyncio.get_running_loop().create_unix_connection(ProcessConnection, sock=ours)
    raw = RawEnd(*await asyncio.open_unix_connection(sock=theirs))
    try:
        yield end, raw
    finally:
        end.end()
        raw.close()


@asynccontextmanager
async def greeted() -> AsyncIterator[tuple[ProcessConnection, RawEnd]]:
    """The same after the handshake."""
    async with called() as (end, raw):
        greeting = begin(end.greet(TOKEN, messages.ConfigureRequest()))
        await raw.frame()
        raw.send(Kind.WELCOME, 0, messages.ConfigureResponse(process_id=5).SerializeToString())
        await greeting
        yield end, raw


async def storing(request: messages.ReplaceCredentialRequest) -> messages.ReplaceCredentialResponse:
    """Says what it was asked."""
    return messages.ReplaceCredentialResponse(credential_version=f"after {request.credential_version}")


def asking(version: str) -> bytes:
    return messages.ReplaceCredentialRequest(credential_version=version).SerializeToString()


def version_in(frame: Frame) -> str:
    assert frame.kind is Kind.ANSWER
    return messages.ReplaceCredentialResponse.FromString(frame.body).credential_version


def begin(call: Awaitable[Any]) -> asyncio.Task[Any]:
    return asyncio.ensure_future(call)


async def code_of(call: Awaitable[Any]) -> str:
    """The name of the code with which a call fails."""
    with pytest.raises(CallFailed) as caught:
        async with asyncio.timeout(PATIENCE):
            await call
    return caught.value.name


def reply(number: int) -> bytes:
    return write_frame(Kind.REPLY, number, messages.CheckHealthResponse(stuck_calls=3).SerializeToString())


class TestService:
    async def test_replies_reach_their_calls_in_any_order(self) -> None:
        async with called() as (end, raw):
            first, second = begin(end.call("CheckHealth", HEALTH, 5.0)), begin(end.call("CheckHealth", HEALTH, 5.0))
            numbers = [(await raw.frame()).number for _ in range(2)]
            raw.send(Kind.REPLY, numbers[1], messages.CheckHealthResponse(stuck_calls=2).SerializeToString())
            raw.send(Kind.REPLY, numbers[0], messages.CheckHealthResponse(stuck_calls=1).SerializeToString())
            assert [(await call).stuck_calls for call in (first, second)] == [1, 2]

    async def test_a_call_tells_its_time_and_its_callers_request_id(self) -> None:
        async with called() as (end, raw):
            call = begin(end.call("FetchBalance", FETCH, 5.0, "the-request"))
            frame = await raw.frame()
            sent = messages.Call.FromString(frame.body)
            assert (frame.kind, sent.method, sent.timeout, sent.request_id) == (
                *(Kind.CALL, "FetchBalance", 5.0),
                "the-request",
            )
            call.cancel()

    @pytest.mark.parametrize(
        ("data", "fault"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "unknown kind"),
            (write_frame(Kind.REPLY, 1)[:4] + b"\x00" * 9, "unknown kind 0"),
            (b"\xff\xff\xff\xff" + write_frame(Kind.REPLY, 1)[4:], "a frame of 4294967295 bytes"),
            (reply(7), r"not asked for \(REPLY\)"),
            (reply(1) + reply(1), r"not asked for \(REPLY\)"),
            (reply(2), r"not asked for \(REPLY\)"),
            (write_frame(Kind.ITEM, 1), r"not asked for \(ITEM\)"),
            (write_frame(Kind.ITEM, 2) + write_frame(Kind.ITEM, 2), "an item that was not asked for"),
            (write_frame(Kind.END, 1), r"not asked for \(END\)"),
            (write_frame(Kind.WELCOME, 0), r"not asked for \(WELCOME\)"),
            (write_frame(Kind.CALL, 1), r"not asked for \(CALL\)"),
            (write_frame(Kind.GREETING, 1), r"not asked for \(GREETING\)"),
        ],
        ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
    )
    async def test_what_a_process_may_not_send_ends_its_connection_and_each_call_is_unavailable(
        self, data: bytes, fault: str
    ) -> None:
        async with called() as (end, raw):
            call = begin(end.call("CheckHealth", HEALTH, PATIENCE))
            items = begin(drained(end.stream("WatchBalance", WATCH)))
            await raw.frame()
            await raw.frame()
            raw.send_raw(data)
            assert await raw.ended()
            assert await code_of(items) == "UNAVAILABLE"
            if data.startswith(reply(1)):
                assert (await call).stuck_calls == 3
            else:
                assert await code_of(call) == "UNAVAILABLE"
            assert await code_of(end.call("CheckHealth", HEALTH, 1.0)) == "UNAVAILABLE"
            assert await code_of(drained(end.stream("WatchBalance", WATCH))) == "UNAVAILABLE"
            assert re.search(fault, end.fault)

    async def test_the_greeting_tells_neither_the_token_nor_what_the_process_answers(self) -> None:
        async with called() as (end, raw):
            greeting = begin(end.greet(TOKEN, messages.ConfigureRequest()))
            sent = (await raw.frame()).body
            assert messages.Greeting.FromString(sent).proof == service_proof(TOKEN)
            assert not any(told in sent for told in (TOKEN.encode(), process_proof(TOKEN)))
            greeting.cancel()

    async def test_requests_of_the_process_are_answered_by_their_numbers(self) -> None:
        async with greeted() as (end, raw):
            end.replacing = storing
            for number, version in ((1, "one"), (5, "two")):
                raw.send(Kind.ASK, number, asking(version))
            answers = {(frame := await raw.frame()).number: frame for _ in range(2)}
            assert {number: version_in(frame) for number, frame in answers.items()} == {1: "after one", 5: "after two"}

    @pytest.mark.parametrize(
        ("sent", "fault"),
        [
            ([(1, b"")], "not answered"),
            ([(1, b"x" * 200_000)], "too long"),
            ([(1, b"\xff\xff")], "cannot be read"),
            ([(2, b""), (2, b"")], "the number of an earlier one"),
        ],
        ids=["to_nobody", "too_long", "garbage", "twice"],
    )
    async def test_a_request_against_the_rules_ends_the_connection(
        self, sent: list[tuple[int, bytes]], fault: str
    ) -> None:
        async with greeted() as (end, raw):
            end.replacing = None if fault == "not answered" else storing
            for number, body in sent:
                raw.send(Kind.ASK, number, body)
            while not end.ended:
                await raw.ended()
            assert fault in end.fault

    @pytest.mark.threat("T11")
    async def test_a_process_that_asks_in_vain_on_and_on_has_its_connection_ended_after_a_few_answers(self) -> None:
        asked: list[str] = []

        async def refusing(request: messages.ReplaceCredentialRequest) -> messages.ReplaceCredentialResponse:
            asked.append(request.credential_version)
            return messages.ReplaceCredentialResponse(changed=True)

        async with greeted() as (end, raw):
            end.replacing = refusing
            for number in range(1, 400):
                # Each in a turn of its own, as from a process that waits for no answer.
                raw.send(Kind.ASK, number, asking("one"))
                await asyncio.sleep(0)
                if end.ended:
                    break
            while not end.ended:
                await raw.ended()
            assert "too many" in end.fault
            assert len(asked) <= 64

    async def test_an_answer_that_nothing_was_stored_takes_its_time(self) -> None:
        async def refusing(request: messages.ReplaceCredentialRequest) -> messages.ReplaceCredentialResponse:
            return messages.ReplaceCredentialResponse(changed=True)

        async with greeted() as (end, raw):
            end.replacing = refusing
            began = asyncio.get_running_loop().time()
            raw.send(Kind.ASK, 1, asking("one"))
            assert (await raw.frame()).kind is Kind.ANSWER
            assert asyncio.get_running_loop().time() - began > 0.9

    async def test_a_request_before_the_welcome_ends_the_connection(self) -> None:
        async with called() as (end, raw):
            end.replacing = storing
            raw.send(Kind.ASK, 1, asking("one"))
            assert await raw.ended()
            assert "before the welcome" in end.fault

    async def test_a_second_welcome_ends_the_connection(self) -> None:
        async with called() as (end, raw):
            greeting = begin(end.greet(TOKEN, messages.ConfigureRequest()))
            await raw.frame()
            raw.send(Kind.WELCOME, 0, messages.ConfigureResponse(process_id=5).SerializeToString())
            assert (await greeting).process_id == 5
            raw.send(Kind.WELCOME, 0)
            assert await raw.ended()

    @pytest.mark.parametrize("data", [b"", reply(1)[:5], reply(1)[:-1]])
    async def test_a_connection_that_breaks_at_any_place_fails_each_call_as_unavailable(self, data: bytes) -> None:
        async with called() as (end, raw):
            greeting = begin(end.greet(TOKEN, messages.ConfigureRequest()))
            call, items = (
                begin(end.call("CheckHealth", HEALTH, PATIENCE)),
                begin(drained(end.stream("WatchBalance", WATCH))),
            )
            for _ in range(3):
                await raw.frame()
            raw.send_raw(data)
            raw.close()
            assert [await code_of(work) for work in (greeting, call, items)] == ["UNAVAILABLE"] * 3

    async def test_a_call_that_nobody_waits_for_is_cancelled_there_and_its_late_reply_is_taken_once(self) -> None:
        async with called() as (end, raw):
            call = begin(end.call("CheckHealth", HEALTH, PATIENCE))
            await raw.frame()
            call.cancel()
            assert (await raw.frame()) == Frame(Kind.CANCEL, 1, b"")
            raw.send_raw(reply(1))
            other = begin(end.call("CheckHealth", HEALTH, PATIENCE))
            await raw.frame()
            raw.send_raw(reply(2))
            assert (await other).stuck_calls == 3
            raw.send_raw(reply(1))
            assert await raw.ended()

    async def test_a_call_without_a_reply_ends_at_its_deadline(self) -> None:
        async with called() as (end, raw):
            assert await code_of(end.call("CheckHealth", HEALTH, 0.05)) == "DEADLINE_EXCEEDED"
            await raw.frame()
            assert (await raw.frame()) == Frame(Kind.CANCEL, 1, b"")

    @pytest.mark.parametrize(
        ("body", "name"),
        [
            (messages.CallFailure(code=messages.FAILURE_CODE_UNIMPLEMENTED).SerializeToString(), "UNIMPLEMENTED"),
            # Only this side can know that.
            (messages.CallFailure(code=messages.FAILURE_CODE_UNAVAILABLE).SerializeToString(), "INTERNAL"),
            (b"\x08\x7f", "INTERNAL"),
            (b"\xff", "INTERNAL"),
        ],
    )
    async def test_a_failure_is_believed_if_a_process_can_know_it(self, body: bytes, name: str) -> None:
        async with called() as (end, raw):
            call = begin(end.call("CheckHealth", HEALTH, PATIENCE))
            await raw.frame()
            raw.send(Kind.FAILURE, 1, body)
            assert await code_of(call) == name
            assert not end.ended

    @pytest.mark.parametrize(
        ("method", "body"),
        [
            ("CheckHealth", b"\xff"),
            # Millions of fields: reading them would hold everybody up for seconds.
            ("CheckHealth", b"\x12\x00" * 40_000),
            ("FetchBalance", b"\x22\x00" * 40_000),
            ("FetchBalance", b"\x0a\x01." + b"\x22\x00" * 40_000),
            ("FetchBalance", b"\x0a\xff\xff\xff\xff\xff\x7f" + b"\x22\x00" * 40_000),
            ("CheckCredential", b"\x0a\x80\x80\x04" + b"\x22\x00" * 32_768),
        ],
    )
    async def test_a_reply_that_is_not_the_methods_or_would_take_long_to_read_fails_its_call_alone(
        self, method: str, body: bytes
    ) -> None:
        async with called() as (end, raw):
            call = begin(end.call(method, HEALTH, PATIENCE))
            await raw.frame()
            raw.send(Kind.REPLY, 1, body)
            assert await code_of(call) == "INTERNAL"
            assert not end.ended

    async def test_a_large_balance_arrives_whole(self) -> None:
        balance = bytes(range(256)) * 4096 * 2
        async with called() as (end, raw):
            call = begin(end.call("FetchBalance", FETCH, PATIENCE))
            await raw.frame()
            raw.send(Kind.REPLY, 1, messages.FetchBalanceResponse(balance=balance, answer_age=1.5).SerializeToString())
            answer = await call
            assert (answer.balance, answer.answer_age) == (balance, 1.5)

    async def test_a_process_that_does_not_read_holds_up_its_own_calls_and_little_memory(self) -> None:
        async with called() as (end, _):
            large = messages.FetchBalanceRequest(call=messages.VenueCall(user_id="x" * 100_000))
            calls = [begin(end.call("FetchBalance", large, 0.5)) for _ in range(100)]
            assert {await code_of(call) for call in calls} == {"DEADLINE_EXCEEDED"}
            assert end._transport is not None
            assert end._transport.get_write_buffer_size() < 512 * 1024  # type: ignore[attr-defined]

    async def test_it_sends_on_once_the_process_reads_again(self) -> None:
        async with called() as (end, raw):
            large = messages.FetchBalanceRequest(call=messages.VenueCall(user_id="x" * 100_000))
            calls = [begin(end.call("FetchBalance", large, PATIENCE)) for _ in range(20)]
            for _ in calls:
                frame = await raw.frame()
                raw.send(Kind.REPLY, frame.number, messages.FetchBalanceResponse(balance=b"1").SerializeToString())
            assert [(await call).balance for call in calls] == [b"1"] * 20

    async def test_an_item_is_sent_when_it_is_asked_for_and_a_reader_that_leaves_ends_the_stream(self) -> None:
        async with called() as (end, raw):
            items = end.stream("WatchBalance", WATCH)
            first = begin(anext(items))
            frame = await raw.frame()
            assert messages.Call.FromString(frame.body).timeout == 0
            raw.send(Kind.ITEM, 1, messages.WatchBalanceResponse(changed=True, age=1.0).SerializeToString())
            assert (await first).age == 1.0
            second = begin(anext(items))
            assert (await raw.frame()) == Frame(Kind.MORE, 1, b"")
            raw.send(Kind.ITEM, 1, messages.WatchBalanceResponse(changed=True, age=2.0).SerializeToString())
            assert (await second).age == 2.0
            await items.aclose()
            assert (await raw.frame()) == Frame(Kind.CANCEL, 1, b"")
            raw.send(Kind.FAILURE, 1)
            call = begin(end.call("CheckHealth", HEALTH, PATIENCE))
            await raw.frame()
            raw.send_raw(reply(2))
            assert (await call).stuck_calls == 3

    async def test_the_last_item_of_a_stream_that_has_ended_is_not_lost(self) -> None:
        async with called() as (end, raw):
            items = begin(drained(end.stream("WatchBalance", WATCH)))
            await raw.frame()
            body = messages.WatchBalanceResponse(changed=True).SerializeToString()
            raw.send_raw(write_frame(Kind.ITEM, 1, body) + write_frame(Kind.END, 1))
            assert len(await items) == 1

    async def test_one_that_never_ends_the_calls_that_were_cancelled_has_its_connection_ended(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "_MOST_ABANDONED", 3)
        async with called() as (end, _raw):
            for _ in range(4):
                assert await code_of(end.call("CheckHealth", HEALTH, 0.01)) == "DEADLINE_EXCEEDED"
            await asyncio.sleep(0)
            assert end.ended
            assert end.fault == "it left too many calls without an end"

    async def test_a_request_that_is_too_large_or_one_too_many_fails_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "_MOST_CALLS", 1)
        async with called() as (end, raw):
            large = messages.FetchBalanceRequest(call=messages.VenueCall(user_id="x" * MAX_BODY))
            assert await code_of(end.call("FetchBalance", large, 1.0)) == "RESOURCE_EXHAUSTED"
            call = begin(end.call("CheckHealth", HEALTH, PATIENCE))
            await raw.frame()
            assert await code_of(end.call("CheckHealth", HEALTH, 1.0)) == "RESOURCE_EXHAUSTED"
            raw.send_raw(reply(1))
            assert (await call).stuck_calls == 3

    @pytest.mark.parametrize("manner", ["failed", "timed out", "gone"])
    async def test_a_call_that_failed_leaves_nothing_for_the_collector_of_circles(
        self, manner: str, uncollected: None
    ) -> None:
        before = alive(CallFailed, connection._Call)
        async with called() as (end, raw):
            calls = [begin(end.call("FetchBalance", FETCH, 0.05 if manner == "timed out" else 5.0)) for _ in range(5)]
            calls.append(begin(drained(end.stream("WatchBalance", WATCH))))
            for number in range(1, 7):
                await raw.frame()
                if manner != "gone" and (manner == "failed" or number == 6):
                    raw.send(Kind.FAILURE, number)
            if manner == "gone":
                raw.close()
            await asyncio.wait(calls)
            assert {type(call.exception()) for call in calls} == {CallFailed}
            calls.clear()
            # A call that the caller has left stays known until the process ends it.
            end._calls.clear()
            assert alive(CallFailed, connection._Call) == before


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The collector of circles does not run."""
    gc.disable()
    yield
    gc.enable()


def alive(*kinds: type[Any]) -> int:
    return sum(type(thing) in kinds for thing in gc.get_objects())


async def drained(items: AsyncGenerator[Any, None]) -> list[Any]:
    return [item async for item in items]


class Served:
    """The process's end, and services that a test plays."""

    def __init__(self, path: str, plugin: ScriptedPlugin, server: PluginServer) -> None:
        self.path, self.plugin, self.server = path, plugin, server
        self._opened: list[RawEnd] = []

    async def connect(self) -> RawEnd:
        raw = RawEnd(*await asyncio.open_unix_connection(self.path))
        self._opened.append(raw)
        return raw

    async def greeted(self) -> RawEnd:
        """A connection that is the service's."""
        raw = await self.connect()
        raw.send(Kind.GREETING, 0, self.greeting())
        frame = await raw.frame()
        welcome = messages.ConfigureResponse.FromString(frame.body)
        assert (frame.kind, welcome.problem, welcome.proof) == (Kind.WELCOME, "", process_proof(TOKEN))
        return raw

    def greeting(self, proof: bytes = service_proof(TOKEN), version: int = PROTOCOL) -> bytes:
        configure = messages.ConfigureRequest(
            protocol_version=version,
            manifest=write_manifest(self.plugin.manifest),
            venue_timeout=5.0,
            session_idle=60.0,
        )
        return messages.Greeting(proof=proof, configure=configure).SerializeToString()

    def close(self) -> None:
        for raw in self._opened:
            raw.close()


@asynccontextmanager
async def answered(tmp_path: Path, plugin: ScriptedPlugin | None = None) -> AsyncIterator[Served]:
    plugin = plugin or ScriptedPlugin()
    server = PluginServer(lambda: loaded(plugin), TOKEN)
    listener = Listener(server, TOKEN)
    path = str(tmp_path / "socket")
    await listener.open(path)
    served = Served(path, plugin, server)
    try:
        yield served
    finally:
        served.close()
        listener.close()
        await server.close()


def call(method: str, request: Any = HEALTH, timeout: float = 0.0) -> bytes:
    return messages.Call(method=method, request=request.SerializeToString(), timeout=timeout).SerializeToString()


def fetch(timeout: float = 5.0) -> bytes:
    venue_call = messages.VenueCall(
        user_id="alice", exchange_id="fakex", environment="production", credential_version="1", timeout=timeout
    )
    venue_call.credential.metadata = b"{}"
    return call("FetchBalance", messages.FetchBalanceRequest(call=venue_call), timeout)


async def failure_of(raw: RawEnd) -> str:
    """The code with which the next frame ends a call, and that there is nothing else in it."""
    frame = await raw.frame()
    assert frame.kind is Kind.FAILURE
    failure = messages.CallFailure.FromString(frame.body)
    assert messages.CallFailure(code=failure.code).SerializeToString() == frame.body
    return code_name(failure.code)


class TestProcess:
    @pytest.mark.parametrize(
        "proof",
        [b"", service_proof("another"), service_proof(TOKEN)[:-1], process_proof(TOKEN), TOKEN.encode()],
        ids=["none", "another's", "shorter", "its own", "the token"],
    )
    @pytest.mark.threat("T11")
    async def test_without_the_token_it_answers_nothing_and_loads_no_plugin(self, tmp_path: Path, proof: bytes) -> None:
        async with answered(tmp_path) as served:
            raw = await served.connect()
            raw.send(Kind.GREETING, 0, served.greeting(proof))
            raw.send(Kind.CALL, 1, call("CheckHealth"))
            assert await raw.ended()
            assert served.server._served is None
            await served.greeted()

    @pytest.mark.parametrize(
        "data",
        [
            write_frame(Kind.CALL, 1, call("CheckHealth")),
            write_frame(Kind.GREETING, 0, b"\xff"),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\xff\xff\xff\xff\x01" + b"\x00" * 8,
        ],
    )
    async def test_a_connection_that_begins_with_anything_else_is_ended(self, tmp_path: Path, data: bytes) -> None:
        async with answered(tmp_path) as served:
            raw = await served.connect()
            raw.send_raw(data)
            assert await raw.ended()

    async def test_connections_that_do_not_greet_in_time_are_ended_also_if_they_drip(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(answering, "_GREETING_LIMIT", 0.3)
        async with answered(tmp_path) as served:
            silent, dripping = await served.connect(), await served.connect()

            async def drip() -> None:
                for byte in write_frame(Kind.GREETING, 0, served.greeting()):
                    dripping.send_raw(bytes([byte]))
                    await asyncio.sleep(0.05)

            dripped = asyncio.create_task(drip())
            assert await silent.ended()
            assert await dripping.ended()
            dripped.cancel()

    async def test_few_may_be_open_before_the_service_is_there_and_none_afterwards(self, tmp_path: Path) -> None:
        async with answered(tmp_path) as served:
            strange = [await served.connect() for _ in range(7)]
            raw = await served.greeted()
            raw.send(Kind.CALL, 1, call("CheckHealth"))
            assert (await raw.frame()).kind is Kind.REPLY
            assert all([await other.ended() for other in strange])
            with pytest.raises(OSError, match="refused"):
                await served.connect()

    async def test_one_too_many_is_ended_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(answering, "_GREETING_LIMIT", 60.0)
        async with answered(tmp_path) as served:
            for _ in range(8):
                await served.connect()
            assert await (await served.connect()).ended()

    async def test_another_version_is_told_so(self, tmp_path: Path) -> None:
        async with answered(tmp_path) as served:
            raw = await served.connect()
            raw.send(Kind.GREETING, 0, served.greeting(version=PROTOCOL + 1))
            welcome = messages.ConfigureResponse.FromString((await raw.frame()).body)
            assert (welcome.problem, welcome.changed) == (OTHER_VERSION, True)

    @pytest.mark.parametrize(
        "second",
        [
            (Kind.GREETING, 0, b""),
            (Kind.WELCOME, 0, b""),
            (Kind.REPLY, 1, b""),
            (Kind.CALL, 1, call("CheckHealth")),
            (Kind.CALL, 0, call("CheckHealth")),
        ],
    )
    async def test_a_second_greeting_a_frame_of_its_own_and_a_number_that_was_used_end_the_connection(
        self, tmp_path: Path, second: tuple[Kind, int, bytes]
    ) -> None:
        async with answered(tmp_path) as served:
            raw = await served.greeted()
            raw.send(Kind.CALL, 1, call("CheckHealth"))
            assert (await raw.frame()).kind is Kind.REPLY
            raw.send(*second)
            assert await raw.ended()

    @pytest.mark.parametrize(
        ("body", "name"),
        [
            (call("Nothing"), "UNIMPLEMENTED"),
            (b"\xff", "INTERNAL"),
            (messages.Call(method="CheckHealth", request=b"\xff").SerializeToString(), "INTERNAL"),
        ],
    )
    async def test_a_call_that_it_cannot_read_or_does_not_know_fails_alone(
        self, tmp_path: Path, body: bytes, name: str
    ) -> None:
        async with answered(tmp_path) as served:
            raw = await served.greeted()
            raw.send(Kind.CALL, 1, body)
            assert await failure_of(raw) == name
            raw.send(Kind.CALL, 2, call("CheckHealth"))
            assert (await raw.frame()).kind is Kind.REPLY

    async def test_its_own_failure_is_told_without_its_text(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fails(*_: object) -> None:
            raise ValueError("a secret")

        async with answered(tmp_path) as served:
            raw = await served.greeted()
            monkeypatch.setattr(PluginServer, "check_health", fails)
            raw.send(Kind.CALL, 1, call("CheckHealth"))
            assert await failure_of(raw) == "INTERNAL"

    async def test_a_reply_that_no_frame_may_hold_is_a_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def large(*_: object) -> messages.FetchBalanceResponse:
            return messages.FetchBalanceResponse(balance=bytes(MAX_BODY))

        monkeypatch.setattr(PluginServer, "fetch_balance", large)
        async with answered(tmp_path) as served:
            raw = await served.greeted()
            raw.send(Kind.CALL, 1, fetch())
            assert await failure_of(raw) == "RESOURCE_EXHAUSTED"

    @pytest.mark.parametrize("ending", ["cancel", "break"])
    async def test_a_cancelled_call_and_a_broken_connection_end_the_plugins_task(
        self, tmp_path: Path, ending: str
    ) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def answer(_: Any) -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with answered(tmp_path, ScriptedPlugin(answer=answer)) as served:
            raw = await served.greeted()
            raw.send(Kind.CANCEL, 99)
            raw.send(Kind.CALL, 1, fetch(60.0))
            await begun.wait()
            if ending == "cancel":
                raw.send(Kind.CANCEL, 1)
                assert await failure_of(raw) == "CANCELLED"
            else:
                raw.close()
            async with asyncio.timeout(PATIENCE):
                await ended.wait()

    async def test_it_keeps_the_time_of_a_call_by_itself_and_keeps_no_request(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncollected: None
    ) -> None:
        async def waits(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(PluginServer, "fetch_balance", waits)
        async with answered(tmp_path) as served:
            raw = await served.greeted()
            body, before = fetch(0.05), alive(messages.FetchBalanceRequest)
            raw.send(Kind.CALL, 1, body)
            assert await failure_of(raw) == "DEADLINE_EXCEEDED"
            assert alive(messages.FetchBalanceRequest) == before

    async def test_a_stream_has_one_item_under_way_and_of_those_that_come_meanwhile_the_service_gets_no_copy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = 0

        async def counts(*_: object) -> AsyncGenerator[messages.WatchBalanceResponse, None]:
            nonlocal asked
            while asked < 2:
                asked += 1
                yield messages.WatchBalanceResponse(changed=True, age=float(asked))

        monkeypatch.setattr(PluginServer, "watch_balance", counts)
        async with answered(tmp_path) as served:
            raw = await served.greeted()
            raw.send(Kind.CALL, 1, call("WatchBalance", WATCH))
            assert (await raw.frame()).kind is Kind.ITEM
            raw.send(Kind.CALL, 2, call("CheckHealth"))
            assert (await raw.frame()).number == 2
            assert asked == 1
            raw.send(Kind.MORE, 1)
            assert (await raw.frame()).kind is Kind.ITEM
            raw.send(Kind.MORE, 1)
            assert (await raw.frame()) == Frame(Kind.END, 1, b"")

    async def test_a_service_that_does_not_read_is_sent_no_more_than_it_asked_for_and_gets_it_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def large(*_: object) -> messages.FetchBalanceResponse:
            return messages.FetchBalanceResponse(balance=bytes(1024 * 1024))

        monkeypatch.setattr(PluginServer, "fetch_balance", large)
        async with answered(tmp_path) as served:
            raw = await served.greeted()
            for number in range(1, 9):
                raw.send(Kind.CALL, number, fetch())
            numbers = {(await raw.frame()).number for _ in range(8)}
            assert numbers == set(range(1, 9))
