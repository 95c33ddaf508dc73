"""One id for a call: from the caller, through our log and a plugin's process, to the error that the caller gets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import CredentialMissing, ServiceFailed, VenueUnavailable
from exchange_service.grpc_server.handler_wrapper import given_request_id, new_request_id
from exchange_service.observability.logs import configure_logging, current_request_id
from exchange_service.plugin_api import VenueCall
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.harness import (
    USER,
    Gate,
    ScriptedPlugin,
    balance_request,
    failure,
    holding,
    registry_of,
    serving,
    streaming,
    until,
)

KEY = "x-request-id"
# Most callers send a UUID.
UUID = "d1f8a1de-5b7a-4e57-9e0f-6a1c2a8b9f10"
MADE = re.compile(r"[0-9a-f]{12}\Z")


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """A function that returns the log lines so far, parsed from JSON."""
    root, configuration = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    configure_logging("debug", "json")
    written: list[dict[str, Any]] = []

    def so_far() -> list[dict[str, Any]]:
        written.extend(json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{"))
        return written

    yield so_far
    root.setLevel(level)
    for handler in [*root.handlers]:
        if handler not in handlers:
            root.removeHandler(handler)
    structlog.configure(**configuration)


async def talkative(_: VenueCall) -> Any:
    structlog.get_logger("fakex").info("fakex.asked")
    return holding(("BTC", "1"))


class TestIds:
    def test_each_call_gets_its_own_id_that_the_log_can_show(self) -> None:
        made = [new_request_id() for _ in range(10_000)]
        assert len(set(made)) == len(made)
        assert all(MADE.match(text) for text in made)

    @pytest.mark.parametrize("text", ["7", UUID, "trace=1;span=2", "x" * 128])
    def test_a_callers_own_id_is_used(self, text: str) -> None:
        assert given_request_id([("user-agent", "x"), (KEY, text)]) == text

    @pytest.mark.parametrize("text", ["", " ", "x" * 129, "a\nb", "a\x1b[2Jb", "caf\u00e9", b"bytes"])
    def test_an_id_that_cannot_be_logged_or_sent_back_is_ignored(self, text: str | bytes) -> None:
        assert given_request_id([(KEY, text)]) == ""
        assert given_request_id(None) == ""


class TestCaller:
    async def test_a_caller_that_sent_an_id_finds_it_in_the_answer_and_another_caller_does_not(
        self, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            await running.store()
            call = running.stub.GetBalance(balance_request(), metadata=((KEY, UUID),))
            await call
            assert dict(await call.trailing_metadata())[KEY] == UUID
            call = running.stub.GetBalance(balance_request())
            await call
            assert KEY not in dict(await call.trailing_metadata())

    async def test_every_failure_carries_its_id(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            failed = await failure(running.stub.GetBalance(balance_request(), metadata=((KEY, UUID),)))
            assert (failed.reason, failed.trailers[KEY]) == ("CREDENTIAL_MISSING", UUID)
            failed = await failure(running.stub.GetBalance(balance_request(), metadata=((KEY, "x" * 200),)))
            assert MADE.match(failed.trailers[KEY])

    async def test_a_stream_carries_it_when_it_ends(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            await running.store()
            async with streaming(running, "fakex") as stream:
                await stream.next_of("balance")
                await running.service.streams.close()
                failed = await stream.failure()
            assert failed.reason == "SHUTTING_DOWN"
            assert MADE.match(failed.trailers[KEY])

    async def test_the_python_client_has_it_on_the_error(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            with pytest.raises(CredentialMissing) as made:
                await running.client.get_balance(USER, "fakex")
            assert MADE.match(made.value.request_id)
            async with ExchangeServiceClient(running.service.address, metadata=((KEY, UUID),)) as client:
                with pytest.raises(CredentialMissing) as given:
                    await client.get_balance(USER, "fakex")
            assert given.value.request_id == UUID

    async def test_it_is_the_reference_of_an_internal_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Any
    ) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            monkeypatch.setattr(running.service.registry, "account", None)
            with pytest.raises(ServiceFailed, match=UUID):
                async with ExchangeServiceClient(running.service.address, metadata=((KEY, UUID),)) as client:
                    await client.get_balance(USER, "fakex")
        (line,) = [line for line in lines() if line["event"] == "call.failed"]
        assert line["request_id"] == UUID


class TestLog:
    async def test_each_line_of_a_call_has_its_id_and_no_other_line_has_one(self, tmp_path: Path, lines: Any) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=talkative))) as running:
            await running.store()
            await running.stub.GetBalance(balance_request(), metadata=((KEY, UUID),))
        of_call = {line["event"] for line in lines() if line.get("request_id") == UUID}
        assert of_call == {"fakex.asked", "credential.opened"}
        assert "service.listening" in {line["event"] for line in lines() if "request_id" not in line}

    async def test_concurrent_calls_keep_their_ids_apart(self, tmp_path: Path, lines: Any) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=talkative))) as running:
            users = [f"user-{number}" for number in range(20)]
            for user in users:
                await running.store(user=user)
            await asyncio.gather(
                *(running.stub.GetBalance(balance_request(user_id=user), metadata=((KEY, user),)) for user in users)
            )
        assert sorted(line["request_id"] for line in lines() if line["event"] == "fakex.asked") == sorted(users)

    async def test_work_that_outlives_a_call_does_not_carry_its_id(self, tmp_path: Path) -> None:
        seen: list[str] = []
        gate = Gate()

        async def answer(call: VenueCall) -> Any:
            seen.append(current_request_id())
            if len(seen) == 1:
                return await gate(call)
            raise VenueUnavailable("It is down.")

        plugin = ScriptedPlugin(answer=answer)
        async with serving(tmp_path, registry=registry_of(plugin), poll_interval=0.1) as running:
            await running.store()
            selector = messages.AccountSelector(exchange_id="fakex")
            request = messages.StreamBalancesRequest(user_id=USER, accounts=[selector])
            first = running.stub.StreamBalances(request, metadata=((KEY, "first"),))
            await gate.entered.wait()
            async with streaming(running, "fakex") as second:
                await until(lambda: running.service.streams.counts() == (1, 2))
                first.cancel()
                await until(lambda: running.service.server.handler_wrapper.running() == 1)
                gate.opened.set()
                await second.next_of("balance")
                await until(lambda: len(seen) > 1)
        assert seen[:2] == ["first", ""]

    async def test_an_opened_key_that_is_sent_as_an_id_is_not_logged(self, tmp_path: Path, lines: Any) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=talkative))) as running:
            await running.store(api_key="my-venue-key-1234")
            await running.stub.GetBalance(balance_request(), metadata=((KEY, "my-venue-key-1234"),))
        (line,) = [line for line in lines() if line["event"] == "fakex.asked"]
        assert line["request_id"] == "[hidden]"

    def test_lines_of_other_libraries_carry_it_too(self, capfd: pytest.CaptureFixture[str], lines: Any) -> None:
        from exchange_service.observability.logs import CallMark, current_call

        token = current_call.set(CallMark(UUID))
        try:
            logging.getLogger("a.library").warning("slow")
        finally:
            current_call.reset(token)
        assert f"WARNING a.library: slow request_id={UUID}" in capfd.readouterr().err


GUEST = """
import structlog

from exchange_service.plugin_api import *

LISTING = ExchangeMetadata(
    id="guest", name="Guest", asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
    environments=(Environment("production", {"api": "https://guest.example"}),),
    capabilities=Capabilities(balance=True, sandbox=False),
)


@hookimpl
def exchange_manifest():
    return Manifest(1, (LISTING,))


@hookimpl
async def fetch_balance(call):
    structlog.get_logger("guest").info("guest.asked")
    return Balance((VenueAccount(id="1", type="spot", assets=()),))
"""


@pytest.fixture
def guest(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third-party plugin, which therefore runs in a process of its own."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "guest_plugin.py").write_text(GUEST)
    meta = folder / "acme_guest-1.2.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-guest\nVersion: 1.2\n")
    (meta / "entry_points.txt").write_text("[exchange_service]\nguest = guest_plugin\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("guest")
async def test_the_lines_of_a_plugins_process_carry_the_id_of_their_call(tmp_path: Path, lines: Any) -> None:
    async with serving(tmp_path) as running:
        sent: list[str] = []
        for request_id in ("first", "second"):
            await running.store("guest", user=request_id)
            request = balance_request("guest", user_id=request_id)
            await running.stub.GetBalance(request, metadata=((KEY, request_id),))
            sent.append(request_id)
            await until(
                lambda: [line["request_id"] for line in lines() if line["event"] == "guest.asked"] == sent,
                "the line of the process",
            )


async def test_health_has_no_ids(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        check = running.client.channel.unary_unary("/grpc.health.v1.Health/Check")
        call = check(b"", metadata=((KEY, UUID),))
        await call
        assert KEY not in dict(await call.trailing_metadata())
        assert await call.code() is grpc.StatusCode.OK
