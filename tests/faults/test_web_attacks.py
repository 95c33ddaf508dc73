"""Attacks on the HTTP server, from pages in a browser and from peers whom nobody knows: each first succeeds with the
mitigation switched off, and then fails."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from exchange_service.http_server import connect, connection, guards
from exchange_service.http_server.guards import Guards
from exchange_service.startup_checks import UnsafeSettings, check_settings
from tests.authenticated_service import amount, authenticated_service, tls_settings
from tests.harness import PATIENCE, ScriptedPlugin, holding, settings_for, until
from tests.identities import Authority, web_token
from tests.web import ASK, GET, STREAM, address_of, ask, connect_raw, envelope, raw_request, send_raw, web_service

MINE, THEIRS = "https://app.example.com", "https://evil.example"
MONEY = b"1.50"


def do_nothing(*_: Any) -> None:
    """In the place of a check."""


def let_all_read(_: Guards, request: Any, response: Any) -> None:
    """What a server does that repeats each page's origin."""
    response.headers.append((b"access-control-allow-origin", request.get(b"origin")))


@pytest.mark.threat("T74", attack=True)
async def test_a_page_whose_name_leads_to_loopback_reads_balances_unless_the_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of one origin with its own page, as the browser sees it.
    rebound = raw_request(
        GET, json.dumps(ASK).encode(), "host: evil.example:50052", "origin: http://evil.example:50052"
    )
    closing = rebound.replace(b"\r\n\r\n", b"\r\nsec-fetch-site: same-origin\r\nconnection: close\r\n\r\n", 1)
    async with web_service(tmp_path, http_hosts=["balances.example.com"]) as running:
        with monkeypatch.context() as patched:
            patched.setattr(Guards, "_check_host", do_nothing)
            assert MONEY in await send_raw(running, closing)
        assert (await send_raw(running, closing)).startswith(b"HTTP/1.1 421 ")
        for name in ("", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example#localhost", "[::1].evil"):
            answer = await send_raw(running, closing.replace(b"host: evil.example:50052", f"host: {name}".encode()))
            assert answer.startswith(b"HTTP/1.1 4"), name
            assert MONEY not in answer
        for name in ("localhost:1", "127.0.0.1", "[::1]:80", "balances.example.com", "Balances.Example.com."):
            plain = raw_request(GET, json.dumps(ASK).encode(), f"host: {name}", "connection: close")
            assert MONEY in await send_raw(running, plain), name


@pytest.mark.threat("T75", attack=True)
async def test_another_page_makes_calls_by_a_form_unless_its_origin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = ScriptedPlugin()
    form = {"content_type": "application/x-www-form-urlencoded"}
    sent = ({"origin": THEIRS}, {"origin": "null"}, {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"})
    async with web_service(tmp_path, plugin, max_age=0.0) as running:
        with monkeypatch.context() as patched:
            patched.setattr(Guards, "_check_origin", do_nothing)
            await ask(running, content_type="application/json", origin=THEIRS)
            assert len(plugin.calls) == 1
        for headers in sent:
            # What a form or a request without preflight can send.
            for kind in (*form.values(), "text/plain", "multipart/form-data; boundary=a", "application/json"):
                answer = await ask(running, content_type=kind, **headers)
                assert answer.status in (403, 415), (headers, kind)
        for kind in ("text/plain", "multipart/form-data; boundary=a"):
            assert (await ask(running, content_type=kind)).status == 415
        assert len(plugin.calls) == 1
        # Curl sends neither.
        assert (await ask(running, **form)).status == 200


@pytest.mark.threat("T76", attack=True)
async def test_a_page_of_another_origin_reads_an_answer_unless_only_listed_ones_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    async with web_service(tmp_path, http_origins=[MINE]) as running:

        async def allowed(origin: str) -> tuple[str | None, str | None]:
            """The origin that may send, and the one that may read."""
            before = await ask(running, method="OPTIONS", origin=origin, **preflight)
            after = await ask(running, origin=origin)
            name = "access-control-allow-origin"
            assert not any("credentials" in header.lower() for header in (*before.headers, *after.headers))
            return before.headers.get(name), after.headers.get(name)

        with monkeypatch.context() as patched:
            patched.setattr(Guards, "_check_origin", let_all_read)
            assert await allowed(THEIRS) == (THEIRS, THEIRS)
        assert await allowed(MINE) == (MINE, MINE)
        others = (
            THEIRS,
            "null",
            "*",
            MINE + ".evil.example",
            MINE.replace("https", "http"),
            MINE + ":8443",
            MINE + "/",
        )
        for origin in others:
            assert await allowed(origin) == (None, None), origin
        answer = await ask(running, method="OPTIONS", origin=MINE, **preflight)
        assert answer.status == 204
        assert {"authorization", "connect-protocol-version"} <= set(
            answer.headers["access-control-allow-headers"].split(", ")
        )
        headers = (await ask(running, origin=MINE)).headers
        assert "x-request-id" in headers["access-control-expose-headers"]
        assert "Origin" in headers.getall("vary")  # type: ignore[attr-defined]
        own = f"http://{address_of(running)}"
        assert (await ask(running, origin=own, sec_fetch_site="same-origin")).status == 200


class TestSizes:
    @pytest.mark.threat("T77", attack=True)
    async def test_a_body_of_any_size_is_taken_unless_it_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        large = json.dumps({**ASK, "environment": " " * 200_000}).encode()
        async with web_service(tmp_path) as running:
            with monkeypatch.context() as patched:
                patched.setattr(guards, "LARGEST_REQUEST", 1 << 30)
                assert (await ask(running, body=large)).status != 413
            assert (await ask(running, body=large)).status == 413
            chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
            chunked = raw_request(GET, b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
            # Empty: the connection was closed while the rest of the body was on its way.
            assert (await send_raw(running, chunked + chunk * 4))[:12] in (b"HTTP/1.1 413", b"")
            stream = await ask(running, STREAM, envelope(b" " * 100_000), content_type="application/connect+json")
            assert stream.status == 413

    @pytest.mark.threat("T77", attack=True)
    async def test_a_packed_body_fills_the_memory_unless_unpacking_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bomb = gzip.compress(b" " * 20_000_000 + json.dumps(ASK).encode())
        assert len(bomb) < 64_000
        stream = {"content_type": "application/connect+json", "connect_content_encoding": "gzip"}
        with monkeypatch.context() as patched:
            patched.setattr(connect, "LARGEST_REQUEST", 1 << 30)
            async with web_service(tmp_path) as running:
                assert MONEY in (await ask(running, body=bomb, content_encoding="gzip")).body
        async with web_service(tmp_path) as running:
            answer = await ask(running, body=bomb, content_encoding="gzip")
            assert (answer.status, answer.json["code"]) == (429, "resource_exhausted")
            assert b"resource_exhausted" in (await ask(running, STREAM, envelope(bomb, 1), **stream)).body
            assert (await ask(running, body=bomb, content_encoding="br")).json["code"] == "unimplemented"

    @pytest.mark.threat("T77")
    @pytest.mark.parametrize(
        "headers",
        [
            [f"x-{number}: 1" for number in range(200)],
            ["x-long: " + "a" * 20_000],
            ["x-long: " + "a" * 500_000],
        ],
    )
    async def test_a_head_has_few_and_short_headers(self, tmp_path: Path, headers: list[str]) -> None:
        async with web_service(tmp_path) as running:
            answer = await send_raw(running, raw_request(GET, json.dumps(ASK).encode(), *headers))
            assert answer[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")

    @pytest.mark.threat("T77", attack=True)
    async def test_two_servers_read_bodies_of_different_lengths_unless_two_lengths_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        body = json.dumps(ASK).encode()
        hidden = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        both = raw_request(GET, hidden, "transfer-encoding: chunked", "connection: close")
        async with web_service(tmp_path) as running:
            with monkeypatch.context() as patched:
                patched.setattr(guards, "_check_head", do_nothing)
                assert MONEY in await send_raw(running, both)
            assert (await send_raw(running, both)).startswith(b"HTTP/1.1 400 ")
            for headers in (
                ("content-length: 5", "content-length: 6"),
                ("content-length: +5",),
                ("transfer-encoding: chunked, identity",),
                ("transfer-encoding: xchunked",),
                ("transfer-encoding : chunked",),
                ("host: localhost", "host: evil.example"),
                ("x-a: 1\r\n folded: 2\x00",),
                ("authorization: Bearer \xff",),
            ):
                answer = await send_raw(running, raw_request(GET, body, *headers, "connection: close"))
                assert answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5"), headers
                assert MONEY not in answer


class TestSlowness:
    @pytest.mark.threat("T78", attack=True)
    async def test_heads_and_bodies_that_never_end_hold_connections_unless_they_have_a_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.web.idle_seconds", lambda: 1.0)
        beginnings = (b"", b"POST / HT", raw_request()[:-5], raw_request() + b"POST / HT")

        async def held(seconds: float) -> list[bool]:
            """Which of the connections are still open after so long."""
            opened = [await connect_raw(running) for _ in beginnings]
            for (_, writer), data in zip(opened, beginnings, strict=True):
                writer.write(data)
            readings = [asyncio.create_task(reader.read()) for reader, _ in opened]
            await asyncio.wait(readings, timeout=seconds)
            still = [not reading.done() for reading in readings]
            for _, writer in opened:
                writer.transport.abort()
            await asyncio.gather(*readings, return_exceptions=True)
            return still

        async with web_service(tmp_path) as running:
            assert await held(0.6) == [True] * 4
            monkeypatch.setattr(connection, "HEAD_LIMIT", 0.3)
            monkeypatch.setattr(guards, "BODY_LIMIT", 0.3)
            assert await held(PATIENCE) == [False] * 4
            await until(lambda: running.service.web.server.connections == 0)  # type: ignore[union-attr]

    @pytest.mark.threat("T78", attack=True)
    async def test_who_does_not_read_holds_a_stream_and_a_connection_unless_reading_has_a_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        numbers = iter(range(1_000_000))

        async def rising(_: Any) -> Any:
            return holding(("BTC", str(next(numbers))), notes=("x" * 200_000,))

        monkeypatch.setattr("exchange_service.http_server.server._TO_READ_WHY", 0.2)
        fast = {"poll_interval": 0.1, "max_age": 0.0, "write_timeout": 0.5}
        async with web_service(tmp_path, ScriptedPlugin(answer=rising), **fast) as running:
            body = envelope(b'{"userId":"alice"}')
            host, _, port = address_of(running).rpartition(":")
            with socket.create_connection((host, int(port))) as silent:
                silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                silent.sendall(raw_request(STREAM, body, "content-type: application/connect+json"))
                await until(lambda: running.service.streams.counts()[1] == 1, "the stream")
                began = time.monotonic()
                await until(lambda: running.service.streams.counts()[1] == 0, "the end of the stream")
                await until(lambda: running.service.web.server.connections == 0, "the connection's end")  # type: ignore[union-attr]
                assert time.monotonic() - began < 10

    @pytest.mark.threat("T78")
    async def test_an_idle_connection_is_closed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exchange_service.web.idle_seconds", lambda: 1.0)
        async with web_service(tmp_path) as running:
            assert MONEY in await send_raw(running, raw_request())

    @pytest.mark.threat("T78", attack=True)
    async def test_connections_take_all_files_unless_they_are_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def opened(number: int) -> int:
            """How many of so many silent connections stay open."""
            connections = [await connect_raw(running) for _ in range(number)]
            readings = [asyncio.create_task(reader.read()) for reader, _ in connections]
            await asyncio.wait(readings, timeout=0.3)
            still = sum(not reading.done() for reading in readings)
            for _, writer in connections:
                writer.transport.abort()
            await asyncio.gather(*readings, return_exceptions=True)
            return still

        async with web_service(tmp_path) as running:
            assert await opened(20) == 20
        monkeypatch.setattr("exchange_service.open_files._MOST_OVER_HTTP", 5)
        async with web_service(tmp_path) as running:
            assert await opened(20) == 5
            await until(lambda: running.service.web.server.connections == 0)  # type: ignore[union-attr]
            assert (await ask(running)).status == 200

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    @pytest.mark.threat("T78", attack=True)
    async def test_handshakes_that_never_end_hold_files_unless_they_have_a_time_and_are_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = tls_settings(Authority.create(tmp_path), http_address="localhost:0", address="127.0.0.1:0")
        async with web_service(tmp_path, **settings) as running:
            silent = [await connect_raw(running) for _ in range(4)]
            await until(lambda: running.service.web.server.connections == 4)  # type: ignore[union-attr]
            monkeypatch.setattr("exchange_service.http_server.server._HANDSHAKE_LIMIT", 0.3)
            short, writer = await connect_raw(running)
            assert await asyncio.wait_for(short.read(), PATIENCE) == b""
            assert running.service.web.server.connections == 4  # type: ignore[union-attr]
            for _, other in (*silent, (short, writer)):
                other.transport.abort()
            await until(lambda: running.service.web.server.connections == 0)  # type: ignore[union-attr]


@pytest.mark.threat("T79", attack=True)
async def test_a_cookie_authenticates_a_call_unless_the_methods_do_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = web_token("alice")
    cookies = {"cookie": f"exchange_service_session={token}; authorization=Bearer {token}"}
    async with authenticated_service(tmp_path, http_address="127.0.0.1:0") as running:
        original = connect._metadata
        with monkeypatch.context() as patched:
            # As a server that took the session's token for the caller's own would do.
            patched.setattr(guards, "_READ", guards._READ | {b"cookie"})
            patched.setattr(
                connect,
                "_metadata",
                lambda context: [
                    *original(context),
                    ("authorization", "Bearer " + context.request_headers["cookie"].rpartition(" ")[2]),
                ],
            )
            assert amount("alice", "fakex") in (await ask(running, **cookies)).body.decode()
        answer = await ask(running, **cookies)
        assert (answer.status, answer.reason) == (401, "CALLER_UNKNOWN")
        twice = raw_request(GET, json.dumps(ASK).encode(), *[f"authorization: Bearer {token}"] * 2, "connection: close")
        assert b"CALLER_UNKNOWN" in await send_raw(running, twice)


@pytest.mark.threat("T79")
def test_tokens_never_cross_the_network_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(UnsafeSettings, match="in the clear"):
        check_settings(settings_for(tmp_path, http_address="192.0.2.1:80", service_tokens=True))
