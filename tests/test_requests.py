"""Reading requests: rights before look-ups, and a bounded memory of what requests ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from exchange_service.errors import ExchangeUnknown, FieldInvalid, UserForbidden
from exchange_service.grpc_server import requests
from exchange_service.grpc_server.requests import RequestReader, read_stream_balances
from exchange_service.identity import ANYBODY, Caller, Identity, Kind, PresentedCredentials, Scope
from exchange_service.model import Account
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.venues.registry import Registry
from tests.harness import ScriptedPlugin, balance_request, registry_of
from tests.test_catalogue import Changing

EVERYBODY = Caller(ANYBODY, PresentedCredentials())
BOB = Caller(Identity("bob", Kind.USER, Scope(frozenset({"bob"}))), PresentedCredentials())


class CountingRegistry(Registry):
    """Counts how often an account is looked up."""

    lookups = 0

    def account(self, *arguments: Any, **options: Any) -> Any:
        self.lookups += 1
        return super().account(*arguments, **options)


@pytest.fixture
def registry() -> CountingRegistry:
    return CountingRegistry(registry_of(ScriptedPlugin()).plugins)


@pytest.fixture
def reader(registry: CountingRegistry) -> RequestReader:
    return RequestReader(registry)


def test_a_request_names_its_account_age_and_rows(reader: RequestReader) -> None:
    request = balance_request("FAKEX", environment="live", max_age=Duration(nanos=500_000_000), include_zero=True)
    query, include_zero = reader.read_get_balance(request.SerializeToString(), EVERYBODY)
    assert query.account == Account("alice", "fakex")
    assert (query.max_age, include_zero) == (0.5, True)


def test_a_request_that_comes_again_is_not_read_again(reader: RequestReader, registry: CountingRegistry) -> None:
    data = balance_request().SerializeToString()
    first = reader.read_get_balance(data, EVERYBODY)
    assert reader.read_get_balance(bytes(bytearray(data)), EVERYBODY) is first
    assert registry.lookups == 1
    lists = messages.ListExchangesRequest(search="x").SerializeToString()
    assert reader.read_list_exchanges(lists) is reader.read_list_exchanges(lists)


def test_only_so_many_and_only_short_requests_are_remembered(
    registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_MAX_REMEMBERED", 2)
    monkeypatch.setattr(requests, "_MAX_REMEMBERED_SIZE", 50)
    reader = RequestReader(registry)
    users = ("alice", "bob", "carol")
    for user in (*users, "carol", "bob"):
        reader.read_get_balance(balance_request(user_id=user).SerializeToString(), EVERYBODY)
    assert registry.lookups == 3
    reader.read_get_balance(balance_request(user_id="alice").SerializeToString(), EVERYBODY)
    assert registry.lookups == 4
    for _ in range(2):
        reader.read_get_balance(balance_request(user_id="x" * 60).SerializeToString(), EVERYBODY)
    assert registry.lookups == 6


def test_the_caller_is_checked_before_anything_is_looked_up_also_for_a_remembered_request(
    reader: RequestReader, registry: CountingRegistry
) -> None:
    unknown = balance_request("nowhere").SerializeToString()
    with pytest.raises(UserForbidden):
        reader.read_get_balance(unknown, BOB)
    assert registry.lookups == 0
    with pytest.raises(ExchangeUnknown):
        reader.read_get_balance(unknown, EVERYBODY)
    known = balance_request().SerializeToString()
    reader.read_get_balance(known, EVERYBODY)
    with pytest.raises(UserForbidden):
        reader.read_get_balance(known, BOB)


async def test_a_changed_registry_is_looked_up_again() -> None:
    plugin = Changing("a", "b")
    registry = registry_of(plugin)
    reader = RequestReader(registry)
    data = balance_request("b").SerializeToString()
    before, _ = reader.read_get_balance(data, EVERYBODY)
    plugin.ids = ("a",)
    await registry.refresh()
    with pytest.raises(ExchangeUnknown):
        reader.read_get_balance(data, EVERYBODY)
    plugin.ids = ("a", "b")
    await registry.refresh()
    after, _ = reader.read_get_balance(data, EVERYBODY)
    assert after.account == before.account
    assert after.listing is registry.listings["b"]


READ: dict[str, Callable[[RequestReader, bytes], object]] = {
    "ListExchanges": lambda reader, data: reader.read_list_exchanges(data),
    "GetBalance": lambda reader, data: reader.read_get_balance(data, EVERYBODY),
    "StreamBalances": lambda reader, data: read_stream_balances(data, EVERYBODY),
}


@pytest.mark.parametrize("method", READ)
def test_bytes_of_another_kind_are_a_bad_request_every_time(reader: RequestReader, method: str) -> None:
    for _ in range(2):
        with pytest.raises(FieldInvalid) as refusal:
            READ[method](reader, b"\xff\xff\xff\xff")
        assert refusal.value.field == "request"


def test_a_streams_selectors_and_interval_are_read() -> None:
    accounts = [messages.AccountSelector(exchange_id="fakex", environment="live", known_version=7, account_type="spot")]
    request = messages.StreamBalancesRequest(user_id="bob", accounts=accounts, min_interval=Duration(seconds=2))
    query = read_stream_balances(request.SerializeToString(), BOB)
    assert (query.user_id, query.min_interval) == ("bob", 2.0)
    (selector,) = query.selectors
    assert (selector.exchange_id, selector.environment, selector.known_version) == ("fakex", "live", 7)
    assert selector.account_type == "spot"


@pytest.mark.parametrize("ahead", [24 * 3600, 2**40])
def test_a_known_version_that_no_balance_can_have_is_refused_and_one_of_a_fast_clock_is_not(
    reader: RequestReader, ahead: int
) -> None:
    now = int(time.time() * 1_000_000)
    query, _ = reader.read_get_balance(
        balance_request(known_version=now + 22 * 3600 * 1_000_000).SerializeToString(), EVERYBODY
    )
    assert query.known_version > now
    too_high = now + ahead * 1_000_000
    entry = messages.AccountSelector(exchange_id="fakex", known_version=too_high)
    streams = [
        messages.StreamBalancesRequest(user_id="bob", accounts=[entry]),
        messages.StreamBalancesRequest(user_id="bob", known=[entry]),
    ]
    fields = []
    for request in (balance_request(known_version=too_high), *streams):
        read = READ["StreamBalances" if request in streams else "GetBalance"]
        with pytest.raises(FieldInvalid) as refusal:
            read(reader, request.SerializeToString())
        fields.append(refusal.value.field)
    assert fields == ["known_version", "accounts[0].known_version", "known[0].known_version"]


@pytest.mark.parametrize("seconds", [-1, 3601])
def test_a_streams_interval_out_of_range_is_refused(seconds: int) -> None:
    request = messages.StreamBalancesRequest(user_id="bob", min_interval=Duration(seconds=seconds))
    with pytest.raises(FieldInvalid) as refusal:
        read_stream_balances(request.SerializeToString(), BOB)
    assert refusal.value.field == "min_interval"


def test_another_users_stream_is_refused() -> None:
    with pytest.raises(UserForbidden):
        read_stream_balances(messages.StreamBalancesRequest(user_id="alice").SerializeToString(), BOB)
