"""The guarded HTTP session, against real servers on loopback."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from structlog.testing import capture_logs

from exchange_service.errors import (
    AccountUnknown,
    CredentialRejected,
    PermissionMissing,
    PluginFailed,
    RegionRestricted,
    RequestRefused,
    ServiceError,
    ServiceOverloaded,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import ANSWER_LIMIT, LARGEST_PUBLIC_ANSWER_LIMIT, Environment, ExchangeMetadata, WrongType
from exchange_service.plugin_kit.payload import count_marks, retry_after
from exchange_service.testing import Fault, LoopbackVenue, venue_call
from exchange_service.venues.http import VenueHttp, VenueResponse, is_public
from exchange_service.venues.http_pool import VenueHttpPool


class EchoVenue(LoopbackVenue):
    """Answers with the request that it received, and tries to leave a cookie."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._answer)]

    def account_of(self, request: web.Request, body: bytes) -> str:
        self.reached.set()
        return ""

    async def _answer(self, request: web.Request) -> web.Response:
        seen = {"method": request.method, "query": dict(request.query), "body": (await request.read()).decode()}
        response = web.json_response(seen)
        response.set_cookie("session", "of-another-user")
        return response


def listing(url: str, id: str = "echo") -> ExchangeMetadata:
    return ExchangeMetadata(
        id=id,
        name="Echo",
        asset_class="Crypto",
        asset_types="Spot",
        market_hours="24/7 Trading",
        environments=(Environment("production", {"api": url}),),
    )


@asynccontextmanager
async def opened(
    url: str,
    *,
    timeout: float = 5.0,
    override: str | None = None,
    public: bool = False,
    resolver: AbstractResolver | None = None,
) -> AsyncIterator[VenueHttp]:
    """A session that may reach `url`, or only `override`, because an operator says so; with `override` empty, because
    a manifest does."""
    pool = VenueHttpPool(timeout=timeout, resolver=resolver)
    exchange = listing(url)
    try:
        yield pool.http(exchange, exchange.environments[0], url if override is None else override, public=public)
    finally:
        await pool.close()


async def refusal(url: str, fault: Fault, *, timeout: float = 5.0, public: bool = False) -> ServiceError:
    async with EchoVenue() as venue, opened(venue.url, timeout=timeout, public=public) as http:
        venue.fail(fault)
        with pytest.raises(ServiceError) as raised:
            (await http.get(venue.url + url)).raise_for_status()
    return raised.value


async def test_a_get_and_a_post_reach_the_venue_as_they_are() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        got = await http.get(f"{venue.url}/a", params={"x": "1"}, headers={"X-Key": "k"})
        sent = await http.post(f"{venue.url}/b", json={"type": "state"})
        form = await http.post(f"{venue.url}/c", data={"grant": "refresh"})
    assert got.json() == {"method": "GET", "query": {"x": "1"}, "body": ""}
    assert venue.requests[0].headers["X-Key"] == "k"
    assert sent.json()["body"] == '{"type": "state"}'
    assert form.json()["body"] == "grant=refresh"


async def test_of_many_requests_a_hundred_are_sent_at_once_and_the_others_after_them() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        venue.fail(Fault(delay=0.3, pass_on=True))
        answers = [asyncio.create_task(http.get(venue.url)) for _ in range(130)]
        await answers[0]
        assert len(venue.requests) <= 100
        await asyncio.gather(*answers)
    assert len(venue.requests) == 130


async def test_the_user_agent_names_the_service() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        await http.get(venue.url)
    assert venue.requests[0].headers["User-Agent"] == "exchange-service"


@pytest.mark.threat("T6")
@pytest.mark.parametrize("through", ["get", "post", "session_get"])
async def test_a_host_that_the_manifest_does_not_name_never_gets_a_request(through: str) -> None:
    async with EchoVenue() as other_venue, opened("https://venue.example", override="") as http:
        sender = http.client_session if through == "session_get" else http
        method = "get" if through == "session_get" else through
        with pytest.raises(PluginFailed, match=r"a host that its manifest does not name: 127\.0\.0\.1"):
            await getattr(sender, method)(f"{other_venue.url}/steal?key=1")
        assert other_venue.requests == []


@pytest.mark.parametrize("url", ["http://localhost:{port}/", "https://127.0.0.1:{port}/", "http://127.0.0.2:{port}/"])
async def test_another_name_scheme_or_port_is_another_host(url: str) -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        with pytest.raises(PluginFailed):
            await http.get(url.format(port=venue.url.rpartition(":")[2]))
        assert venue.requests == []


class TestWhatIsToldOfAWrongAddress:
    """The message names what differs from the manifest: the scheme, the port or the host."""

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            (
                "http://api.venue.example/v1",
                "asked for api.venue.example by http, but its manifest names it with https",
            ),
            ("ftp://api.venue.example/v1", "with the scheme ftp: only https, http, wss and ws"),
            ("ws://api.venue.example/v1", "by http, but its manifest names it with https"),
            (
                "https://api.venue.example:8443/",
                "asked for the port 8443 of api.venue.example, but its manifest names 443",
            ),
            ("https://api.venue.example.evil.example/", "does not name: api.venue.example.evil.example"),
            ("https://api.venue.example@evil.example/", "does not name: evil.example"),
            ("https://api.venue.example\\@evil.example/", "is not an HTTP address"),
            ("https://api%2evenue.example/", "does not name: api"),
            ("https://API.venue.example:99999/", "is not an HTTP address"),
            ("api.venue.example/v1", "is not an HTTP address"),
            ("", "percent-encoded"),
            ("https://api.venue.example/a b", "percent-encoded"),
            ("https://api.venue.example/?a=1#b", "percent-encoded"),
            ("https://api.venue.example/?name=é", "percent-encoded"),
            ("https://api.venue.example/\r\nHost: evil", "percent-encoded"),
        ],
    )
    async def test_by_the_plugin(self, url: str, told: str) -> None:
        async with opened("https://api.venue.example", override="") as http:
            with pytest.raises(PluginFailed) as raised:
                await http.get(url)
        assert told in raised.value.message

    @pytest.mark.parametrize("scheme", ["http", "ws"])
    async def test_by_a_library_that_uses_the_session_itself(self, scheme: str) -> None:
        async with opened("https://api.venue.example", override="") as http:
            with pytest.raises(PluginFailed) as raised:
                await http.client_session.get(f"{scheme}://api.venue.example/v1")
        assert "does not name" not in raised.value.message

    async def test_of_a_host_that_the_operator_has_replaced(self) -> None:
        async with EchoVenue() as venue, opened("https://api.venue.example", override=venue.url) as http:
            with pytest.raises(PluginFailed, match=r"venue_urls sends it to another: it should ask call\.url\(\)"):
                await http.get("https://api.venue.example/v1")


# What a session would change in a query, if it read it: these are signed as they stand.
_SIGNED = [
    "a=1%2C2&b=%2Fpath&c=%3A&d=%40&e=%27%28%29%2A%21",
    "a=1,2&b=/path&c=:&d=@&e='()*!",
    "time=2024-01-01T00%3A00%3A00%2B00%3A00&signature=ab%2Fcd%2Bef%3D%3D",
    "blank=a%20b&plus=a+b&empty=&alone",
    "lower=%c3%a9&upper=%C3%A9&hex=%7E%2d%5f",
    "list=[1,2]&object={%22a%22:1}&pipe=a|b&caret=^&tick=`",
    "double=%252C&broken=%zz&percent=%",
    "b=2&a=1&b=1&b=2",
    "question=?&slash=//&semicolon=;",
]


class TestSignedQueries:
    """A signature is over the query's bytes, so these reach the venue as the plugin wrote them."""

    @pytest.mark.parametrize("query", _SIGNED)
    @pytest.mark.parametrize("method", ["get", "post"])
    async def test_a_query_is_sent_byte_for_byte(self, query: str, method: str) -> None:
        async with EchoVenue() as venue, opened(venue.url) as http:
            response = await getattr(http, method)(f"{venue.url}/v1/orders%2Fopen?{query}")
        assert venue.requests[0].target == f"/v1/orders%2Fopen?{query}"
        assert response.url == f"{venue.url}/v1/orders%2Fopen?{query}"

    @pytest.mark.parametrize("path", ["", "/", "/a/../b", "//a//b/", "/%7Ea/%2e%2e/b", "/a;b=1,2"])
    async def test_a_path_is_sent_byte_for_byte(self, path: str) -> None:
        async with EchoVenue() as venue, opened(venue.url) as http:
            await http.get(f"{venue.url}{path}?x=%2C")
        assert venue.requests[0].target == f"{path or '/'}?x=%2C"

    @pytest.mark.parametrize(
        "pairs",
        [
            [("a", "1,2"), ("b", "/x y:@"), ("c", "é+&=?#%"), ("b", "~-_.")],
            {"symbol": "BTC/USDT:USDT", "time": "2024-01-01T00:00:00+00:00"},
            {"number": 12},
            {},
        ],
    )
    async def test_pairs_are_encoded_as_the_documents_say(self, pairs: Any) -> None:
        written = urlencode(pairs, quote_via=quote, safe="")
        async with EchoVenue() as venue, opened(venue.url) as http:
            await http.get(f"{venue.url}/v1", params=pairs)
            await http.get(f"{venue.url}/v1?first=%2C", params=pairs)
        assert venue.requests[0].target == (f"/v1?{written}" if written else "/v1")
        assert venue.requests[1].target == ("/v1?first=%2C" + (f"&{written}" if written else ""))

    async def test_pairs_follow_a_query_that_is_begun(self) -> None:
        async with EchoVenue() as venue, opened(venue.url) as http:
            await http.get(f"{venue.url}/v1?", params={"a": "b"})
            await http.get(f"{venue.url}/v1?first=1&", params={"a": "b"})
            sent = await http.get(f"{venue.url}/v1?")
        assert [request.target for request in venue.requests] == ["/v1?a=b", "/v1?first=1&a=b", "/v1"]
        assert sent.url == f"{venue.url}/v1"

    @pytest.mark.parametrize("value", [None, True, b"x", ["a"]])
    async def test_a_parameter_that_is_no_text_is_refused_by_its_name(self, value: Any) -> None:
        async with EchoVenue() as venue, opened(venue.url) as http:
            with pytest.raises(WrongType, match="the parameter 'limit' should be a text"):
                await http.get(f"{venue.url}/v1", params={"limit": value})
        assert venue.requests == []

    async def test_the_url_of_a_response_is_told_and_not_shown(self) -> None:
        async with EchoVenue() as venue, opened(venue.url) as http:
            response = await http.get(f"{venue.url}/v1?signature=5ec7e7")
        assert response.url.endswith("signature=5ec7e7")
        assert "5ec7e7" not in repr(response) + str(response)


@pytest.mark.parametrize("url", ["nowhere", "file:///etc/hosts", "ftp://127.0.0.1/", "http://", "/v1/balance"])
async def test_an_invalid_address_is_the_plugins_failure(url: str) -> None:
    async with opened("https://venue.example") as http:
        with pytest.raises(PluginFailed):
            await http.get(url)


async def test_with_an_override_no_other_host_is_reached() -> None:
    async with EchoVenue() as venue, EchoVenue() as simulator:
        async with opened(venue.url, override=simulator.url) as http:
            await http.get(f"{simulator.url}/balance")
            with pytest.raises(PluginFailed):
                await http.get(f"{venue.url}/balance")
        assert venue.requests == []
        assert len(simulator.requests) == 1


@pytest.mark.threat("T6")
@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("through", ["get", "client_session"])
async def test_no_redirect_is_followed_not_even_on_the_same_host(status: int, through: str) -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        venue.fail(Fault(status=status, headers={"Location": f"{venue.url}/other"}, path="/balance"))
        ask = http.get if through == "get" else http.client_session.get
        with pytest.raises(VenueMalformed, match="redirect"):
            await ask(f"{venue.url}/balance", headers={"X-Key": "k"})
        assert [request.path for request in venue.requests] == ["/balance"]


async def test_a_body_up_to_the_limit_is_read() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        venue.fail(Fault(body=b" " * ANSWER_LIMIT))
        assert len((await http.get(venue.url)).body) == ANSWER_LIMIT


async def test_a_body_above_the_limit_is_cut() -> None:
    error = await refusal("/", Fault(body=b" " * (ANSWER_LIMIT + 1)))
    assert isinstance(error, VenueMalformed)
    assert "more than 1 MiB" in error.message


@pytest.mark.threat("T70")
async def test_a_listing_may_allow_longer_answers() -> None:
    async with EchoVenue() as venue:
        pool = VenueHttpPool(timeout=5.0)
        exchange = replace(listing(venue.url), answer_limit=2 * ANSWER_LIMIT)
        http = pool.http(exchange, exchange.environments[0], venue.url)
        venue.fail(Fault(body=b" " * 2 * ANSWER_LIMIT))
        assert len((await http.get(venue.url)).body) == 2 * ANSWER_LIMIT
        venue.fail(Fault(body=b" " * (2 * ANSWER_LIMIT + 1)))
        with pytest.raises(VenueMalformed, match="more than 2 MiB"):
            await http.get(venue.url)
        await pool.close()


@pytest.mark.threat("T70")
async def test_an_answer_of_very_many_values_is_refused_before_it_is_read() -> None:
    error = await refusal("/", Fault(body=b"[" + b"1," * 140_000 + b"1]"))
    assert isinstance(error, VenueMalformed)
    assert "more values than any account has" in error.message


class TestLargeAnswers:
    """They are read in a thread, and what is made of them too; small ones are not."""

    async def test_a_large_answer_is_read_once_and_its_error_is_raised_each_time(self) -> None:
        async with EchoVenue() as venue, opened(venue.url) as http:
            small = await http.get(venue.url)
            assert small.json() is not small.json()
            assert not http.has_read_much
            venue.fail(Fault(body=b"[" + b"0.10," * 10_000 + b"0.10]"))
            large = await http.get(venue.url)
            assert http.has_read_much
            assert large.json() is large.json()
            assert large.json() == [Decimal("0.10")] * 10_001
            venue.fail(Fault(body=b"[" + b"0.10," * 10_000 + b"]"))
            broken = await http.get(venue.url)
            for _ in range(2):
                with pytest.raises(VenueMalformed, match="Echo: The answer is not JSON"):
                    broken.json()

    async def test_the_values_of_a_long_answer_are_counted_in_a_thread_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted: dict[int, list[str]] = {}

        def count(body: bytes) -> int:
            counted.setdefault(len(body), []).append(threading.current_thread().name)
            return count_marks(body)

        monkeypatch.setattr("exchange_service.venues.http.count_marks", count)
        async with EchoVenue() as venue, opened(venue.url) as http:
            for size in (131_073, 65_536):
                venue.fail(Fault(body=b" " * (size - 2) + b"[]"))
                assert (await http.get(venue.url)).json() == []
        assert all(name.startswith("large answers") for name in counted[131_073])
        assert counted[65_536] == [threading.main_thread().name]

    async def test_what_a_call_makes_of_an_answer_is_made_in_a_thread_if_one_was_large(self) -> None:
        def thread(*, fail: bool) -> str:
            if fail:
                raise VenueMalformed("no")
            return threading.current_thread().name

        async with EchoVenue() as venue, venue_call(listing(venue.url), override=venue.url) as call:
            await call.http.get(venue.url)
            assert await call.compute(thread, fail=False) == threading.main_thread().name
            venue.fail(Fault(body=b"[" + b"1," * 10_000 + b"1]"))
            await call.public_http.get(venue.url)
            assert (await call.compute(thread, fail=False)).startswith("large answers")
            with pytest.raises(VenueMalformed, match="no"):
                await call.compute(thread, fail=True)


async def test_public_market_data_may_be_larger() -> None:
    async with EchoVenue() as venue, opened(venue.url, public=True) as http:
        venue.fail(Fault(body=b" " * (ANSWER_LIMIT + 1)))
        assert len((await http.get(venue.url)).body) == ANSWER_LIMIT + 1
    error = await refusal("/", Fault(body=b" " * (LARGEST_PUBLIC_ANSWER_LIMIT + 1)), public=True)
    assert isinstance(error, VenueMalformed)


async def test_the_limit_holds_for_libraries_that_use_the_session_itself() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        venue.fail(Fault(body=b" " * (ANSWER_LIMIT + 1)))
        for read in ("read", "text", "json"):
            async with http.client_session.get(venue.url) as response:
                with pytest.raises(VenueMalformed):
                    await getattr(response, read)()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_bomb_is_cut(encoding: str) -> None:
    zeros = b"0" * (80 * 1024 * 1024)
    body = gzip.compress(zeros, 1) if encoding == "gzip" else zlib.compress(zeros, 1)
    error = await refusal("/", Fault(body=body, headers={"Content-Encoding": encoding}))
    assert isinstance(error, VenueMalformed)


async def test_an_honest_compressed_body_is_read() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        venue.fail(Fault(body=gzip.compress(b'{"total": "1.50"}'), headers={"Content-Encoding": "gzip"}))
        assert (await http.get(venue.url)).json() == {"total": "1.50"}


async def test_a_body_with_a_wrong_content_encoding_is_malformed() -> None:
    error = await refusal("/", Fault(body=b"plain", headers={"Content-Encoding": "gzip"}))
    assert isinstance(error, VenueMalformed)


@pytest.mark.threat("T16")
async def test_no_cookie_is_stored_for_the_next_request() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        first = await http.get(venue.url)
        await http.get(venue.url)
        assert "Set-Cookie" in first.headers
        assert "Cookie" not in venue.requests[1].headers


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EchoVenue() as venue, EchoVenue() as proxy, opened(venue.url) as http:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        await http.get(venue.url)
        assert len(venue.requests) == 1
        assert proxy.requests == []


@pytest.mark.parametrize("fault", [Fault(silent=True), Fault(drip=True)], ids=["silence", "a byte a second"])
@pytest.mark.parametrize("bound", ["session", "call"])
async def test_waiting_ends_with_the_sessions_time_or_the_calls_deadline(fault: Fault, bound: str) -> None:
    loop = asyncio.get_running_loop()
    async with EchoVenue() as venue, opened(venue.url, timeout=0.2 if bound == "session" else 30) as http:
        venue.fail(fault)
        began = loop.time()
        bounded = http.for_call(began + (0.2 if bound == "call" else 30))
        with pytest.raises(VenueTimeout):
            await bounded.get(venue.url)
        assert 0.15 < loop.time() - began < 1.5


async def test_a_call_whose_deadline_has_passed_sends_no_request() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        late = http.for_call(asyncio.get_running_loop().time())
        with pytest.raises(VenueTimeout):
            await late.get(venue.url)
        assert venue.requests == []


async def test_a_call_that_is_cancelled_is_cancelled() -> None:
    async with EchoVenue() as venue, opened(venue.url) as http:
        venue.fail(Fault(silent=True))
        task = asyncio.create_task(http.get(venue.url))
        async with asyncio.timeout(5):
            await venue.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_port_without_a_listener_is_unavailable() -> None:
    async with EchoVenue() as venue:
        url = venue.url
    async with opened(url) as http:
        with pytest.raises(VenueUnavailable, match="cannot be reached"):
            await http.get(f"{url}/balance?signature=5ec7e7")


async def test_an_ended_connection_is_unavailable() -> None:
    assert isinstance(await refusal("/", Fault(reset=True)), VenueUnavailable)


async def test_a_server_that_does_not_speak_http_is_malformed() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, opened(url) as http:
        with pytest.raises(VenueMalformed):
            await http.get(url)


async def test_a_body_shorter_than_promised_is_malformed() -> None:
    async def promise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"total": "1"}')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(promise, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, opened(url) as http:
        with pytest.raises(VenueMalformed):
            await http.get(url)


@pytest.mark.threat("T8")
@pytest.mark.parametrize(
    "fault", [Fault(reset=True), Fault(silent=True), Fault.redirect("/x"), Fault.html(503), Fault(status=401)]
)
async def test_no_error_reveals_the_query_or_a_header(fault: Fault) -> None:
    async with EchoVenue() as venue, opened(venue.url, timeout=0.2) as http:
        venue.fail(fault)
        with pytest.raises(ServiceError) as raised:
            (await http.get(f"{venue.url}/b?signature=5ec7e7", headers={"X-Key": "5ec7e7"})).raise_for_status()
    assert "5ec7e7" not in str(raised.value) + repr(raised.value)
    # Nothing of aiohttp's own error, which holds the URL, would be logged with it.
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


async def test_a_response_does_not_show_the_requested_url() -> None:
    async with (
        EchoVenue() as venue,
        opened(venue.url) as http,
        http.client_session.get(f"{venue.url}/b?signature=5ec7e7") as response,
    ):
        assert repr(response) == "<BoundedResponse of Echo: 200>"


async def test_one_session_serves_an_exchange_and_environment_and_is_closed_with_the_pool() -> None:
    pool = VenueHttpPool(timeout=1)
    one, other = listing("https://one.example", "one"), listing("https://other.example", "other")
    first = pool.http(one, one.environments[0])
    assert pool.http(one, one.environments[0]) is first
    assert pool.http(one, one.environments[0], public=True) is not first
    assert pool.http(other, other.environments[0]) is not first
    await pool.close()
    assert first.client_session.closed


def answer(status: int, body: bytes = b"", **headers: str) -> VenueResponse:
    return VenueResponse("Echo", status, CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}), body)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (304, VenueMalformed),
        (400, RequestRefused),
        (401, CredentialRejected),
        (403, PermissionMissing),
        (404, AccountUnknown),
        (408, VenueTimeout),
        (418, VenueRateLimited),
        (422, RequestRefused),
        (429, VenueRateLimited),
        (451, RegionRestricted),
        (500, VenueUnavailable),
        (502, VenueUnavailable),
        (503, VenueUnavailable),
        (504, VenueTimeout),
        (520, VenueUnavailable),
    ],
)
def test_a_status_means_what_the_page_for_plugin_authors_documents(status: int, expected: type[ServiceError]) -> None:
    with pytest.raises(ServiceError) as raised:
        answer(status, b"{}").raise_for_status()
    assert type(raised.value) is expected
    assert raised.value.message.startswith("Echo ")


@pytest.mark.parametrize("status", [200, 201, 204, 206])
def test_a_status_below_300_raises_nothing(status: int) -> None:
    answer(status).raise_for_status()


def test_a_503_that_speaks_of_maintenance_is_maintenance() -> None:
    with pytest.raises(VenueMaintenance) as raised:
        answer(503, b"<h1>Scheduled Maintenance</h1>", Retry_After="120").raise_for_status()
    assert raised.value.retry_after == 120


def test_a_rate_limit_takes_the_venues_delay_or_else_its_own() -> None:
    with pytest.raises(VenueRateLimited) as raised:
        answer(429, Retry_After="7").raise_for_status()
    assert raised.value.retry_after == 7
    with pytest.raises(VenueRateLimited) as raised:
        answer(429).raise_for_status()
    assert raised.value.retry_after == VenueRateLimited.default_retry_after


def test_a_body_that_is_not_json_is_malformed_and_names_the_venue() -> None:
    with pytest.raises(VenueMalformed, match=r"^Echo: "):
        answer(200, b"<html>").json()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("86400", 300.0),
        ("inf", 300.0),
    ],
)
def test_a_delay_in_seconds_is_limited(value: str, seconds: float) -> None:
    assert retry_after({"Retry-After": value}) == seconds


def test_a_delay_as_a_date_counts_from_now() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    delay = retry_after({"Retry-After": soon})
    assert delay is not None
    assert 55 < delay <= 60


def test_a_date_in_the_past_counts_as_no_delay() -> None:
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


@pytest.mark.parametrize(
    "value",
    ["", "soon", "nan", "7 seconds", "Wed, 99 Foo 2015", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"],
)
def test_a_delay_that_cannot_be_read_counts_as_no_delay(value: str) -> None:
    assert retry_after({"Retry-After": value}) is None
    assert retry_after({}) is None


async def test_the_plugins_page_and_the_session_agree() -> None:
    from exchange_service.plugin_api import Http, Response

    async with EchoVenue() as venue, opened(venue.url) as session:
        http: Http = session
        response: Response = await http.get(venue.url)
        assert response.status == 200
        assert isinstance(http.client_session, aiohttp.ClientSession)
        content: Any = response.json()
    assert content["method"] == "GET"


class Names(AbstractResolver):
    """A resolver that an attacker controls: it gives the next of `answers` each time, then the last one."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=_family(address), proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


INSIDE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254"),
    *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fd00::1", "ff02::1", "2001:db8::1"),
    # IPv4 addresses written as IPv6: mapped, compatible, translated, tunnelled.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::a9fe:a9fe"),
    # Clouds' own services for their machines, and addresses that older Pythons take for public.
    *("192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16", "64:ff9b:1::7f00:1", "64:ff9b::a83f:8110"),
    *("2002:7f00:1::", "2001:0:4136:e378:8000:63bf:f5ff:fffe"),
]
OUTSIDE = ["8.8.8.8", "104.18.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


@pytest.mark.parametrize("address", INSIDE)
def test_an_inside_address_is_recognised_in_every_spelling(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_of_the_public_internet_is_recognised(address: str) -> None:
    assert is_public(address)


@pytest.mark.threat("T7")
class TestInsideAddresses:
    @pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "::ffff:10.0.0.1", "10.0.0.1"])
    async def test_a_manifests_host_that_resolves_to_an_inside_address_gets_no_request(self, address: str) -> None:
        async with opened("http://venue.example", override="", resolver=Names([address])) as http:
            with capture_logs() as lines, pytest.raises(VenueUnavailable, match="venue_urls"):
                await http.get("http://venue.example/balance", headers={"X-Key": "k"})
        assert lines == [
            {"event": "venue.address_refused", "log_level": "warning", "venue": "Echo", "address": address}
        ]

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1"])
    async def test_an_inside_address_in_the_manifest_gets_no_request(self, host: str) -> None:
        async with EchoVenue() as inside:
            url = f"http://{host}:{inside.url.rpartition(':')[2]}"
            async with opened(url, override="") as http:
                # Some of these are not addresses at all.
                with pytest.raises((VenueUnavailable, PluginFailed)):
                    await http.get(url)
            assert inside.requests == []

    async def test_the_error_is_explicit_if_all_addresses_of_a_host_are_inside(self) -> None:
        names = Names(["127.0.0.1", "::1", "10.1.2.3"])
        async with opened("http://venue.example", override="", resolver=names) as http:
            with pytest.raises(VenueUnavailable, match="public internet"):
                await http.get("http://venue.example/balance")

    async def test_the_operators_own_host_may_be_inside(self) -> None:
        async with EchoVenue() as inside:
            url = f"http://simulator.example:{inside.url.rpartition(':')[2]}"
            names = Names(["127.0.0.1"])
            async with opened("https://venue.example", override=url, resolver=names) as http:
                await http.get(f"{url}/balance")
            assert len(inside.requests) == 1

    async def test_a_name_server_that_changes_its_answers_does_not_fill_the_log(self) -> None:
        names = Names(*([f"10.0.0.{number}"] for number in range(100)))
        async with opened("http://venue.example", override="", resolver=names) as http:
            with capture_logs() as lines:
                for _ in range(60):
                    http.client_session.connector.clear_dns_cache()  # type: ignore[union-attr]
                    with pytest.raises(VenueUnavailable):
                        await http.get("http://venue.example/balance")
        assert len(lines) == 20


class TestOwnTrouble:
    """No file is left in this process: that is not the venue's trouble."""

    @pytest.mark.threat("T65")
    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
    @pytest.mark.parametrize("override", [None, ""], ids=["an operator's host", "a manifest's host"])
    async def test_without_a_socket_the_service_is_overloaded_and_the_log_says_so(
        self, number: int, override: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> socket.socket:
            raise OSError(number, "none left")

        async with opened("http://venue.example", override=override, resolver=Names(["93.184.216.34"])) as http:
            monkeypatch.setattr(socket, "socket", refuse)
            with capture_logs() as lines, pytest.raises(ServiceOverloaded) as raised:
                await http.get("http://venue.example/balance")
            monkeypatch.undo()
        assert raised.value.retry_after
        assert [line["event"] for line in lines] == ["service.out_of_files"]

    @pytest.mark.threat("T65")
    @pytest.mark.parametrize("files_left", [False, True])
    async def test_a_name_that_cannot_be_looked_up_is_the_venues_only_if_a_file_is_left(
        self, files_left: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Failing(Names):
            async def resolve(self, *_: Any, **__: Any) -> list[ResolveResult]:
                raise socket.gaierror(socket.EAI_AGAIN, "try again")

        def refuse(*_: object, **__: object) -> int:
            raise OSError(errno.EMFILE, "none left")

        async with opened("http://venue.example", override="", resolver=Failing([])) as http:
            if not files_left:
                monkeypatch.setattr(os, "open", refuse)
            with pytest.raises(VenueUnavailable if files_left else ServiceOverloaded):
                await http.get("http://venue.example/balance")
            monkeypatch.undo()
