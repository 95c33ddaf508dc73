"""The command line, as a person and as a program meets it: processes, exit codes, output."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
from mcp import Client, StdioServerParameters, stdio_client
from mcp_types import TextContent
from rich.console import Console
from typer.testing import CliRunner

from exchange_service import clock
from exchange_service.cli import app, outcome, tables
from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.doctor import Severity, examine
from exchange_service.cli.outcome import ExitCode
from exchange_service.cli.watch import EventLines, LiveView, Progress
from exchange_service.plugin_api import AssetBalance, Balance, Summary, VenueAccount, VenueUnavailable
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.commands import run_command
from tests.engines import ENGINE_VARIABLES
from tests.harness import USER, Running, ScriptedPlugin, raising, registry_of, returning, serving, settings_for
from tests.identities import Authority

CANARY = "canary-secret-5f1c9a"
REMOVE = ("credentials", "remove", "-u", "alice", "-e", "oanda", "--environment", "practice", "--yes")


def environment(home: Path, **extra: str) -> dict[str, str]:
    """A process environment with its own home and database, and nothing of ours."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{home / 'service.db'}",
        **ENGINE_VARIABLES,
        **extra,
    }


def call(home: Path, *arguments: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return run_command(arguments, environment(home, **extra), stdin)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A demo on a free port; its address."""
    home = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "exchange_service", "demo", "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        match = re.search(r"listens on (\S+)", process.stdout.readline())
        assert match
        yield match[1]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


def ask(demo: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call(tmp_path, *arguments, "--address", demo)


def test_a_balance_for_programs_is_one_json_object_with_the_names_of_the_protos(demo: str, tmp_path: Path) -> None:
    done = ask(demo, tmp_path, "balance", "-u", "demo", "-e", "oanda", "-o", "json")
    reply = json.loads(done.stdout)
    # A text with its digits; the account moves.
    assert re.fullmatch(r"25\d{3}\.\d{1,4}", reply["balance"]["venue_accounts"][0]["assets"][0]["total"])
    assert set(reply["freshness"]) == {"source", "age"}


def test_the_exchanges_for_programs_are_the_whole_answer_and_as_lines_the_entries_alone(
    demo: str, tmp_path: Path
) -> None:
    found = json.loads(ask(demo, tmp_path, "exchanges", "--asset-class", "forex", "-o", "json").stdout)
    assert [entry["id"] for entry in found["exchanges"]] == ["oanda"]
    assert (found["matching_count"], found["problems"]) == (1, [])
    assert found["stats"]["total"] == found["stats"]["custom"] + found["stats"]["ccxt"] > 100
    nothing = json.loads(ask(demo, tmp_path, "exchanges", "--search", "zzzz", "-o", "json").stdout)
    assert nothing.keys() == found.keys()
    assert (nothing["exchanges"], nothing["matching_count"], nothing["stats"]) == ([], 0, found["stats"])
    assert nothing["etag"] != found["etag"]
    assert ask(demo, tmp_path, "exchanges", "--search", "zzzz", "-o", "jsonl").stdout == ""


def test_the_output_format_and_the_address_have_environment_twins(demo: str, tmp_path: Path) -> None:
    done = call(
        tmp_path,
        *("exchanges", "--asset-class", "FOREX"),
        EXCHANGE_SERVICE_ADDRESS=demo,
        EXCHANGE_SERVICE_OUTPUT="jsonl",
    )
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["oanda"]


def test_watch_shows_a_change_and_ends_after_the_requested_number_of_events(demo: str, tmp_path: Path) -> None:
    done = ask(demo, tmp_path, "watch", "-u", "demo", "-e", "tastytrade", "--events", "3", "-o", "jsonl")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    equities = [event["balance"]["balance"]["summary"]["equity"] for event in events if "balance" in event]
    assert len(events) == 3
    assert len(set(equities)) >= 2


def test_watch_says_whether_an_account_is_pushed_or_polled_and_why(demo: str, tmp_path: Path) -> None:
    watch = ("watch", "-u", "demo", "--events", "2", "-e")
    pushed = ask(demo, tmp_path, *watch, "tastytrade").stdout
    assert re.findall(r"tastytrade ((?:pushed|polled).*)", pushed) == ["polled (the push is being set up)", "pushed"]
    lines = ask(demo, tmp_path, *watch, "tastytrade", "-o", "jsonl").stdout.splitlines()
    first, last = [json.loads(line)["balance"]["freshness"]["delivery"] for line in lines]
    assert (first["mode"], first["polling_reason"]) == ("DELIVERY_MODE_POLLED", "POLLING_REASON_STARTING")
    assert (last["mode"], last.get("polling_reason")) == ("DELIVERY_MODE_PUSHED", None)


def test_a_search_names_an_exchange_that_is_not_served_any_more(demo: str, tmp_path: Path) -> None:
    done = ask(demo, tmp_path, "exchanges", "--search", "bitmex")
    assert done.returncode == 0
    assert "BitMEX is not served any more. BitMEX closed its exchange on 2026-09-23." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("balance", "-u", "demo", "-e", "oanda", "--environment", "mars"), 2, "FIELD_INVALID"),
        (("balance", "-u", "demo", "-e", "onada"), 3, "EXCHANGE_UNKNOWN"),
        (("balance", "-u", "demo", "-e", "bitmex"), 3, "EXCHANGE_RETIRED"),
        (("balance", "-u", "nobody", "-e", "oanda"), 3, "CREDENTIAL_MISSING"),
        (("balance", "-u", "demo", "-e", "bullish"), 3, "NOT_SUPPORTED"),
        (("balance", "-u", "demo-refused", "-e", "oanda"), 4, "CREDENTIAL_REJECTED"),
        (("balance", "-u", "demo-limited", "-e", "oanda"), 5, "VENUE_RATE_LIMITED"),
    ],
)
def test_failures_have_an_exit_code_a_sentence_and_for_programs_an_object(
    demo: str, tmp_path: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    for_people = ask(demo, tmp_path, *arguments)
    assert (for_people.returncode, for_people.stdout) == (code, "")
    assert for_people.stderr.startswith(f"error: {reason}: ")
    for_programs = ask(demo, tmp_path, *arguments, "-o", "json")
    assert (for_programs.returncode, for_programs.stdout) == (code, "")
    assert json.loads(for_programs.stderr)["error"]["reason"] == reason


def test_watch_requests_balances_no_more_often_than_its_interval(demo: str, tmp_path: Path) -> None:
    arguments = ("watch", "-u", "demo", "-e", "tastytrade", "-o", "jsonl", "--events", "2")
    began = time.monotonic()
    ask(demo, tmp_path, *arguments, "--min-interval", "3")
    # Without it both come within two seconds.
    assert time.monotonic() - began >= 3.0
    assert ask(demo, tmp_path, *arguments, "--min-interval", "3601").returncode == 2


def test_a_watch_until_each_account_has_given_something_ends_with_the_exit_code_of_the_worst(
    demo: str, tmp_path: Path
) -> None:
    until = ("watch", "--until-balance", "-o", "jsonl")
    done = ask(demo, tmp_path, *until, "-u", "demo")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    followed = {state["exchange_id"] for state in events[0]["heartbeat"]["accounts"]}
    assert len(followed) >= 9
    assert {event["balance"]["balance"]["exchange_id"] for event in events if "balance" in event} == followed
    assert done.returncode == 0
    # Hyperliquid and Lighter need no key, so they give a balance.
    assert ask(demo, tmp_path, *until, "-u", "demo-refused", "-e", "oanda").returncode == 4
    both = ask(demo, tmp_path, *until, "-u", "demo", "-e", "oanda", "-e", "nosuch")
    assert (both.returncode, '"total"' in both.stdout) == (3, True)


def test_a_watch_says_at_once_that_a_user_has_no_account_and_that_time_is_up(demo: str, tmp_path: Path) -> None:
    done = ask(demo, tmp_path, "watch", "--until-balance", "-u", "nobody")
    assert done.returncode == 3
    assert (
        "no account is stored for nobody. Add one with `exchange-service credentials add --user nobody`" in done.stderr
    )
    waiting = ask(demo, tmp_path, "watch", "--within", "0.5", "-u", "nobody")
    assert waiting.returncode == 0
    assert "An account that is added now is shown here." in waiting.stderr
    late = ask(demo, tmp_path, "watch", "--until-balance", "--within", "0.5", "-u", "demo-slow", "-e", "oanda")
    assert late.returncode == 5
    assert "nothing yet from: oanda. Give it more time by --within." in late.stderr


def test_the_worst_of_several_errors_is_the_one_that_waiting_helps_least() -> None:
    progress = Progress(3)
    for reason in ("VENUE_TIMEOUT", "CREDENTIAL_REJECTED", "CREDENTIAL_MISSING"):
        error = messages.AccountErrorEvent(exchange_id=reason)
        error.error.reason = error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
        assert not progress.is_complete()
        progress.note(messages.StreamBalancesResponse(account_error=error))
    assert progress.is_complete()
    assert progress.code_of_all() == ExitCode.ACT
    recovered = messages.StreamBalancesResponse(balance=messages.BalanceEvent())
    recovered.balance.balance.exchange_id = "CREDENTIAL_REJECTED"
    progress.note(recovered)
    assert progress.code_of_all() == ExitCode.MISSING


async def test_an_assistant_reads_balances_by_name_and_nothing_else(demo: str, tmp_path: Path) -> None:
    users = ("demo", "demo-refused", "demo-limited")
    page = (Path(__file__).parent.parent / "docs/calling-mcp.md").read_text()
    documented = re.search(r"<!-- starts against the demo -->\n```json\n(.*?)```", page, re.DOTALL)
    assert documented
    (configured,) = json.loads(documented[1])["mcpServers"].values()
    assert configured["args"] == ["mcp", "--user", "demo"]
    variables = {name: value.replace("127.0.0.1:50051", demo) for name, value in configured["env"].items()}
    program = StdioServerParameters(
        command=str(Path(sys.executable).with_name(configured["command"])),
        args=[*configured["args"], *(part for user in users[1:] for part in ("--user", user))],
        env=environment(tmp_path) | variables,
    )
    with (tmp_path / "stderr").open("w+") as stderr:
        async with Client(stdio_client(program, errlog=stderr)) as assistant:
            tools = (await assistant.list_tools()).tools
            assert [tool.name for tool in tools] == ["list_exchanges", "list_accounts", "get_balance", "watch_once"]
            for tool in tools:
                assert tool.annotations is not None
                assert (tool.annotations.read_only_hint, tool.annotations.destructive_hint) == (True, False)

            async def ask_tool(name: str, **arguments: Any) -> tuple[Any, bool]:
                result = await assistant.call_tool(name, arguments)
                (content,) = result.content
                assert isinstance(content, TextContent)
                assert json.loads(content.text) == result.structured_content
                assert len(content.text) < 10_000
                assert "101-004" not in content.text, "a part of an account's number"
                return result.structured_content, result.is_error

            (page, _), (last, _) = await ask_tool("list_exchanges"), await ask_tool("list_exchanges", page=3)
            assert (len(page["exchanges"]), page["next_page"], "next_page" in last) == (50, 2, False)
            accounts, _ = await ask_tool("list_accounts", user="demo")
            assert {"exchange": "oanda", "environment": "production"} in accounts["accounts"]
            balance, failed = await ask_tool("get_balance", user="demo", exchange="oanda", max_age_seconds=60)
            assert not failed
            assert (balance["source"] in ("venue", "cache"), balance["stale"]) == (True, False)
            assert 0 <= balance["age_seconds"] <= 60
            (account,) = balance["accounts"]
            assert account["number_ends_in"] == "-001"
            assert all(isinstance(value, str) for row in account["assets"] for value in row.values())
            changed, _ = await ask_tool("watch_once", user="demo", exchange="tastytrade", timeout_seconds=20)
            assert (changed["changed"], changed["balance"]["exchange"]) == (True, "tastytrade")
            refused = {
                (user, exchange): (await ask_tool("get_balance", user=user, exchange=exchange))[0]["error"]
                for user, exchange in (
                    *(("demo-refused", "oanda"), ("demo-limited", "oanda")),
                    *(("demo", "nosuch"), ("demo-slow", "oanda")),
                )
            }
            assert {key: (error["reason"], error["retry"]) for key, error in refused.items()} == {
                ("demo-refused", "oanda"): ("CREDENTIAL_REJECTED", False),
                ("demo-limited", "oanda"): ("VENUE_RATE_LIMITED", True),
                ("demo", "nosuch"): ("EXCHANGE_UNKNOWN", False),
                # The service would give this user's balance; the assistant may not name the user.
                ("demo-slow", "oanda"): ("FIELD_INVALID", False),
            }
            assert refused["demo-limited", "oanda"]["retry_after_seconds"] > 0
        stderr.seek(0)
        assert stderr.read() == ""


def test_the_command_for_assistants_asks_for_users_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ([], ["--user", "alice", "--all-users"]):
        assert CliRunner().invoke(app, ["mcp", *wrong]).exit_code == 2
    monkeypatch.setitem(sys.modules, "mcp", None)
    done = CliRunner().invoke(app, ["mcp", "--user", "alice"])
    assert (done.exit_code, "pip install 'exchange-service[mcp]'" in done.stderr) == (3, True)


LONG_USER = "customer-" + "0123456789-" * 8 + "end"
WALLET = "0x" + "a1" * 20


def show_all(demo: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each command that has a table shows at 80 columns, by its arguments."""
    stored = {"api_key": "key", "api_secret": "secret"}
    call(home, "credentials", "add", "-u", LONG_USER, "-e", "binance", "--stdin", stdin=json.dumps(stored))
    call(home, "tokens", "create", "--name", "a desk with a long name", "-u", LONG_USER)
    call(home, "keys", "create", str(home / "keys.json"))
    monkeypatch.setattr(outcome.console, "_width", 80)
    for name, value in (environment(home) | {"EXCHANGE_SERVICE_ADDRESS": demo}).items():
        monkeypatch.setenv(name, value)
    commands = (
        "exchanges",
        "plugins",
        "plugins settings",
        "credentials list",
        "tokens list",
        f"keys status --keyset-file {home / 'keys.json'}",
        "balance -u demo -e hyperliquid --account-type all",
        "balance -u demo -e binance --account-type all",
        "watch -u demo --until-balance",
        "health",
        "doctor",
    )
    return {command: CliRunner().invoke(app, command.split()).stdout for command in commands}


def test_no_command_cuts_or_breaks_an_id_at_80_columns_or_ends_a_line_in_blanks(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show_all(demo, tmp_path, monkeypatch)
    ids = {line.split()[0] for line in shown["exchanges"].splitlines()}
    assert {"tradier_options", "krakenfutures", "hyperliquid"} <= ids
    lines = {command: text.splitlines() for command, text in shown.items()}
    # As wide as the terminal, but for the texts that are wider themselves, which it breaks.
    tables = [line for command in ("exchanges", "plugins", "plugins settings") for line in lines[command]]
    assert max(map(len, tables)) <= 80
    assert {"ccxt_generic", "krakenfutures"} <= {line.split()[0] for line in lines["plugins"]}
    assert LONG_USER in lines["credentials list"]
    assert any(LONG_USER in line for line in lines["tokens list"])
    token = json.loads(CliRunner().invoke(app, ["tokens", "list", "-o", "jsonl"]).stdout)["id"]
    assert token in shown["tokens list"].split()
    assert re.search(r"^perpetual 0x[0-9a-f]{40}$", shown["balance -u demo -e hyperliquid --account-type all"], re.M)
    assert [line for text in lines.values() for line in text if line != line.rstrip()] == []
    assert all(lines.values())


def commands_of(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """The arguments of every command, with those of its groups."""
    yield path
    for name in getattr(group, "commands", ()):
        yield from commands_of(group.commands[name], *path, name)


def test_no_help_ends_a_line_in_blanks() -> None:
    paths = list(commands_of(typer.main.get_command(app)))
    assert len(paths) > 25
    for path in paths:
        shown = CliRunner().invoke(app, [*path, "--help"]).stdout
        assert shown.startswith("Usage:") or "Usage:" in shown
        assert [line for line in shown.splitlines() if line != line.rstrip()] == [], path


def test_a_table_leaves_columns_out_before_it_breaks_lines_and_stands_below_its_ids_at_last() -> None:
    table = Columns(
        Column("account", whole=True, group=True), Column("note", spare=1), Column("text"), Column("total", right=True)
    )
    table.add(WALLET, "a longer note", "two words", "1")
    table.add(WALLET, "", "and others", "10.25")

    def at(width: int) -> list[str]:
        screen = io.StringIO()
        Console(file=screen, width=width).print(table, crop=False)
        return [line.rstrip() for line in screen.getvalue().splitlines()]

    gap = " " * (len(WALLET) - len("account"))
    assert at(100)[0] == f"account{gap}  note           text        total"
    assert at(70)[0] == f"account{gap}  text        total"
    assert at(70)[1:3] == [f"{WALLET}  two words       1", f"{WALLET}  and others  10.25"]
    assert at(70)[3] == "without room: note; --output json has all"
    assert at(59)[1:3] == [f"{WALLET}  two           1", " " * (len(WALLET) + 2) + "words"]
    assert at(50)[:3] == [WALLET, "  note           text        total", "  a longer note  two words       1"]
    assert at(29)[:2] == [WALLET, "  text        total"]
    assert at(29)[-1].endswith("has all")
    assert at(10)[:4] == [WALLET, "  note: a longer note", "  text: two words", "  total: 1"]


def test_watching_an_account_that_can_never_be_followed_ends_as_its_balance_does(demo: str, tmp_path: Path) -> None:
    done = ask(demo, tmp_path, "watch", "-u", "demo", "-e", "nosuch", "-e", "NoSuch", "-e", "bullish")
    assert done.returncode == 3
    assert "EXCHANGE_UNKNOWN" in done.stdout


def test_a_service_that_does_not_run_is_reported_with_the_command_to_start_it(tmp_path: Path) -> None:
    done = call(tmp_path, "exchanges", "--address", "127.0.0.1:1", "--timeout", "5")
    assert done.returncode == 5
    assert "exchange-service demo" in done.stderr
    assert call(tmp_path, "health", "--address", "127.0.0.1:1").returncode == 5


def test_a_service_that_never_answers_is_worth_another_try(silent_address: str, tmp_path: Path) -> None:
    for_people = call(tmp_path, "exchanges", "--address", silent_address, "--timeout", "0.5")
    assert for_people.returncode == 5
    assert f"{silent_address} did not answer in time" in for_people.stderr
    for_programs = call(
        tmp_path, *("balance", "-u", "demo", "-e", "oanda", "-o", "json"), "--address", silent_address, "--timeout=0.5"
    )
    assert for_programs.returncode == 5
    assert json.loads(for_programs.stderr)["error"]["reason"] == "DEADLINE_PASSED"


# Markup that ends a style which was never begun, one that begins one, the sequence that clears a terminal, and one
# that names its window.
HOSTILE = "[/x][red]\x1b[2J\x1b]0;owned\x07"


def harmless(shown: str) -> bool:
    """Whether the markup is shown as text, and nothing of the sequences but their printable letters."""
    return "[/x][red]\\u001b[2J" in shown and not re.search(r"\x1b\[2J|\x1b\]|\x07", shown)


def hostile_balance() -> Balance:
    """Every text of it is a venue's or a user's, and tries to do something to a terminal."""
    rows = (AssetBalance(HOSTILE, total=Decimal(1)),)
    return Balance(
        (
            VenueAccount(HOSTILE[:20], "spot", HOSTILE, assets=rows, summary=Summary(HOSTILE, equity=Decimal(1))),
            VenueAccount("2", HOSTILE, error=VenueUnavailable(f"{HOSTILE} is down.")),
            VenueAccount("3", "spot", HOSTILE),
        ),
        summary=Summary(HOSTILE, equity=Decimal(1)),
        notes=(f"A note: {HOSTILE}", HOSTILE),
    )


async def ask_running(running: Running, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(call, folder, *arguments, "--address", running.service.address)


async def test_texts_of_a_venue_are_shown_and_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    plugin = ScriptedPlugin(answer=returning(hostile_balance()))
    async with serving(tmp_path, registry=registry_of(plugin), poll_interval=0.1) as running:
        await running.store()
        # What others store is not printed as it is either.
        once = await ask_running(running, tmp_path, "balance", "-u", USER, "-e", "fakex")
        live = await ask_running(running, tmp_path, "watch", "-u", USER, "-e", "fakex", "--events", "1")
        plugin.answer = raising(VenueUnavailable(f"{HOSTILE} is down."))
        await running.store(user="bob")
        failed = await ask_running(running, tmp_path, "balance", "-u", "bob", "-e", "fakex")
        trouble = await ask_running(running, tmp_path, "watch", "-u", "bob", "-e", "fakex", "--events", "1")
    assert (once.returncode, live.returncode, trouble.returncode) == (0, 0, 5), once.stderr + live.stderr
    assert failed.returncode == 5
    assert harmless(once.stdout)
    assert harmless(once.stderr), "the notes"
    assert harmless(live.stdout)
    assert harmless(failed.stderr)
    assert harmless(trouble.stdout)


def shown_on_a_terminal(*things: Any) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=400)
    for thing in things:
        console.print(thing)
    return screen.getvalue()


def test_a_live_table_shows_them_as_texts_too() -> None:
    row = balance_pb2.AssetBalance(asset=HOSTILE, total="1")
    account = balance_pb2.VenueAccount(id="1", type="spot", sub_account=HOSTILE, assets=[row])
    account.summary.CopyFrom(balance_pb2.Summary(currency=HOSTILE, equity="1"))
    balance = balance_pb2.Balance(exchange_id="fakex", environment="production", venue_accounts=[account])
    balance.summary.CopyFrom(account.summary)
    fault = balance_pb2.AccountFault(reason=error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE, message=HOSTILE)
    view = LiveView()
    first = messages.StreamBalancesResponse(balance=messages.BalanceEvent(balance=balance))
    second = messages.StreamBalancesResponse(
        account_error=messages.AccountErrorEvent(exchange_id="fakex", environment="production", error=fault)
    )
    freshness = balance_pb2.Freshness(source=balance_pb2.BALANCE_SOURCE_LAST_GOOD, stale=fault)
    for shown in (
        shown_on_a_terminal(view.after(first)),
        shown_on_a_terminal(view.after(second)),
        shown_on_a_terminal(tables.balance(balance)),
        shown_on_a_terminal(tables.summary(balance)),
        shown_on_a_terminal(*tables.summaries(balance_pb2.Balance(venue_accounts=[account]))),
        shown_on_a_terminal(f"[dim]{tables.freshness(freshness)}[/]"),
    ):
        assert harmless(shown), shown


def table_of(*rows: balance_pb2.AssetBalance) -> str:
    return shown_on_a_terminal(
        tables.balance(balance_pb2.Balance(venue_accounts=[balance_pb2.VenueAccount(type="margin", assets=rows)]))
    )


def with_summary(account_id: str, equity: str) -> balance_pb2.VenueAccount:
    account = balance_pb2.VenueAccount(id=account_id, type="margin")
    account.assets.append(balance_pb2.AssetBalance(asset="USD", total="5"))
    account.summary.CopyFrom(balance_pb2.Summary(currency="USD", equity=equity, available="2"))
    return account


def test_the_summary_of_one_account_is_shown_once() -> None:
    message = balance_pb2.Balance(venue_accounts=[with_summary("1", "7")])
    message.summary.CopyFrom(message.venue_accounts[0].summary)
    assert "equity" not in shown_on_a_terminal(tables.balance(message))
    assert list(tables.summaries(message)) == ["USD  available 2  equity 7"]


def test_each_of_several_summaries_names_its_account() -> None:
    message = balance_pb2.Balance(venue_accounts=[with_summary("1", "7"), with_summary("2", "8")])
    message.summary.CopyFrom(balance_pb2.Summary(currency="USD", equity="15"))
    shown = shown_on_a_terminal(*tables.summaries(message)).split("\n")
    assert [line.rstrip() for line in shown if line] == [
        "margin 1: USD  available 2  equity 7",
        "margin 2: USD  available 2  equity 8",
        "all accounts: USD  equity 15",
    ]


def test_what_is_available_of_an_account_is_not_in_the_column_of_what_is_free_of_an_asset() -> None:
    event = messages.StreamBalancesResponse(balance=messages.BalanceEvent())
    event.balance.balance.CopyFrom(balance_pb2.Balance(exchange_id="fakex", venue_accounts=[with_summary("1", "7")]))
    row, equity = shown_on_a_terminal(tables.balances([event.balance.balance])).splitlines()[1:]
    assert row.split() == ["fakex", "margin", "1", "USD", "5", "-", "-"]
    assert equity.split() == ["fakex", "margin", "1", "equity", "USD", "7"]
    lines = [line for line in EventLines().after(event) if "equity" in line]
    assert [line.partition(" ")[2] for line in lines] == ["fakex margin 1 [dim]equity USD[/] 7 available 2"]


def test_a_table_tells_a_currency_from_a_stock_of_the_same_name() -> None:
    money = balance_pb2.AssetBalance(asset="USD", total="5", kind=balance_pb2.ASSET_KIND_CASH)
    stock = balance_pb2.AssetBalance(asset="USD", total="7", kind=balance_pb2.ASSET_KIND_HOLDING)
    plain = balance_pb2.AssetBalance(asset="BTC", total="1")
    lines = [line.split() for line in table_of(money, stock, plain).splitlines()]
    assert lines == [
        ["account", "asset", "kind", "total", "free", "used"],
        ["margin", "USD", "cash", "5", "-", "-"],
        ["margin", "USD", "holding", "7", "-", "-"],
        ["margin", "BTC", "1", "-", "-"],
    ]


def test_a_table_without_kinds_has_no_column_for_them() -> None:
    assert "kind" not in table_of(balance_pb2.AssetBalance(asset="BTC", total="1"))


def delivered(mode: Any, reason: Any = balance_pb2.POLLING_REASON_UNSPECIFIED) -> balance_pb2.Delivery:
    return balance_pb2.Delivery(mode=mode, polling_reason=reason)


PUSHED = delivered(balance_pb2.DELIVERY_MODE_PUSHED)
BROKEN = delivered(balance_pb2.DELIVERY_MODE_POLLED, balance_pb2.POLLING_REASON_BROKEN)
# Of a service that is newer than this client.
UNHEARD_OF = delivered(balance_pb2.DELIVERY_MODE_POLLED, 99)


def heartbeat(**deliveries: balance_pb2.Delivery) -> messages.StreamBalancesResponse:
    """A heartbeat in which these exchanges' accounts are delivered so."""
    accounts = [
        messages.AccountState(exchange_id=name, environment="production", delivery=delivery)
        for name, delivery in deliveries.items()
    ]
    return messages.StreamBalancesResponse(heartbeat=messages.HeartbeatEvent(accounts=accounts))


def test_lines_say_how_an_account_is_delivered_once_and_again_when_that_changes() -> None:
    lines = EventLines()
    shown = [
        re.sub(r"\d\d:", "", line).partition(" ")[2]
        for event in (
            heartbeat(fakex=PUSHED, other=PUSHED),
            heartbeat(fakex=PUSHED, other=PUSHED),
            heartbeat(fakex=BROKEN, other=PUSHED),
            heartbeat(fakex=UNHEARD_OF),
        )
        for line in lines.after(event)
        if "alive" not in line
    ]
    assert shown == [
        "fakex pushed",
        "other pushed",
        "fakex polled (the push broke and is tried again)",
        "fakex polled (the service gives another reason)",
    ]


def test_a_live_table_says_below_it_how_its_accounts_are_delivered() -> None:
    view = LiveView()
    view.after(heartbeat(fakex=PUSHED, other=PUSHED))
    shown = shown_on_a_terminal(view.after(heartbeat(fakex=BROKEN)))
    assert "polled (the push broke and is tried again): fakex\n" in shown
    assert "pushed: other\n" in shown


def test_a_balance_says_how_it_is_delivered_where_that_is_known() -> None:
    plain = balance_pb2.Freshness(source=balance_pb2.BALANCE_SOURCE_CACHE)
    assert tables.freshness(plain) == "from the cache, 0.0 s old"
    plain.delivery.CopyFrom(PUSHED)
    assert tables.freshness(plain) == "from the cache, 0.0 s old; pushed"


def test_every_reason_to_poll_has_words() -> None:
    texts = [
        tables.delivery(delivered(balance_pb2.DELIVERY_MODE_POLLED, reason))
        for reason in balance_pb2.PollingReason.values()
        if reason != balance_pb2.POLLING_REASON_UNSPECIFIED
    ]
    assert tables.delivery(UNHEARD_OF) not in texts
    assert len(set(texts)) == len(texts)


def test_wrong_usage_is_exit_code_two(demo: str, tmp_path: Path) -> None:
    assert ask(demo, tmp_path, "exchanges", "--source", "both").returncode == 2
    assert ask(demo, tmp_path, "balance", "-u", "demo").returncode == 2
    assert ask(demo, tmp_path, "balans").returncode == 2
    refused = ask(demo, tmp_path, "exchanges", "--header", CANARY)
    assert refused.returncode == 2
    assert CANARY not in refused.stderr


def add(home: Path, row: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = row if isinstance(row, str) else json.dumps(row)
    return call(home, "credentials", "add", "-u", "alice", "-e", "oanda", "--stdin", *arguments, stdin=text)


def listed(home: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(call(home, "credentials", "list", "-o", "json").stdout)
    return entries


def test_credentials_are_added_listed_and_removed_and_never_shown(tmp_path: Path) -> None:
    assert listed(tmp_path) == []
    added = add(tmp_path, {"api_key": CANARY}, "--environment", "practice")
    assert (added.returncode, added.stdout) == (0, "")
    stored = {"user_id": "alice", "exchange_id": "oanda", "environment": "sandbox", "retired": None}
    assert listed(tmp_path) == [stored]
    removed = call(tmp_path, *REMOVE)
    assert removed.returncode == 0
    again = call(tmp_path, *REMOVE)
    assert again.returncode == 3
    assert listed(tmp_path) == []
    assert CANARY not in added.stderr + removed.stderr


def test_a_stored_credential_is_replaced_only_on_request(tmp_path: Path) -> None:
    assert add(tmp_path, {"api_key": "first"}).returncode == 0
    refused = add(tmp_path, {"api_key": "second"})
    assert refused.returncode == 2
    assert "--replace" in refused.stderr
    assert add(tmp_path, {"api_key": "second"}, "--replace").returncode == 0
    assert len(listed(tmp_path)) == 1


@pytest.mark.parametrize(
    "row",
    [
        f'{{"api_key": "{CANARY}"',
        [CANARY],
        {"api_key": "", "passphrase": CANARY},
        {"api_key": CANARY, "apiSecret": CANARY},
        {"api_key": CANARY, "extra_metadata": [CANARY]},
        {"api_key": {"value": CANARY}},
    ],
)
def test_input_that_is_no_credential_is_refused_without_repeating_it(tmp_path: Path, row: Any) -> None:
    done = add(tmp_path, row)
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    assert listed(tmp_path) == []


def read_until(terminal: int, text: str, shown: str = "") -> str:
    """What a terminal shows, until it shows `text`."""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], 20)
        assert ready, f"the terminal shows no {text!r}: {shown!r}"
        shown += os.read(terminal, 4096).decode()
    return shown


def test_secrets_are_prompted_for_on_a_terminal_and_not_echoed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "exchange_service", "credentials", "add", "-u", "alice", "-e", "oanda"]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, command, environment(tmp_path, TERM="dumb"))
    # The blank behind the colon comes when the echo is off; what is typed before that is thrown away.
    shown = read_until(terminal, "Personal access token: ")
    os.write(terminal, CANARY.encode() + b"\n")
    shown = read_until(terminal, "Account ID", shown)
    os.write(terminal, b"\n")
    shown = read_until(terminal, "Stored the credential", shown)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    assert "Manage API Access" in shown
    assert CANARY not in shown
    assert [entry["user_id"] for entry in listed(tmp_path)] == ["alice"]


def test_doctor_finds_a_credential_that_lacks_a_field_and_advises_what_to_do(tmp_path: Path) -> None:
    assert call(tmp_path, "doctor").returncode == 0
    add(tmp_path, {"api_key": "token"})
    # Another program stored this one.
    database = tmp_path / "service.db"
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sqlite3; c = sqlite3.connect({str(database)!r}); "
            'c.execute("insert into bot_credentials (user_id, exchange, environment, api_key) '
            "values ('bob', 'binance', 'production', 'k')\"); c.commit(); c.close()",
        ],
        check=True,
    )
    done = call(tmp_path, "doctor", "-o", "json")
    assert done.returncode == 4
    (finding,) = [entry for entry in json.loads(done.stdout) if entry["severity"] == "error"]
    assert finding["subject"] == "credential bob binance production"
    assert "api_secret missing" in finding["text"]


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("VENUE_URLS", {"onada": "http://127.0.0.1:1"}, "'onada'"),
        ("VENUE_URLS", {"oanda.moon": "http://127.0.0.1:1"}, "'oanda.moon'"),
        ("EXCHANGE_PLUGINS", {"oanda": "exchange-service-onada"}, "'exchange-service-onada'"),
    ],
)
def test_a_setting_for_an_exchange_that_is_not_served_is_an_error_of_doctor_and_of_serve(
    tmp_path: Path, name: str, value: dict[str, str], named: str
) -> None:
    variable = {f"EXCHANGE_SERVICE_{name}": json.dumps(value)}
    done = call(tmp_path, "doctor", "-o", "json", **variable)
    errors = [entry for entry in json.loads(done.stdout) if entry["severity"] == "error"]
    assert done.returncode == 4
    assert [entry["subject"] for entry in errors] == ["settings"]
    assert named in errors[0]["text"]
    refused = call(tmp_path, "serve", "--address", "127.0.0.1:0", **variable)
    assert refused.returncode == 4
    assert named in refused.stderr


def test_doctor_accepts_a_venues_own_name_of_its_sandbox(tmp_path: Path) -> None:
    variable = {"EXCHANGE_SERVICE_VENUE_URLS": json.dumps({"oanda.practice": "http://127.0.0.1:1"})}
    done = call(tmp_path, "doctor", "-o", "json", **variable)
    assert done.returncode == 0
    assert {entry["severity"] for entry in json.loads(done.stdout)} == {"ok", "warning"}


def test_doctor_names_a_database_and_a_cache_that_do_not_answer(tmp_path: Path) -> None:
    done = call(
        tmp_path,
        *("doctor", "-o", "json"),
        EXCHANGE_SERVICE_DATABASE_URL=f"postgresql://u:{CANARY}@127.0.0.1:1/x",
        EXCHANGE_SERVICE_CACHE_URL=f"redis://:{CANARY}@127.0.0.1:1/0",
    )
    errors = {entry["subject"] for entry in json.loads(done.stdout) if entry["severity"] == "error"}
    assert done.returncode == 4
    assert errors == {"cache", "database"}
    assert CANARY not in done.stdout + done.stderr


async def test_doctor_warns_of_a_clock_that_differs_from_rediss(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "wall", lambda: time.time() - 3600)
    findings = await examine(settings_for(tmp_path, cache_url=redis_url, hash_key="0123456789abcdef"))
    (finding,) = [finding for finding in findings if finding.subject == "cache"]
    assert finding.severity is Severity.WARNING
    assert "differs from that of Redis by 3600 s" in finding.text


def test_plugins_shows_the_exchanges_of_each_plugin(tmp_path: Path) -> None:
    report = json.loads(call(tmp_path, "plugins", "-o", "json").stdout)
    served = {plugin["name"]: plugin["exchanges"] for plugin in report["plugins"]}
    assert served["oanda"] == 1
    assert served["tradier"] == 2
    assert served["ccxt_generic"] > 90
    assert report["problems"] == []


def test_serve_refuses_an_address_that_others_reach_without_tls(tmp_path: Path) -> None:
    done = call(tmp_path, "serve", "--address", "0.0.0.0:0")
    assert done.returncode == 4
    assert "tls_certificate" in done.stderr


def test_serve_and_demo_refuse_a_port_that_is_taken(demo: str, tmp_path: Path) -> None:
    for command in ("serve", "demo"):
        done = ask(demo, tmp_path, command)
        assert done.returncode == 4
        assert f"Cannot listen on {demo}" in done.stderr
    # The demo's.
    assert "Another service may be running; choose a port with --address" in done.stderr


def test_a_demo_that_others_could_reach_is_refused_without_advice_on_ports(tmp_path: Path) -> None:
    done = call(tmp_path, "demo", "--address", "0.0.0.0:0")
    assert done.returncode == 4
    assert "tls_certificate" in done.stderr
    assert "choose a port" not in done.stderr


def test_a_wrong_setting_is_named_and_its_value_is_not_shown(tmp_path: Path) -> None:
    done = call(tmp_path, "serve", EXCHANGE_SERVICE_HASH_KEY=CANARY[:9], EXCHANGE_SERVICE_POLL_INTERVAL="-3")
    assert done.returncode == 2
    assert "hash_key" in done.stderr
    assert "poll_interval" in done.stderr
    assert CANARY[:9] not in done.stderr


def test_the_help_of_serve_names_every_setting(tmp_path: Path) -> None:
    from exchange_service.settings import Settings

    # Wide, so that no name is cut.
    text = call(tmp_path, "serve", "--help", COLUMNS="220", TERMINAL_WIDTH="220").stdout
    for name in Settings.model_fields:
        assert f"EXCHANGE_SERVICE_{name.upper()}" in text
        assert name in ("hash_key", "jwt_secret", "keyset") or f"--{name.replace('_', '-')}" in text


def test_a_settings_file_is_read_and_a_flag_wins_over_it(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('address = "0.0.0.0:0"\npoll_interval = 3\n')
    refused = call(tmp_path, "serve", "--config", str(file))
    assert (refused.returncode, "0.0.0.0:0" in refused.stderr) == (4, True)
    file.write_text("pol_interval = 3\n")
    unknown = call(tmp_path, "serve", "--config", str(file))
    assert (unknown.returncode, "pol_interval" in unknown.stderr) == (2, True)
    assert call(tmp_path, "serve", "--config", str(tmp_path / "none.toml")).returncode == 2


def test_a_demo_with_tls_tokens_and_redis_says_so_and_prints_commands_that_work(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "a folder")
    (certificate, key), desk = authority.sign("server", "localhost"), authority.sign("desk")
    program = [sys.executable, "-m", "exchange_service", "demo", "--address", "127.0.0.1:0", "--redis"]
    program += ["--service-tokens", "--tls-client-ca", str(authority.file)]
    program += ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The other engine has no TLS.
    variables = environment(tmp_path, EXCHANGE_SERVICE_ENGINE="grpcio")
    with subprocess.Popen(program, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = itertools.takewhile(lambda line: not line.startswith("Interrupt"), process.stdout)
        shown = [line.rstrip("\n") for line in lines]
        printed = [line.strip() for line in shown if line.startswith(("  export ", "  exchange-service "))]
        token = subprocess.run(
            ["bash", "-ec", f"{printed[2]}; printenv EXCHANGE_SERVICE_TOKEN"],
            env=environment(tmp_path, PATH=path),
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()
        known = dict(zip(("CERTIFICATE", "KEY"), map(str, desk), strict=True))
        certificates = {f"EXCHANGE_SERVICE_CLIENT_{name}": file for name, file in known.items()}

        def run(command: str, *more: str) -> subprocess.CompletedProcess[str]:
            return call(tmp_path, *shlex.split(command)[1:], *more, EXCHANGE_SERVICE_TOKEN=token, **certificates)

        exchanges, balance, watch = printed[3:]
        listed, first = run(exchanges), run(balance, "-o", "json")
        second, watched = run(balance, "-o", "json", "--max-age", "60"), run(watch, "--events", "1")
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0
    how = r"\(gRPC, TLS, with client certificates; callers need a service token\), ready in .*"
    assert re.fullmatch(rf"exchange-service listens on \S+ {how}", shown[0])
    assert any(line.startswith("cache ") and "redis://127.0.0.1:" in line for line in shown)
    assert [line.partition("=")[2][:7] for line in printed[:2]] == ["FILE  #"] * 2
    assert [done.returncode for done in (listed, first, second, watched)] == [0] * 4, listed.stderr
    sources = [json.loads(done.stdout)["freshness"]["source"] for done in (first, second)]
    assert sources == ["BALANCE_SOURCE_VENUE", "BALANCE_SOURCE_CACHE"]


def test_the_process_ends_although_a_task_ignores_that_it_is_cancelled(tmp_path: Path) -> None:
    program = """
import asyncio
from exchange_service.cli.operate import end_process

async def stubborn():
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass

async def main():
    asyncio.create_task(stubborn(), name="fetch stubborn")
    await asyncio.sleep(0)
    await end_process()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(tmp_path), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0
    assert "fetch stubborn" in done.stderr


def test_an_interrupt_at_a_prompt_ends_the_command_and_stores_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "exchange_service", "credentials", "add", "-u", "alice", "-e", "oanda"]
    child, terminal = pty.fork()
    if child == 0:
        # Tests that a shell runs in the background have it ignored, and so would the command.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve(sys.executable, command, environment(tmp_path, TERM="dumb"))
    read_until(terminal, "Personal access token: ")
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    os.close(terminal)
    assert listed(tmp_path) == []


def test_a_reader_that_has_enough_of_the_output_is_no_failure(demo: str, tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m exchange_service exchanges -o jsonl --address {demo} | head -1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    first, code = done.stdout.splitlines()
    assert json.loads(first)["id"]
    assert (code, done.stderr) == ("0", "")


def test_the_version_is_an_option_and_a_command(tmp_path: Path) -> None:
    assert call(tmp_path, "--version").stdout == call(tmp_path, "version").stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("-u", "demo-refused", "-e", "oanda"), 4), (("-u", "demo", "-e", "nope"), 3), (("-u", "demo", "-e", "oanda"), 0)],
)
def test_a_watch_that_saw_nothing_but_errors_ends_with_their_exit_code(
    demo: str, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    assert ask(demo, tmp_path, "watch", *arguments, "--events", "1").returncode == code
