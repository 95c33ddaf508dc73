"""`plugins try`: one call of a plugin in view of its author, with every secret hidden."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import string
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from aiohttp import web
from exchange_service_oanda import OANDA
from exchange_service_oanda.simulator import OandaSimulator
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.authoring.masking import Masker, Secrets
from exchange_service.errors import VenueTimeout
from exchange_service.testing import LoopbackVenue
from exchange_service.venues import http_pool
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.tap import HttpTap
from tests import rotating
from tests.commands import run_command

TOKEN = "good-token-0123456789"

PROJECT = """
[project]
name = "exchange-service-{name}"
version = "1.2.3"
[project.entry-points."exchange_service"]
{name} = "exchange_service_{name}"
[project.entry-points."exchange_service.simulators"]
{name} = "exchange_service_{name}.simulator:Simulator"
"""
PLUGIN = """
import asyncio, sys, time
import aiohttp
from exchange_service.plugin_api import *

@hookimpl
def exchange_manifest():
    return Manifest(1, (ExchangeMetadata(
        "{name}", "{title} Brokerage", "Stocks", "Stocks", "Market Hours",
        (Environment("production", {{"api": "https://api.acme.example"}}),),
        (CredentialField("api_key", "API token"),), account_types=("cash",),
        limits=(RateLimit("key", 10, 1, cost=1),),
    ),))

@hookimpl
async def fetch_balance(call):
    token = required_text(call.credential, "api_key")
{body}
"""
GOOD = """
    response = await call.http.get(call.url() + "/v1/holdings", headers={"Authorization": f"Bearer {token}"})
    response.raise_for_status()
    return Balance((VenueAccount(type="cash", assets=tuple(
        AssetBalance(text(row, "code", "row"), total=required_amount(row, "quantity", "row"))
        for row in response.json()["holdings"]
    )),))
"""
SIMULATOR = """
from aiohttp import web
from exchange_service.testing import DemoVenue

class Simulator(DemoVenue):
    exchange_id = "{name}"

    def demo_credential(self, situation):
        return {{"api_key": "good-token-0123456789"}} if situation == "moving" else None

    def routes(self):
        return [web.get("/v1/holdings", self._holdings)]

    async def _holdings(self, request):
        return web.json_response({{
            "holdings": [{{"code": "ACME", "quantity": "12.50"}}], "you_sent": request.headers["Authorization"],
        }})
"""


def write_project(folder: Path, body: str, name: str = "acme") -> Path:
    package = folder / f"exchange_service_{name}"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name))
    (package / "__init__.py").write_text(PLUGIN.format(name=name, title=name.title(), body=body))
    (package / "simulator.py").write_text(SIMULATOR.format(name=name))
    return folder


def run_try(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run_command(("plugins", "try", *arguments), {"LANG": "C.UTF-8"}, stdin)


def report_of(*arguments: str, stdin: str = "", code: int = 0) -> dict[str, Any]:
    done = run_try(*arguments, "-o", "json", stdin=stdin)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert TOKEN not in done.stdout + done.stderr
    return report


async def test_a_token_that_the_venue_replaces_is_told_of_and_not_shown(tmp_path: Path) -> None:
    folder = write_project(tmp_path, GOOD, "rota")
    (folder / "exchange_service_rota" / "__init__.py").write_text(rotating.PLUGIN)
    venue = rotating.RotatingVenue()
    await venue.start()
    try:
        row = {"api_key": "a-client-id", "passphrase": venue.grant("alice")}
        arguments = (str(folder), "--url", venue.url)
        report = await asyncio.to_thread(report_of, *arguments, stdin=json.dumps(row))
    finally:
        await venue.stop()
    assert report["balance"]["venue_accounts"][0]["id"] == "alice"
    assert any("has replaced device_token, passphrase" in notice for notice in report["notices"])
    assert not any(token in json.dumps(report) for token in (row["passphrase"], *venue.valid))


class TestOwnPlugin:
    def test_the_folder_is_tried_against_its_own_simulator_and_need_not_be_installed(self, tmp_path: Path) -> None:
        done = run_try(str(write_project(tmp_path, GOOD)))
        assert done.returncode == 0, done.stderr
        assert "exchange-service-acme 1.2.3" in done.stdout
        assert re.search(r"GET http://127\.0\.0\.1:\d+/v1/holdings", done.stdout)
        assert "Authorization: [hidden]" in done.stdout
        assert '"you_sent": "Bearer [hidden]"' in done.stdout
        assert re.search(r"cash\s+ACME\s+12\.50", done.stdout)
        assert TOKEN not in done.stdout + done.stderr

    def test_the_report_for_programs_has_requests_times_budget_and_the_balance(self, tmp_path: Path) -> None:
        report = report_of(str(write_project(tmp_path, GOOD)))
        (request,) = report["requests"]
        assert (request["method"], request["status"], request["failure"]) == ("GET", 200, "")
        assert request["bytes"] > 50
        assert 0 < request["seconds"] <= report["seconds"]
        assert report["budget"]["limits"] == [{"scope": "key", "count": 10, "seconds": 1, "cost": 1}]
        assert report["balance"]["venue_accounts"][0]["assets"][0]["total"] == "12.50"
        assert report["error"] is None
        assert report["notices"] == []

    def test_an_exception_is_shown_as_callers_see_it_and_with_every_frame_of_the_author(self, tmp_path: Path) -> None:
        body = """
    return inner({"quantity": 1.5}, token)

def inner(row, token):
    try:
        return row["code"]
    except KeyError as error:
        raise RuntimeError(f"no code, and {token}") from error
"""
        report = report_of(str(write_project(tmp_path, body)), code=1)
        assert report["error"]["reason"] == "PLUGIN_FAILED"
        assert "RuntimeError" in report["error"]["message"]
        shown = "\n".join(report["traceback"])
        assert "in fetch_balance\n    return inner(" in shown
        assert "in inner\n    return row[\"code\"]\nKeyError: 'code'" in shown
        assert "RuntimeError: no code, and [hidden]" in shown
        assert 'File "exchange_service_acme/__init__.py"' in shown
        assert "frames of exchange_service" in shown
        assert "sessions.py" not in shown

    def test_a_plugin_that_fails_at_import_is_shown_with_its_own_frames(self, tmp_path: Path) -> None:
        folder = write_project(tmp_path, GOOD)
        module = folder / "exchange_service_acme" / "__init__.py"
        module.write_text("def broken():\n    raise LookupError('here')\n\nbroken()\n")
        done = run_try(str(folder))
        assert done.returncode == 1
        assert "not loaded" in done.stderr
        assert "LookupError" in done.stderr
        assert 'File "exchange_service_acme/__init__.py", line 2, in broken' in done.stderr
        assert "LookupError: here" in done.stderr

    def test_what_blocks_prints_and_stays_open_is_told(self, tmp_path: Path) -> None:
        body = (
            """
    print("the token is", token)
    print("second line", file=sys.stderr)
    asyncio.create_task(asyncio.sleep(60), name="forgotten task")
    async def slow():
        time.sleep(0.1)  # here
    await asyncio.create_task(slow())
    aiohttp.ClientSession()
"""
            + GOOD
        )
        report = report_of(str(write_project(tmp_path, body)))
        told = "\n".join(report["notices"])
        assert "in slow: `time.sleep(0.1)  # here`" in told
        assert "blocked the event loop for 1" in told
        assert "the token is [hidden] / second line" in told
        assert "It holds the secret api_key" in told
        assert "'forgotten task'" in told
        assert "Unclosed client session" in told
        assert report["plugin_seconds"] >= 0.1

    def test_more_requests_than_the_limits_count_are_told(self, tmp_path: Path) -> None:
        body = '    await call.http.get(call.url() + "/v1/holdings", headers={"Authorization": token})\n' + GOOD
        report = report_of(str(write_project(tmp_path, body)))
        assert any("It sent 2 requests" in notice and "raise `cost`" in notice for notice in report["notices"])

    def test_requests_of_the_library_session_are_seen_too(self, tmp_path: Path) -> None:
        body = """
    url = call.url() + "/v1/holdings?key=" + token + "&page=1"
    async with call.http.client_session.get(url, headers={"Authorization": token}) as answer:
        assert (await answer.json())["holdings"]
    return Balance((VenueAccount(type="cash"),))
"""
        (request,) = report_of(str(write_project(tmp_path, body)))["requests"]
        assert request["url"].endswith("/v1/holdings?key=[hidden]&page=1")
        assert request["status"] == 200
        assert any("ACME" in line for line in request["answer"])

    def test_a_token_that_the_venue_gave_is_hidden_where_no_name_tells_of_it(self, tmp_path: Path) -> None:
        folder = write_project(
            tmp_path,
            """
    given = (await call.http.get(call.url() + "/v1/holdings", headers={"Authorization": "x"})).json()["access_token"]
    await call.http.post(call.url() + "/v1/" + given, json=["login", given], headers={"X-Anything": given})
    return Balance((VenueAccount(type="cash"),))
""",
        )
        simulator = folder / "exchange_service_acme" / "simulator.py"
        simulator.write_text(
            simulator.read_text().replace('"you_sent":', '"access_token": "word-word-word-word", "sent":')
        )
        report = report_of(str(folder))
        assert "word-word-word-word" not in json.dumps(report)
        assert report["requests"][1]["body"] == '["login", "[hidden]"]'

    def test_the_real_venue_is_asked_with_live_and_a_host_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        report = report_of(str(write_project(tmp_path, GOOD)), "--live", stdin=json.dumps({"api_key": TOKEN}), code=5)
        assert report["tried"] == "the real venue"
        assert report["requests"][0]["url"] == "https://api.acme.example/v1/holdings"
        assert report["requests"][0]["status"] is None
        assert report["error"]["reason"] == "VENUE_UNAVAILABLE"

    def test_a_listing_without_a_simulator_says_what_to_do(self, tmp_path: Path) -> None:
        folder = write_project(tmp_path, GOOD)
        text = (folder / "pyproject.toml").read_text()
        (folder / "pyproject.toml").write_text(
            text.partition('[project.entry-points."exchange_service.simulators"]')[0]
        )
        done = run_try(str(folder))
        assert done.returncode == 3
        assert "--url" in done.stderr
        assert "--live" in done.stderr


class TestRealPlugins:
    def test_a_trouble_of_the_simulator_shows_where_the_plugin_raised(self) -> None:
        report = report_of("tradier", "--exchange", "tradier", "--trouble", "wrong key", code=4)
        assert report["error"]["reason"] == "CREDENTIAL_REJECTED"
        assert any("exchange_service_tradier/client.py" in line for line in report["traceback"])

    def test_a_venue_that_fails_has_the_exit_code_for_later(self) -> None:
        assert report_of("oanda", "--trouble", "outage", code=5)["error"]["reason"] == "VENUE_UNAVAILABLE"

    def test_a_push_is_followed_and_its_messages_are_shown(self) -> None:
        report = report_of("hyperliquid", "--watch", "2.5")
        balances = [push["balance"] for push in report["pushes"] if push["balance"]]
        assert balances
        (socket,) = [request for request in report["requests"] if request["status"] == 101]
        assert {message["sent"] for message in socket["messages"]} == {True, False}
        assert any('"method": "subscribe"' in message["text"] for message in socket["messages"])
        assert report["push_error"] is None

    def test_rights_are_shown_if_they_are_asked_for(self) -> None:
        assert report_of("tradier", "-e", "tradier", "--check-credential")["rights"] is not None
        shown = run_try("alpaca", "--check-credential").stdout
        assert "may trade: the venue does not say" in shown
        assert "note on the key: " in shown

    def test_the_figures_of_each_of_several_accounts_are_shown(self) -> None:
        shown = run_try("aster").stdout
        assert re.search(r"^summary of futures .*unrealised pnl", shown, re.MULTILINE), shown
        # Not those of one account, which are the balance's own.
        assert "summary of" not in run_try("oanda").stdout

    def test_one_of_several_listings_has_to_be_chosen(self) -> None:
        done = run_try("tradier")
        assert done.returncode == 3
        assert "tradier_options" in done.stderr

    async def test_an_address_is_tried_with_a_credential_from_standard_input(self) -> None:
        async with OandaSimulator() as venue:
            row = venue.demo_credential("moving")
            assert row is not None
            done = await asyncio.to_thread(run_try, "oanda", "--url", venue.url, "-o", "json", stdin=json.dumps(row))
        assert done.returncode == 0, done.stderr
        assert str(row["api_key"]) not in done.stdout + done.stderr
        assert json.loads(done.stdout)["tried"] == f"the address {venue.url}"

    @pytest.mark.parametrize("text", ["", "[]", '{"token": "x"}', '{"api_key": ""}'])
    def test_a_credential_that_is_none_is_refused_before_anything_is_sent(self, text: str) -> None:
        done = run_try("oanda", "--live", stdin=text)
        assert done.returncode == 2
        assert "GET" not in done.stdout

    def test_only_one_place_can_be_tried(self) -> None:
        assert run_try("oanda", "--live", "--url", "http://127.0.0.1:1").returncode == 2
        assert run_try("oanda", "--url", "127.0.0.1:1").returncode == 2
        assert run_try("nothing-of-this-name").returncode == 3


class TestTap:
    def test_a_session_without_a_tap_has_no_hook_and_no_class_of_its(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def look(**options: Any) -> tuple[int, str]:
            pool = VenueHttpPool(timeout=1.0, **options)
            await pool.loaded()
            session = pool.http(OANDA, OANDA.environments[0]).client_session
            found = len(session.trace_configs), session._ws_response_class.__name__
            await pool.close()
            return found

        assert asyncio.run(look()) == (0, "CountedSocket")
        assert asyncio.run(look(tap=HttpTap())) == (1, "TappedSocket")
        assert "tap" not in vars(http_pool)


SECRETS = st.text(
    string.ascii_letters + string.digits + "+/=-_.!*$()[]{}|\\^?~ \"'<>&%#@:;,äß€", min_size=4, max_size=40
).filter(lambda text: text.strip() == text and len(set(text)) > 2)


def encodings(secret: str) -> dict[str, str]:
    """The secret as texts of all kinds hold it."""
    data = secret.encode()
    return {
        "plain": secret,
        "percent": quote(secret, safe=""),
        "percent, lower": re.sub("%..", lambda match: match[0].lower(), quote(secret, safe="")),
        "form": quote_plus(secret),
        "percent twice": quote(quote(secret, safe=""), safe=""),
        "every byte": "".join(f"%{byte:02X}" for byte in data),
        "JSON": json.dumps(secret)[1:-1],
        "JSON twice": json.dumps(json.dumps(secret)),
        "JSON escapes": "".join(f"\\u{ord(letter):04X}" for letter in secret),
        "slashes": json.dumps(secret)[1:-1].replace("/", "\\/"),
        "Base64": base64.b64encode(data).decode(),
        "URL Base64": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "Basic": base64.b64encode(f"user:{secret}".encode()).decode(),
        "within Base64": base64.b64encode(f'{{"k":"{secret}","more":1}}'.encode()).decode(),
        "Base64 in a form": quote(base64.b64encode(data).decode(), safe=""),
        "Base64 in lines": base64.encodebytes(b"before the secret, which is " + data + b" and after it" * 4).decode(),
        "hex": data.hex(),
        "HEX": data.hex().upper(),
    }


class Streaming(LoopbackVenue):
    """An answer that goes on, and a WebSocket."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/lines", self._lines), web.get("/socket", self._socket)]

    async def _lines(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"n": 1}\n{"n": 2}\n')
        await self._stopping.wait()
        return response

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"you sent {message.data}")
        return socket


class TestPushesSeen:
    """What goes on is seen too, whatever opens it."""

    async def _opened(self, use: Any) -> list[Any]:
        tap = HttpTap()
        async with Streaming() as venue:
            pool = VenueHttpPool(timeout=5.0, tap=tap)
            http = pool.http(OANDA, OANDA.environments[0], venue.url)
            await use(http, venue.url)
            await pool.close()
        return tap.requests

    async def test_the_lines_of_an_answer_that_goes_on(self) -> None:
        async def use(http: Any, url: str) -> None:
            async with http.lines(f"{url}/lines") as lines:
                assert [await anext(lines), await anext(lines)] == [b'{"n": 1}', b'{"n": 2}']

        (seen,) = await self._opened(use)
        assert bytes(seen.answer) == b'{"n": 1}\n{"n": 2}\n'
        assert seen.status == 200
        assert seen.ended is None

    @pytest.mark.parametrize("by_library", [False, True])
    async def test_the_messages_of_a_socket_also_of_the_librarys_own(self, by_library: bool) -> None:
        async def use(http: Any, url: str) -> None:
            if by_library:
                async with http.client_session.ws_connect(f"{url}/socket") as socket:
                    await socket.send_json({"op": "a"})
                    await socket.receive_str()
            else:
                async with http.websocket(f"{url}/socket") as socket:
                    await socket.send('{"op": "a"}')
                    await socket.receive()

        (seen,) = await self._opened(use)
        assert seen.is_socket
        assert [(message.sent, message.text) for message in seen.messages] == [
            (True, '{"op": "a"}'),
            (False, 'you sent {"op": "a"}'),
        ]

    async def test_an_answer_that_never_comes_is_seen_with_what_ended_it(self) -> None:
        async def use(http: Any, url: str) -> None:
            with pytest.raises(VenueTimeout):
                await http.for_call(asyncio.get_running_loop().time() + 0.3).get(f"{url}/lines")

        (seen,) = await self._opened(use)
        assert seen.ended is None or seen.failure


class TestMasking:
    @given(SECRETS, st.sampled_from(sorted(encodings("x"))), st.text(max_size=20), st.text(max_size=20))
    def test_no_secret_survives_whatever_its_encoding_and_position(
        self, secret: str, encoding: str, before: str, after: str
    ) -> None:
        secrets = Secrets([("api_secret", secret)])
        shown = encodings(secret)[encoding]
        for masked in (
            secrets.hide_in(f"{before}{shown}{after}"),
            "\n".join(Masker(secrets).answer(f'{{"a": ["{before}", "{shown}", 1.50]}}'.encode(), 0)),
            Masker(secrets).url(f"https://acme.example/v1/{quote(shown, safe='%')}?a=1&b={quote(shown, safe='%')}"),
            *dict(Masker(secrets).headers([("X-Anything", shown)])).values(),
            Masker(secrets).request_body(json.dumps({"a": [shown]}).encode()),
        ):
            assert shown not in masked or not masked
            assert not secrets.found_in(masked)

    @given(SECRETS, st.sampled_from(sorted(encodings("x"))))
    def test_what_hides_and_what_finds_agree(self, secret: str, encoding: str) -> None:
        assert Secrets([("api_secret", secret)]).found_in(f"a {encodings(secret)[encoding]} b") == "api_secret"

    @pytest.mark.parametrize("secret", [".*", "(a+)+$", "[hidden]", "hidden", "a|b|c|d", "\\u0041\\", "****"])
    def test_a_secret_may_be_a_pattern_or_the_mark_itself(self, secret: str) -> None:
        masked = Secrets([("passphrase", secret)]).hide_in(f"x={secret};")
        assert secret not in masked

    def test_a_word_of_three_letters_is_hidden_where_it_stands_alone(self) -> None:
        masked = Secrets([("passphrase", "abc")]).hide_in('{"abc": "abcd", "x": "abc"}')
        assert masked == '{"[hidden]": "abcd", "x": "[hidden]"}'

    def test_each_line_of_a_private_key_is_hidden(self) -> None:
        line = "MHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY"
        key = f"-----BEGIN EC PRIVATE KEY-----\n{line}\nq8uF3Jk2LmN4pQ6rS8tU0vW2xY4zA6b=\n-----END EC PRIVATE KEY-----"
        masked = Secrets([("api_secret", key)]).hide_in(f"first: {line}, all: {json.dumps(key)}")
        assert line not in masked
        assert "q8uF3Jk2" not in masked

    def test_tokens_are_hidden_by_their_names_and_assets_called_tokens_are_not(self) -> None:
        answer = {"access_token": "Zq8uF3Jk2LmN4pQ6rS8tU0vW2xY4zA6b", "token": "USDC", "balances": [{"token": 0}]}
        shown = "\n".join(Masker(Secrets()).answer(json.dumps(answer).encode(), 0))
        assert '"access_token": "[hidden]"' in shown
        assert '"token": "USDC"' in shown
        assert '"token": 0' in shown

    def test_numbers_keep_their_digits_and_long_bodies_are_cut_with_a_note(self) -> None:
        body = json.dumps({"a": [{"n": 1, "text": "x" * 90} for _ in range(50)]}).replace('"n": 1', '"n": 1.5000e-7')
        lines = Masker(Secrets()).answer(body.encode(), 10)
        assert len(lines) == 11
        assert lines[-1].startswith("… (")
        assert "1.5000e-7" in "\n".join(lines)

    @pytest.mark.parametrize("body", [b"", b"<html>x</html>", b"\xff\xfe\x00", b"NaN", b"[" * 5000, b'{"a": 1} x'])
    def test_an_answer_may_be_anything(self, body: bytes) -> None:
        Masker(Secrets([("api_key", "secret-secret")])).answer(body, 5)

    def test_a_huge_answer_is_masked_in_little_time(self) -> None:
        secrets = Secrets([("api_secret", "s3cret/+" * 8), ("passphrase", "word")])
        rows = [{"code": f"A{number}", "total": "1.50", "note": "s3cret/+" * 8} for number in range(40_000)]
        began = time.perf_counter()
        shown = "\n".join(Masker(secrets).answer(json.dumps(rows).encode(), 20))
        assert time.perf_counter() - began < 10
        assert "s3cret" not in shown
