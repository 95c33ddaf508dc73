"""What a log line shows: the event and its reasons, and no secret, whatever it was handed."""

from __future__ import annotations

import ast
import asyncio
import errno
import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from exchange_service.observability import logs
from exchange_service.observability.logs import LibraryLines, configure_logging
from exchange_service.observability.redaction import (
    EVENT_NAME,
    HIDDEN,
    LIVE,
    LiveSecrets,
    is_secret_name,
    redact,
    redact_text,
)
from tests.harness import ScriptedPlugin, registry_of, serving, totals

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLWFsaWNl"
HEX = "48be6f12aa0934cd77e1b05c4f3d2e1948be6f12aa0934cd77e1b05c4f3d2e19"
# A secret, and the lines in which it was seen in the wild or could be.
LEAKS: list[tuple[str, str]] = [
    (HEX, f"GET https://api.example/v3/account?timestamp=1&signature={HEX}"),
    ("hunter2", "GET /v3/account?pin=hunter2 HTTP/1.1"),
    ("hunter2", "ConnectionError: postgresql://service:hunter2@db.example/bots does not answer"),
    ("hunter2", "redis://:hunter2@cache.example:6379/0"),
    ("demo-token", "headers: {'Authorization': 'Bearer demo-token', 'Accept': '*/*'}"),
    ("demo-token", "Authorization: Bearer demo-token"),
    ("ZGVtbzpwYXNz", "proxy sent Basic ZGVtbzpwYXNz"),
    ("demokey1", "CIMultiDict('X-MBX-APIKEY': 'demokey1', 'Accept': '*/*')"),
    ("demokey1", '{"api_key": "demokey1", "user": "alice"}'),
    ("demokey1", "Credential(apiKey='demokey1', secret='x')"),
    ("demo\\'key", "{'api_key': 'demo\\'key'}"),
    ("demosecret", "grant_type=refresh_token&refresh_token=demosecret&client_id=7"),
    ("demosecret", "{b'client_secret': b'demosecret'}"),
    ("demosecret", "request=token=demosecret"),
    ("demosecret", '"{\\"client_secret\\": \\"demosecret\\"}"'),
    ("two words", "password: 'two words'"),
    ("two words", 'password: "two words that were cut'),
    ("demosecret", "Authorization: Token demosecret"),
    ("demosecret", "Cookie: session=a; other=demosecret"),
    (JWT, f"the token {JWT} was refused"),
    (JWT.split(".")[2], f"jwt={JWT}"),
    ("topsecretpart", "called with xst_7_topsecretpart"),
    (HEX, f"private {HEX} and more"),
    (f"0x{HEX}", f"wallet key 0x{HEX}"),
    ("aB3dE5fG7hI9jK1lM3nO5pQ7rS9t", "sent aB3dE5fG7hI9jK1lM3nO5pQ7rS9t to it"),
    ("wJa1rXUtnFEMI/K7MD3NG/bPxRfiCY9XAMPLEKEY", "id wJa1rXUtnFEMI/K7MD3NG/bPxRfiCY9XAMPLEKEY."),
    ("d1f8a1de-5b7a-4e57-9e0f-6a1c2a8b9f10", "key was d1f8a1de-5b7a-4e57-9e0f-6a1c2a8b9f10"),
    ("demokey1", "Client(secret=SecretStr('demokey1'))"),
    ("demokey1", '{"api_keys": ["x", "demokey1"]}'),
    ("demokey1", "auth=('user', 'demokey1')"),
    ("demokey1", "secrets: {'of alice': 'demokey1'}"),
    ("demokey1", "[(b'Accept', b'x'), (b'X-Api-Key', b'demokey1')]"),
    ("demokey1", "(('x-api-key', 'demokey1'),)"),
    ("demosecret", "[(b'Authorization', b'Token demosecret')]"),
    ("demosecret", "{b'Cookie': b'session=demosecret'}"),
    ("demokey1", "apiKey => demokey1"),
    ("demokey1", "body=%7B%22apiKey%22%3A%22demokey1%22%7D"),
    ("demokey1", "next=token%3Ddemokey1"),
    ("ability able", "mnemonic: abandon ability able about"),
    ("two words", "passphrase=two words"),
    ("MHcCAQEEIBkg", "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIBkg\n-----END EC PRIVATE KEY-----"),
    ("MHcCAQEEIBkg", "cut: -----BEGIN PRIVATE KEY-----\nMHcCAQEEIBkg"),
]
# What an operator needs to see.
PLAIN = [
    "plugin.failed",
    "settings.hash_key_unset",
    "credential.opened",
    "The plugin acme (exchange-service-acme) failed with ValueError.",
    "OANDA refuses the key (HTTP 401). Check it, or store a new one.",
    "/usr/lib/python3.11/site-packages/exchange_service_ccxt_generic/client.py:120",
    "/home/Operator1/Projects2/exchange-service/exchange_service/sessions.py:88",
    "sqlite:////home/operator/.local/share/exchange-service/exchange-service.db",
    "redis://cache.example:6379/0",
    "https://api-fxpractice.oanda.com/v3/accounts/101-004-7654321-001/summary",
    "0x1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f",
    "2026-11-22T13:30:00.123456Z",
    "account 101-004-7654321-001 has 25310.4426 EUR",
    "The venue did not answer in time. Call again after the delay.",
    "127.0.0.1:50051",
]


@pytest.mark.parametrize(("secret", "line"), LEAKS)
def test_a_secret_is_found_by_its_form_or_the_name_before_it(secret: str, line: str) -> None:
    assert secret in line
    assert secret not in redact_text(line)
    assert HIDDEN in redact_text(line)


@pytest.mark.parametrize("line", PLAIN)
def test_text_that_an_operator_needs_is_not_redacted(line: str) -> None:
    assert redact_text(line) == line


@pytest.mark.parametrize(
    "name",
    [
        *(
            "token",
            "signed_challenge",
            "Authent",
            "X-HMAC-SHA256",
            "api_key",
            "apiKey",
            "API-KEY",
            "X-MBX-APIKEY",
            "secret",
            "client_secret",
            "passphrase",
            "password",
        ),
        *("Authorization", "signature", "sig", "refreshToken", "private_key", "privateKey", "hash_key", "cookie"),
        *("Set-Cookie", "listenKey", "jwt", "auth", "pin", "credential", "key"),
    ],
)
def test_a_value_under_the_name_of_a_secret_is_hidden(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "short"}) == {name: HIDDEN}
    assert redact({name: 1234}) == {name: HIDDEN}
    assert redact({name: ["short", {"a": "b"}]}) == {name: HIDDEN}
    # The absence of a value is not a secret.
    assert redact({name: None, "n": {name: True}}) == {name: None, "n": {name: True}}


@pytest.mark.parametrize(
    "name", ["event", "key_id", "key_ids", "token_id", "exchange", "reason", "user_hash", "monkey"]
)
def test_other_names_hide_nothing(name: str) -> None:
    assert redact({name: "short"}) == {name: "short"}


def test_a_keyed_hash_stays_readable_under_the_name_of_one_alone() -> None:
    assert redact({"user_hash": HEX, "user": HEX}) == {"user_hash": HEX, "user": HIDDEN}


def test_an_audit_line_is_not_redacted() -> None:
    line = {"event": "credential.opened", "user": HEX[:24], "exchange": "oanda", "keys": ["plain", "2026-11-22-a1b2"]}
    assert redact(line) == line


def test_values_are_looked_for_within_each_other_and_in_other_objects() -> None:
    class Client:
        def __repr__(self) -> str:
            return "Client(api_key='demokey1')"

    class Broken:
        def __repr__(self) -> str:
            raise ValueError("demokey1")

    nested = {"answer": [{"headers": {"X-Api-Key": "demokey1"}}, Client(), Broken(), b"token=demokey1", ("a",)], "n": 7}
    shown = redact(nested)
    assert "demokey1" not in repr(shown)
    assert shown["n"] == 7
    assert shown["answer"][4] == ["a"]
    deep: Any = "demokey1-and-more"
    for _ in range(2000):
        deep = [deep]
    assert "demokey1" not in repr(redact(deep))


def test_an_endless_text_is_cut() -> None:
    assert len(redact_text("x " * 1_000_000)) < 20_000


@pytest.mark.parametrize("before", ["x", "x "])
@pytest.mark.parametrize("secret", [HEX, "correct horse battery staple"])
def test_a_secret_is_not_shown_in_part_where_a_text_is_cut(before: str, secret: str) -> None:
    held = LIVE.hold(["correct horse battery staple"])
    try:
        for shown in range(1, len(secret)):
            start = 16_384 - shown
            text = (before * start)[: start - 1] + " " + secret + " and more"
            assert secret[:8] not in redact_text(text), shown
    finally:
        held.release()
    assert redact_text("a word " * 5000).startswith("a word a word")


def test_names_and_values_that_stand_in_pairs_are_names_and_values() -> None:
    headers = [("Accept", "x"), (b"X-Api-Key", b"demokey1"), ["token", "demokey1"]]
    shown = redact({"headers": headers})
    assert "demokey1" not in repr(shown)
    assert shown["headers"][0] == ["Accept", "x"]


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "a",
            "/",
            ",/",
            "a.",
            "a://",
            "eyJ-",
            "eyJa.",
            "key",
            "key=",
            "'key",
            '"key": "',
            "bearer ",
            "xst_",
            "?",
            "&=",
        ),
        *("-----BEGIN A-----", "-----BEGIN A", "aB3/", "aB3-", " : ", "\\", "0x", "token\\", "https://a@"),
        *("%22", "%3A", "key=(", "key=a(", "'key',", "',", ":/", "key=>"),
    ],
)
def test_no_text_takes_long_to_search(unit: str) -> None:
    text = unit * (16_000 // len(unit))
    began = time.perf_counter()
    redact_text(text)
    assert time.perf_counter() - began < 1.0


class TestLiveSecrets:
    @pytest.fixture
    def live(self) -> LiveSecrets:
        return LiveSecrets()

    def test_a_held_secret_is_hidden_whatever_it_looks_like(self, live: LiveSecrets) -> None:
        live.hold(["my dog's other name", "correct horse battery"])
        assert live.hide_in("so my dog's other name, correct horse battery") == f"so {HIDDEN}, {HIDDEN}"

    def test_it_is_known_in_a_url_in_json_and_line_by_line(self, live: LiveSecrets) -> None:
        live.hold(["a/b c+d=e&f and g", 'with "quotes" in it', "first line of it\nsecond line of it"])
        for written in (
            "a%2Fb%20c%2Bd%3De%26f%20and%20g",
            'with \\"quotes\\" in it',
            "second line of it",
            "first line of it\\nsecond line of it",
        ):
            assert written not in live.hide_in(f"it was {written}.")

    def test_the_longer_of_two_that_begin_alike_is_hidden_whole(self, live: LiveSecrets) -> None:
        live.hold(["demonstration-token", "demonstration-token-of-bob"])
        assert live.hide_in("(demonstration-token-of-bob)") == f"({HIDDEN})"

    def test_it_is_hidden_until_its_last_holder_releases_it(self, live: LiveSecrets) -> None:
        first, second = live.hold(["demonstration-token"]), live.hold(["demonstration-token"])
        first.release()
        first.release()
        assert live.hide_in("demonstration-token") == HIDDEN
        second.release()
        assert live.hide_in("demonstration-token") == "demonstration-token"
        assert len(live) == 0
        assert live.snapshot() == {"texts": 0, "starts": 0}

    def test_a_short_text_is_no_secret_that_could_be_found(self, live: LiveSecrets) -> None:
        live.hold(["a", "is", "", "fifteen letters"])
        assert live.hide_in("this is a line of fifteen letters") == "this is a line of fifteen letters"

    @pytest.mark.parametrize("password", ["Tr0ub4dor&3x", "hunter2!", "aB3dE5gH", "pass-phrase-12", "se cr3t!"])
    def test_a_password_that_is_short_and_no_word_is_hidden(self, live: LiveSecrets, password: str) -> None:
        held = live.hold([password])
        for written in (password, quote(password, safe=""), json.dumps(json.dumps(password))):
            assert password not in live.hide_in(f"the venue said: {written}")
            assert HIDDEN in live.hide_in(written)
        held.release()
        assert live.snapshot() == {"texts": 0, "starts": 0}

    @pytest.mark.parametrize("word", ["answered", "127.0.0.1:50", "20261130", "time-out of it", "a1!"])
    def test_a_word_or_a_number_of_ordinary_lines_is_not(self, live: LiveSecrets, word: str) -> None:
        live.hold([word])
        assert live.hide_in(word) == word

    def test_it_does_not_show_the_secrets(self, live: LiveSecrets) -> None:
        held = live.hold(["demonstration-token"])
        assert "demo" not in repr(live) + str(live) + repr(held)

    def test_a_line_costs_the_same_however_many_are_held(self, live: LiveSecrets) -> None:
        for first in range(0, 20_000, 32):
            live.hold(f"secret-number-{number:05}" for number in range(first, first + 32))
        assert len(live) == 20_000
        assert "number" not in live.hide_in("secret-number-19999")

    def test_of_one_account_only_so_many_are_held(self, live: LiveSecrets) -> None:
        live.hold(f"secret-number-{number:05}" for number in range(40))
        assert live.hide_in("secret-number-00031, secret-number-00032") == f"{HIDDEN}, secret-number-00032"


class ErrorOutput:
    """What was written to standard error so far."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capture.readouterr().err
        return self._text


@pytest.fixture
def error_output(capsys: pytest.CaptureFixture[str]) -> Iterator[ErrorOutput]:
    """Standard error of a process that logs as the service does, at its most talkative."""
    root = logging.getLogger()
    handlers, level, configuration = list(root.handlers), root.level, structlog.get_config()
    configure_logging("debug", "json")
    root.setLevel(logging.DEBUG)
    yield ErrorOutput(capsys)
    root.setLevel(level)
    for handler in [*root.handlers]:
        if handler not in handlers:
            root.removeHandler(handler)
    structlog.configure(**configuration)


def _signed() -> str:
    return f"https://api.example/balance?key=hunter2&signature={HEX}"


@pytest.mark.threat("T8")
class TestOurLines:
    @pytest.mark.parametrize("style", ["json", "console"])
    def test_one_goes_out_with_its_event_and_without_its_secrets(self, error_output: ErrorOutput, style: str) -> None:
        configure_logging("debug", style)
        log = structlog.get_logger("exchange_service.venues.sessions")
        log.debug("venue.asked", exchange="oanda", url=_signed(), headers={"X-Key": "hunter2"}, token="hunter2")
        text = error_output.getvalue()
        assert "venue.asked" in text
        assert "oanda" in text
        assert "hunter2" not in text
        assert HEX not in text

    @pytest.mark.parametrize("style", ["json", "console"])
    def test_an_exceptions_text_and_its_variables_are_redacted_too(self, error_output: ErrorOutput, style: str) -> None:
        configure_logging("debug", style)
        try:
            hidden_variable = "hunter2"
            raise ValueError(_signed() + hidden_variable[:0])
        except ValueError:
            structlog.get_logger().exception("it.failed")
        text = error_output.getvalue()
        assert "ValueError" in text
        assert "hunter2" not in text
        assert HEX not in text

    def test_values_in_the_context_are_redacted(self, error_output: ErrorOutput) -> None:
        with structlog.contextvars.bound_contextvars(passphrase="hunter2"):
            structlog.get_logger().info("called")
        assert json.loads(error_output.getvalue())["passphrase"] == HIDDEN


@pytest.mark.threat("T8")
class TestOtherLibrariesLines:
    def test_one_goes_out_without_its_secrets(self, error_output: ErrorOutput) -> None:
        logging.getLogger("venue-sdk").warning("GET %s %s", _signed(), {"X-Key": "hunter2"})
        text = error_output.getvalue()
        assert text.startswith("WARNING venue-sdk: GET https://api.example/balance?")
        assert "hunter2" not in text
        assert HEX not in text

    def test_an_exception_goes_out_without_what_its_text_quotes(self, error_output: ErrorOutput) -> None:
        try:
            raise ValueError(_signed())
        except ValueError:
            logging.getLogger("venue-sdk").exception("failed")
        text = error_output.getvalue()
        assert "Traceback" in text
        assert "hunter2" not in text
        assert HEX not in text

    @pytest.mark.parametrize("name", ["aiosqlite", "ccxt.base.exchange", "sqlalchemy.engine.Engine", "psycopg.pool"])
    def test_lines_that_quote_statements_and_requests_are_dropped_below_info(
        self, error_output: ErrorOutput, name: str
    ) -> None:
        logging.getLogger(name).debug("INSERT ('alice', 'short')")
        assert error_output.getvalue() == ""
        logging.getLogger(name).warning("something")
        assert "something" in error_output.getvalue()

    def test_a_line_whose_arguments_do_not_fit_is_not_printed_in_full_instead(self, error_output: ErrorOutput) -> None:
        record = logging.LogRecord("venue-sdk", logging.WARNING, __file__, 1, "GET %d", ("hunter2",), None)
        LibraryLines().handle(record)
        assert error_output.getvalue() == ""

    async def test_asyncios_line_about_a_task_that_was_not_awaited_holds_no_text_of_its_error(
        self, error_output: ErrorOutput
    ) -> None:
        held = LIVE.hold(["my dog's other name"])

        async def fail() -> None:
            raise ValueError("my dog's other name")

        task = asyncio.create_task(fail())
        await asyncio.wait({task})
        asyncio.get_running_loop().call_exception_handler(
            {"message": "Task exception was never retrieved", "task": task, "exception": task.exception()}
        )
        held.release()
        text = error_output.getvalue()
        assert "never retrieved" in text
        assert "my dog" not in text

    def test_configuring_twice_duplicates_no_line(self, error_output: ErrorOutput) -> None:
        configure_logging("debug", "json")
        logging.getLogger("venue-sdk").warning("once")
        assert error_output.getvalue().count("once") == 1
        assert sum(isinstance(handler, LibraryLines) for handler in logging.getLogger().handlers) == 1


@pytest.mark.threat("T8", attack=True)
@pytest.mark.parametrize("part", ["ours", "a library's"])
def test_without_the_one_redaction_point_both_kinds_of_line_leak(
    error_output: ErrorOutput, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(logs, "redact", lambda value, name="": value)
    if part == "ours":
        structlog.get_logger().info("asked", token="hunter2")
    else:
        logging.getLogger("venue-sdk").warning("asked %s", "hunter2")
    assert "hunter2" in error_output.getvalue()


class FullDisk(io.StringIO):
    """Standard error in a file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_call_is_answered_though_its_log_lines_cannot_be_written(
    tmp_path: Path, error_output: ErrorOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        await running.store()
        monkeypatch.setattr(sys, "stderr", FullDisk())
        reply = await running.client.get_balance("alice", "fakex")
    assert totals(reply.balance) == {"BTC": "1.50"}


def test_every_line_of_ours_has_a_plain_name_as_its_event() -> None:
    """Such a name is shown whatever users have stored, so it must be written in the code and hold nothing else."""
    found = 0
    for path in (*Path("exchange_service").rglob("*.py"), *Path("plugins").glob("*/exchange_service_*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) != "log" or node.func.attr not in ("debug", "info", "warning", "error"):
                continue
            event = node.args[0]
            # One name, or one of two.
            names = [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]
            for name in names:
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}"
                assert EVENT_NAME.match(str(name.value)), f"{path}:{node.lineno}"
            found += 1
    assert found > 30


OWN_WORDS = ["credential.opened", "CREDENTIAL_REJECTED", "StoreUnavailable", "coinbaseexchange", "2026-11-29T10:00:00"]


@pytest.mark.threat("T50", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
def test_texts_that_a_user_stores_hide_what_everybodys_lines_say_and_not_our_own_words(
    error_output: ErrorOutput, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr(logs, "is_own_word", lambda name, value: False)
    held = LIVE.hold(OWN_WORDS)
    try:
        structlog.get_logger().info(
            "credential.opened",
            reason="CREDENTIAL_REJECTED",
            error="StoreUnavailable",
            exchange="coinbaseexchange",
            problem="The coinbaseexchange is not one of ours.",
        )
    finally:
        held.release()
    line = json.loads(error_output.getvalue())
    shown = [line["event"], line["reason"], line["error"], line["exchange"]]
    assert shown == ([*OWN_WORDS[:4]] if mitigated else [HIDDEN] * 4)
    # In free text a stored text is hidden as ever.
    assert line["problem"] == f"The {HIDDEN} is not one of ours."


@pytest.mark.threat("T50", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
def test_a_user_who_stores_short_texts_hides_the_words_of_every_line(
    error_output: ErrorOutput, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr(LIVE, "shortest", 8)
    held = LIVE.hold(["database", "answered", "that was too short"])
    try:
        structlog.get_logger().info("line", problem="The database has not answered.")
    finally:
        held.release()
    assert ("database" in error_output.getvalue()) == mitigated


@pytest.mark.threat("T50", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
def test_a_user_who_stores_thousands_of_texts_has_all_of_them_looked_for(mitigated: bool) -> None:
    live = LiveSecrets() if mitigated else LiveSecrets(most=1_000_000)
    live.hold(f"text number {number:06} of one user" for number in range(10_000))
    assert len(live) == (2 * 32 if mitigated else 2 * 10_000)
