"""Traces: one tree from the caller's span to the venue's request, without a secret, and nobody waits for their
receiver."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from google.protobuf.duration_pb2 import Duration
from opentelemetry.sdk.trace import ReadableSpan
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.errors import VenueTimeout
from exchange_service.grpc_server.handler_wrapper import HandlerWrapper
from exchange_service.model import Account, Credential
from exchange_service.observability import spans as spans_module
from exchange_service.observability.logs import add_request_id, redact_event
from exchange_service.observability.spans import MOST_WAITING, open_tracing
from exchange_service.observability.tracing import (
    MOST_SPANS,
    RecordedSpan,
    Within,
    child_span,
    current_span,
    masked_path,
)
from exchange_service.plugin_host.remote_spans import rebuild_spans
from exchange_service.plugin_host.v1 import plugin_host_pb2
from exchange_service.settings import Settings
from exchange_service.startup_checks import UnsafeSettings
from exchange_service.testing.venue import DemoVenue
from exchange_service.venues import request_spans
from tests.harness import (
    USER,
    Gate,
    Running,
    ScriptedPlugin,
    balance_request,
    failure,
    listing,
    raising,
    registry_of,
    serving,
    settings_for,
    streaming,
    until,
)
from tests.otlp_receiver import Receiver
from tests.web import GET

ROOT = Path(__file__).parent.parent
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
GET_BALANCE = "exchange_service.v1.ExchangeService/GetBalance"
STREAM_BALANCES = "exchange_service.v1.ExchangeService/StreamBalances"
ROAD = [PARENT, GET_BALANCE, "fetch"]
SECRET_USER = "user-that-no-span-names"


# Those of CCXT whose markets take a second to load.
SLOW = {"apex", "coinbase"}


def simulators() -> dict[str, DemoVenue]:
    """A simulator of each plugin of this project."""
    points = entry_points(group="exchange_service.simulators")
    venues = (point.load()() for point in points if point.name not in SLOW)
    return {venue.exchange_id: venue for venue in venues}


def pushes_of(running: Running, exchange: str) -> int:
    """How many pushes of this exchange the service has counted."""
    text = running.service.metrics.text().decode()
    return sum(int(float(count)) for count in re.findall(rf'pushes_total{{exchange="{exchange}",.*}} (\S+)', text))


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent soon, and a receiver that does not answer is given up soon."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setattr(spans_module, "_LAST_SPANS", 0.3)


def traced(folder: Path, receiver: Receiver, **changes: Any) -> Settings:
    return settings_for(folder, traces="otlp", traces_endpoint=receiver.url, **changes)


@pytest.mark.threat("T99")
async def test_every_plugin_has_one_tree_to_its_venues_requests_and_no_secret_is_in_its_bytes(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Receiver())
        venues = simulators()
        for venue in venues.values():
            await stack.enter_async_context(venue)
        urls = {name: venue.url for name, venue in venues.items()}
        options = {"traces": "otlp", "traces_endpoint": receiver.url, "http_address": "127.0.0.1:0"}
        secrets = {SECRET_USER}
        async with serving(tmp_path, venue_urls=urls, **options) as running:
            for name, venue in venues.items():
                row = dict(venue.demo_credential("moving") or {})
                secrets |= set(texts_of(row))
                credential = Credential.from_texts(row, row.get("extra_metadata"))
                await running.service.store.put(Account(SECRET_USER, name), credential)
            calls = [
                running.stub.GetBalance(balance_request(name, user_id=SECRET_USER), metadata=(TRACEPARENT,))
                for name in venues
            ]
            await asyncio.gather(*calls)
            again = balance_request("oanda", user_id=SECRET_USER)
            await running.stub.GetBalance(again, metadata=(TRACEPARENT,))
            await running.stub.GetBalance(again, metadata=(TRACEPARENT, ("x-request-id", "from-the-caller")))
            async with aiohttp.ClientSession() as session:
                asked = {"userId": SECRET_USER, "exchangeId": "oanda", "maxAge": "0s"}
                url = f"http://{running.service.web.address}{GET}"
                async with session.post(url, json=asked, headers=dict((TRACEPARENT,))) as reply:
                    assert reply.status == 200
            async with streaming(running, "oanda", "tastytrade", user=SECRET_USER) as stream:
                await stream.next_of("balance")
                deliveries = running.service.balances.deliveries
                await until(lambda: len(deliveries) == 2 and all(way.pushed for way in deliveries.values()), "pushes")
                venues["tastytrade"].move()
                await until(lambda: pushes_of(running, "tastytrade") >= 2, "a push")
        # Stopping has sent the rest.
        trees = {tuple(receiver.path_to(span)) for span in receiver.below(TRACE)}
        requests = [span for span in receiver.below(TRACE) if span.name in ("GET", "POST")]
        in_process, in_its_own = (*ROAD, "plugin.fetch_balance"), (*ROAD, "plugin_process.FetchBalance")
        assert (*in_process, "GET") in trees
        assert (*in_its_own, "plugin.fetch_balance", "GET") in trees
        fetched = {span.attributes["exchange_service.exchange"] for span in receiver.named("fetch")}
        assert fetched >= set(venues)
        asked_by = {span.attributes["server.address"] for span in requests}
        assert asked_by == {"127.0.0.1"}
        assert all(span.attributes["http.response.status_code"] == 200 for span in requests)
        # Account numbers that the venues name themselves have digits.
        paths = {span.attributes["url.path"] for span in requests}
        assert {"/v3/accounts/*/summary", "/v1/accounts/*/balances", "/accounts/*/balances"} <= paths
        assert [path for path in paths if not re.fullmatch(r"(/([A-Za-z_-]+|v?\d|\*))+", path)] == []
        plugins = {span.attributes["exchange_service.exchange"] for span in receiver.named("plugin.fetch_balance")}
        assert plugins >= set(venues)
        (at_once,) = [span for span in receiver.spans if "exchange_service.at_once" in span.attributes]
        assert (at_once.parent, at_once.span.kind) == (PARENT, 2)
        request_ids = {span.attributes.get("exchange_service.request_id") for span in receiver.named(GET_BALANCE)}
        assert {"from-the-caller", None} <= request_ids
        # Two by gRPC, and one by HTTP.
        forced = [span for span in receiver.below(TRACE) if span.attributes.get("exchange_service.exchange") == "oanda"]
        assert len([span for span in forced if span.name == GET_BALANCE]) == 3
        (opened,) = receiver.named(STREAM_BALANCES)
        reads = receiver.named("feed.read")
        assert reads
        assert all(span.links == [opened.id] and not span.parent and span.trace != opened.trace for span in reads)
        sent = b"".join(receiver.bodies)
        assert [text for text in secrets if len(text) > 4 and text.encode() in sent] == []
        values = [str(value) for span in receiver.spans for value in span.attributes.values()]
        assert [value for value in values if "?" in value or "=" in value] == []
        assert b"authorization" not in sent.lower()
        assert receiver.resource["service.name"] == "exchange-service"


@pytest.mark.usefixtures("prompt")
async def test_a_caller_that_joins_a_fetch_is_linked_to_it_and_a_failure_has_its_reason(tmp_path: Path) -> None:
    gate, lines = Gate(), []

    async def answer(call: Any) -> Any:
        lines.append(redact_event(None, "", add_request_id(None, "", {"event": "plugin.test"})))
        return await gate(call)

    plugin = ScriptedPlugin(answer=answer)
    async with Receiver() as receiver:
        options = {"traces": "otlp", "traces_endpoint": receiver.url}
        async with serving(tmp_path, registry=registry_of(plugin), **options) as running:
            await running.store()
            first = asyncio.ensure_future(running.stub.GetBalance(balance_request(), metadata=(TRACEPARENT,)))
            await gate.entered.wait()
            second = asyncio.ensure_future(running.stub.GetBalance(balance_request()))
            await until(lambda: running.service.balances.fetcher.snapshot() == (1, 2), "the second caller")
            gate.opened.set()
            await asyncio.gather(first, second)
            plugin.answer = raising(VenueTimeout("Its text is a secret."))
            await failure(running.stub.GetBalance(balance_request("fakex", max_age=Duration())))
        (fetch, failed) = receiver.named("fetch")
        joined = [span for span in receiver.named(GET_BALANCE) if span.links]
        assert [span.links for span in joined] == [[fetch.id]]
        assert joined[0].trace != fetch.trace
        assert "credential.opened" in receiver.named("plugin.fetch_balance")[0].events
        assert "gate.passed" in fetch.events
        assert (failed.failed, failed.attributes["error.type"]) == (True, "VENUE_TIMEOUT")
        assert b"secret" not in b"".join(receiver.bodies)
        (line,) = lines
        assert line["trace_id"] == TRACE
        assert line["request_id"]


@pytest.mark.threat("T99")
@pytest.mark.usefixtures("prompt")
async def test_a_receiver_that_is_down_costs_one_line_bounded_memory_and_no_call(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with capture_logs() as lines:
        options = {"traces": "otlp", "traces_endpoint": closed}
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **options) as running:
            await running.store()
            for _ in range(3):
                await running.client.get_balance(USER, "fakex")
        tracing = open_tracing("otlp", closed, 1.0)
        for _ in range(3 * MOST_WAITING):
            span = tracing.begin_root("push", {"exchange_service.exchange": "oanda"})
            assert span is not None
            span.end()
        kept = sum(type(one).__name__ == "_Span" for one in gc.get_objects() if isinstance(one, ReadableSpan))
        await asyncio.to_thread(tracing.stop)
        await until(lambda: sum(line["event"] == "traces.not_sent" for line in lines) == 2, "the two lines")
    assert kept <= MOST_WAITING + 1024
    told = [line for line in lines if line["event"].startswith("traces.")]
    # Two services in a row: one line each.
    assert [line["event"] for line in told] == ["traces.not_sent"] * 2
    assert {line["receiver"] for line in told} == {closed.removeprefix("http://")}


async def test_a_callers_decision_holds_and_others_are_kept_by_the_ratio(prompt: None) -> None:
    async with Receiver() as receiver:
        tracing = open_tracing("otlp", receiver.url, 0.0)
        assert tracing.begin_call(GET_BALANCE, ()) is None
        assert tracing.begin_root("push", {}) is None
        assert tracing.begin_call(GET_BALANCE, [("traceparent", "00-zz-1-01")]) is None
        assert tracing.begin_call(GET_BALANCE, [("traceparent", f"00-{TRACE}-{PARENT}-00")]) is None
        span = tracing.begin_call(GET_BALANCE, [TRACEPARENT])
        assert span is not None
        assert span.trace_id == TRACE
        tracing.end_call(span, 5, "CREDENTIAL_MISSING")
        await asyncio.to_thread(tracing.stop)
        (sent,) = receiver.spans
        # What the caller did wrong is no failure of ours.
        assert not sent.failed
        assert sent.attributes["error.type"] == "CREDENTIAL_MISSING"


def test_without_traces_a_quick_answer_has_no_further_step() -> None:
    wrapped = HandlerWrapper().wrap_quick(GET_BALANCE, lambda *_: b"reply")
    assert wrapped.__qualname__.startswith("HandlerWrapper.wrap_quick.")


def test_a_wrong_variable_of_opentelemetry_ends_the_start_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(UnsafeSettings, match="OTEL_"):
        asyncio.run(start_service(settings_for(tmp_path, traces="otlp"), registry=registry_of(ScriptedPlugin())))


def test_without_the_extra_the_service_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UnsafeSettings, match=r"install exchange-service\[traces\]"):
        asyncio.run(start_service(settings_for(tmp_path, traces="otlp"), registry=registry_of(ScriptedPlugin())))


@pytest.mark.threat("T99", attack=True)
async def test_the_number_of_an_account_stands_in_a_path_unless_it_is_masked(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = b"101-004-7654321-001"

    async def sent_of_one_call(name: str) -> bytes:
        folder = tmp_path_factory.mktemp(name)
        async with Receiver() as receiver, OandaSimulator() as venue:
            venue.add_token("a-token-for-tests", SimulatedAccount(number.decode()))
            options = {"traces": "otlp", "traces_endpoint": receiver.url, "venue_urls": {"oanda": venue.url}}
            async with serving(folder, **options) as running:
                await running.store("oanda", api_key="a-token-for-tests")
                await running.stub.GetBalance(balance_request("oanda"), metadata=(TRACEPARENT,))
            return b"".join(receiver.bodies)

    with monkeypatch.context() as unmasked:
        unmasked.setattr(request_spans, "masked_path", lambda path, private: path)
        assert number in await sent_of_one_call("unmasked")
    sent = await sent_of_one_call("masked")
    assert b"/v3/accounts/" in sent
    assert number not in sent


@pytest.mark.threat("T99")
class TestPaths:
    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/v3/accounts/101-001-1234567-001/summary", "/v3/accounts/*/summary"),
            ("/v1/accounts/VA000001/balances", "/v1/accounts/*/balances"),
            ("/accounts/5WT00001/balances", "/accounts/*/balances"),
            ("/accounts/savings/balances", "/accounts/*/balances"),
            ("/0/private/BalanceEx", "/0/private/BalanceEx"),
            ("/derivatives/api/v3/accounts", "/derivatives/api/v3/accounts"),
            ("/v5/asset/balance/BTC", "/v5/asset/balance/*"),
            ("/v1/wallet/0x52908400098527886E0F7030069857D2E4169EE7", "/v1/wallet/*"),
            ("/api/v3/account?timestamp=1&signature=abc", "/api/v3/account"),
            ("/v1/alice%40example.com/state", "/v1/*/state"),
            ("/dGhpc2lzYXNlY3JldA/state", "/*/state"),
            ("/v1/user/mainaccount/x", "/v1/user/*/x"),
            ("", "/"),
            ("/", "/"),
            ("/a" * 200, "/a" * 16 + "/…"),
        ],
    )
    def test_a_path_shows_words_and_hides_whose_it_is(self, path: str, shown: str) -> None:
        assert masked_path(path, ["MainAccount"]) == shown

    @pytest.mark.parametrize("value", ["101-001-1234567-001", "VA000001", "me", "0xAbC0", "12345"])
    def test_of_every_path_that_our_plugins_ask_for_only_what_stands_in_its_template_is_shown(self, value: str) -> None:
        code = "".join(path.read_text() for path in (ROOT / "plugins").glob("*/exchange_service_*/*.py"))
        templates = {text for text in re.findall(r'"(/[\w{}./-]+)"', code) if "/" in text[1:]}
        assert len(templates) > 20
        for template in templates:
            literal = set(re.sub(r"\{[^}]+\}", "", template).split("/"))
            shown = masked_path(re.sub(r"\{[^}]+\}", value, template), [value])
            assert set(shown.split("/")) <= literal | {"*", ""}, template


@pytest.mark.threat("T99")
class TestFromAProcess:
    """What a plugin's process says of itself."""

    def test_nothing_but_known_names_hosts_and_masked_paths_is_believed(self) -> None:
        call = RecordedSpan.of_call(TRACE)
        said = [
            plugin_host_pb2.Span(name="plugin.fetch_balance", began_ago=1e9, ended_ago=float("nan"), error="x" * 99),
            plugin_host_pb2.Span(name="GET", parent=1, host="evil.example", path="/key-9f8e/x?a=b", status=7, port=-1),
            plugin_host_pb2.Span(name="a secret", parent=2),
            plugin_host_pb2.Span(name="PUT", parent=3),
            plugin_host_pb2.Span(name="POST", host="venue.example", path="/v1/x", status=500, error="500"),
            *[plugin_host_pb2.Span(name="GET", parent=99)] * 200,
        ]
        rebuild_spans(said, call, 0.5, _listing(), {"venue.example"})
        hook, get, post, *others = call.spans
        assert (hook.name, hook.reason) == ("plugin.fetch_balance", "")
        assert hook.ended is not None
        assert 0 <= hook.ended - hook.began <= 0.6
        assert (get.parent, get.attributes["server.address"], get.attributes["url.path"]) == (1, "*", "/*/x")
        assert {"server.port", "http.response.status_code"}.isdisjoint(get.attributes)
        assert (post.parent, post.reason) == (0, "500")
        assert len(call.spans) <= MOST_SPANS
        assert all(span.parent == 0 for span in others)

    def test_an_older_process_that_does_not_know_of_traces_is_understood(self) -> None:
        call = plugin_host_pb2.Call(method="FetchBalance", trace_id=TRACE)
        # What it overlooks, and what it sends.
        assert plugin_host_pb2.Call.FromString(call.SerializeToString()).method == "FetchBalance"
        reply = plugin_host_pb2.FetchBalanceResponse(balance=b"")
        span = RecordedSpan.of_call(TRACE)
        rebuild_spans(reply.spans, span, 0.1, _listing(), ())
        assert span.spans == []


def _listing() -> Any:
    return registry_of(ScriptedPlugin(listing())).listings["fakex"]


def test_work_that_goes_on_after_its_span_belongs_to_no_trace() -> None:
    span = RecordedSpan.of_call(TRACE)
    with Within(span):
        assert current_span() is span
        child = child_span("fetch", {})
        assert child is not None
        span.end()
        assert current_span() is None
        assert child_span("fetch", {}) is None
        assert json.dumps(add_request_id(None, "", {"event": "x"})) == '{"event": "x"}'
