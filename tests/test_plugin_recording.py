"""`plugins try --record`: answers as payload files without a secret, an id or an amount of anybody, and their use."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from exchange_service_oanda import OANDA
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.authoring.fields import Kind, kind_of_number, kind_of_text
from exchange_service.authoring.inventing import Inventor
from exchange_service.authoring.masking import Secrets
from exchange_service.authoring.recording import RecordingRefused, Written, write_recording
from exchange_service.authoring.trying import (
    Trial,
    Wish,
    load_project,
    open_simulator,
    simulated_credential,
    try_plugin,
)
from exchange_service.model import Balance, Credential
from exchange_service.testing import LoopbackVenue, Recording, recorded, venue_call
from exchange_service.testing.projects import find_project
from exchange_service.testing.witnesses import payload_witness, read_payload
from exchange_service.wire.balances import read_fetched
from tests.test_plugin_try import SECRETS, encodings, run_try, write_project

SECRET = "s3cr3t/+key==(a+)+$"
PLUGINS = [
    ("oanda", "oanda"),
    ("tradier", "tradier"),
    ("tradier", "tradier_options"),
    ("tastytrade", "tastytrade"),
    ("hyperliquid", "hyperliquid"),
    ("aster", "aster"),
    ("lighter", "lighter"),
    ("krakenfutures", "krakenfutures"),
]
ANY = """
    for path in call.credential.metadata.get("paths", ["/v1/a"]):
        await call.http.get(call.url() + path, headers={"X-Key": "abc"})
    return Balance((VenueAccount(type="cash"),))
"""


class Answers(LoopbackVenue):
    """Gives these bodies by path."""

    def __init__(self, bodies: Mapping[str, Any], **headers: str) -> None:
        super().__init__()
        self._bodies, self._headers = bodies, headers

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        body = self._bodies[request.path]
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(body=content, content_type="application/json", headers=self._headers)


@pytest.fixture
def any_plugin(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project", ANY, "anything")


async def record(
    project: Path,
    folder: Path,
    bodies: Mapping[str, Any],
    secret: str = SECRET,
    *,
    headers: Mapping[str, str] | None = None,
    **metadata: Any,
) -> Written:
    trial = await trial_of(project, bodies, secret, headers or {}, **metadata)
    return write_recording(trial, folder)


async def trial_of(
    project: Path, bodies: Mapping[str, Any], secret: str, headers: Mapping[str, str], **metadata: Any
) -> Trial:
    loaded = load_project(find_project(str(project)))
    listing = loaded.listing("")
    row = {"paths": [*bodies], **metadata}
    async with Answers(bodies, **headers) as venue:
        credential = Credential.from_texts({"api_key": secret}, row)
        trial = await try_plugin(loaded, listing, Wish(url=venue.url), credential, "a test")
    assert trial.error is None, trial.trace
    return trial


def all_text(folder: Path) -> str:
    return "\n".join(f"{path.name}\n{path.read_text()}" for path in sorted(folder.iterdir()))


class TestRealPlugins:
    @pytest.mark.parametrize(("plugin", "exchange"), PLUGINS)
    async def test_what_was_recorded_gives_a_balance_of_the_same_shape_and_no_figure_of_the_true_one(
        self, plugin: str, exchange: str, tmp_path: Path
    ) -> None:
        loaded = load_project(find_project(plugin))
        listing, wish = loaded.listing(exchange), Wish(exchange)
        async with open_simulator(loaded, listing, wish) as (venue, name):
            credential = simulated_credential(venue, wish)
            wish = Wish(exchange, url=venue.url)
            trial = await try_plugin(loaded, listing, wish, credential, name)
        assert trial.fetched is not None, trial.trace
        true = read_fetched(trial.fetched)
        written = write_recording(trial, tmp_path / "recording")
        recording = Recording(written.folder)
        async with recording.call(listing.metadata) as call:
            played: Balance = await listing.plugin.hook.fetch_balance(call=call)
        assert [account.type for account in played.venue_accounts] == [account.type for account in true.venue_accounts]
        assert [row.asset for _, row in played.rows()] == [row.asset for _, row in true.rows()]
        text = all_text(written.folder)
        for _, row in true.rows():
            for amount in (row.total, row.free, row.used):
                assert not amount or len(str(amount)) < 6 or str(amount) not in text
        for account in true.venue_accounts:
            assert len(account.id) < 3 or account.id not in text
        for secret in trial.masker.secrets.texts():
            assert secret not in text

    async def test_the_command_prints_what_was_replaced_and_the_files_are_payloads(self, tmp_path: Path) -> None:
        folder = tmp_path / "payloads"
        done = run_try("oanda", "--record", str(folder))
        assert done.returncode == 0, done.stderr
        assert re.search(r"amount\s+1×\s+account\.balance", done.stdout)
        assert "what is a sum or a product of others is not one any more" in done.stdout
        assert re.search(r"id\s+1×\s+account\.id", done.stdout)
        assert sorted(path.name for path in folder.iterdir()) == [
            "01-get-v3-accounts.json",
            "02-get-v3-accounts-id-summary.json",
            "index.jsonl",
        ]
        account = recorded(folder, "get-v3-accounts-id-summary")["account"]
        assert account["currency"] == "EUR"
        assert re.fullmatch(r"\d{5}\.\d{4}", account["balance"])
        assert account["balance"] != "25310.4426"
        assert recorded(folder, "01-get-v3-accounts.json")["accounts"][0]["id"] == account["id"]
        assert "7654321" not in all_text(folder)
        assert payload_witness(folder / "01-get-v3-accounts.json").source == "an answer of OandaSimulator"

    async def test_a_recorded_answer_drives_fetch_balance_and_the_same_request_again_gets_it_again(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / "payloads"
        assert run_try("oanda", "--record", str(folder)).returncode == 0
        recording = Recording(folder)
        from exchange_service_oanda import fetch_balance

        async with recording.venue() as venue, venue_call(OANDA, override=venue.url, **recording.credential) as call:
            first, second = await fetch_balance(call), await fetch_balance(call)
        assert first == second
        assert first.venue_accounts[0].id == recorded(folder, "get-v3-accounts")["accounts"][0]["id"]
        assert not venue.missing


class TestReplacing:
    async def test_ids_are_the_same_in_all_files_also_in_paths_keys_and_longer_texts(
        self, any_plugin: Path, tmp_path: Path
    ) -> None:
        bodies = {
            "/v1/accounts": {"accounts": [{"account_id": "AB-12345-X", "number": 7712345}], "owner": "Alice Smith"},
            "/v1/accounts/AB-12345-X/rows": {
                "by": {"7712345": {"link": "https://acme.example/AB-12345-X/rows"}},
                "message": "Dear Alice Smith, account AB-12345-X of alice.smith@mail.example holds 1234.56 EUR.",
                "account": 7712345,
                "margin_of_7712345": "OK",
            },
        }
        written = await record(any_plugin, tmp_path / "out", bodies)
        text = all_text(written.folder)
        for true in ("12345", "7712345", "Alice", "Smith", "alice", "1234.56"):
            assert true not in text
        first, second = (json.loads(read_payload(written.folder / name)) for name in written.files)
        account = first["accounts"][0]
        assert re.fullmatch(r"[A-Z]{2}-\d{5}-[A-Z]", account["account_id"])
        assert second["account"] == account["number"]
        assert next(iter(second["by"])) == str(account["number"])
        assert second["by"][str(account["number"])]["link"] == f"https://acme.example/{account['account_id']}/rows"
        assert account["account_id"] in second["message"]
        assert first["owner"] in second["message"]
        assert "@example.com" in second["message"]
        assert Recording(written.folder).answers[1].path == f"/v1/accounts/{account['account_id']}/rows"
        assert any("by.*" in item.place for item in written.replaced)
        assert not any("7712345" in item.place for item in written.replaced)

    async def test_an_id_is_replaced_in_any_case_and_the_same_way(self, any_plugin: Path, tmp_path: Path) -> None:
        bodies = {"/v1/a": {"who": "abc-001-q", "note_text": "of ABC-001-q, closed", "again": "ABC-001-Q"}}
        written = await record(any_plugin, tmp_path / "r", bodies, account_code="ABC-001-Q")
        text = all_text(written.folder)
        assert "abc-001-q" not in text.lower()
        answer = json.loads(read_payload(written.folder / written.files[0]))
        assert answer["who"] == answer["again"].lower()
        assert answer["again"].lower() in answer["note_text"].lower()

    @pytest.mark.parametrize(
        ("body", "hidden"),
        [
            ({"accounts": {"U1234567": {"cash": "1.5"}, "DU-7654321": {}}}, ["1234567", "7654321"]),
            ({"by_account": {"001-004-1234567-001": {"cash": "1.5"}}}, ["1234567"]),
            ({"accountCode": "U12345", "acct": "ZQ9876", "portfolio": "P1234", "accountKey": "Kd8912xx"}, ["U12345"]),
            ({"acct": "ZQ9876", "portfolio": "P1234", "accountKey": "Kd8912xx"}, ["ZQ9876", "P1234", "Kd8912xx"]),
            ({"person": {"first": "Jane", "last": "Doe"}}, ["Jane", "Doe"]),
            ({"sid": "Zx81kq", "ssoToken": "aa11bb22"}, ["Zx81kq", "aa11bb22"]),
        ],
    )
    async def test_an_accounts_number_a_persons_name_and_a_session_do_not_stay(
        self, any_plugin: Path, tmp_path: Path, body: Any, hidden: list[str]
    ) -> None:
        text = all_text((await record(any_plugin, tmp_path / "r", {"/v1/a": body})).folder)
        assert [found for found in hidden if found in text] == []

    async def test_a_header_of_limits_that_names_an_account_is_left_out(self, any_plugin: Path, tmp_path: Path) -> None:
        headers = {"X-RateLimit-Account": "U1234567", "X-RateLimit-Used": "12", "RateLimit": "limit=100, remaining=5"}
        text = all_text((await record(any_plugin, tmp_path / "r", {"/v1/a": {}}, headers=headers)).folder)
        assert "U1234567" not in text
        assert '"X-RateLimit-Used": "12"' in text
        assert "limit=100, remaining=5" in text

    async def test_times_codes_and_zeros_stay_and_numbers_stay_numbers(self, any_plugin: Path, tmp_path: Path) -> None:
        body = b"""{"total": 12.500, "free": "0.00", "used": -3e-8, "time": 1764000000123, "at": "2026-01-02T03:04:05Z",
            "currency": "EUR", "status": "OPEN", "type": 2, "hold": 0, "small": "0.00120",
            "big": 123456789012345678901.5, "total": 12.500, "active": true, "nothing": null,
            "withdrawalLimit": "23246.10"}"""
        written = await record(any_plugin, tmp_path / "out", {"/v1/a": body})
        text = (written.folder / written.files[0]).read_text()
        for kept in ('"free": "0.00"', '"time": 1764000000123', '"at": "2026-01-02T03:04:05Z"', '"currency": "EUR"'):
            assert kept in text
        for kept in ('"status": "OPEN"', '"type": 2', '"hold": 0,', '"active": true', '"nothing": null'):
            assert kept in text
        assert re.search(r'"total": [1-9]\d\.\d{3},', text)
        assert len(re.findall(r'"total": ', text)) == 2
        assert re.search(r'"used": -[1-9]e-8', text)
        assert re.search(r'"small": "0\.00[1-9]\d\d"', text)
        assert re.search(r'"big": \d{21}\.\d', text)
        assert not re.search(r"12\.500|3e-8|0\.00120|123456789|23246", text)

    async def test_a_token_that_the_venue_gives_is_replaced_wherever_it_stands(
        self, any_plugin: Path, tmp_path: Path
    ) -> None:
        token = "eyZq8uF3Jk2LmN4pQ6rS8tU0vW2xY4zA6b"
        bodies = {"/v1/token": {"access_token": token, "expires_in": 900}, "/v1/b": {"echo": f"Bearer {token}"}}
        written = await record(any_plugin, tmp_path / "out", bodies)
        assert token not in all_text(written.folder)
        assert recorded(written.folder, "get-v1-token")["expires_in"] == 900

    async def test_an_answer_in_gzip_is_kept_as_it_is_read_and_text_is_text(
        self, any_plugin: Path, tmp_path: Path
    ) -> None:
        body = gzip.compress(json.dumps({"key": SECRET, "total": "15.25"}).encode())
        written = await record(any_plugin, tmp_path / "a", {"/v1/a": body}, headers={"Content-Encoding": "gzip"})
        assert not Secrets([("", SECRET)]).found_in(all_text(written.folder))
        assert "15.25" not in all_text(written.folder)
        page = f"<html>Account 1234567, {SECRET}, 15.25 EUR of a@b.example</html>".encode()
        written = await record(any_plugin, tmp_path / "b", {"/v1/a": page})
        answer = Recording(written.folder).answers[0]
        assert answer.form == "text"
        assert answer.payload.startswith("<html>Account ")
        assert not re.search(r"1234567|15\.25|b\.example|s3cr3t", all_text(written.folder))
        assert any("not JSON" in note for note in written.notes)

    async def test_a_huge_answer_is_recorded_in_little_time(self, any_plugin: Path, tmp_path: Path) -> None:
        rows = [
            {"account_id": f"A-{number:06d}", "total": "1.50", "message": f"of A-{number:06d}"}
            for number in range(8000)
        ]
        trial = await trial_of(any_plugin, {"/v1/a": rows}, SECRET, {})
        began = time.perf_counter()
        written = write_recording(trial, tmp_path / "out")
        assert time.perf_counter() - began < 20
        first = recorded(written.folder, "get-v1-a")[0]
        assert first["message"] == f"of {first['account_id']}"

    async def test_a_number_that_stays_and_holds_a_secret_is_replaced(self, any_plugin: Path, tmp_path: Path) -> None:
        written = await record(any_plugin, tmp_path / "out", {"/v1/a": {"time": 1764000000123}}, "1764")
        assert "1764" not in all_text(written.folder)

    async def test_what_is_no_text_is_left_out_with_a_note(self, any_plugin: Path, tmp_path: Path) -> None:
        written = await record(any_plugin, tmp_path / "out", {"/v1/a": b"\xff\xfe\x00\x01", "/v1/b": {"total": 1}})
        assert len(written.files) == 1
        assert any("no text" in note for note in written.notes)


class TestRefusing:
    async def test_a_secret_in_a_name_of_a_field_refuses_the_recording_and_says_where(
        self, any_plugin: Path, tmp_path: Path
    ) -> None:
        bodies = {"/v1/a": {"rows": [{"balance": "1.50"}]}}
        with pytest.raises(
            RecordingRefused, match=r"the secret api_key .* name of a field of answer\.rows\[\]"
        ) as refused:
            await record(any_plugin, tmp_path / "out", bodies, "balance")
        assert "balance" not in str(refused.value)
        assert os.listdir(tmp_path) == ["project"]

    async def test_a_secret_of_four_characters_is_replaced_within_amounts_and_never_found_by_chance(
        self, any_plugin: Path, tmp_path: Path
    ) -> None:
        rows = [{"code": "ACME", "total": f"{number}1234.5{number}"} for number in range(300)]
        written = await record(any_plugin, tmp_path / "out", {"/v1/a": rows}, "1234")
        assert "1234" not in all_text(written.folder)

    @given(SECRETS, st.sampled_from(sorted(encodings("x"))), st.sampled_from(["value", "key", "list", "text", "note"]))
    def test_no_recording_holds_a_secret_whatever_its_encoding_and_position(
        self, secret: str, encoding: str, position: str
    ) -> None:
        import tempfile

        from exchange_service.venues.tap import SeenRequest

        shown = encodings(secret)[encoding]
        body: Any = {
            "value": {"code": shown},
            "key": {shown: {"total": "1.5"}},
            "list": [["a", [shown, 1.25]]],
            "text": f"page {shown} 1.50",
            "note": {"message": f"you sent {shown}, which"},
        }[position]
        content = body if isinstance(body, str) else json.dumps(body)
        seen = SeenRequest(
            "GET", "http://127.0.0.1/v1/a", 0.0, status=200, answer=bytearray(content.encode()), ended=1.0
        )
        from exchange_service.authoring.masking import Masker
        from exchange_service.authoring.tracing import AuthorsFiles
        from exchange_service.model import Account
        from exchange_service.venues.registry import Listing

        secrets = Secrets([("api_key", secret)])
        trial = Trial(
            Listing(OANDA, None),  # type: ignore[arg-type]
            Account("a", "oanda"),
            "production",
            Masker(secrets),
            Credential.from_texts({"api_key": secret}),
            "",
            AuthorsFiles(()),
            requests=[seen],
        )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "out"
            try:
                write_recording(trial, folder)
            except RecordingRefused:
                assert not folder.exists()
                assert list(Path(name).iterdir()) == []
            else:
                text = all_text(folder)
                assert len(Recording(folder).answers) == 1
                assert secret not in text
                assert not secrets.found_in(text)
                assert len(shown) < 4 or shown not in text

    async def test_a_folder_is_replaced_only_if_it_is_a_recording_and_only_by_force(
        self, any_plugin: Path, tmp_path: Path
    ) -> None:
        trial = await trial_of(any_plugin, {"/v1/a": {"total": 1.5}}, SECRET, {})
        folder = tmp_path / "out"
        write_recording(trial, folder)
        before = all_text(folder)
        with pytest.raises(RecordingRefused, match="--force"):
            write_recording(trial, folder)
        assert all_text(folder) == before
        write_recording(trial, folder, force=True)
        (folder / "mine.txt").write_text("precious")
        with pytest.raises(RecordingRefused, match="other files"):
            write_recording(trial, folder, force=True)
        assert (folder / "mine.txt").read_text() == "precious"

    def test_the_command_refuses_a_folder_before_it_sends_anything(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        done = run_try("oanda", "--record", str(tmp_path))
        assert done.returncode == 2
        assert "GET" not in done.stdout

    async def test_a_refused_recording_has_the_exit_code_for_a_person(self, tmp_path: Path) -> None:
        async with Answers({"/v1/holdings": {"holdings": [], "quantity": "quantity"}}) as venue:
            folder = write_project(
                tmp_path / "p",
                '    await call.http.get(call.url() + "/v1/holdings")\n    return Balance(())\n',
                "refuser",
            )
            done = await asyncio.to_thread(
                run_try,
                str(folder),
                "--url",
                venue.url,
                "--record",
                str(tmp_path / "out"),
                stdin='{"api_key": "holdings"}',
            )
        assert done.returncode == 4, done.stdout + done.stderr
        assert "not recorded" in done.stdout
        assert not (tmp_path / "out").exists()


class TestInventing:
    @given(st.from_regex(re.compile(r"[+-]?(0|[1-9]\d{0,20})(\.\d{1,18})?", re.ASCII), fullmatch=True))
    def test_an_amount_keeps_sign_digits_and_scale(self, text: str) -> None:
        made = Inventor(b"key").amount(text)
        assert len(made) == len(text)
        assert (Decimal(made) == 0) == (Decimal(text) == 0)
        assert made.partition(".")[0].startswith("-") == text.startswith("-")
        assert made.find(".") == text.find(".")
        assert (made == text) == (Decimal(text) == 0)
        assert made == Inventor(b"key").amount(text)

    @given(st.lists(st.text(min_size=6, max_size=30), min_size=2, max_size=20, unique=True))
    def test_names_keep_their_shape_and_stay_apart(self, texts: list[str]) -> None:
        inventor = Inventor(b"key")
        made = {text: inventor.name(text) for text in texts}
        assert all(inventor.name(text) == made[text] for text in texts)
        named = [text for text in texts if sum(letter.isalnum() for letter in text) >= 6 and "@" not in text]
        assert len({made[text] for text in named}) == len(named)

    def test_the_case_of_an_address_makes_no_difference(self) -> None:
        address = "0xAbCdEf0123456789aBcDeF0123456789abcdef01"
        inventor = Inventor(b"key")
        assert inventor.name(address).lower() == inventor.name(address.lower())
        assert re.fullmatch(r"0x[0-9a-fA-F]{40}", inventor.name(address))

    @pytest.mark.parametrize(
        ("name", "parent", "text", "kind"),
        [
            ("accountID", "", "101-004-7654321-001", Kind.ID),
            ("id", "currency", "BTC", Kind.KEPT),
            ("name", "currency", "Bitcoin", Kind.KEPT),
            ("name", "profile", "Alice", Kind.ID),
            ("email", "", "a@b.example", Kind.ID),
            ("symbol", "", "AAPL  260117C00150000", Kind.KEPT),
            ("balance", "", "12.50", Kind.AMOUNT),
            ("withdrawalLimit", "", "23246.10", Kind.AMOUNT),
            ("createdTime", "", "2024-02-11T09:14:52.118340297Z", Kind.KEPT),
            ("ts", "", "1764000000", Kind.KEPT),
            ("anything", "", "Zq8uF3Jk2LmN4pQ6rS8tU0vW2xY4zA6b", Kind.ID),
            ("password", "", "abc", Kind.SECRET),
            ("token", "", "USDC", Kind.KEPT),
        ],
    )
    def test_fields_are_known_by_name_and_form(self, name: str, parent: str, text: str, kind: Kind) -> None:
        assert kind_of_text(name, parent, text) is kind

    def test_numbers_are_known_by_name_and_form(self) -> None:
        assert kind_of_number("token", "", "197") is Kind.KEPT
        assert kind_of_number("value", "leverage", "20") is Kind.KEPT
        assert kind_of_number("total", "", "20") is Kind.AMOUNT
        assert kind_of_number("daytrade_count", "", "3") is Kind.KEPT
        assert kind_of_text("multiplier", "", "2") is Kind.KEPT
        assert kind_of_text("multiplier", "", "2.50") is Kind.AMOUNT
        assert kind_of_number("userId", "", "7654321") is Kind.ID


class TestReading:
    def test_a_folder_that_is_none_and_a_name_that_is_none_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not a recording"):
            Recording(tmp_path)
        assert run_try("oanda", "--record", str(tmp_path / "out")).returncode == 0
        with pytest.raises(LookupError, match="get-v3-accounts"):
            recorded(tmp_path / "out", "nothing")

    async def test_a_request_that_was_never_recorded_is_told(self, tmp_path: Path) -> None:
        import aiohttp

        assert run_try("oanda", "--record", str(tmp_path / "out")).returncode == 0
        async with (
            Recording(tmp_path / "out").venue() as venue,
            aiohttp.ClientSession() as session,
            session.get(f"{venue.url}/other") as answer,
        ):
            assert answer.status == 501
        assert venue.missing == ["GET /other"]

    async def test_requests_of_one_path_are_told_apart_by_their_bodies(self, tmp_path: Path) -> None:
        assert run_try("hyperliquid", "--record", str(tmp_path / "out")).returncode == 0
        recording = Recording(tmp_path / "out")
        assert len(recording.answers) == 3
        assert {answer.path for answer in recording.answers} == {"/info"}
        import aiohttp

        async with recording.venue() as venue, aiohttp.ClientSession() as session:
            for answer in reversed(recording.answers):
                async with session.post(f"{venue.url}/info", json=answer.body) as got:
                    assert await got.read() == answer.content
