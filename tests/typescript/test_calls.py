"""clients/typescript against a running service: calls, what failed ones say, retries, tokens, and TLS."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exchange_service.cli.demo import Demo, running_demo
from exchange_service.errors import VenueUnavailable
from exchange_service.identity import Scope
from exchange_service.plugin_api import Balance, VenueCall
from exchange_service.v1.error_reason_pb2 import ErrorReason
from tests.authenticated_service import authenticated_service, tls_settings
from tests.harness import PATIENCE, USER, Gate, ScriptedPlugin, eventually, holding, registry_of, serving, settings_for
from tests.identities import Authority, service_token, web_token
from tests.typescript.program import Program, program

# Their plugin's process needs longer than a call's time where the machine is busy.
BY_CCXT = ("apex", "binance", "coinbase")
FAKEX = {"userId": USER, "exchangeId": "fakex"}


@pytest.fixture
async def node() -> AsyncIterator[Program]:
    async with program() as made:
        yield made


@asynccontextmanager
async def demo_and_client(folder: Path, node: Program) -> AsyncIterator[Demo]:
    async with running_demo(settings_for(folder, http_address="127.0.0.1:0")) as demo:
        await node.create(demo.service.address)
        yield demo


def closed_port() -> str:
    """An address at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


class FailingFirst:
    """A venue that is down for the first so many requests, with this delay in seconds."""

    def __init__(self, failures: int, delay: float | None) -> None:
        self.failures = failures
        self.delay = delay
        self.requests = 0

    async def __call__(self, _: VenueCall) -> Balance:
        self.requests += 1
        if self.requests <= self.failures:
            raise VenueUnavailable("It is down.", retry_after=self.delay)
        return holding(("BTC", "1.50"))


async def test_a_demo_is_listed_read_and_told_apart_by_its_reasons(tmp_path: Path, node: Program) -> None:
    async with demo_and_client(tmp_path, node) as demo:
        listed = await node.act("exchanges", filters={"search": "oanda"})
        assert listed["ids"] == ["oanda"]
        assert len((await node.act("exchanges", filters={}))["ids"]) > 100

        reply = (await node.balance("demo", "oanda"))["reply"]
        assert re.fullmatch(r"\d+\.\d+", reply["balance"]["summary"]["total"])
        types = await node.act("types", request={"userId": "demo", "exchangeId": "oanda"})
        assert (types["version"], types["total"]) == ("bigint", "string")

        missing = (await node.balance("nobody", "oanda"))["error"]
        assert (missing["name"], missing["reason"], missing["code"]) == (
            "ServiceError",
            "CREDENTIAL_MISSING",
            "NotFound",
        )
        assert len(missing["requestId"]) >= 8
        wrong = (await node.balance("demo", ""))["error"]
        assert wrong["reason"] == "FIELD_INVALID"
        assert [violation["field"] for violation in wrong["violations"]] == ["exchange_id"]
        refused = (await node.balance("demo-refused", "oanda"))["error"]
        assert refused["reason"] == "CREDENTIAL_REJECTED"
        limited = (await node.balance("demo-limited", "oanda"))["error"]
        assert limited["reason"] == "VENUE_RATE_LIMITED"
        assert 0 < limited["retryAfterMs"] <= 30_000

        assert set(demo.users["demo"]) > {"oanda", "binance"}
        for user in ("demo", "demo-partly", "demo-refused", "demo-new"):
            accounts = (await node.act("balances", user=user, options={"timeoutMs": 15_000}))["accounts"]
            assert sorted(account["exchangeId"] for account in accounts) == sorted(demo.users.get(user, ()))
            assert all("balance" in account or "error" in account for account in accounts)
            quick = [account for account in accounts if account["exchangeId"] not in BY_CCXT]
            assert len([account for account in quick if "error" in account]) == (len(quick) * (user == "demo-refused"))


async def test_a_call_is_made_again_after_the_delay_that_the_service_names(tmp_path: Path, node: Program) -> None:
    venue = FailingFirst(failures=1, delay=0.4)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=venue))) as running:
        await running.store()
        await node.create(running.service.address)
        answer = await node.call("getBalance", FAKEX)
    assert answer["reply"]["balance"]["venueAccounts"][0]["assets"][0]["total"] == "1.50"
    assert answer["elapsedMs"] >= 350
    assert venue.requests == 2


async def test_a_delay_beyond_the_deadline_is_told_at_once(tmp_path: Path, node: Program) -> None:
    venue = FailingFirst(failures=99, delay=30.0)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=venue))) as running:
        await running.store()
        await node.create(running.service.address, timeoutMs=8_000)
        failed = await node.call("getBalance", FAKEX)
    assert failed["error"]["reason"] == "VENUE_UNAVAILABLE"
    assert 25_000 < failed["error"]["retryAfterMs"] <= 30_000
    assert failed["elapsedMs"] < 4_000
    assert venue.requests == 1


async def test_after_many_failures_nothing_is_retried(tmp_path: Path, node: Program) -> None:
    """A call may be made three times; six failed ones make fewer than eighteen attempts."""
    await node.create(address := closed_port())
    first = await node.call("getBalance", FAKEX)
    assert first["error"]["reason"] == "UNREACHABLE"
    assert first["elapsedMs"] >= 80 + 160
    for _ in range(5):
        last = await node.call("getBalance", FAKEX)
    assert last["elapsedMs"] < 80
    assert address in last["error"]["message"]
    assert "ECONNREFUSED" in last["error"]["message"]


async def test_a_deadline_covers_all_attempts_and_a_signal_ends_them(tmp_path: Path, node: Program) -> None:
    gate = Gate()
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=gate))) as running:
        await running.store()
        await node.create(running.service.address)
        late = await node.call("getBalance", FAKEX, options={"timeoutMs": 700})
        assert late["error"]["reason"] in ("DEADLINE_PASSED", "VENUE_TIMEOUT")
        assert 400 < late["elapsedMs"] < 2_000
        ended = await node.call("getBalance", FAKEX, options={"abortAfterMs": 200})
        assert (ended["error"]["name"], ended["error"]["message"]) == ("Error", "ended by the test")
        assert ended["elapsedMs"] < 1_500
        waiting = asyncio.create_task(node.call("getBalance", FAKEX))
        await asyncio.sleep(0.3)
        await node.act("close")
        assert (await waiting)["error"]["message"] == "The client was closed."
        assert (await node.call("getBalance", FAKEX))["error"]["message"] == "The client is closed."
        gate.opened.set()


async def test_leaving_a_stream_ends_it_at_the_service(tmp_path: Path, node: Program) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        await running.store()
        await node.create(running.service.address)

        async def nothing_is_open() -> bool:
            return running.service.streams.counts()[1] == 0

        await node.act("follow", request={"userId": USER}, breakAfter=1)
        await node.event("over")
        await eventually(nothing_is_open, "the end of the stream")
        await node.act("follow", request={"userId": USER})
        await node.event("balance")
        assert running.service.streams.counts()[1] == 1
        await node.act("leave")
        assert (await node.event("failed"))["error"]["message"] == "left by the test"
        await eventually(nothing_is_open, "the end of the stream")


async def test_hundreds_of_streams_are_open_at_the_same_time(tmp_path: Path, node: Program) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), connection_streams=100) as running:
        await running.store()
        await node.create(running.service.address)
        for number in range(130):
            await node.act("follow", stream=str(number), request={"userId": USER})
        streams = {(await node.event("balance"))["stream"] for _ in range(130)}
        assert len(streams) == 130


class TestTokens:
    async def test_a_token_opens_the_service_and_is_shown_nowhere(self, tmp_path: Path, node: Program) -> None:
        async with authenticated_service(tmp_path) as running:
            token, _ = await service_token(running, Scope(frozenset({USER})))
            await node.create(running.service.address, token=token)
            assert "reply" in await node.call("getBalance", FAKEX)
            forbidden = (await node.balance("bob", "fakex"))["error"]
            assert forbidden["reason"] == "USER_FORBIDDEN"
            shown = (await node.act("inspect"))["text"] + str(forbidden["inspected"])
            assert token not in shown
            await node.create(running.service.address)
            assert (await node.call("getBalance", FAKEX))["error"]["reason"] == "CALLER_UNKNOWN"
            await node.create(running.service.address, tokens=["first\nsecond"])
            wrong = (await node.call("getBalance", FAKEX))["error"]
            assert wrong["name"] == "TypeError"
            assert "second" not in wrong["inspected"]

    async def test_a_stream_whose_token_ends_is_opened_again_with_a_new_one(
        self, tmp_path: Path, node: Program
    ) -> None:
        async with authenticated_service(tmp_path, jwt_leeway=0, heartbeat_interval=0.3) as running:
            tokens = [web_token(USER, lifetime=2.2), web_token(USER, lifetime=600)]
            await node.create(running.service.address, tokens=tokens)
            await node.act("follow", request={"userId": USER})
            first = await node.event("balance")
            ended = await node.event("reconnecting")
            assert ended["error"]["reason"] == "CALLER_UNKNOWN"
            again = await node.event("heartbeat")
            states = [state["version"] for state in again["value"]["accounts"]]
            assert first["value"]["balance"]["version"] in states
            assert (await node.act("tokenCalls"))["count"] == 2

    async def test_a_token_that_nobody_renews_ends_the_stream_with_the_reason(
        self, tmp_path: Path, node: Program
    ) -> None:
        async with authenticated_service(tmp_path, jwt_leeway=0) as running:
            await node.create(running.service.address, token=web_token(USER, lifetime=2.2))
            await node.act("follow", request={"userId": USER})
            await node.event("balance")
            assert (await node.event("failed"))["error"]["reason"] == "CALLER_UNKNOWN"
            # The function gives the ended one again.
            await node.create(running.service.address, "same", tokens=[web_token(USER, lifetime=2.2)])
            await node.act("follow", client="same", request={"userId": USER})
            await node.event("reconnecting")
            assert (await node.event("failed"))["error"]["reason"] == "CALLER_UNKNOWN"

    async def test_no_token_is_sent_to_another_machine_in_plaintext(self, node: Program) -> None:
        for options in ({"token": "a-token"}, {"headers": {"Authorization": "Bearer a-token"}}):
            made = await node.act("create", options={"address": ["127.0.0.1:1", "balances.example:50051"], **options})
            assert "plaintext" in made["error"]["message"]
            assert "a-token" not in made["error"]["inspected"]


class TestTls:
    async def test_a_private_authority_is_trusted_and_another_is_named_as_the_cause(
        self, tmp_path: Path, node: Program
    ) -> None:
        authority = Authority.create(tmp_path)
        other = Authority.create(tmp_path / "other", "other")
        changes = tls_settings(authority, open_to_all=True)
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **changes) as running:
            await running.store()
            address = f"127.0.0.1:{running.service.address.rpartition(':')[2]}"
            await node.create(address, tlsCa=authority.file.read_text())
            assert "reply" in await node.call("getBalance", FAKEX)
            for options in ({"tls": True}, {"tlsCa": other.file.read_text()}):
                await node.create(address, **options)
                error = (await node.call("getBalance", FAKEX))["error"]
                assert error["reason"] == "UNREACHABLE"
                assert re.search("UNABLE_TO_VERIFY_LEAF_SIGNATURE|certificate", error["message"])
                assert error["message"].endswith("Give the authority that signed the service's certificate as tlsCa.")
            await node.create(address)
            assert "TLS" in (await node.call("getBalance", FAKEX))["error"]["message"]
            made = await node.act("create", options={"address": address, "tlsCa": str(authority.file)})
            assert "read the file" in made["error"]["message"]

    async def test_a_client_certificate_is_presented(self, tmp_path: Path, node: Program) -> None:
        authority = Authority.create(tmp_path)
        certificate, key = authority.sign("billing")
        scopes: dict[str, Any] = {"tls_client_ca": authority.file, "client_certificates": {"billing": "*"}}
        changes = tls_settings(authority, **scopes)
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **changes) as running:
            await running.store()
            address = f"127.0.0.1:{running.service.address.rpartition(':')[2]}"
            ca = authority.file.read_text()
            await node.create(address, tlsCa=ca, tlsCertificate=certificate.read_text(), tlsKey=key.read_text())
            assert "reply" in await node.call("getBalance", FAKEX)
            await node.create(address, tlsCa=ca)
            assert (await node.call("getBalance", FAKEX))["error"]["reason"] == "UNREACHABLE"


class TestNeverReached:
    async def test_a_stream_says_at_once_that_nothing_answers(self, tmp_path: Path, node: Program) -> None:
        began = time.monotonic()
        await node.create([closed_port(), closed_port()])
        await node.act("follow", request={"userId": USER})
        error = (await node.event("failed"))["error"]
        assert (error["name"], error["reason"]) == ("ServiceUnreachable", "UNREACHABLE")
        assert "exchange-service serve" in error["message"]
        assert [event["event"] for event in node.events] == ["ready", "failed"]
        assert time.monotonic() - began < PATIENCE / 2

    async def test_so_does_one_where_something_else_listens(self, tmp_path: Path, node: Program) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), http_address="127.0.0.1:0") as running:
            await node.create(running.service.web.address)
            await node.act("follow", request={"userId": USER})
            error = (await node.event("failed"))["error"]
            assert error["reason"] == "UNREACHABLE"

    async def test_an_address_that_is_none_is_refused_at_once(self, node: Program) -> None:
        for address in ("balances.example", "http://127.0.0.1:50051", "127.0.0.1:0", "", []):
            made = await node.act("create", options={"address": address})
            assert made["error"]["name"] == "TypeError", address


def test_every_reason_has_a_name_in_the_generated_code() -> None:
    text = (
        Path(__file__).parents[2] / "clients/typescript/dist/gen/exchange_service/v1/error_reason_pb.d.ts"
    ).read_text()
    names = [name.removeprefix("ERROR_REASON_") for name, _ in ErrorReason.items()]
    assert [name for name in names if not re.search(rf"^    {name} = ", text, re.MULTILINE)] == []
