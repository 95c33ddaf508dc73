"""Quick answers: they are what the handlers would have answered, and leave the same behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.balances.service import BalanceReader
from exchange_service.catalogue import Catalogue
from exchange_service.errors import VenueUnavailable
from exchange_service.grpc_server.authentication import Authentication
from exchange_service.grpc_server.direct import CallEnded, DirectCalls
from exchange_service.grpc_server.handler_wrapper import LOOK_TIME, HandlerWrapper, Look
from exchange_service.grpc_server.methods import ServiceMethods
from exchange_service.grpc_server.requests import RequestReader
from exchange_service.grpc_server.servicer import Servicer
from exchange_service.identity import Kind, Scope
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.quotas import Allowance, Quotas
from exchange_service.identity.tokens import ServiceTokens
from exchange_service.model import Account
from exchange_service.observability.metrics import Metrics
from exchange_service.v1.exchange_service_pb2 import GetBalanceResponse, ListExchangesRequest, ListExchangesResponse
from tests.harness import TestService, balance_request, holding, open_test_service, raising, returning
from tests.test_catalogue import Changing
from tests.test_identity import FakeTokenStore

SERVICE = "/exchange_service.v1.ExchangeService/"
CALLS_A_SECOND = 6
# Counters that a call may raise; durations differ from call to call.
COUNTED = (
    "call_seconds_count",
    "call_failures_total",
    "balance_reads_total",
    "cache_reads_total",
    "venue_fetches_total",
)


@dataclass
class World:
    """The clocks of both sides, which stand still unless a test moves them."""

    loop_time: float = 1_000.0
    wall: float = 1_800_000_000.0

    def advance(self, seconds: float) -> None:
        self.loop_time += seconds
        self.wall += seconds


@dataclass
class Side:
    """A service without a transport, which is asked for quick answers first or not."""

    quick: bool
    service: TestService
    plugin: Changing
    methods: ServiceMethods
    wrapper: HandlerWrapper
    metrics: Metrics
    tokens: dict[str, str]
    rows: FakeTokenStore
    etag: str = ""
    answered_at_once: int = 0
    direct: DirectCalls = field(init=False)

    def __post_init__(self) -> None:
        self.direct = DirectCalls([self.methods])

    def ask(self, method: str, data: bytes, *metadata: tuple[str, str]) -> bytes | None:
        """The quick answer; None if there is none."""
        reply = self.methods.quick[method](data, metadata, None)
        assert not isinstance(reply, Look)
        return reply

    async def call(self, method: str, data: bytes, *metadata: tuple[str, str]) -> tuple[Any, ...]:
        """How the call ends, the ids of requests apart."""
        reply = self.ask(method, data, *metadata) if self.quick else None
        self.answered_at_once += reply is not None
        try:
            reply = reply or await self.direct.unary(SERVICE + method, data, metadata)
        except CallEnded as end:
            return end.status.code, end.status.reason, end.status.message
        if method == "ListExchanges":
            self.etag = ListExchangesResponse.FromString(reply).etag
        elif (message := GetBalanceResponse.FromString(reply)).freshness.HasField("stale"):
            # The delay of a circuit breaker counts down by a clock of its own.
            message.freshness.stale.ClearField("retry_delay")
            reply = message.SerializeToString(deterministic=True)
        return ("answered", reply)

    def counted(self) -> list[str]:
        """What was counted so far."""
        lines = self.metrics.text().decode().splitlines()
        return sorted(line for line in lines if line.removeprefix("exchange_service_").startswith(COUNTED))


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


@asynccontextmanager
async def side(folder: Path, world: World, *, quick: bool) -> AsyncIterator[Side]:
    plugin, rows, metrics = Changing("fakex", "fakey"), FakeTokenStore(), Metrics()
    async with open_test_service(folder, plugin, reference_ttl=1_000.0, max_age=30.0) as service:
        await service.put()
        service.clock.now = world.wall
        tokens = {
            "all": rows.add(Scope(everybody=True)),
            "bob": rows.add(Scope(frozenset({"bob"}))),
            "brief": rows.add(Scope(everybody=True), lifetime=world.wall + 40 - time.time()),
            "acting": rows.add(Scope(everybody=True, requires_act_as=True)),
            "unknown": "xst_000000000000_x",
        }
        quotas = Quotas({Kind.SERVICE: Allowance(CALLS_A_SECOND, 3, 1)})
        authenticator = Authenticator([ServiceTokens(rows.find, rows.close)], quotas)
        reader = BalanceReader(service.balances, authenticator.take_refresh, metrics, call_timeout=10.0)
        unused = cast(Any, None)
        catalogue = Catalogue(service.registry)
        servicer = Servicer(RequestReader(service.registry), authenticator, catalogue, reader, unused, unused)
        wrapper, authentication = HandlerWrapper(metrics), Authentication(authenticator)
        methods = servicer.methods().wrapped(
            lambda method, handler: wrapper.wrap(method.name, authentication.require_caller(handler)),
            lambda name, ready, look: wrapper.wrap_quick(name, authentication.quick(ready, look)),
        )
        yield Side(quick, service, plugin, methods, wrapper, metrics, tokens, rows)
        await authenticator.close()


@asynccontextmanager
async def sides(*quick: bool) -> AsyncIterator[tuple[World, list[Side]]]:
    """So many equal services under the same clocks, the event loop's among them."""
    world, loop = World(), asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        made = []
        for number, asks in enumerate(quick):
            (folder / str(number)).mkdir()
            made.append(await stack.enter_async_context(side(folder / str(number), world, quick=asks)))
        # Not while the services close, which may wait for their tasks by the clock.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "time", lambda: world.loop_time)
            patch.setattr(time, "time", lambda: world.wall)
            yield world, made


Step = Callable[[World, Side], Coroutine[Any, Any, tuple[Any, ...]]]


def balance(token: str, **request: Any) -> Step:
    """A call of GetBalance; `act_as` and `request_id` are sent beside it."""
    extra = [(key, request.pop(name)) for name, key in EXTRA.items() if name in request]
    data = balance_request(**request).SerializeToString()

    async def step(_: World, side: Side) -> tuple[Any, ...]:
        return await side.call("GetBalance", data, bearer(side.tokens[token]), *extra)

    return step


EXTRA = {"act_as": "x-act-as", "request_id": "x-request-id"}


def exchanges(token: str, *, known: bool, **request: Any) -> Step:
    """A call of ListExchanges, by one that has the last reply or not."""

    async def step(_: World, side: Side) -> tuple[Any, ...]:
        message = ListExchangesRequest(etag=side.etag if known else "", **request)
        return await side.call("ListExchanges", message.SerializeToString(), bearer(side.tokens[token]))

    return step


def change(make: Callable[[Side], Any]) -> Step:
    """Something that happens to the service, and may be awaited."""

    async def step(_: World, side: Side) -> tuple[Any, ...]:
        result = make(side)
        if asyncio.iscoroutine(result):
            await result
        return ()

    return step


def passing(seconds: float) -> Step:
    """Time passes, for both sides at once: the second of them only follows."""

    async def step(world: World, side: Side) -> tuple[Any, ...]:
        if side.service.clock.now >= world.wall:
            world.advance(seconds)
        side.service.clock.now = world.wall
        return ()

    return step


def withdraw(name: str) -> Callable[[Side], Any]:
    return lambda side: side.rows.rows.pop(side.tokens[name].split("_")[1], None)


async def new_credential(side: Side) -> None:
    await side.service.put(api_key=f"another-{len(side.plugin.calls)}")
    await side.service.balances.credentials.publish(Account("alice", "fakex"))
    side.service.balances.references.forget(Account("alice", "fakex"))


async def list_only(side: Side, *ids: str) -> None:
    side.plugin.ids = ids
    await side.service.registry.refresh()


def venue_answers(answer: Any) -> Step:
    return change(lambda side: setattr(side.plugin, "answer", answer))


CALLS = st.builds(
    balance,
    st.sampled_from(("all", "all", "all", "bob", "brief", "acting", "unknown")),
    exchange_id=st.sampled_from(("fakex", "fakex", "fakex", "fakey", "nowhere")),
    environment=st.sampled_from(("", "live")),
    max_age=st.sampled_from((None, None, Duration(nanos=5), Duration(seconds=2), Duration(seconds=60))),
    include_zero=st.booleans(),
    known_version=st.sampled_from((0, 0, 5, 1_800_000_001_000_000)),
)
PRESENTED = st.builds(balance, st.sampled_from(("all", "acting")), act_as=st.sampled_from(("alice", "bob"))) | st.just(
    balance("all", request_id="mine")
)
LISTS = st.builds(
    exchanges, st.sampled_from(("all", "bob", "unknown")), known=st.booleans(), page_size=st.sampled_from((0, 1, -1))
)
CHANGES = st.sampled_from(
    (
        change(withdraw("all")),
        change(withdraw("brief")),
        change(new_credential),
        change(lambda side: list_only(side, "fakex", "fakey")),
        change(lambda side: list_only(side, "fakey")),
        change(lambda side: side.service.balances.cached.drop_local("nothing")),
        venue_answers(returning(holding(("BTC", "2"), ("ETH", "0")))),
        venue_answers(raising(VenueUnavailable("It is down."))),
    )
)
# Each step several times, because a caller repeats its calls, and only repeated ones are answered quickly.
STEPS = st.lists(
    st.tuples(
        CALLS | CALLS | PRESENTED | LISTS | CHANGES | st.sampled_from((0.1, 1.1, 8.0, 25.0)).map(passing),
        st.integers(1, 4),
    ),
    min_size=8,
    max_size=30,
)
END = change(lambda side: side.wrapper.end_all())
AT_FIRST = [(balance("all"), 3), (exchanges("all", known=False), 2), (exchanges("all", known=True), 2)]
AT_LAST = [(END, 1), (balance("all"), 2), (exchanges("all", known=True), 1)]


@settings(max_examples=12, deadline=None)
@given(STEPS)
def test_a_call_ends_the_same_and_leaves_the_same_with_quick_answers_and_without(steps: list[tuple[Step, int]]) -> None:
    async def compare() -> None:
        async with sides(True, False) as (world, both):
            for step, times in [*AT_FIRST, *steps, *AT_LAST]:
                for _ in range(times):
                    with_quick, without = [await step(world, side) for side in both]
                    assert with_quick == without
            assert both[0].counted() == both[1].counted()
            assert both[0].answered_at_once >= 2

    asyncio.run(compare())


WARM = balance_request().SerializeToString()
LIST = ListExchangesRequest().SerializeToString()


@asynccontextmanager
async def warmed() -> AsyncIterator[tuple[World, Side]]:
    """A service that has answered both methods, to a caller for all users and to bob."""
    async with sides(True) as (world, (one,)):
        for step in (balance("all"), exchanges("all", known=False), exchanges("bob", known=False), balance("acting")):
            await step(world, one)
        world.advance(1.1)
        one.service.clock.now = world.wall
        # The window of this second is open.
        for name in ("all", "bob", "acting"):
            await exchanges(name, known=False)(world, one)
        yield world, one


async def test_a_warm_call_is_answered_at_once_counted_once_and_costs_one_of_the_callers_calls() -> None:
    async with warmed() as (_, one):
        before = one.counted()
        reply = one.ask("GetBalance", WARM, bearer(one.tokens["all"]))
        assert reply is not None
        assert GetBalanceResponse.FromString(reply).balance.user_id == "alice"
        assert sorted(set(one.counted()) - set(before)) == [
            'exchange_service_balance_reads_total{source="cache"} 1.0',
            'exchange_service_cache_reads_total{kind="process"} 1.0',
            'exchange_service_call_seconds_count{code="OK",method="GetBalance"} 2.0',
        ]
        # Two of this second's calls are made.
        answers = [one.ask("ListExchanges", LIST, bearer(one.tokens["all"])) for _ in range(CALLS_A_SECOND)]
        assert [reply is not None for reply in answers] == [True] * (CALLS_A_SECOND - 2) + [False] * 2


async def test_the_callers_copy_that_is_current_is_told_so_at_once() -> None:
    async with warmed() as (world, one):
        known = ListExchangesRequest(etag=one.etag).SerializeToString()
        assert one.ask("ListExchanges", known, bearer(one.tokens["all"])) is None
        await exchanges("all", known=True)(world, one)
        reply = one.ask("ListExchanges", known, bearer(one.tokens["all"]))
        assert reply is not None
        assert ListExchangesResponse.FromString(reply) == ListExchangesResponse(etag=one.etag, not_modified=True)


def metadata_of(one: Side, token: str = "all", *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (bearer(one.tokens[token]), *more)


NOT_ORDINARY: dict[str, Callable[[Side], tuple[bytes, tuple[tuple[str, str], ...]]]] = {
    "no token": lambda one: (WARM, ()),
    "a token that is not known": lambda one: (WARM, metadata_of(one, "unknown")),
    "two tokens": lambda one: (WARM, metadata_of(one, "all", bearer(one.tokens["all"]))),
    "another scheme": lambda one: (WARM, (("authorization", f"Basic {one.tokens['all']}"),)),
    "another user": lambda one: (WARM, metadata_of(one, "bob")),
    "a caller that must name its user": lambda one: (WARM, metadata_of(one, "acting")),
    "a named user": lambda one: (WARM, metadata_of(one, "all", ("x-act-as", "alice"))),
    "a request id": lambda one: (WARM, metadata_of(one, "all", ("x-request-id", "mine"))),
    "too many fields": lambda one: (WARM, metadata_of(one, "all", *[("field", "x")] * 128)),
    "another request": lambda one: (balance_request(include_zero=True).SerializeToString(), metadata_of(one)),
}


@pytest.mark.parametrize("what", NOT_ORDINARY)
async def test_what_is_not_ordinary_is_left_to_the_handler_and_counted_nowhere(what: str) -> None:
    async with warmed() as (_, one):
        before = one.counted()
        data, metadata = NOT_ORDINARY[what](one)
        assert one.ask("GetBalance", data, *metadata) is None
        assert one.counted() == before
        # Nor are calls used up: as many as before are left.
        answers = [one.ask("GetBalance", WARM, bearer(one.tokens["all"])) for _ in range(CALLS_A_SECOND - 1)]
        assert None not in answers


LATER: dict[str, Callable[[World, Side], Any]] = {
    "the balance is too old": lambda world, one: passing(31.0)(world, one),
    "the service ends": lambda world, one: one.wrapper.end_all(),
    "the registry has changed": lambda world, one: list_only(one, "fakex"),
    "the credential has changed": lambda world, one: new_credential(one),
}


@pytest.mark.parametrize("what", LATER)
async def test_nothing_is_answered_at_once_any_more_when(what: str) -> None:
    async with warmed() as (world, one):
        assert one.ask("GetBalance", WARM, bearer(one.tokens["all"])) is not None
        result = LATER[what](world, one)
        if asyncio.iscoroutine(result):
            await result
        # A known caller with calls left, so that only the change can be the reason.
        await exchanges("all", known=False)(world, one)
        assert one.ask("GetBalance", WARM, bearer(one.tokens["all"])) is None


async def test_a_token_that_was_withdrawn_or_has_expired_is_not_known_any_more() -> None:
    async with warmed() as (world, one):
        await exchanges("brief", known=False)(world, one)
        for name in ("all", "brief"):
            assert one.ask("ListExchanges", LIST, bearer(one.tokens[name])) is not None
        world.wall += 41
        assert one.ask("ListExchanges", LIST, bearer(one.tokens["all"])) is not None
        assert one.ask("ListExchanges", LIST, bearer(one.tokens["brief"])) is None
        one.service.clock.now = world.wall
        withdraw("all")(one)
        world.loop_time += 20
        assert one.ask("ListExchanges", LIST, bearer(one.tokens["all"])) is None
        assert (await exchanges("all", known=False)(world, one))[1] == "CALLER_UNKNOWN"


async def test_a_call_is_counted_while_it_looks_so_a_caller_has_no_more_looks_than_calls() -> None:
    async with warmed() as (world, one):
        await passing(31.0)(world, one)
        # A window of this second, of which one call is used.
        await exchanges("all", known=False)(world, one)
        reading: asyncio.Future[Any] = asyncio.Future()
        cached: Any = one.service.balances.cached
        cached.look = lambda *_: reading
        metadata, ask = metadata_of(one), one.methods.quick["GetBalance"]
        asked = [ask(WARM, metadata, None) for _ in range(CALLS_A_SECOND + 2)]
        looks = [look for look in asked if isinstance(look, Look)]
        assert len(looks) == CALLS_A_SECOND - 1
        # A look that brings nothing gives its call back: the handler counts it.
        assert [look.reply() for look in looks] == [None] * len(looks)
        assert isinstance(ask(WARM, metadata, LOOK_TIME), Look)
        assert ask(WARM, metadata, LOOK_TIME - 0.01) is None
