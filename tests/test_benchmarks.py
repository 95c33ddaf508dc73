"""The benchmarks as programs: their names, their results, and ceilings that do not depend on the service.

Their figures are not tested."""

from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks import __main__ as program
from benchmarks import results, soak
from benchmarks.crowd import Crowd, Replica
from benchmarks.dense_venue import padded
from benchmarks.engines import NATIVE
from benchmarks.http2 import connect, request_headers
from benchmarks.lines import Line, bounded, compared, repeated
from benchmarks.names import EXCHANGE, SERVICE, user
from benchmarks.replicas import VenueRequest, refreshes, venue_requests
from benchmarks.runtime import Runtime
from benchmarks.serving import ceilings
from benchmarks.suite import Benchmark, benchmarks
from benchmarks.venue_calls import counted
from exchange_service.model import ANSWER_LIMIT
from exchange_service.plugin_kit.payload import count_marks
from exchange_service.v1.exchange_service_pb2 import ListExchangesRequest, ListExchangesResponse
from tests.harness import ScriptedPlugin, listing, registry_of, serving, until

ROOT = Path(__file__).parent.parent
CEILINGS = sorted((ROOT / "benchmarks" / "ceilings").glob("*.py"))
SHAPE = {"name", "engine", "ours", "ceiling", "unit", "ratio", "goal", "met", "reason"}
ORDER = ["list_exchanges", "streams", "storm"]


def line(name: str, ours: float = 1.0, engine: str = "") -> Line:
    return Line(name, "what it is", ours, 2.0, "ms", "at most 2 ms", ours <= 2.0, engine)


def result_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["name"], entry["engine"], entry["ours"], entry["met"], entry["reason"]


@pytest.fixture
def small_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A suite of three benchmarks, of which one fails and one misses its goal. Returns the file of results."""

    async def fails(engine: str) -> list[Line]:
        raise RuntimeError("the service ended [at once]")

    async def misses(engine: str) -> list[Line]:
        return [line("storm/opened", 3.0)]

    async def meets(engine: str) -> list[Line]:
        return [line("streams/p99")]

    suite = [
        Benchmark("list_exchanges", "the list", fails),
        Benchmark("streams", "the streams", meets, by_engine=False),
        Benchmark("storm", "the storm", misses),
    ]
    monkeypatch.setattr(program, "benchmarks", lambda seconds: suite)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    return results.RESULTS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_each_goal_has_a_benchmark_that_names_the_hot_path_it_guards() -> None:
    suite = {benchmark.name: benchmark for benchmark in benchmarks()}
    goals = "list_exchanges balance_in_process balance_redis first_list start streams storm pushes venue_calls"
    by_default = [benchmark for benchmark in suite.values() if benchmark.by_default]
    assert [benchmark.name for benchmark in by_default] == [*goals.split(), "loop_stall", "dense", "hop"]
    assert all(benchmark.by_engine for benchmark in by_default)
    assert all(benchmark.guards for benchmark in suite.values())
    done = run("--list")
    assert [row.split()[0] for row in done.stdout.splitlines()] == list(suite)


def test_an_unknown_name_is_refused_with_the_names_of_all_benchmarks() -> None:
    done = run("stream")
    assert done.returncode == 2
    assert "stream" in done.stdout
    assert "venue_calls" in done.stdout


def test_a_benchmark_that_fails_says_so_in_its_row_while_the_others_run_and_the_run_exits_with_1(
    small_suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--engine", "grpcio"]) == 1
    failure = "failed after 0 s: RuntimeError: the service ended [at once]"
    assert [result_of(entry) for entry in results.read(small_suite)] == [
        ("list_exchanges/measured", "grpcio", None, None, failure),
        ("streams/p99", "", 1.0, True, ""),
        ("storm/opened", "grpcio", 3.0, False, ""),
    ]
    printed = capsys.readouterr().out
    assert failure in next(row for row in printed.splitlines() if row.startswith("the list"))
    assert "failed: list_exchanges grpcio" in printed


def test_a_missed_goal_fails_no_run(small_suite: Path) -> None:
    assert program.main(["storm", "--engine", "grpcio"]) == 0
    assert [entry["met"] for entry in results.read(small_suite)] == [False]


def test_an_engine_that_is_not_installed_has_a_row_that_says_so_and_fails_no_run(
    small_suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "is_installed", lambda engine: engine != NATIVE)
    assert program.main(["storm"]) == 0
    assert [result_of(entry) for entry in results.read(small_suite)] == [
        ("storm/opened", "grpcio", 3.0, False, ""),
        ("storm/measured", "native", None, None, "not installed"),
    ]


def test_a_benchmark_that_hangs_fails_after_its_limit(small_suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(engine: str) -> list[Line]:
        await asyncio.get_running_loop().create_future()
        return []

    suite = [Benchmark("storm", "the storm", hangs, by_engine=False, limit=0.01)]
    monkeypatch.setattr(program, "benchmarks", lambda seconds: suite)
    assert program.main([]) == 1
    assert results.read(small_suite)[0]["reason"] == "failed after 0 s: TimeoutError"


def test_a_result_has_exactly_nine_fields() -> None:
    assert line("storm/opened").as_result().keys() == SHAPE


def test_a_benchmark_that_ran_alone_replaces_its_own_results_and_no_others() -> None:
    before = results.merged([], [line("list_exchanges/c1"), line("streams/p99"), line("storm/opened")], ORDER)
    after = results.merged(before, [line("streams/worst", 7.0)], ORDER)
    assert [entry["name"] for entry in after] == ["list_exchanges/c1", "streams/worst", "storm/opened"]
    assert after[0] == before[0]
    assert after[1]["ours"] == 7.0


def test_results_of_one_engine_replace_no_results_of_the_other() -> None:
    both = [line("streams/p99", engine="native"), line("streams/p99", engine="grpcio")]
    after = results.merged(results.merged([], both, ORDER), [line("streams/p99", 9.0, "grpcio")], ORDER)
    assert [(entry["engine"], entry["ours"]) for entry in after] == [("grpcio", 9.0), ("native", 1.0)]


def test_results_stand_in_the_order_of_the_table_whatever_ran_first() -> None:
    known = results.merged([], [line("storm/opened")], ORDER)
    names = [entry["name"] for entry in results.merged(known, [line("list_exchanges/c1")], ORDER)]
    assert names == ["list_exchanges/c1", "storm/opened"]


def test_results_of_a_benchmark_that_no_longer_exists_are_removed() -> None:
    assert results.merged([line("gone/c1").as_result()], [line("storm/opened")], ORDER) == [
        line("storm/opened").as_result()
    ]


@pytest.mark.parametrize("text", ["", "{}", '{"lines": []}', "[1, 2]", "not JSON"])
def test_a_results_file_of_another_shape_counts_as_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    assert results.read(tmp_path / "results.json") == []


def test_the_results_file_holds_a_list(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write(results.merged([], [line("storm/opened")], ORDER), path)
    assert json.loads(path.read_text()) == results.read(path) == [line("storm/opened").as_result()]


def test_a_ratio_counts_as_met_only_with_five_pairs() -> None:
    assert compared("a/b", "", "ms", [(1.0, 1.0)] * 5, at_most=1.5).met
    assert not compared("a/b", "", "ms", [(1.0, 1.0)] * 4, at_most=1.5).met
    assert not compared("a/b", "", "ms", [(1.6, 1.0)] * 5, at_most=1.5).met
    assert compared("a/b", "", "calls/s", [(9.0, 10.0)] * 5, at_least=0.85).met
    assert compared("a/b", "", "calls/s", [(1.0, 10.0)] * 5).met is None


def test_medians_are_compared_so_one_bad_pair_changes_nothing() -> None:
    pairs = [(1.0, 1.0), (1.0, 1.0), (9.0, 1.0), (1.0, 1.0), (1.0, 9.0)]
    line = compared("a/b", "", "ms", pairs, at_most=1.5)
    assert (line.ours, line.ceiling, line.met) == (1.0, 1.0, True)


def test_an_absolute_goal_is_shown_as_the_ceiling() -> None:
    line = bounded("start/seconds", "", "s", 0.45, 0.9)
    assert (line.ceiling, line.ratio, line.met) == (0.9, 0.5, True)
    assert not bounded("start/seconds", "", "s", 0.91, 0.9).met


def test_a_figure_that_is_measured_again_and_again_is_met_by_the_median_of_five() -> None:
    assert repeated("start/seconds", "", "s", [0.8, 0.8, 0.8, 2.0, 2.0], 0.9).met
    assert not repeated("start/seconds", "", "s", [0.8] * 4, 0.9).met


@pytest.mark.parametrize("ceiling", CEILINGS, ids=lambda path: path.stem)
def test_a_ceiling_is_short_and_imports_nothing_of_the_service(ceiling: Path) -> None:
    text = ceiling.read_text()
    assert len(text.splitlines()) <= 60
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    ours = [name for name in imported if name.partition(".")[0].startswith(("exchange_service", "benchmarks", "tests"))]
    assert imported
    assert ours == []


@pytest.mark.parametrize("method", ["ListExchanges", "GetBalance"])
async def test_the_ceilings_answer_with_the_same_bytes(tmp_path: Path, method: str) -> None:
    runtime = Runtime("asyncio", (700, 10, 1000), frozen=False)
    async with ceilings(tmp_path, b"a reply", runtime, NATIVE) as servers:
        assert list(servers) == ["aio", "native"]
        for server in servers.values():
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                assert await channel.unary_unary(SERVICE + method)(b"", timeout=10) == b"a reply"


def test_a_padded_answer_is_as_long_and_as_dense_as_an_answer_may_be() -> None:
    body = padded(b'{"profile": {"account": 7}}\n')
    assert len(body) == ANSWER_LIMIT
    assert json.loads(body)["profile"] == {"account": 7}
    # More than a value in eight bytes would be refused.
    assert 0.9 * ANSWER_LIMIT < 8 * count_marks(body) <= ANSWER_LIMIT


async def test_the_load_client_gets_the_whole_reply_that_a_real_client_gets(tmp_path: Path) -> None:
    plugin = ScriptedPlugin(*(listing(f"fakex{number}", instructions="x" * 400) for number in range(60)))
    async with serving(tmp_path, registry=registry_of(plugin)) as running:
        expected = await running.client.list_exchanges()
        arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        port = int(running.service.address.rpartition(":")[2])
        connection = await connect(port, lambda _, message, __: arrived.set_result(message), lambda _: None)
        headers = request_headers(port, f"{SERVICE}ListExchanges", [("authorization", "Bearer " + "x" * 300)])
        connection.send([connection.prepared(headers, ListExchangesRequest().SerializeToString())])
        async with asyncio.timeout(10):
            reply = ListExchangesResponse.FromString(await arrived)
        connection.close()
        assert reply == expected
        # More than one frame's worth.
        assert reply.ByteSize() > 16_384


async def test_the_load_client_tells_an_error_from_an_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        ended = asyncio.Event()
        messages: list[bytes] = []
        port = int(running.service.address.rpartition(":")[2])
        connection = await connect(port, lambda _, message, __: messages.append(message), lambda _: ended.set())
        headers = request_headers(port, f"{SERVICE}GetBalance", [])
        connection.send([connection.prepared(headers, b"")])
        async with asyncio.timeout(10):
            await ended.wait()
        connection.close()
        assert messages == []


def test_a_venue_that_is_asked_more_or_less_often_than_once_an_interval_misses_the_goal() -> None:
    lines = [counted("callers", "64 callers", calls) for calls in range(10)]
    assert [line.ours for line in lines if line.met] == [5, 6, 7]


def requests(*moments: tuple[float, int]) -> list[VenueRequest]:
    """Requests for one account at these times by these processes."""
    return [VenueRequest(user(0), pid, moment) for moment, pid in moments]


def test_an_unfinished_line_of_the_venues_log_does_not_count() -> None:
    assert venue_requests("user-00000 7 1.5\nuser-00001 8 2.") == [VenueRequest("user-00000", 7, 1.5)]


def test_refreshes_are_counted_for_each_account_and_interval() -> None:
    other = [VenueRequest(user(1), 1, moment) for moment in (0.0, 2.0)]
    line = refreshes([*requests((0.0, 1), (2.0, 1), (4.0, 1), (6.0, 1)), *other], 8.0, 2.0, (9, 100.0))
    assert (line.mean, line.worst, line.twice) == (0.75, 1.0, 0)


def test_two_refreshes_in_one_interval_are_excused_in_a_takeover_alone() -> None:
    twice = requests((0.0, 1), (0.1, 2), (2.0, 1), (7.0, 2), (7.2, 3), (60.0, 2), (60.1, 3))
    line = refreshes(twice, 62.0, 2.0, (1, 3.0))
    assert (line.twice, line.in_takeover) == (2, 1)
    of_another = refreshes(requests((2.0, 2), (7.0, 2), (7.2, 3)), 10.0, 2.0, (1, 3.0))
    assert (of_another.twice, of_another.in_takeover) == (1, 0)


def test_a_process_has_returned_if_no_figure_grew_by_more_than_its_margin() -> None:
    memory = next(measure for measure in soak.MEASURES if measure.name == "memory")
    assert soak.returned(memory, 100.0, 100.0 + memory.margin)
    assert soak.returned(memory, 100.0, 90.0)
    assert not soak.returned(memory, 100.0, 101.0 + memory.margin)


async def test_a_subscriber_whose_replica_ends_follows_the_account_at_another_replica(tmp_path: Path) -> None:
    plugin = ScriptedPlugin(listing(EXCHANGE))
    options = {"registry": registry_of(plugin), "heartbeat_interval": 0.1}
    async with serving(tmp_path, **options) as stays:
        await stays.store(EXCHANGE, user=user(0))
        async with serving(tmp_path, **options) as goes:
            replicas = [Replica(int(one.service.address.rpartition(":")[2])) for one in (goes, stays)]
            crowd = Crowd(replicas, [], accounts=1, pause=60.0)
            await crowd.open(callers=0, subscribers=1)
            (subscriber,) = crowd.subscribers
            replicas[0].lives = False
        await until(lambda: stays.service.streams.counts() == (1, 1), "the subscriber is at the other replica")
        assert (subscriber.moved, subscriber.replica) == (True, replicas[1])
        assert (crowd.went_back, crowd.ended) == (0, 0)
        await crowd.close()
