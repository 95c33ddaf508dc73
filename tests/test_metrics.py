"""What the service counts of itself: true, with labels that nobody outside can choose, and in nobody's way."""

from __future__ import annotations

import asyncio
import platform
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import grpc
import pytest
from exchange_service_ccxt_generic.simulator import BinanceSimulator
from exchange_service_tastytrade.simulator import TastytradeSimulator
from prometheus_client.parser import text_string_to_metric_families

from exchange_service import __version__
from exchange_service.app import start_service
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import VenueUnavailable, leaves
from exchange_service.observability import metrics_server
from exchange_service.observability.families import WATCHED
from exchange_service.observability.metrics import MAX_WORDS, Metrics, ProcessOfPlugin, PushConnections
from exchange_service.startup_checks import UnsafeSettings, check_settings
from tests.harness import (
    USER,
    Running,
    ScriptedPlugin,
    balance_request,
    eventually,
    failure,
    raising,
    registry_of,
    serving,
    settings_for,
    streaming,
    until,
)

ROOT = Path(__file__).parent.parent
ON_A_FREE_PORT = "127.0.0.1:0"


class Samples(dict[tuple[str, tuple[tuple[str, str], ...]], float]):
    """Values by name and labels, as Prometheus itself reads them."""

    def __init__(self, text: bytes | str) -> None:
        for family in text_string_to_metric_families(text.decode() if isinstance(text, bytes) else text):
            for sample in family.samples:
                self[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self[f"exchange_service_{name}", tuple(sorted(labels.items()))]

    def find(self, name: str, **labels: str) -> float | None:
        """The value, or None if there is no such sample."""
        return self.get((f"exchange_service_{name}", tuple(sorted(labels.items()))))

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for metric, labels in self if metric == f"exchange_service_{name}"]


def read(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as reply:
        return str(reply.read().decode())


async def scraped(running: Running) -> Samples:
    return Samples(await asyncio.to_thread(read, running.service.metrics_address))


async def has_come(running: Running, exchange: str, kind: str) -> bool:
    """Whether the service has counted a push of this kind."""
    return bool((await scraped(running)).find("pushes_total", exchange=exchange, kind=kind))


class TestCounts:
    def test_calls_are_counted_with_their_time_by_method_and_status(self) -> None:
        metrics = Metrics()
        for seconds in (0.0004, 0.003, 40.0):
            metrics.call_ended("GetBalance", "OK", seconds)
        metrics.call_ended("GetBalance", "NOT_FOUND", 0.1)
        samples = Samples(metrics.text())
        well = {"method": "GetBalance", "code": "OK"}
        assert samples.value("call_seconds_count", **well) == 3
        assert samples.value("call_seconds_sum", **well) == pytest.approx(40.0034)
        assert samples.value("call_seconds_bucket", le="0.0005", **well) == 1
        assert samples.value("call_seconds_bucket", le="0.005", **well) == 2
        assert samples.value("call_seconds_bucket", le="30.0", **well) == 2
        assert samples.value("call_seconds_bucket", le="+Inf", **well) == 3
        assert samples.value("call_seconds_count", method="GetBalance", code="NOT_FOUND") == 1

    def test_an_exchange_that_is_not_served_is_no_label(self) -> None:
        metrics = Metrics(lambda: {"oanda"})
        for exchange in ("oanda", "alice@example.com", "x" * 1000):
            metrics.fetch_ended(exchange, "", 0.1)
            metrics.retried(exchange)
            metrics.breaker(exchange, "production", "open")
            metrics.budget_left(exchange, "address", 0.5)
            metrics.push_came(exchange, "whole")
            metrics.push_broken(exchange, "VENUE_TIMEOUT")
            metrics.push_difference(exchange)
        metrics.watch_pushes(lambda: {("oanda", "pushed"): 2, ("alice@example.com", "no-room"): 1})
        metrics.refresh()
        samples = Samples(metrics.text())
        for name in (
            "venue_fetches_total",
            "venue_fetch_seconds_count",
            "venue_retries_total",
            "venue_breaker",
            "venue_budget_left",
            "pushes_total",
            "push_breaks_total",
            "push_differences_total",
            "push_accounts",
        ):
            assert {labels["exchange"] for labels in samples.labels(name)} == {"oanda", "other"}

    def test_an_exchange_that_a_newer_manifest_brings_becomes_one(self) -> None:
        served = {"oanda"}
        metrics = Metrics(lambda: served)
        served.add("tradier")
        metrics.retried("tradier")
        assert Samples(metrics.text()).value("venue_retries_total", exchange="tradier") == 1

    def test_an_unknown_reason_is_no_label(self) -> None:
        metrics = Metrics(lambda: {"oanda"})
        metrics.call_failed("https://venue.example/?signature=abc")
        metrics.fetch_ended("oanda", "a venue's own words", 1.0)
        samples = Samples(metrics.text())
        assert samples.value("call_failures_total", reason="other") == 1
        assert samples.value("venue_fetches_total", exchange="oanda", reason="other") == 1

    def test_other_labels_are_few_and_have_the_form_of_words(self) -> None:
        metrics = Metrics()
        for number in range(1000):
            metrics.cache_read(f"kind-{number}")
        metrics.cache_read("alice@example.com")
        kinds = Samples(metrics.text()).labels("cache_reads_total")
        assert {"kind": "other"} in kinds
        assert len(kinds) <= MAX_WORDS + 1

    def test_a_breaker_is_in_one_state_and_a_rate_limit_has_its_last_share(self) -> None:
        metrics = Metrics(lambda: {"oanda"})
        for state in ("open", "half-open", "closed"):
            metrics.breaker("oanda", "production", state)
            metrics.budget_left("oanda", "address", len(state) / 10)
        metrics.breaker("oanda", "production", "open", "frankfurt")
        samples = Samples(metrics.text())
        assert samples.labels("venue_breaker") == [
            {"exchange": "oanda", "environment": "production", "way": "", "state": "closed"},
            {"exchange": "oanda", "environment": "production", "way": "frankfurt", "state": "open"},
        ]
        assert samples.value("venue_budget_left", exchange="oanda", scope="address") == 0.6

    def test_a_watched_number_is_read_when_metrics_are_refreshed(self) -> None:
        metrics, open_streams = Metrics(), [1, 2]
        metrics.watch("streams", lambda: len(open_streams))
        metrics.watch_processes(lambda: [ProcessOfPlugin("acme", 1, True, 4096, 2)])
        metrics.refresh()
        open_streams.append(3)
        samples = Samples(metrics.text())
        assert samples.value("streams_open") == 2
        assert samples.value("plugin_process_running", plugin="acme", process="1") == 1
        assert samples.value("plugin_process_memory_bytes", plugin="acme", process="1") == 4096
        assert samples.value("plugin_process_restarts_total", plugin="acme", process="1") == 2

    def test_connections_for_pushes_are_added_up_over_processes_and_named_by_served_exchanges_alone(self) -> None:
        metrics = Metrics(lambda: {"oanda"})
        here, elsewhere = PushConnections(1, 20, 3), PushConnections(2, 5, 4)
        metrics.watch_connections(lambda: [("oanda", here), ("oanda", elsewhere), ("alice@example.com", here)])
        metrics.refresh()
        samples = Samples(metrics.text())
        assert samples.value("push_connections_open", exchange="oanda") == 3
        assert samples.value("push_subscriptions_open", exchange="oanda") == 25
        assert samples.value("push_connections_opened_total", exchange="oanda") == 7
        assert samples.value("push_connections_open", exchange="other") == 1

    def test_two_services_in_a_process_count_apart(self) -> None:
        first, second = Metrics(), Metrics()
        first.event_written()
        assert Samples(first.text()).value("stream_messages_total") == 1
        assert Samples(second.text()).value("stream_messages_total") == 0

    def test_the_process_itself_is_shown(self) -> None:
        samples = Samples(Metrics().text())
        assert samples["process_resident_memory_bytes", ()] > 1e6
        assert samples["process_open_fds", ()] > 2

    async def test_a_stalled_event_loop_is_noticed(self) -> None:
        metrics = Metrics()
        measuring = asyncio.create_task(metrics.run())
        # Until it waits for its first tick, which then comes too late.
        await asyncio.sleep(0)
        time.sleep(0.25)  # noqa: ASYNC251 - the stall
        await until(lambda: Samples(metrics.text()).value("event_loop_stall_seconds_count"))
        measuring.cancel()
        samples = Samples(metrics.text())
        assert samples.value("event_loop_stall_seconds_bucket", le="0.1") == 0
        assert samples.value("event_loop_stall_seconds_sum") > 0.1


def on_the_page() -> dict[str, tuple[str, set[str]]]:
    """The type and the labels of each metric in docs/metrics.md, by its name."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    return {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def in_the_scrape(text: str) -> dict[str, tuple[str, set[str] | None]]:
    """The type and the labels of each of our metrics in Prometheus's text; no labels for one without a series yet."""
    shown: dict[str, tuple[str, set[str] | None]] = {}
    for family in text_string_to_metric_families(text):
        # The parser leaves out what Prometheus shows of a counter.
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = [set(sample.labels) - {"le"} for sample in family.samples]
        if not family.name.startswith(("process_", "python_gc_")):
            shown[name] = (family.type, labels[0] if labels else None)
    return shown


class TestPage:
    async def test_the_page_lists_exactly_what_a_running_service_shows_after_calls(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin()
        async with serving(tmp_path, registry=registry_of(plugin), metrics_address=ON_A_FREE_PORT) as running:
            before = await asyncio.to_thread(read, running.service.metrics_address)
            await running.store()
            await running.client.get_balance(USER, "fakex")
            await failure(running.stub.GetBalance(balance_request("nowhere")))
            text = await asyncio.to_thread(read, running.service.metrics_address)
        page, shown = on_the_page(), in_the_scrape(text)
        assert set(shown) == set(page)
        differing = {name for name, (kind, labels) in shown.items() if kind != page[name][0]}
        assert differing == set()
        with_series = {name: labels for name, (_, labels) in shown.items() if labels is not None}
        assert {name for name, labels in with_series.items() if labels != page[name][1]} == set()
        assert len(with_series) > len(page) / 2
        # What a call can lead to was there at 0 before it, but for what an exchange brings that is used.
        unexpected = {key for key in set(Samples(text)) - set(Samples(before)) if "exchange" not in dict(key[1])}
        assert {dict(labels)["code"] for _, labels in unexpected} == {"NOT_FOUND"}

    def test_every_metric_has_the_labels_of_its_row(self) -> None:
        metrics = Metrics(lambda: {"oanda"})
        metrics.method_served("GetBalance")
        metrics.fetch_ended("oanda", "VENUE_TIMEOUT", 0.1)
        metrics.breaker("oanda", "production", "open")
        metrics.budget_left("oanda", "key", 0.5)
        metrics.push_came("oanda", "whole")
        metrics.certificates({"tls_certificate": 0.0})
        for name in WATCHED.values():
            metrics.watch(name, lambda: 1)
        metrics.watch_memory(lambda: 1)
        metrics.watch_pushes(lambda: {("oanda", "pushed"): 1})
        metrics.watch_connections(lambda: [("oanda", PushConnections(1, 1, 1))])
        metrics.watch_processes(lambda: [ProcessOfPlugin("acme", 1, True, 1, 0)])
        metrics.refresh()
        assert in_the_scrape(metrics.text().decode()) == on_the_page()

    def test_an_exchange_in_use_has_its_troubles_at_zero(self) -> None:
        metrics = Metrics(lambda: {"oanda"})
        metrics.fetch_ended("oanda", "", 0.1)
        metrics.push_came("oanda", "whole")
        samples = Samples(metrics.text())
        for name in ("venue_fetches_total", "push_breaks_total"):
            assert samples.value(name, exchange="oanda", reason="VENUE_UNAVAILABLE") == 0
        assert samples.value("venue_fetches_total", exchange="oanda", reason="OK") == 1
        assert samples.value("venue_retries_total", exchange="oanda") == 0
        assert samples.value("push_differences_total", exchange="oanda") == 0


class TestService:
    async def test_a_service_that_was_not_called_yet_shows_its_build_and_its_counters_at_zero(
        self, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), metrics_address=ON_A_FREE_PORT) as running:
            samples, engine = await scraped(running), running.service.settings.engine_in_use
        build = {"version": __version__, "python": platform.python_version(), "engine": engine}
        assert samples.value("build_info", **build) == 1
        methods = {labels["method"] for labels in samples.labels("call_seconds_count")}
        assert {"GetBalance", "ListExchanges", "StreamBalances", "ListPlugins"} <= methods
        assert samples.value("call_seconds_count", method="GetBalance", code="OK") == 0
        assert {labels["reason"] for labels in samples.labels("call_failures_total")} == {
            leaf.reason for leaf in leaves()
        }
        assert samples.value("balance_reads_total", source="last-good") == 0
        assert samples.value("credentials_opened_total", reason="CREDENTIAL_UNREADABLE") == 0
        assert samples.value("venue_refusals_total", reason="SERVICE_OVERLOADED") == 0

    async def test_a_running_service_shows_what_it_has_done(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin()
        async with serving(tmp_path, registry=registry_of(plugin), metrics_address=ON_A_FREE_PORT) as running:
            await running.store()
            for _ in range(3):
                await running.client.get_balance(USER, "fakex")
            await failure(running.stub.GetBalance(balance_request("nowhere")))
            async with streaming(running, "fakex") as stream:
                await stream.next_of("balance")
                samples = await scraped(running)
        assert samples.value("call_seconds_count", method="GetBalance", code="OK") == 3
        assert samples.value("call_seconds_count", method="GetBalance", code="NOT_FOUND") == 1
        assert samples.value("call_failures_total", reason="EXCHANGE_UNKNOWN") == 1
        assert samples.value("venue_fetches_total", exchange="fakex", reason="OK") == 1
        assert samples.value("venue_fetch_seconds_count", exchange="fakex") == 1
        assert samples.value("balance_reads_total", source="venue") == 1
        assert samples.value("balance_reads_total", source="cache") == 2
        assert samples.value("credentials_opened_total", reason="OK") == 1
        assert samples.value("calls_open") == 1
        assert samples.value("streams_open") == 1
        assert samples.value("feeds_open") == 1
        assert samples.value("stream_messages_total") == 1

    async def test_pushes_are_counted_with_their_connections_here_and_in_a_plugins_process(
        self, tmp_path: Path
    ) -> None:
        async with BinanceSimulator() as binance, TastytradeSimulator() as tastytrade:
            venues = {"binance": binance, "tastytrade": tastytrade}
            urls = {name: venue.url for name, venue in venues.items()}
            async with serving(tmp_path, venue_urls=urls, metrics_address=ON_A_FREE_PORT) as running:
                for name, venue in venues.items():
                    row = venue.demo_credential("moving")
                    assert row is not None
                    await running.store(name, **row)
                async with streaming(running, *venues):

                    async def stands() -> bool:
                        samples = await scraped(running)
                        return all(
                            samples.find(f"push_{what}", exchange=name) == 1
                            for name in venues
                            for what in ("connections_open", "connections_opened_total")
                        )

                    await eventually(stands, "a connection to each venue")
                    tastytrade.move()
                    await eventually(lambda: has_come(running, "tastytrade", "whole"), "a pushed balance")
                    samples = await scraped(running)
                    assert samples.value("push_subscriptions_open", exchange="tastytrade") == 1
                    assert samples.value("push_accounts", exchange="tastytrade", delivery="pushed") == 1
                    assert samples.value("push_delay_seconds_count") >= 1
                    assert tastytrade.push.drop_all() == 1

                    async def opened_again() -> bool:
                        samples = await scraped(running)
                        return samples.find("push_connections_opened_total", exchange="tastytrade") == 2

                    await eventually(opened_again, "the second connection")
                    samples = await scraped(running)
        breaks = {"exchange": "tastytrade", "reason": "VENUE_UNAVAILABLE"}
        assert samples.value("push_breaks_total", **breaks) == 1

    async def test_a_failing_venue_is_counted_under_its_reason(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=raising(VenueUnavailable("It is down.")))
        async with serving(tmp_path, registry=registry_of(plugin), metrics_address=ON_A_FREE_PORT) as running:
            await running.store()
            await failure(running.stub.GetBalance(balance_request()))
            samples = await scraped(running)
        assert samples.value("call_seconds_count", method="GetBalance", code="UNAVAILABLE") == 1
        fetches = "exchange_service_venue_fetches_total"
        reasons = {dict(labels)["reason"] for (name, labels), count in samples.items() if name == fetches and count}
        assert reasons == {"VENUE_UNAVAILABLE"}

    async def test_a_call_of_an_unknown_method_is_counted_without_its_name(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), metrics_address=ON_A_FREE_PORT) as running:
            call = running.client.channel.unary_unary("/somebody.Elses/Method")
            assert (await failure(call(b""))).code is grpc.StatusCode.UNIMPLEMENTED
            samples = await scraped(running)
        assert samples.value("call_seconds_count", method="other", code="UNIMPLEMENTED") == 1

    async def test_users_are_in_no_metric(self, tmp_path: Path) -> None:
        users = ["alice", "bob@example.com"]
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), metrics_address=ON_A_FREE_PORT) as running:
            for user in users:
                await running.store(user=user)
                await running.client.get_balance(user, "fakex")
                await failure(running.stub.GetBalance(balance_request(user, user_id=user)))
            text = await asyncio.to_thread(read, running.service.metrics_address)
        assert not [user for user in users if user in text]


@pytest.mark.threat("T19")
class TestAddress:
    async def test_no_port_is_open_unless_one_is_set(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            assert running.service.metrics_address == ""

    @pytest.mark.parametrize("address", ["0.0.0.0:9464", "[::]:9464", "metrics.example:9464"])
    def test_it_is_served_to_other_machines_only_if_that_is_allowed_explicitly(
        self, tmp_path: Path, address: str
    ) -> None:
        with pytest.raises(UnsafeSettings, match="metrics_open"):
            check_settings(settings_for(tmp_path, metrics_address=address))
        check_settings(settings_for(tmp_path, metrics_address=address, metrics_open=True))

    async def test_an_address_that_is_taken_ends_the_start_with_a_sentence(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(UnsafeSettings, match=f"{address}.*metrics_address"):
                await start_service(
                    settings_for(tmp_path, metrics_address=address), registry=registry_of(ScriptedPlugin())
                )

    async def test_nothing_else_is_served_and_no_version_is_revealed(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), metrics_address=ON_A_FREE_PORT) as running:
            with pytest.raises(HTTPError, match="404") as refused:
                await asyncio.to_thread(read, running.service.metrics_address, "/etc/passwd")
            with refused.value as reply:
                assert reply.headers["Server"].strip() == "exchange-service"


@pytest.fixture
def silent() -> Iterator[ExitStack]:
    """Readers that connect and then send nothing."""
    with ExitStack() as stack:
        yield stack


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


class TestReaders:
    async def test_the_event_loop_is_not_needed_to_be_read(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), metrics_address=ON_A_FREE_PORT) as running:
            await running.client.list_exchanges()
            # In the loop's own thread, which so stands still until the answer is there.
            samples = Samples(read(running.service.metrics_address))
            assert samples.value("call_seconds_count", method="ListExchanges", code="OK") == 1

    async def test_silent_readers_do_not_block_others(
        self, tmp_path: Path, silent: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # So that they are not ended for their silence meanwhile.
        monkeypatch.setattr(metrics_server.ReaderHandler, "timeout", 60.0)
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), metrics_address=ON_A_FREE_PORT) as running:
            readers = [silent.enter_context(connect(running.service.metrics_address)) for _ in range(30)]
            await scraped(running)
            # Nor do they gather: the oldest had to make room.
            assert await asyncio.to_thread(readers[0].recv, 1) == b""

    async def test_it_ends_with_the_service_although_a_reader_is_connected(
        self, tmp_path: Path, silent: ExitStack
    ) -> None:
        settings = settings_for(tmp_path, metrics_address=ON_A_FREE_PORT)
        service = await start_service(settings, registry=registry_of(ScriptedPlugin()))
        address = service.metrics_address
        reader: Any = silent.enter_context(connect(address))
        async with ExchangeServiceClient(service.address) as client:
            await client.list_exchanges()
        await asyncio.to_thread(read, address)
        await service.stop()
        assert await asyncio.to_thread(reader.recv, 1) == b""
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(connect, address)
