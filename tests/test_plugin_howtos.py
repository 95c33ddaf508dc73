"""The code of docs/plugin-howtos.md, run against venues on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiohttp import web

from exchange_service import plugin_api
from exchange_service.plugin_api import (
    PRODUCTION,
    ClockSkew,
    CredentialField,
    CredentialRejected,
    Environment,
    ExchangeMetadata,
    Manifest,
    NotSupported,
    Secret,
    State,
    VenueCall,
    VenueMalformed,
)
from exchange_service.testing import LoopbackVenue, RecordedRequest, venue_call
from exchange_service.testing.contract import ListingContract
from tests.test_docs import write_documented_plugin
from tests.test_plugin_try import run_try

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "plugin-howtos.md").read_text()
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>.*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```\n", re.DOTALL | re.MULTILINE)
# Examples that the tests beside what they show run.
_ELSEWHERE = {
    "example: account names": "tests/test_account_names.py",
    "example: a stream of lines": "tests/test_push_kit.py",
}
ACME = ExchangeMetadata(
    id="acme",
    name="Acme Brokerage",
    asset_class="Stocks",
    asset_types="Stocks",
    market_hours="Market Hours",
    environments=(Environment(PRODUCTION, {"api": "https://api.acme.example"}),),
    credential_fields=(
        CredentialField("api_key", "Key"),
        CredentialField("api_secret", "Secret", required=False),
        CredentialField("passphrase", "Refresh token", required=False, rotates=True),
    ),
    account_types=("cash", "margin"),
    instructions="Make a key with the right to read.",
    documentation_url="https://acme.example/api",
    credential_url="https://acme.example/settings/api",
)


def example(name: str, **known: Any) -> dict[str, Any]:
    """The names that an example of the page makes, in a module that knows the plugin page and `known`."""
    found = [m["text"] for m in _BLOCK.finditer(PAGE) if m["mark"] == f"example: {name}"]
    assert len(found) == 1, f"the page has {len(found)} examples called {name}"
    page = {name: getattr(plugin_api, name) for name in plugin_api.__all__}
    names = {**page, "Any": Any, "Mapping": Mapping, "ACME": ACME, **known}
    exec(compile(found[0], f"docs/plugin-howtos.md, {name}", "exec"), names)
    return names


class Acme(LoopbackVenue):
    """Answers each path with what a test put there: JSON values, one after the other, the last one again and again."""

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        self.answers: dict[str, list[Any]] = {path: list(values) for path, values in answers.items()}

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        values = self.answers[request.match_info["path"].rpartition("/")[2]]
        value = values.pop(0) if len(values) > 1 else values[0]
        return web.json_response(value, status=400 if value is REFUSED else 200)

    def call(self, **options: Any) -> AbstractAsyncContextManager[VenueCall]:
        texts = {"api_key": "a-key", "api_secret": "a-secret", "passphrase": "old"}
        return venue_call(ACME, override=self.url, **{**texts, **options})

    @property
    def last(self) -> RecordedRequest:
        return self.requests[-1]


REFUSED: dict[str, str] = {"error": "invalid_grant"}
TOKENS = {"access_token": "access", "refresh_token": "new"}


async def test_the_signature_is_of_the_query_that_is_sent() -> None:
    how = example("a signed query")
    async with Acme(account=[{}]) as venue, venue.call() as call:
        await how["read_account"](call)
        query, _, signature = venue.last.target.partition("?")[2].rpartition("&signature=")
    assert query.startswith("symbol=BTC%2FUSD&timestamp=")
    assert signature == hmac.new(b"a-secret", query.encode(), hashlib.sha256).hexdigest()


async def test_nonces_rise_for_all_accounts_of_a_key() -> None:
    how = example("nonces of a key")
    shared = State()
    async with Acme() as venue, venue.call(key_state=shared) as one, venue.call(key_state=shared) as other:
        nonces = [await how["next_nonce"](call) for call in (one, other, one, other)]
    assert nonces == sorted(set(nonces))
    assert nonces[0] > time.time_ns() // 1_000_000 - 60_000
    await shared.close()


async def test_the_operators_client_opens_an_access_token_once() -> None:
    how = example("the operator's client")
    assert [setting.name for setting in how["exchange_manifest"]().settings] == [
        "client_id",
        "client_secret",
        "page_size",
    ]
    settings = {"client_id": "the operator's", "client_secret": Secret("hidden"), "page_size": 100}
    async with Acme(token=[TOKENS]) as venue, venue.call(settings=settings) as call:
        assert [await how["access_token"](call) for _ in range(2)] == ["access", "access"]
        (request,) = venue.requests
    form = {name: value for name, (value,) in parse_qs(request.body.decode()).items()}
    assert (form["client_id"], form["client_secret"], form["refresh_token"]) == ("the operator's", "hidden", "old")
    async with Acme(token=[REFUSED]) as venue, venue.call(settings=settings) as call:
        with pytest.raises(CredentialRejected, match="refresh token"):
            await how["access_token"](call)


async def test_a_rotated_token_is_stored_also_if_the_database_is_away() -> None:
    how = example("a rotating token")
    assert [field.rotates for field in how["FIELDS"]] == [False, True]
    test = example("a stored row", access_token=how["access_token"])
    async with Acme(token=[TOKENS]) as venue:
        await test["test_the_new_refresh_token_is_stored"](venue)
        row = test["StoredRow"]()
        row.available = False
        async with venue.call(stored_row=row) as call:
            assert await how["access_token"](call) == "access"


async def test_the_clock_is_measured_once_and_again_after_a_refusal() -> None:
    how = example("the venue's time")
    ahead = time.time_ns() // 1_000_000 + 90_000
    async with Acme(time=[{"now": ahead}]) as venue, venue.call() as call:
        measured = [await how["venue_time"](call) for _ in range(2)]
        assert all(abs(value - ahead) < 20_000 for value in measured)
        assert len(venue.requests) == 1
        with pytest.raises(ClockSkew):
            how["raise_for_clock"](call, "timestamp_out_of_range")
        await how["venue_time"](call)
        assert len(venue.requests) == 2


async def test_pages_are_read_to_the_end_and_each_is_charged() -> None:
    how = example("pages")
    pages = [{"positions": [1, 2], "next": "b"}, {"positions": [3], "next": ""}]
    async with Acme(positions=pages) as venue, venue.call() as call:
        assert await how["read_positions"](call) == [1, 2, 3]
        assert call.reports.costs == {0: 2}
        assert [request.target.partition("?")[2] for request in venue.requests] == ["", "cursor=b"]


@pytest.mark.parametrize("pages", [[{"positions": [], "next": "b"}], [{"positions": None, "next": ""}]], ids=str)
async def test_pages_without_an_end_are_no_answer(pages: list[Any]) -> None:
    how = example("pages")
    async with Acme(positions=pages) as venue, venue.call() as call:
        with pytest.raises(VenueMalformed):
            await how["read_positions"](call)
        assert len(venue.requests) <= 2


def test_a_balance_of_another_type_costs_what_its_limit_says() -> None:
    address, key = example("limits")["LIMITS"]
    assert [address.cost_of(one) for one in ("", "cash", "margin", "all")] == [4, 4, 10, 14]
    assert key.cost_of("margin") == 1


async def test_one_answer_is_several_accounts_with_an_error_each() -> None:
    how = example("several accounts in one answer")
    entries = [
        {"number": "1", "kind": "CASH", "currency": "USD", "balance": "2.50"},
        {"number": "2", "kind": "MARGIN", "currency": "USD", "balance": "7"},
        {"number": "3", "kind": "CRYPTO", "currency": "USD", "balance": "7"},
    ]
    async with Acme(accounts=[{"accounts": entries}]) as venue:
        async with venue.call(account_type="all") as call:
            cash, margin, unknown = (await how["fetch_balance"](call)).venue_accounts
        async with venue.call(account_type="margin") as call:
            of_margin = (await how["fetch_balance"](call)).venue_accounts
    assert [(account.id, account.type, str(account.assets[0].total)) for account in (cash, margin)] == [
        ("1", "cash", "2.50"),
        ("2", "margin", "7"),
    ]
    assert isinstance(unknown.error, NotSupported)
    assert [account.id for account in of_margin] == ["2", "3"]


async def test_a_listing_that_ends_is_a_good_manifest() -> None:
    module = ModuleType("acme_that_ends")
    vars(module).update(example("a listing that ends"))

    class Listing(ListingContract):
        plugin = module
        exchange_id = "acme"

    suite = Listing()
    manifest: Manifest = suite._load_manifest()
    suite.test_the_listing_is_complete(manifest)
    suite.test_exactly_an_unsupported_exchange_says_why(manifest)
    await suite.test_an_unsupported_exchange_refuses_with_a_sentence(suite._load_hooks(), manifest)
    assert manifest.notes
    assert not manifest.exchanges[0].capabilities.balance


async def test_the_trial_of_a_broken_plugin_shows_its_lines_as_the_page_does(tmp_path: Path) -> None:
    folder = tmp_path / "exchange-service-acme"
    write_documented_plugin(folder)
    source = folder / "exchange_service_acme" / "__init__.py"
    right = 'as_list(as_object(payload, "answer").get("holdings"), "holdings")'
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, 'as_list(payload["positions"], "positions")'))
    (block,) = (m["text"] for m in _BLOCK.finditer(PAGE) if m["mark"] == "tried")
    shown = block.split("...\n", 1)[1]
    async with Acme(holdings=[{"holdings": []}]) as venue:
        row = json.dumps({"api_key": "good-token-0123456789"})
        done: subprocess.CompletedProcess[str] = await asyncio.to_thread(
            run_try, str(folder), "--url", venue.url, stdin=row
        )
    assert done.returncode == 1
    assert shown.strip() in done.stdout


def test_the_error_of_the_first_page_can_be_raised() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    explained = page[page.index("\n## What a call gives you\n") :]
    ((mark, code),) = [(m["mark"], m["text"]) for m in _BLOCK.finditer(explained)]
    assert mark == "example: an error"
    with pytest.raises(CredentialRejected):
        exec(code, vars(plugin_api).copy())


def test_every_block_of_the_page_is_run_or_is_a_file() -> None:
    marks = {m["mark"] for m in _BLOCK.finditer(PAGE) if m["mark"]}
    run_here = set(re.findall(r'\bexample\(\s*"([^"]+)"', Path(__file__).read_text()))
    for mark in marks - {"tried"}:
        if mark.startswith("example: ") and mark not in _ELSEWHERE:
            assert mark.removeprefix("example: ") in run_here
    assert all(mark in (ROOT / file).read_text() for mark, file in _ELSEWHERE.items())
    left = [m["text"] for m in _BLOCK.finditer(PAGE) if not m["mark"]]
    assert [text for text in left if not text.startswith("$ pip install ")] == []
