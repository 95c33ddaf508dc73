"""Attacks by streams and by requests of many parts: each first succeeds with the mitigation switched off, and then
fails."""

from __future__ import annotations

import asyncio
import difflib
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from exchange_service.credentials.references import CachedReferences
from exchange_service.errors import FieldInvalid
from exchange_service.grpc_server import health, reflection, requests
from exchange_service.grpc_server.requests import RequestReader, parse, read_stream_balances
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.identity import ANYBODY, Caller, PresentedCredentials
from exchange_service.model import Account
from exchange_service.streams.accounts import AccountDirectory, Selector
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.credentials.test_references import Clock, FakeStore
from tests.harness import ScriptedPlugin, Stream, listing, registry_of, serving
from tests.identities import SECRET, web_token

UNKNOWN = [messages.AccountSelector(exchange_id=f"fakes{number}") for number in range(200)]
_REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
EVERYBODY = Caller(ANYBODY, PresentedCredentials())


def stream_request(accounts: list[messages.AccountSelector], user: str = "alice") -> messages.StreamBalancesRequest:
    return messages.StreamBalancesRequest(user_id=user, accounts=accounts)


@pytest.mark.threat("T54", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_a_stream_of_unknown_ids_costs_a_search_for_each_unless_streams_suggest_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    searches = 0
    true_search = difflib.get_close_matches

    def search(*arguments: Any, **options: Any) -> list[str]:
        nonlocal searches
        searches += 1
        return true_search(*arguments, **options)

    def find(directory: AccountDirectory, user_id: str, selector: Selector) -> Any:
        return directory.registry.account(user_id, selector.exchange_id, selector.environment, selector.account_type)

    monkeypatch.setattr(difflib, "get_close_matches", search)
    if not mitigated:
        monkeypatch.setattr(AccountDirectory, "find", find)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        stream = Stream(running.stub.StreamBalances(stream_request(UNKNOWN)))
        error = (await stream.next_of("account_error")).error
        stream.call.cancel()
    assert "fakes0" in error.message
    assert not searches if mitigated else searches >= 200


@pytest.mark.threat("T54")
def test_a_call_suggests_a_similar_id_unless_the_text_is_too_long_to_be_a_slip() -> None:
    registry = registry_of(ScriptedPlugin())
    for exchange_id, suggested in (("fakey", True), ("fakex" + "x" * 36, False)):
        with pytest.raises(Exception, match="No exchange has the id") as unknown:
            registry.find(exchange_id)
        assert ("Did you mean" in str(unknown.value)) == suggested


@pytest.mark.threat("T54", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_a_caller_opens_streams_of_200_accounts_each_as_often_as_streams_of_one_unless_each_account_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr("exchange_service.identity.authenticator.Authenticator.take_selectors", _count_nothing)
    ended: list[grpc.StatusCode] = []
    metadata = (("authorization", f"Bearer {web_token('alice')}"),)
    # Windows of this test never end, so that a slow machine does not open a second one.
    monkeypatch.setattr("exchange_service.identity.quotas.Action.window", 3600)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), jwt_secret=SECRET, user_calls=400) as running:
        streams = []
        for _ in range(5):
            call = running.stub.StreamBalances(stream_request(UNKNOWN), metadata=metadata)
            streams.append(call)
            try:
                await Stream(call).next()
            except grpc.aio.AioRpcError as error:
                ended.append(error.code())
        for call in streams:
            call.cancel()
    assert ended == ([grpc.StatusCode.RESOURCE_EXHAUSTED] * 3 if mitigated else [])


async def _count_nothing(*_: Any) -> None:
    """As before selectors were counted."""


@pytest.mark.threat("T54")
async def test_a_stream_of_more_accounts_than_calls_are_allowed_takes_all_of_them_and_is_opened(tmp_path: Path) -> None:
    metadata = (("authorization", f"Bearer {web_token('alice')}"),)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), jwt_secret=SECRET, user_calls=20) as running:
        stream = Stream(running.stub.StreamBalances(stream_request(UNKNOWN), metadata=metadata))
        await stream.next()
        stream.call.cancel()


@pytest.mark.threat("T55", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
def test_a_request_of_ten_thousand_parts_makes_as_many_objects_unless_they_are_counted_first(
    monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    made = 0
    true_selector = requests._selector

    def selector(entry: Any, path: str) -> Selector:
        nonlocal made
        made += 1
        return true_selector(entry, path)

    monkeypatch.setattr(requests, "_selector", selector)
    if not mitigated:
        monkeypatch.setattr(requests, "check_number", lambda *_: None)
    data = stream_request([messages.AccountSelector(exchange_id="a")] * 10_000).SerializeToString()
    if mitigated:
        for parts, field in ((data, "accounts"), (b"\x0a\x05alice" + b"\x22\x00" * 10_000, "known")):
            with pytest.raises(FieldInvalid) as refusal:
                read_stream_balances(parts, EVERYBODY)
            assert refusal.value.field == field
        assert made == 0
    else:
        assert len(read_stream_balances(data, EVERYBODY).selectors) == made == 10_000


@pytest.mark.threat("T55", attack=True)
@pytest.mark.parametrize("method", ["GetBalance", "ListExchanges", "StreamBalances"])
async def test_a_million_empty_parts_are_read_by_the_parser_and_refused_by_their_size_here(
    tmp_path: Path, method: str
) -> None:
    kind: Any = getattr(messages, f"{method}Request")
    data = b"\x3a\x00" * 1_000_000
    kind.FromString(data)
    with pytest.raises(FieldInvalid, match="should have at most"):
        parse(kind, data)
    # As much as the server takes at all.
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(listing()))) as running:
        call: Any = running.client.channel.unary_unary(f"/{SERVICE}/{method}")
        if method == "StreamBalances":
            call = running.client.channel.unary_stream(f"/{SERVICE}/{method}")
        for size, code in ((data, grpc.StatusCode.RESOURCE_EXHAUSTED), (data[:65_000], None)):
            answer = call(size)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await (answer.read() if method == "StreamBalances" else answer)
            assert refusal.value.code() is (code or grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.threat("T55")
def test_the_largest_request_that_can_be_valid_is_read() -> None:
    text = "\N{GREEK SMALL LETTER ALPHA}" * 256
    registry = registry_of(ScriptedPlugin())
    request = messages.ListExchangesRequest(asset_class=text, search=text, page_token="a" * 1024, etag=text)
    RequestReader(registry).read_list_exchanges(request.SerializeToString())
    accounts = [messages.AccountSelector(exchange_id=f"exchange-{number}" * 8) for number in range(200)]
    assert len(read_stream_balances(stream_request(accounts).SerializeToString(), EVERYBODY).selectors) == 200


@pytest.mark.threat("T56", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_accounts_without_a_credential_cost_a_query_each_and_here_one_for_all_of_a_user(
    monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    async def not_known(*_: Any) -> bool:
        return False

    if not mitigated:
        monkeypatch.setattr(CachedReferences, "_is_still_missing", not_known)
    store, clock = FakeStore(), Clock()
    store.version = None
    references = CachedReferences(store, clock=clock)  # type: ignore[arg-type]
    accounts = [Account("alice", f"fakex{number}") for number in range(200)]

    async def ask_all() -> int:
        """How many queries it costs that every account's feed asks again."""
        before = store.requests
        assert await asyncio.gather(*(references.find(account) for account in accounts)) == [None] * 200
        return store.requests - before

    await ask_all()
    for _ in range(3):
        clock.now += 10
        assert await ask_all() == (1 if mitigated else 200)


@pytest.mark.threat("T56")
async def test_a_credential_that_is_stored_is_found_as_soon_as_ever() -> None:
    store, clock = FakeStore(), Clock()
    store.version = None
    references = CachedReferences(store, clock=clock)  # type: ignore[arg-type]
    first, second = Account("alice", "oanda"), Account("alice", "tradier")
    assert [await references.find(account) for account in (first, second)] == [None, None]
    clock.now += 10
    assert await references.find(second) is None
    store.version = "1"
    # What was learned for the one is no older for the other.
    clock.now += 1.9
    assert await references.find(first) is None
    clock.now += 0.1
    assert await references.find(first) is not None
    # A forced call asks in any case.
    store.version = None
    assert await references.find(first, now=True) is None
    store.version = "2"
    assert await references.find(first, now=True) is not None


@pytest.mark.threat("T55", attack=True)
@pytest.mark.parametrize("service", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"])
async def test_a_stranger_has_a_large_health_check_parsed_unless_its_size_is_looked_at_first(
    tmp_path: Path, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\x3a\x00" * 30_000
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), jwt_secret=SECRET) as running:

        async def asked(request: bytes) -> bytes:
            if service.endswith("Check"):
                unary: Any = running.client.channel.unary_unary(f"/{service}")
                return bytes(await unary(request))
            streaming: Any = running.client.channel.unary_stream(f"/{service}")
            call = streaming(request)
            try:
                return bytes(await call.read())
            finally:
                call.cancel()

        with monkeypatch.context() as off:
            off.setattr(health, "_LARGEST_REQUEST", 2**20)
            assert await asked(data) == b"\x08\x01"
        for request in (data, b"\xff\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await asked(request)
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await asked(b"") == b"\x08\x01"


@pytest.mark.threat("T55")
async def test_a_strangers_question_to_reflection_is_not_even_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr(reflection, "parse", lambda kind, data: parsed.append(data) or parse(kind, data))
    question = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    metadata = (("authorization", f"Bearer {web_token('alice')}"),)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), jwt_secret=SECRET) as running:
        ask: Any = running.client.channel.stream_stream(f"/{_REFLECTION}")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await ask(iter([question])).read()
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert parsed == []
        assert b"ExchangeService" in await ask(iter([question]), metadata=metadata).read()
        assert parsed == [question]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await ask(iter([b"\xff\xff"]), metadata=metadata).read()
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
