"""The service over HTTP: the Connect protocol in both forms, with the same answers and reasons as over gRPC."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.errors import VenueRateLimited
from exchange_service.grpc_server import certificates
from exchange_service.grpc_server.server import BindError
from exchange_service.plugin_api import CredentialField
from exchange_service.startup_checks import UnsafeSettings, check_settings
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.authenticated_service import EVERYBODY, amount, authenticated_service, tls_settings
from tests.harness import (
    Gate,
    Running,
    ScriptedPlugin,
    balance_request,
    failure,
    holding,
    listing,
    raising,
    returning,
    settings_for,
    totals,
    until,
)
from tests.identities import Authority, service_token, web_token
from tests.web import (
    ASK,
    GET,
    LIST,
    STREAM,
    address_of,
    ask,
    connect_raw,
    details_of,
    envelope,
    raw_request,
    reason_of,
    send_raw,
    web_service,
    web_stream,
)

FAST = {"poll_interval": 0.1, "poll_interval_still": 0.1, "max_age": 0.0}
SECRET = "t0p-secret-of-alice"
ACCOUNTS = "/exchange_service.accounts.v1.AccountService/"
PLUGINS = "/exchange_service.operator.v1.PluginService/ListPlugins"


async def curl(*arguments: str) -> str:
    """What curl prints."""
    process = await asyncio.create_subprocess_exec("curl", "-s", *arguments, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode()


class TestCalls:
    async def test_curl_needs_nothing_but_the_body_and_the_address(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running:
            printed = await curl("-d", json.dumps(ASK), f"http://{address_of(running)}{GET}")
            balance = json.loads(printed)["balance"]
            assert balance["venueAccounts"][0]["assets"][0]["total"] == "1.50"
            listed = json.loads(await curl("-d", "{}", f"http://{address_of(running)}{LIST}"))
            assert [exchange["id"] for exchange in listed["exchanges"]] == ["fakex"]
            assert "plugins" in json.loads(await curl("-d", "{}", f"http://{address_of(running)}{PLUGINS}"))

    async def test_a_binary_message_gets_the_same_bytes_as_over_grpc(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running:
            body = balance_request().SerializeToString()
            answer = await ask(running, body=body, content_type="application/proto")
            assert (answer.status, answer.headers["content-type"]) == (200, "application/proto")
            there = await running.stub.GetBalance(balance_request())
            assert messages.GetBalanceResponse.FromString(answer.body).balance == there.balance

    @pytest.mark.parametrize("body", [{"userId": "alice", "exchangeId": "nowhere"}, {"exchangeId": "fakex"}])
    async def test_an_error_has_the_same_reason_details_and_words(self, tmp_path: Path, body: dict[str, str]) -> None:
        async with web_service(tmp_path) as running:
            named = {"user_id": body.get("userId", ""), "exchange_id": body["exchangeId"]}
            there = await failure(running.stub.GetBalance(messages.GetBalanceRequest(**named)))
            here = await ask(running, body=body)
            assert here.status in (400, 404)
            assert here.json["code"] == there.code.name.lower()
            assert here.json["message"] == there.message
            assert tuple(details_of(here.json)) == there.details

    async def test_a_delay_is_a_header_and_a_detail(self, tmp_path: Path) -> None:
        limited = VenueRateLimited("The venue limits us.", retry_after=2.5)
        async with web_service(tmp_path, ScriptedPlugin(answer=raising(limited))) as running:
            answer = await ask(running)
            assert (answer.status, answer.reason) == (429, "VENUE_RATE_LIMITED")
            assert 1 <= int(answer.headers["retry-after"]) <= 3

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"userid": "alice", "exchangeId": "fakex"}, "userid"),
            ({"userId": 7, "exchangeId": "fakex"}, "userId"),
            ({**ASK, "maxAge": "soon-a-secret"}, "maxAge"),
            (b"{", "request"),
            (b"[]", "request"),
            (b"", "request"),
            (b'{"userId":"a","userId":"b"}', "request"),
            (b"[" * 60_000, "request"),
            (b"\xff", "request"),
            (b'{"userId":"alice","accounts":[' + b"{}," * 2000 + b"{}]}", "request"),
        ],
    )
    async def test_a_slip_in_the_json_is_named_and_never_a_default(self, tmp_path: Path, body: Any, field: str) -> None:
        async with web_service(tmp_path) as running:
            answer = await ask(running, body=body)
            assert (answer.status, answer.reason) == (400, "FIELD_INVALID")
            assert [item.field for item in details_of(answer.json)[1].field_violations] == [field]
            assert "secret" not in answer.body.decode()

    async def test_a_slip_in_a_part_of_a_message_is_named_with_its_path(self, tmp_path: Path) -> None:
        async with (
            web_service(tmp_path) as running,
            web_stream(running, {"userId": "alice", "accounts": [{"exchange": "fakex"}]}) as stream,
        ):
            error = (await stream.end())["error"]
            assert [item.field for item in details_of(error)[1].field_violations] == ["accounts[0].exchange"]

    @pytest.mark.parametrize(
        "fields",
        [{"api_key": {"of": SECRET}}, {"api_key": [SECRET]}, [SECRET], SECRET, {"api_key": SECRET + "\ud800"}],
        ids=["object", "list", "no map", "text", "half a character"],
    )
    async def test_a_slip_in_a_typed_secret_shows_it_nowhere(self, tmp_path: Path, fields: Any) -> None:
        body = {"userId": "alice", "exchangeId": "fakex", "fields": fields}
        with capture_logs() as lines:
            async with web_service(tmp_path, manage_accounts=True) as running:
                answer = await ask(running, ACCOUNTS + "ConnectAccount", body)
                assert (answer.status, answer.reason) == (400, "FIELD_INVALID")
                assert SECRET not in answer.body.decode() + str(answer.headers)
        assert SECRET not in str(lines)

    async def test_curl_connects_an_account_and_removes_it(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(listing(credential_fields=(CredentialField("api_key", "Key", secret=True),)))
        async with web_service(tmp_path, plugin, manage_accounts=True) as running:

            async def call(method: str, **more: Any) -> Any:
                body = json.dumps({"userId": "bob", "exchangeId": "fakex", **more})
                printed = await curl("-d", body, f"http://{address_of(running)}{method}")
                assert SECRET not in printed
                return json.loads(printed)

            connected = await call(ACCOUNTS + "ConnectAccount", fields={"api_key": SECRET}, skipCheck=True)
            assert connected["account"]["exchangeId"] == "fakex"
            assert (await call(GET))["balance"]["userId"] == "bob"
            await call(ACCOUNTS + "RemoveAccount")
            assert reason_of(await call(GET)) == "CREDENTIAL_MISSING"

    async def test_a_reply_that_has_no_json_is_an_error_without_its_content(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> str:
            raise ValueError("a balance of 1.50")

        async with web_service(tmp_path) as running:
            monkeypatch.setattr("google.protobuf.json_format.MessageToJson", fail)
            answer = await ask(running)
            assert (answer.status, answer.json["code"]) == (500, "internal")
            assert "1.50" not in answer.body.decode()
            async with web_stream(running) as stream:
                assert (await stream.end())["error"]["code"] == "internal"

    async def test_a_request_id_comes_back(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running:
            assert (await ask(running, x_request_id="mine")).headers["x-request-id"] == "mine"
            failed = await ask(running, body={"userId": "alice", "exchangeId": "nowhere"}, x_request_id="mine")
            assert failed.headers["x-request-id"] == "mine"
            assert "x-request-id" not in (await ask(running)).headers

    async def test_the_header_of_the_timeout_is_the_deadline(self, tmp_path: Path) -> None:
        async with web_service(tmp_path, ScriptedPlugin(answer=Gate())) as running:
            began = time.monotonic()
            # Long enough for the database's first answer on a busy machine.
            answer = await ask(running, connect_timeout_ms="1500")
            assert answer.status in (503, 504)
            assert answer.reason in ("VENUE_TIMEOUT", "DEADLINE_PASSED")
            assert time.monotonic() - began < 3
            assert (await ask(running, connect_timeout_ms="0")).reason == "DEADLINE_PASSED"
            for nonsense in ("soon", "-1", "1e3", "+5", "99999999999"):
                answer = await ask(running, connect_timeout_ms=nonsense)
                assert (answer.status, answer.json["code"]) == (400, "invalid_argument")
                assert nonsense not in answer.json["message"]

    async def test_calls_are_counted_like_others(self, tmp_path: Path) -> None:
        async with web_service(tmp_path, metrics_address="127.0.0.1:0") as running:
            await ask(running)
            shown = await curl(f"http://{running.service.metrics_address}/metrics")
            assert 'exchange_service_call_seconds_count{code="OK",method="GetBalance"} 1.0' in shown.splitlines()


class TestStreams:
    async def test_a_stream_shows_balances_as_they_change(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin()
        async with web_service(tmp_path, plugin, **FAST) as running, web_stream(running) as stream:
            assert stream.response.headers["content-type"] == "application/connect+json"
            flags, first = await stream.next()
            assert (flags, first["balance"]["balance"]["venueAccounts"][0]["assets"][0]["total"]) == (0, "1.50")
            plugin.answer = returning(holding(("BTC", "2")))
            while "balance" not in (event := (await stream.next())[1]):
                pass
            assert event["balance"]["balance"]["venueAccounts"][0]["assets"][0]["total"] == "2"

    async def test_a_client_that_vanishes_ends_its_stream_within_a_second(self, tmp_path: Path) -> None:
        async with web_service(tmp_path, poll_interval=30, heartbeat_interval=60) as running:
            async with web_stream(running) as stream:
                await stream.next()
                assert running.service.streams.counts() == (1, 1)
            gone = time.monotonic()
            await until(lambda: running.service.streams.counts()[1] == 0)
            assert time.monotonic() - gone < 1

    async def test_a_client_that_resets_its_connection_ends_its_call(self, tmp_path: Path) -> None:
        gate = Gate()
        async with web_service(tmp_path, ScriptedPlugin(answer=gate)) as running:
            _, writer = await connect_raw(running)
            writer.write(raw_request())
            await gate.entered.wait()
            writer.transport.abort()
            await until(lambda: running.service.server.handler_wrapper.running() == 0)

    async def test_the_end_of_the_service_is_the_end_of_the_stream(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running, web_stream(running) as stream:
            await stream.next()
            began = time.monotonic()
            stopping = asyncio.create_task(running.service.stop())
            error = (await stream.end())["error"]
            assert (error["code"], reason_of(error)) == ("unavailable", "SHUTTING_DOWN")
            await stopping
            assert time.monotonic() - began < 3
            with pytest.raises(aiohttp.ClientConnectorError):
                await ask(running)

    async def test_a_call_in_progress_ends_with_the_service_too(self, tmp_path: Path) -> None:
        gate = Gate()
        async with web_service(tmp_path, ScriptedPlugin(answer=gate), shutdown_grace=0.5) as running:
            call = asyncio.create_task(ask(running))
            await gate.entered.wait()
            await running.service.stop()
            assert (await call).reason == "SHUTTING_DOWN"

    async def test_a_request_of_a_stream_in_no_envelope_is_refused(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running:
            kind = {"content_type": "application/connect+json"}
            for body in (b"{}", envelope(b"{}") * 2, b""):
                answer = await ask(running, STREAM, body, **kind)
                assert b'"error"' in answer.body


class TestClients:
    async def test_the_fields_own_client_calls_and_streams_as_it_does_by_default(self, tmp_path: Path) -> None:
        # It packs its requests.
        async with web_service(tmp_path) as running:
            client = ConnectClient(f"http://{address_of(running)}", codec=google_protobuf_binary_codec())
            async with client:
                reply = await client.execute_unary(request=balance_request(), method=described("GetBalance"))
                assert totals(reply.balance) == {"BTC": "1.50"}
                with pytest.raises(ConnectError) as caught:
                    await client.execute_unary(request=balance_request("nowhere"), method=described("GetBalance"))
                assert caught.value.code is Code.NOT_FOUND
                assert [detail.type_name for detail in caught.value.details] == ["google.rpc.ErrorInfo"]
                request = messages.StreamBalancesRequest(user_id="alice")
                events = client.execute_server_stream(request=request, method=described("StreamBalances"))
                assert totals((await anext(events)).balance.balance) == {"BTC": "1.50"}
                await events.aclose()  # type: ignore[attr-defined]
            await until(lambda: running.service.streams.counts()[1] == 0)


def described(name: str) -> MethodInfo[Any, Any]:
    """A method of ExchangeService as the client's generated code describes it."""
    method = messages.DESCRIPTOR.services_by_name["ExchangeService"].methods_by_name[name]
    return MethodInfo(
        name=name,
        service_name="exchange_service.v1.ExchangeService",
        input=getattr(messages, method.input_type.name),
        output=getattr(messages, method.output_type.name),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
    )


class TestHttp:
    @pytest.mark.parametrize(
        ("method", "path", "headers", "status"),
        [
            ("GET", GET, {}, 405),
            ("HEAD", GET, {}, 405),
            ("PUT", GET, {}, 405),
            ("GET", GET + "?connect=v1&encoding=json&message=%7B%7D", {}, 405),
            ("POST", GET + "x", {}, 404),
            ("POST", GET + "/", {}, 404),
            ("GET", "/", {}, 404),
            ("POST", "//evil.example" + GET, {}, 404),
            ("POST", GET, {"content_type": "text/plain"}, 415),
            ("POST", GET, {"content_type": "application/grpc"}, 415),
            ("POST", GET, {"content_type": "application/grpc-web+proto"}, 415),
            ("POST", GET, {"content_type": "application/connect+json"}, 415),
            ("POST", STREAM, {"content_type": "application/json"}, 415),
            ("POST", GET, {"connect_protocol_version": "2"}, 400),
            ("POST", GET, {"content_type": "application/json; charset=utf-8"}, 200),
            ("POST", GET, {"upgrade": "websocket", "connection": "upgrade"}, 200),
        ],
    )
    async def test_only_a_call_is_answered_as_one(
        self, tmp_path: Path, method: str, path: str, headers: dict[str, str], status: int
    ) -> None:
        async with web_service(tmp_path) as running:
            answer = await ask(running, path, method=method, **headers)
            assert answer.status == status
            if method != "HEAD":
                assert status == 200 or answer.json["message"].rstrip("'")[-1] in ".2"
            assert answer.headers.get("allow", "POST, OPTIONS") == "POST, OPTIONS"

    async def test_pipelined_requests_are_answered_in_their_order(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running:
            wrong = raw_request(body=b'{"userId":"alice","exchangeId":"nowhere"}')
            answer = await send_raw(running, raw_request() + wrong + raw_request(GET, b"{", "connection: close"))
            places = [answer.index(word) for word in (b"1.50", b"EXCHANGE_UNKNOWN", b"FIELD_INVALID")]
            assert places == sorted(places)
            assert answer.count(b"HTTP/1.1 ") == 3

    async def test_http_1_0_is_served_and_the_connection_closed(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running:
            assert b"1.50" in await send_raw(running, raw_request(version="1.0"))

    async def test_what_is_no_http_gets_a_short_refusal_and_no_line_in_the_log(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with web_service(tmp_path) as running:
            with caplog.at_level(logging.DEBUG, "uvicorn"):
                for data in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
                    assert b"400" in (await send_raw(running, data))[:20]
            assert not caplog.records

    async def test_a_call_is_no_page_to_keep(self, tmp_path: Path) -> None:
        async with web_service(tmp_path) as running:
            headers = (await ask(running)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers
            assert headers["date"]


class TestCallers:
    async def test_tokens_and_jwts_are_known_here_too(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path, http_address="127.0.0.1:0") as running:
            token, _ = await service_token(running, EVERYBODY)
            for value in (token, web_token("alice")):
                answer = await ask(running, authorization=f"Bearer {value}")
                assert amount("alice", "fakex") in answer.body.decode()
            assert (await ask(running)).reason == "CALLER_UNKNOWN"
            assert (await ask(running, body=b"{")).reason == "CALLER_UNKNOWN", "the body is read for known callers only"
            answer = await ask(running, body={**ASK, "userId": "bob"}, authorization=f"Bearer {web_token('alice')}")
            assert (answer.status, answer.reason) == (403, "USER_FORBIDDEN")
            async with web_stream(running) as stream:
                assert reason_of((await stream.end())["error"]) == "CALLER_UNKNOWN"


class TestStart:
    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    async def test_over_tls_a_renewed_certificate_is_served_to_new_connections(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(certificates, "LOOK_EVERY", 0.0)
        authority = Authority.create(tmp_path)
        settings = tls_settings(authority, http_address="localhost:0", address="127.0.0.1:0")
        trusting = ssl.create_default_context(cafile=str(authority.file))
        trusting.check_hostname = False

        async def serial(running: Running) -> Any:
            port = int(address_of(running).rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            number = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
            return number

        async with web_service(tmp_path, **settings) as running:
            first = await serial(running)
            assert await serial(running) == first
            authority.sign("exchange-service")
            assert await serial(running) != first
            settings["tls_certificate"].write_text("nonsense")
            assert await serial(running) != first

    async def test_a_taken_port_is_a_sentence_and_nothing_stays_open(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        async with web_service(tmp_path) as running:
            settings = settings_for(tmp_path, address=f"127.0.0.1:{port}", http_address=address_of(running))
            with pytest.raises(BindError, match=r"Cannot listen on .* for HTTP: Address already in use"):
                await start_service(settings)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"http_address": "0.0.0.0:0"}, "0.0.0.0:0 can be reached by others and TLS is not set"),
            ({"http_address": "0.0.0.0:0", "service_tokens": True}, "in the clear"),
            ({"console": True}, "console needs http_address"),
            ({"http_origins": ["https://app.example.com"]}, "http_origins needs http_address"),
        ],
    )
    def test_settings_that_would_open_the_service_are_refused(
        self, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(UnsafeSettings, match=words):
            check_settings(settings_for(tmp_path, **changes))

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    def test_with_client_certificates_alone_nobody_could_call(self, tmp_path: Path) -> None:
        authority = Authority.create(tmp_path)
        known = {"tls_client_ca": authority.file, "client_certificates": {"billing": "*"}}
        settings = tls_settings(authority, http_address="127.0.0.1:0", **known)
        with pytest.raises(UnsafeSettings, match="only client certificates"):
            check_settings(settings_for(tmp_path, **settings))

    @pytest.mark.parametrize(
        "origin", ["*", "null", "https://app.example.com/", "app.example.com", "HTTPS://A.example"]
    )
    def test_an_origin_is_written_as_browsers_send_it(self, tmp_path: Path, origin: str) -> None:
        with pytest.raises(ValueError, match="as browsers send it"):
            settings_for(tmp_path, http_address="127.0.0.1:0", http_origins=[origin])

    @pytest.mark.parametrize("name", ["https://b.example.com", "b.example.com:8443", "b.example.com/", "*", ""])
    def test_a_host_is_a_name_alone(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="a name alone"):
            settings_for(tmp_path, http_address="127.0.0.1:0", http_hosts=[name])

    def test_without_it_none_of_its_libraries_is_imported_and_without_them_a_sentence_says_so(
        self, tmp_path: Path
    ) -> None:
        program = (
            "import asyncio, sys\n"
            "from exchange_service.app import start_service\n"
            "from exchange_service.grpc_server.server import BindError\n"
            "from exchange_service.settings import Settings\n"
            "async def main(**more):\n"
            "    service = await start_service(Settings(address='127.0.0.1:0', database_url=sys.argv[1], **more))\n"
            "    print([n for n in ('uvicorn', 'h11', 'connectrpc', 'pyqwest', 'starlette') if n in sys.modules])\n"
            "    await service.stop()\n"
            "asyncio.run(main())\n"
            "sys.modules['connectrpc'] = None\n"
            "try:\n"
            "    asyncio.run(main(http_address='127.0.0.1:0'))\n"
            "except BindError as error:\n"
            "    print(error)\n"
        )
        command = [sys.executable, "-c", program, f"sqlite:///{tmp_path / 'a.db'}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        lines = [line for line in done.stdout.splitlines() if not line.startswith("20")]
        assert lines[0] == "[]"
        assert lines[1].endswith("which is not installed: install exchange-service[http].")
