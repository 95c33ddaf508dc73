"""The service as callers meet it who have to say who they are: every way to do so, scopes, streams, quotas, start."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import jwt
import psycopg
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from exchange_service.app import UnsafeSettings, check_safety, start_service
from exchange_service.client import ExchangeServiceClient, ServiceUnreachable
from exchange_service.errors import CallerUnknown, UserForbidden
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.identity import Scope, authenticator, key_sets, token_store, tokens
from exchange_service.identity.methods import who_may_call
from exchange_service.plugin_api import Balance, VenueCall
from exchange_service.v1 import error_reason_pb2
from exchange_service.v1 import exchange_service_pb2 as messages
from tests import identities
from tests.harness import (
    PATIENCE,
    Running,
    ScriptedPlugin,
    Stream,
    balance_request,
    failure,
    failure_of,
    holding,
    listing,
    registry_of,
    serving,
    settings_for,
    totals,
)
from tests.identities import SECRET, Authority, bearer, client_of, issuing, service_token, web_token

USERS = ("alice", "bob", "carol", "dave")
EXCHANGES = ("paper", "pencil")
# Everybody but dave has stored something, and not everywhere.
STORED = {("alice", "paper"), ("alice", "pencil"), ("bob", "paper"), ("carol", "pencil")}
EVERYBODY = Scope(everybody=True)
ACTS_FOR_ALL = Scope(everybody=True, must_say=True)
OUTSIDE = "USER_FORBIDDEN: This user's accounts are outside the caller's scope."


def figure(user: str, exchange_id: str) -> str:
    """What the venue says of this account, and of no other."""
    return f"{USERS.index(user) + 1}{EXCHANGES.index(exchange_id) + 1}.5"


async def _answer(call: VenueCall) -> Balance:
    return holding(("BTC", figure(call.account.user_id, call.exchange.id)))


def a_plugin() -> ScriptedPlugin:
    return ScriptedPlugin(*map(listing, EXCHANGES), answer=_answer)


@asynccontextmanager
async def guarded(folder: Path, *, plugin: ScriptedPlugin | None = None, **changes: Any) -> AsyncIterator[Running]:
    """A service that takes JWTs of the shared secret and service tokens, with what is stored at both exchanges."""
    ways = {"jwt_secret": SECRET, "service_tokens": True} | changes
    async with serving(folder, registry=registry_of(plugin or a_plugin()), **ways) as running:
        for user, exchange_id in STORED:
            await running.store(exchange_id, user=user)
        yield running


def opened(running: Running, metadata: Sequence[tuple[str, str]], user: str = "alice", *exchanges: str) -> Stream:
    accounts = [messages.AccountSelector(exchange_id=exchange_id) for exchange_id in exchanges]
    request = messages.StreamBalancesRequest(user_id=user, accounts=accounts)
    return Stream(running.stub.StreamBalances(request, metadata=metadata))


def reading(running: Running, metadata: Sequence[tuple[str, str]], user: str = "alice", **changes: Any) -> Any:
    return running.stub.GetBalance(balance_request(user_id=user, **changes), metadata=metadata)


def with_changes(token: str, **header: Any) -> str:
    """The token with another header, and the signature that it had."""
    _, payload, signature = token.split(".")
    changed = jwt.utils.base64url_encode(json.dumps({"typ": "JWT", "alg": "HS256", **header}).encode()).decode()
    return f"{changed}.{payload}.{signature}"


# What proves nothing. Each was made with care, but without the secret, or is over.
WORTHLESS: dict[str, str] = {
    "nonsense": "nonsense",
    "nothing behind the word": "",
    "another secret": web_token(secret="another-secret-that-is-long-enough-for-its-use"),
    "no signature": jwt.encode({"sub": "alice", "aud": "authenticated", "exp": 4e9}, None, algorithm="none"),
    "another algorithm in its header": with_changes(web_token(), alg="RS256"),
    "an algorithm that is no text": with_changes(web_token(), alg=["HS256"]),
    "a critical extension": with_changes(web_token(), crit=["b64"], b64=False),
    "over for an hour": web_token(lifetime=-3600),
    "no end": web_token(exp=None),
    "an end that is none": web_token(exp="never"),
    "endless": web_token(exp=float("inf")),
    "longer than any clock": web_token(exp=10**400),
    "no subject": web_token(None),
    "an empty subject": web_token(" "),
    "the subject of all": web_token("*"),
    "Supabase's key for everybody": web_token(None, role="anon", aud=None),
    "another audience": web_token(aud="somebody else"),
    "no audience": web_token(aud=None),
    "not yet": web_token(nbf=4_000_000_000),
    "a claim of users that is none": web_token(exchange_service_users={"all": True}),
    "a claim of users with a number": web_token(exchange_service_users=["alice", 7]),
    "a claim of no users": web_token(exchange_service_users=[]),
    "a service token that was never made": tokens.new_token("x", EVERYBODY)[0],
    "the beginning of a service token": "xst_",
    "a service token of another shape": "xst_" + "z" * 12 + "_secret",
}


class TestProof:
    async def test_without_any_a_call_gets_nothing(self, tmp_path: Path) -> None:
        plugin = a_plugin()
        async with guarded(tmp_path, plugin=plugin) as running:
            for call in (
                running.stub.ListExchanges(messages.ListExchangesRequest()),
                running.stub.GetBalance(balance_request(user_id="alice")),
                Stream(running.stub.StreamBalances(messages.StreamBalancesRequest(user_id="alice"))).next(),
            ):
                failed = await failure(call)
                assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")
                assert "Bearer" in failed.message
        assert plugin.calls == []

    @pytest.mark.threat("T1")
    async def test_what_proves_nothing_opens_nothing_and_is_not_repeated(self, tmp_path: Path) -> None:
        plugin = a_plugin()
        async with guarded(tmp_path, plugin=plugin) as running:
            # What is kept is no way round the door.
            await reading(running, bearer(web_token()))
            asked = len(plugin.calls)
            with capture_logs() as lines:
                for name, token in WORTHLESS.items():
                    for call in (reading(running, bearer(token)), opened(running, bearer(token)).next()):
                        failed = await failure(call)
                        assert failed.reason == "CALLER_UNKNOWN", name
                        assert len(token) < 8 or token not in repr(failed), name
            assert len(plugin.calls) == asked
            assert not [line for line in lines if line["log_level"] == "error"]

    @pytest.mark.parametrize(
        "metadata",
        [
            [("authorization", web_token())],
            [("authorization", f"Basic {web_token()}")],
            [*bearer(web_token("alice")), *bearer(web_token("bob"))],
            [*bearer(web_token()), ("x-act-as", "alice"), ("x-act-as", "bob")],
        ],
        ids=["no scheme", "another scheme", "two tokens", "two users"],
    )
    async def test_what_is_not_clear_is_refused(self, tmp_path: Path, metadata: list[tuple[str, str]]) -> None:
        async with guarded(tmp_path) as running:
            failed = await failure(reading(running, metadata))
        assert failed.reason == "CALLER_UNKNOWN"

    async def test_a_users_own_token_reads_that_user_alone(self, tmp_path: Path) -> None:
        async with guarded(tmp_path) as running, client_of(running, token=web_token("bob")) as client:
            assert totals((await client.get_balance("bob", "paper")).balance) == {"BTC": figure("bob", "paper")}
            assert (await client.list_exchanges()).stats.total == 2
            with pytest.raises(UserForbidden):
                await client.get_balance("alice", "paper")

    async def test_a_claim_widens_a_token_to_the_users_that_it_names(self, tmp_path: Path) -> None:
        token = web_token("desk", exchange_service_users=["alice", "bob"])
        async with guarded(tmp_path) as running, client_of(running, token=token) as client:
            for user in ("alice", "bob"):
                await client.get_balance(user, "paper")
            with pytest.raises(UserForbidden):
                await client.get_balance("carol", "pencil")

    async def test_the_claim_that_widens_may_have_another_name_and_then_only_that_one_counts(
        self, tmp_path: Path
    ) -> None:
        async with guarded(tmp_path, jwt_users_claim="readers") as running:
            await reading(running, bearer(web_token("desk", readers="*")))
            failed = await failure(reading(running, bearer(web_token("desk", exchange_service_users="*"))))
        assert failed.reason == "USER_FORBIDDEN"

    async def test_an_issuer_and_an_audience_that_are_set_must_be_the_tokens(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, jwt_issuer="https://issuer.example", jwt_audience="balances") as running:
            good = {"iss": "https://issuer.example", "aud": "balances"}
            await reading(running, bearer(web_token(**good)))
            for claims in (good | {"iss": "https://other.example"}, good | {"aud": "other"}, good | {"iss": None}):
                failed = await failure(reading(running, bearer(web_token(**claims))))
                assert failed.reason == "CALLER_UNKNOWN", claims

    async def test_a_token_whose_clock_is_behind_by_less_than_the_leeway_is_taken(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, jwt_leeway=60) as running:
            await reading(running, bearer(web_token(lifetime=-20)))
        (tmp_path / "strict").mkdir()
        async with guarded(tmp_path / "strict", jwt_leeway=0) as running:
            assert (await failure(reading(running, bearer(web_token(lifetime=-20))))).reason == "CALLER_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A caller, for whom he says to be, and what he asks for."""

    kind: str
    users: frozenset[str]
    act_as: str | None
    target: str
    exchange_id: str
    streamed: bool
    warm: bool
    forced: bool

    @property
    def is_known(self) -> bool:
        return not self.kind.startswith("no ")

    @property
    def may_read(self) -> bool:
        """The rules of scopes, told once more and in another way than the service's."""
        if self.act_as is not None and self.act_as != self.target:
            return False
        if "acting" in self.kind:
            return self.act_as is not None
        if self.kind == "own token":
            return self.target == min(self.users)
        return "all" in self.kind or self.target in self.users


ATTEMPTS = st.builds(
    Attempt,
    kind=st.sampled_from(
        [
            *("own token", "list by JWT", "all by JWT", "acting by JWT"),
            *("list by token", "all by token", "acting by token"),
            *("no proof", "no secret", "no time left", "no such token"),
        ]
    ),
    users=st.frozensets(st.sampled_from(USERS), min_size=1, max_size=3),
    act_as=st.none() | st.sampled_from(USERS),
    target=st.sampled_from(USERS),
    exchange_id=st.sampled_from(EXCHANGES),
    streamed=st.booleans(),
    warm=st.booleans(),
    forced=st.booleans(),
)


def _attempt(
    kind: str, target: str, *, act_as: str | None = None, streamed: bool = False, warm: bool = True
) -> Attempt:
    return Attempt(kind, frozenset({"bob"}), act_as, target, "paper", streamed, warm, False)


async def shown_by(running: Running, attempt: Attempt) -> list[tuple[str, str]]:
    """The metadata of the attempt."""
    users = sorted(attempt.users)
    claim = "*" if "all" in attempt.kind else "act-as" if "acting" in attempt.kind else users
    scope = EVERYBODY if "all" in attempt.kind else ACTS_FOR_ALL if "acting" in attempt.kind else Scope(attempt.users)
    said = [] if attempt.act_as is None else [("x-act-as", attempt.act_as)]
    if attempt.kind == "own token":
        return [*bearer(web_token(users[0])), *said]
    if attempt.kind.endswith("by JWT"):
        return [*bearer(web_token("a service", exchange_service_users=claim)), *said]
    if attempt.kind.endswith("by token"):
        return [*bearer((await service_token(running, scope))[0]), *said]
    worthless = {
        "no secret": web_token("a service", secret="x" * 32, exchange_service_users="*"),
        "no time left": web_token("a service", lifetime=-600, exchange_service_users="*"),
        "no such token": tokens.new_token("x", EVERYBODY)[0],
    }
    return [*(bearer(worthless[attempt.kind]) if attempt.kind in worthless else []), *said]


@dataclass(slots=True)
class Watching:
    """A guarded service with what shows that somebody came further than the door."""

    running: Running
    plugin: ScriptedPlugin
    statements: list[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Got:
    """What came of an attempt: a balance, or the reason why there is none."""

    balance: Any = None
    reason: str = ""
    message: str = ""


class TestScope:
    @pytest.fixture
    async def watching(self, tmp_path: Path) -> AsyncIterator[Watching]:
        plugin, statements = a_plugin(), list[str]()
        plenty = {"user_calls": 10**6, "user_refreshes": 10**6, "service_refreshes": 10**6, "service_calls": 10**6}
        async with guarded(tmp_path, plugin=plugin, **plenty) as running:
            engine = running.service.store._engine.sync_engine
            sa.event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
            yield Watching(running, plugin, statements)

    @pytest.mark.threat("T1")
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(attempt=ATTEMPTS)
    @example(attempt=_attempt("own token", "alice"))
    @example(attempt=_attempt("own token", "alice", streamed=True))
    @example(attempt=_attempt("own token", "alice", act_as="alice", streamed=True))
    @example(attempt=_attempt("own token", "dave", warm=False))
    @example(attempt=_attempt("acting by token", "alice"))
    @example(attempt=_attempt("acting by JWT", "alice", act_as="bob", streamed=True))
    @example(attempt=_attempt("list by token", "alice", act_as="alice"))
    async def test_a_caller_outside_his_scope_gets_nothing_whatever_is_kept_and_however_he_asks(
        self, watching: Watching, attempt: Attempt
    ) -> None:
        running = watching.running
        auditor = bearer(web_token("auditor", exchange_service_users="*"))
        await running.service.cache.close()
        followed = None
        if attempt.warm:
            # Somebody who may read it has just done so, and follows it.
            followed = opened(running, auditor, attempt.target, attempt.exchange_id)
            await followed.next()
        shown = await shown_by(running, attempt)
        calls, statements = len(watching.plugin.calls), len(watching.statements)
        got = await self.made(running, shown, attempt)
        if followed is not None:
            followed.call.cancel()
        if not (attempt.is_known and attempt.may_read):
            assert got.balance is None
            assert got.reason == ("USER_FORBIDDEN" if attempt.is_known else "CALLER_UNKNOWN")
            # He was stopped at the door: no venue, no credential's reference was asked for on his behalf.
            assert len(watching.plugin.calls) == calls
            assert len(watching.statements) == statements
            assert not any(user in got.message for user in USERS)
        elif (attempt.target, attempt.exchange_id) in STORED:
            assert not got.reason
            assert got.balance.user_id == attempt.target
            assert totals(got.balance) == {"BTC": figure(attempt.target, attempt.exchange_id)}
        else:
            assert got.reason == "CREDENTIAL_MISSING"

    @staticmethod
    async def made(running: Running, shown: list[tuple[str, str]], attempt: Attempt) -> Got:
        """The attempt, by a call or by a stream."""
        request = balance_request(attempt.exchange_id, user_id=attempt.target)
        if attempt.forced:
            request.max_age.FromSeconds(0)
        try:
            if not attempt.streamed:
                return Got((await running.stub.GetBalance(request, metadata=shown)).balance)
            stream = opened(running, shown, attempt.target, attempt.exchange_id)
            event = await stream.next()
            stream.call.cancel()
        except grpc.aio.AioRpcError as error:
            failed = failure_of(error)
            return Got(None, failed.reason, failed.message)
        if event.HasField("balance"):
            return Got(event.balance.balance)
        fault = event.account_error.error
        return Got(None, error_reason_pb2.ErrorReason.Name(fault.reason).removeprefix("ERROR_REASON_"), fault.message)

    @pytest.mark.threat("T1", attack=True)
    async def test_where_nobody_is_told_apart_everybody_reads_everybody(self, tmp_path: Path) -> None:
        """The attack that scopes are against: without them it succeeds."""
        async with serving(tmp_path, registry=registry_of(a_plugin())) as running:
            await running.store(user="alice")
            reply = await reading(running, bearer(web_token("bob")), "alice")
            assert totals(reply.balance) == {"BTC": figure("alice", "paper")}
        async with guarded(tmp_path) as running:
            failed = await failure(reading(running, bearer(web_token("bob")), "alice"))
        assert failed.message.startswith(OUTSIDE)

    async def test_a_user_who_exists_and_one_who_does_not_are_refused_in_the_same_words(self, tmp_path: Path) -> None:
        async with guarded(tmp_path) as running:
            answers = set()
            for user in ("alice", "dave", "nobody-at-all", "\N{GRINNING FACE}"):
                for changes in ({}, {"exchange_id": "nowhere"}, {"environment": "moon"}):
                    failed = await failure(reading(running, bearer(web_token("bob")), user, **changes))
                    answers.add((failed.code, failed.message, str(failed.details)))
                for exchanges in (("nowhere",), ("paper",), ()):
                    failed = await failure(opened(running, bearer(web_token("bob")), user, *exchanges).next())
                    answers.add((failed.code, failed.message, str(failed.details)))
        ((code, message, _),) = answers
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert message.startswith(OUTSIDE)

    async def test_who_acts_for_users_must_say_for_whom(self, tmp_path: Path) -> None:
        async with guarded(tmp_path) as running:
            token, _ = await service_token(running, ACTS_FOR_ALL)
            assert (await reading(running, bearer(token, "alice"))).balance.user_id == "alice"
            silent = await failure(reading(running, bearer(token)))
            other = await failure(reading(running, bearer(token, "bob")))
            streamed = await failure(opened(running, bearer(token, "bob"), "alice", "paper").next())
        assert silent.reason == other.reason == streamed.reason == "USER_FORBIDDEN"
        assert "x-act-as" in silent.message
        assert "x-act-as" in other.message


class TestStreams:
    async def test_a_stream_ends_with_its_token(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, jwt_leeway=0) as running:
            stream = opened(running, bearer(web_token(lifetime=2)), "alice", "paper")
            await stream.next_of("balance")
            async with asyncio.timeout(PATIENCE):
                ended = await stream.failure()
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")
        assert ended.message.startswith("CALLER_UNKNOWN: The token has expired. Open the stream again with a new one.")

    @pytest.fixture
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Callers of streams are looked at again at once, and tokens at each look."""
        monkeypatch.setattr(authenticator, "_RECHECK_INTERVAL", 0.05)
        monkeypatch.setattr(tokens, "_KEEP", 0.0)

    def test_a_revoked_token_is_good_for_less_than_thirty_seconds(self) -> None:
        assert tokens._KEEP + authenticator._RECHECK_INTERVAL + token_store._CALL_LIMIT < 30

    @pytest.mark.usefixtures("quick")
    async def test_a_revoked_token_ends_its_streams_and_nobody_elses(self, tmp_path: Path) -> None:
        async with guarded(tmp_path) as running:
            revoked, stored = await service_token(running, EVERYBODY)
            kept, _ = await service_token(running, EVERYBODY)
            streams = [opened(running, bearer(revoked), user, "paper") for user in ("alice", "bob")]
            other = opened(running, bearer(kept), "alice", "paper")
            for stream in (*streams, other):
                await stream.next_of("balance")
            async with identities.token_store(running.service.settings.database_url) as store:
                assert await store.revoke(stored.id)
            for stream in streams:
                ended = await stream.failure()
                assert (ended.reason, "revoked" in ended.message) == ("CALLER_UNKNOWN", True)
            assert (await failure(reading(running, bearer(revoked)))).reason == "CALLER_UNKNOWN"
            assert (await reading(running, bearer(kept))).balance.user_id == "alice"
            assert not other.call.done()
            other.call.cancel()

    @pytest.mark.usefixtures("quick")
    async def test_a_scope_that_shrinks_ends_the_streams_of_those_who_have_left_it(self, tmp_path: Path) -> None:
        async with guarded(tmp_path) as running:
            token, stored = await service_token(running, Scope(frozenset({"alice", "bob"})))
            leaves, stays = (opened(running, bearer(token), user, "paper") for user in ("alice", "bob"))
            await leaves.next_of("balance")
            await stays.next_of("balance")
            async with identities.token_store(running.service.settings.database_url) as store:
                smaller = sa.update(token_store._TOKENS).where(token_store._TOKENS.c.id == stored.id)
                await store._call(lambda connection: connection.execute(smaller.values(scope='["bob"]')))
            assert (await leaves.failure()).reason == "USER_FORBIDDEN"
            assert not stays.call.done()
            stays.call.cancel()

    @pytest.mark.usefixtures("quick")
    async def test_a_database_that_is_away_ends_no_stream_and_lets_nobody_new_in(
        self, tmp_path: Path, own_postgres_database: str, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(token_store, "_CALL_LIMIT", 0.3)
        async with guarded(tmp_path, database_url=own_postgres_database) as running:
            known, _ = await service_token(running, EVERYBODY)
            unknown, _ = await service_token(running, EVERYBODY)
            stream = opened(running, bearer(known), "alice", "paper")
            await stream.next_of("balance")
            with postgres_server.frozen():
                failed = await failure(reading(running, bearer(unknown)))
                assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
                assert (await reading(running, bearer(known))).balance.user_id == "alice"
                assert not stream.call.done()
            stream.call.cancel()


class TestQuotas:
    @pytest.mark.threat("T13")
    async def test_calls_beyond_the_quota_are_refused_with_a_delay_and_reach_nothing(self, tmp_path: Path) -> None:
        plugin = a_plugin()
        async with guarded(tmp_path, plugin=plugin, user_calls=5) as running:
            replies = [reading(running, bearer(web_token("alice"))) for _ in range(12)]
            failures = []
            for reply in replies:
                try:
                    await reply
                except grpc.aio.AioRpcError as error:
                    failures.append(failure_of(error))
            # Another caller has his own.
            await reading(running, bearer(web_token("bob")), "bob")
        assert len(failures) >= 6
        for failed in failures:
            assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLER_RATE_LIMITED")
            assert failed.retry_delay is not None
            assert 0 < failed.retry_delay <= 1

    @pytest.mark.threat("T14")
    async def test_refreshes_that_are_forced_have_a_quota_of_their_own(self, tmp_path: Path) -> None:
        plugin = a_plugin()
        async with guarded(tmp_path, plugin=plugin, user_refreshes=3) as running:
            token = bearer(web_token("alice"))
            request = balance_request(user_id="alice")
            for nanos in (0, 0, 1000):
                request.max_age.FromNanoseconds(nanos)
                await running.stub.GetBalance(request, metadata=token)
            assert len(plugin.calls) == 3
            failed = await failure(running.stub.GetBalance(request, metadata=token))
            assert failed.reason == "CALLER_RATE_LIMITED"
            assert failed.retry_delay is not None
            assert 50 < failed.retry_delay <= 60
            # What is kept he may still have.
            assert (await reading(running, token)).balance.user_id == "alice"
            assert len(plugin.calls) == 3

    @pytest.mark.threat("T13")
    async def test_streams_beyond_the_quota_are_refused_until_one_ends(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, user_streams=2) as running:
            token = bearer(web_token("alice"))
            streams = [opened(running, token, "alice", "paper") for _ in range(2)]
            for stream in streams:
                await stream.next_of("balance")
            failed = await failure(opened(running, token, "alice", "paper").next())
            assert failed.reason == "CALLER_RATE_LIMITED"
            assert failed.retry_delay is not None
            streams.pop().call.cancel()
            async with asyncio.timeout(PATIENCE):
                while True:
                    again = opened(running, token, "alice", "paper")
                    try:
                        await again.next_of("balance")
                    except grpc.aio.AioRpcError:
                        continue
                    break
            for stream in (again, *streams):
                stream.call.cancel()

    @pytest.mark.threat("T13")
    async def test_replicas_count_calls_together(self, tmp_path: Path, redis_url: str) -> None:
        shared: dict[str, Any] = {
            "cache_url": redis_url,
            "hash_key": "the same for all replicas",
            "cache_prefix": f"test-{uuid.uuid4().hex}:",
            "service_calls": 40,
        }
        token = bearer(web_token("desk", exchange_service_users="*"))
        request = messages.ListExchangesRequest()
        async with guarded(tmp_path, **shared) as first, guarded(tmp_path, **shared) as second:
            calls = [side.stub.ListExchanges(request, metadata=token) for _ in range(60) for side in (first, second)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        taken = sum(not isinstance(answer, BaseException) for answer in answers)
        # A second may end while they are made; each process alone would take 40 of its 60.
        assert taken in (40, 80)

    async def test_a_redis_that_is_away_leaves_each_replica_its_own_count(
        self, tmp_path: Path, redis_server: Any
    ) -> None:
        redis_server.kill()
        async with guarded(tmp_path, cache_url=redis_server.url, hash_key="0123456789abcdef", user_calls=3) as running:
            token = bearer(web_token("alice"))
            answers = await asyncio.gather(*(reading(running, token) for _ in range(10)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert len(refused) >= 4
        assert {failure_of(error).reason for error in refused} == {"CALLER_RATE_LIMITED"}


def secured(authority: Authority, **changes: Any) -> dict[str, Any]:
    """Settings of a service that others can reach, with TLS."""
    certificate, key = authority.sign("exchange-service")
    return {"address": "0.0.0.0:0", "tls_certificate": certificate, "tls_key": key, "jwt_secret": None} | changes


class TestCertificates:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority.made(tmp_path / "authority")

    @pytest.fixture
    async def running(self, tmp_path: Path, authority: Authority) -> AsyncIterator[Running]:
        scopes = {"billing": "*", "desk.example": ["alice"], "gateway": "act-as", "twice": ["bob"]}
        changes = secured(authority, tls_client_ca=authority.file, client_certificates=scopes, jwt_secret=SECRET)
        async with guarded(tmp_path, **changes) as running:
            yield running

    async def test_a_certificates_common_name_or_dns_name_says_whom_it_reads(
        self, running: Running, authority: Authority
    ) -> None:
        billing = authority.channel_credentials(authority.sign("billing"))
        desk = authority.channel_credentials(authority.sign("whatever", "desk.example"))
        async with client_of(running, credentials=billing) as client:
            assert totals((await client.get_balance("carol", "pencil")).balance) == {"BTC": figure("carol", "pencil")}
        async with client_of(running, credentials=desk) as client:
            await client.get_balance("alice", "paper")
            with pytest.raises(UserForbidden):
                await client.get_balance("bob", "paper")

    async def test_a_gateways_certificate_reads_whom_each_call_names(
        self, running: Running, authority: Authority
    ) -> None:
        gateway = authority.channel_credentials(authority.sign("gateway"))
        async with client_of(running, credentials=gateway, metadata=[("x-act-as", "bob")]) as client:
            await client.get_balance("bob", "paper")
            with pytest.raises(UserForbidden):
                await client.get_balance("alice", "paper")

    @pytest.mark.parametrize(
        "names",
        [
            ("stranger",),
            ("BILLING",),
            # Who signs may have looked at the DNS names alone, and let the holder choose the rest.
            ("billing", "stranger.example"),
            ("whatever", "desk.example", "twice"),
        ],
        ids=" and ".join,
    )
    async def test_names_that_are_not_known_or_not_of_one_mind_read_nothing(
        self, running: Running, authority: Authority, names: tuple[str, ...]
    ) -> None:
        shown = authority.channel_credentials(authority.sign(*names))
        async with client_of(running, credentials=shown) as client:
            with pytest.raises(CallerUnknown):
                await client.get_balance("alice", "paper")
            with pytest.raises(CallerUnknown):
                await client.list_exchanges()

    async def test_a_token_counts_before_the_certificate_that_opened_the_connection(
        self, running: Running, authority: Authority
    ) -> None:
        billing = authority.channel_credentials(authority.sign("billing"))
        async with client_of(running, credentials=billing, token=web_token("bob")) as client:
            await client.get_balance("bob", "paper")
            with pytest.raises(UserForbidden):
                await client.get_balance("alice", "paper")
        # A token that is no good does not fall back on it either.
        async with client_of(running, credentials=billing, token="nonsense") as client:
            with pytest.raises(CallerUnknown):
                await client.get_balance("bob", "paper")

    async def test_without_a_certificate_of_the_authority_there_is_no_connection(
        self, running: Running, authority: Authority, tmp_path: Path
    ) -> None:
        forger = Authority.made(tmp_path / "forger")
        forged = grpc.ssl_channel_credentials(
            authority.file.read_bytes(), *(file.read_bytes() for file in reversed(forger.sign("billing")))
        )
        for shown in (authority.channel_credentials(), forged):
            async with client_of(running, credentials=shown, timeout=2) as client:
                with pytest.raises(ServiceUnreachable):
                    await client.get_balance("alice", "paper")

    async def test_a_stream_ends_with_its_certificate(self, running: Running, authority: Authority) -> None:
        short = authority.channel_credentials(authority.sign("billing", lifetime=2))
        async with client_of(running, credentials=short) as client:
            stream = opened(Running(running.service, client), [], "alice", "paper")
            await stream.next_of("balance")
            ended = await stream.failure()
        assert ended.reason == "CALLER_UNKNOWN"
        assert "expired" in ended.message


class TestStart:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority.made(tmp_path / "authority")

    async def refusal(self, folder: Path, **changes: Any) -> str:
        try:
            service = await start_service(settings_for(folder, **changes), registry=registry_of(a_plugin()))
        except UnsafeSettings as refused:
            return str(refused)
        await service.stop()
        raise AssertionError("it should not start")

    async def test_where_others_reach_it_a_service_needs_a_way_to_tell_callers_apart(
        self, tmp_path: Path, authority: Authority
    ) -> None:
        text = await self.refusal(tmp_path, **secured(authority))
        for name in ("service_tokens", "jwt_secret", "tls_client_ca", "open_to_all"):
            assert name in text
        async with serving(tmp_path, registry=registry_of(a_plugin()), **secured(authority, service_tokens=True)):
            pass

    async def test_the_operator_may_insist_on_serving_anybody(self, tmp_path: Path, authority: Authority) -> None:
        open_to_all = secured(authority, open_to_all=True)
        async with serving(tmp_path, registry=registry_of(a_plugin()), **open_to_all) as running:
            async with client_of(running, credentials=authority.channel_credentials()) as client:
                assert (await client.list_exchanges()).stats.total == 2
            assert "ANYBODY" in who_may_call(running.service.settings)

    @pytest.mark.threat("T9")
    @pytest.mark.parametrize("insecure", [False, True])
    async def test_tokens_never_cross_a_network_in_the_clear(self, tmp_path: Path, insecure: bool) -> None:
        for way in ({"service_tokens": True}, {"jwt_secret": SECRET}, {"jwt_jwks_url": "https://issuer.example/keys"}):
            text = await self.refusal(tmp_path, address="0.0.0.0:0", insecure=insecure, **way)
            assert "insecure" in text if insecure else "in the clear" in text

    @pytest.mark.parametrize("told", list(itertools.product([False, True], repeat=5)), ids=str)
    def test_every_combination_of_what_opens_the_service_starts_or_is_refused_with_a_sentence(
        self, tmp_path: Path, told: tuple[bool, ...]
    ) -> None:
        loopback, tls, identity, insecure, open_to_all = told
        file = tmp_path / "file.pem"
        file.touch()
        chosen = settings_for(
            tmp_path,
            address="127.0.0.1:0" if loopback else "0.0.0.0:0",
            tls_certificate=file if tls else None,
            tls_key=file if tls else None,
            service_tokens=identity,
            insecure=insecure,
            open_to_all=open_to_all,
        )
        # The rules told once more: whom it serves has one meaning, and elsewhere than here nothing is open unsaid.
        contradicts = identity and (insecure or open_to_all)
        secured_or_told = (tls and (identity or open_to_all or insecure)) or (insecure and not identity)
        if not contradicts and (loopback or secured_or_told):
            check_safety(chosen)
            assert ("ANYBODY" in who_may_call(chosen)) == (not loopback and not identity)
            return
        with pytest.raises(UnsafeSettings) as refused:
            check_safety(chosen)
        text = str(refused.value)
        assert text.endswith(".")
        # It names what to change.
        assert any(name in text for name in ("tls_certificate", "insecure", "open_to_all"))

    async def test_settings_that_contradict_each_other_are_named(self, tmp_path: Path, authority: Authority) -> None:
        tls = secured(authority)
        certificates = {"client_certificates": {"billing": "*"}}
        file = authority.file
        for name, changes in {
            "open_to_all": tls | {"open_to_all": True, "service_tokens": True},
            "tls_client_ca needs TLS": {"tls_client_ca": file, **certificates},
            "needs tls_client_ca": tls | certificates,
            "add client_certificates": tls | {"tls_client_ca": file},
            "not both": {"jwt_jwks_url": "https://issuer.example/keys", "jwt_jwks_file": file},
            "'billing' no scope": tls | {"tls_client_ca": file, "client_certificates": {"billing": "everybody"}},
            "'desk' no scope": tls | {"tls_client_ca": file, "client_certificates": {"desk": []}},
        }.items():
            assert name in await self.refusal(tmp_path, **changes)

    async def test_the_log_says_at_the_start_who_is_served(self, tmp_path: Path) -> None:
        with capture_logs() as lines:
            async with serving(tmp_path, registry=registry_of(a_plugin())):
                pass
            async with guarded(tmp_path):
                pass
        first, second = (line["serving"] for line in lines if line["event"] == "service.listening")
        assert first == "to every program on this machine"
        assert "service tokens or JWTs" in second
        assert SECRET not in json.dumps(lines, default=str)


class TestHealthAndReflection:
    async def test_health_asks_nobody_who_he_is(self, tmp_path: Path) -> None:
        async with guarded(tmp_path) as running:
            stub: Any = health_pb2_grpc.HealthStub(running.client.channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING

    @pytest.mark.threat("T19", attack=True)
    async def test_reflection_is_for_callers_who_are_known(self, tmp_path: Path) -> None:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async with serving(tmp_path, registry=registry_of(a_plugin())) as running:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
            reply = await stub.ServerReflectionInfo(iter([request])).read()
            assert SERVICE in [found.name for found in reply.list_services_response.service]
        async with guarded(tmp_path, reflection=True) as running:
            stub = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
            failed = await failure(stub.ServerReflectionInfo(iter([request])).read())
            assert failed.reason == "CALLER_UNKNOWN"
            call = stub.ServerReflectionInfo(iter([request]), metadata=bearer(web_token()))
            reply = await call.read()
            assert SERVICE in [found.name for found in reply.list_services_response.service]
            call.cancel()

    async def test_a_check_that_breaks_before_reflection_is_told_without_the_exceptions_text(
        self, tmp_path: Path
    ) -> None:
        async with guarded(tmp_path, reflection=True) as running:
            token, stored = await service_token(running, EVERYBODY)
            async with identities.token_store(running.service.settings.database_url) as store:
                spoilt = sa.update(token_store._TOKENS).where(token_store._TOKENS.c.id == stored.id)
                await store._call(lambda connection: connection.execute(spoilt.values(digest="\N{GRINNING FACE}")))
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            call = stub.ServerReflectionInfo(iter([request]), metadata=bearer(token))
            assert (await failure(call.read())).reason == "SERVICE_FAILED"

    async def test_each_question_of_a_reflection_is_asked_by_a_caller_who_is_still_known(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, reflection=True, user_calls=3) as running:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
            call = stub.ServerReflectionInfo(metadata=bearer(web_token()))
            request = reflection_pb2.ServerReflectionRequest(list_services="")

            async def ask() -> None:
                for _ in range(20):
                    await call.write(request)
                    await call.read()

            assert (await failure(ask())).reason == "CALLER_RATE_LIMITED"


class TestIssuersKeys:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An unknown key is a reason to ask the issuer again at once."""
        monkeypatch.setattr(key_sets, "_PAUSE", 0.0)

    async def test_a_token_of_the_issuers_key_is_taken_and_keys_may_change_meanwhile(self, tmp_path: Path) -> None:
        async with (
            issuing("spring") as issuer,
            guarded(tmp_path, jwt_secret=None, jwt_jwks_url=issuer.url) as running,
        ):
            await reading(running, bearer(issuer.sign("spring")))
            issuer.add_key("autumn")
            await reading(running, bearer(issuer.sign("autumn")))
            # What was signed before is still good.
            await reading(running, bearer(issuer.sign("spring", "bob")), "bob")
            assert issuer.asked == 2

    async def test_a_published_key_is_never_a_shared_secret(self, tmp_path: Path) -> None:
        async with (
            issuing("spring") as issuer,
            guarded(tmp_path, jwt_secret=None, jwt_jwks_url=issuer.url) as running,
        ):
            public = json.dumps(issuer.document()["keys"][0])
            for secret in (public, SECRET):
                # By hand: the library does not sign with what is a public key.
                head, payload, _ = web_token().split(".")
                head = jwt.utils.base64url_encode(b'{"typ":"JWT","alg":"HS256","kid":"spring"}').decode()
                signature = hmac.digest(secret.encode(), f"{head}.{payload}".encode(), "sha256")
                forged = f"{head}.{payload}.{jwt.utils.base64url_encode(signature).decode()}"
                assert (await failure(reading(running, bearer(forged)))).reason == "CALLER_UNKNOWN"

    async def test_a_file_of_keys_may_be_replaced(self, tmp_path: Path) -> None:
        async with issuing("spring") as issuer:
            file = tmp_path / "keys.json"
            file.write_text(json.dumps(issuer.document()))
            async with guarded(tmp_path, jwt_secret=None, jwt_jwks_file=file) as running:
                await reading(running, bearer(issuer.sign("spring")))
                issuer.add_key("autumn")
                file.write_text(json.dumps(issuer.document()))
                await reading(running, bearer(issuer.sign("autumn")))


def command(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{folder / 'credentials.db'}",
        **extra,
    }
    program = [sys.executable, "-m", "exchange_service", *arguments]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)


class TestCommands:
    async def test_a_token_is_made_used_listed_and_revoked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokens, "_KEEP", 0.0)
        made = command(tmp_path, "tokens", "create", "--name", "the desk", "--user", "alice", "--expires", "90d")
        assert made.returncode == 0, made.stderr
        token = made.stdout.strip()
        assert "not shown again" in made.stderr
        assert "service_tokens=true" in made.stderr
        token_id = token.split("_")[1]
        async with guarded(tmp_path) as running:

            async def balance(user: str, shown: str = token) -> subprocess.CompletedProcess[str]:
                wish = ("balance", "--user", user, "--exchange", "paper", "--address", running.service.address)
                return await asyncio.to_thread(command, tmp_path, *wish, EXCHANGE_SERVICE_TOKEN=shown)

            assert figure("alice", "paper") in (await balance("alice")).stdout
            refused = await balance("bob")
            assert (refused.returncode, "USER_FORBIDDEN" in refused.stderr) == (4, True)
            assert "CALLER_UNKNOWN" in (await balance("alice", "")).stderr
            listed = command(tmp_path, "tokens", "list", "--output", "json")
            (entry,) = json.loads(listed.stdout)
            assert (entry["id"], entry["name"], entry["scope"]) == (token_id, "the desk", ["alice"])
            assert "the desk" in command(tmp_path, "tokens", "list").stdout
            secret = token.split("_", 2)[2]
            assert secret not in listed.stdout + listed.stderr + refused.stderr + made.stderr
            assert command(tmp_path, "tokens", "revoke", token_id).returncode == 0
            assert command(tmp_path, "tokens", "revoke", token_id).returncode == 3
            again = await balance("alice")
            assert (again.returncode, "revoked" in again.stderr) == (4, True)
        # Not before the end: to close a file is to give up SQLite's locks on it, for the whole process.
        kept = await asyncio.to_thread((tmp_path / "credentials.db").read_bytes)
        assert token_id.encode() in kept
        assert secret.encode() not in kept

    def test_a_token_needs_one_clear_scope_and_a_clear_end(self, tmp_path: Path) -> None:
        for wish in (
            (),
            ("--all-users", "--act-as"),
            ("--user", "alice", "--all-users"),
            ("--user", "*"),
            ("--all-users", "--expires", "soon"),
            ("--all-users", "--expires", "0d"),
        ):
            done = command(tmp_path, "tokens", "create", "--name", "x", *wish)
            assert (done.returncode, done.stdout) == (2, ""), wish
        assert json.loads(command(tmp_path, "tokens", "list", "--output", "json").stdout) == []

    def test_a_token_is_not_sent_to_another_machine_in_plaintext(self, tmp_path: Path) -> None:
        wish = ("exchanges", "--address", "192.0.2.1:50051", "--plaintext")
        for done in (
            command(tmp_path, *wish, EXCHANGE_SERVICE_TOKEN="xst_a_b"),
            command(tmp_path, *wish, "--header", "authorization=Bearer xst_a_b"),
        ):
            assert done.returncode == 2
            assert "a token is not sent to 192.0.2.1:50051 in plaintext" in done.stderr
            assert "xst_a_b" not in done.stderr
            assert "Traceback" not in done.stderr
        with pytest.raises(ValueError, match="plaintext"):
            ExchangeServiceClient("192.0.2.1:50051", token="xst_a_b")

    @pytest.mark.threat("T9")
    async def test_a_token_for_this_machine_goes_through_no_proxy_that_the_environment_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = asyncio.Event()

        async def proxy(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            writer.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("no_grpc_proxy", raising=False)
        async with (
            server,
            guarded(tmp_path) as running,
            client_of(running, token=web_token(), timeout=PATIENCE) as client,
        ):
            assert (await client.get_balance("alice", "paper")).balance.user_id == "alice"
        assert not asked.is_set()

    def test_a_token_in_the_metadata_is_a_token_too(self) -> None:
        with pytest.raises(ValueError, match="plaintext"):
            ExchangeServiceClient("192.0.2.1:50051", metadata=[("Authorization", "Bearer xst_a_b")])

    def test_a_whole_token_in_the_place_of_its_id_is_not_repeated(self, tmp_path: Path) -> None:
        done = command(tmp_path, "tokens", "revoke", "xst_aaaaaaaaaaaa_topsecretpart")
        assert done.returncode == 3
        assert "topsecretpart" not in done.stdout + done.stderr

    async def test_a_client_certificate_is_given_by_flags(self, tmp_path: Path) -> None:
        authority = Authority.made(tmp_path / "authority")
        ways = secured(authority, tls_client_ca=authority.file, client_certificates={"desk": ["alice"]})
        certificate, key = map(str, authority.sign("desk"))
        async with guarded(tmp_path, service_tokens=False, **ways) as running:
            address = f"127.0.0.1:{running.service.address.rpartition(':')[2]}"
            flags = ("--address", address, "--tls-ca", str(authority.file))
            shown = ("--tls-certificate", certificate, "--tls-key", key)
            wish = ("balance", "--user", "alice", "--exchange", "paper")
            done = await asyncio.to_thread(command, tmp_path, *wish, *flags, *shown)
            assert figure("alice", "paper") in done.stdout, done.stderr
            half = await asyncio.to_thread(command, tmp_path, *wish, *flags, *shown[:2])
            assert half.returncode == 2
            probe = ("EXCHANGE_SERVICE_CLIENT_CERTIFICATE", certificate), ("EXCHANGE_SERVICE_CLIENT_KEY", key)
            healthy = await asyncio.to_thread(command, tmp_path, "health", *flags, **dict(probe))
            assert healthy.stdout.strip() == "SERVING", healthy.stderr


class TestTokenTable:
    async def test_on_postgresql_it_is_closed_to_everybody_else(self, postgres_database: str) -> None:
        text, stored = tokens.new_token("x", EVERYBODY)
        with psycopg.connect(postgres_database, autocommit=True) as connection:
            for role in ("anon", "authenticated"):
                connection.execute(f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
            connection.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO anon, authenticated, PUBLIC")
        async with identities.token_store(postgres_database) as one, identities.token_store(postgres_database) as two:
            # Two replicas that meet a database without the table at the same moment.
            await asyncio.gather(one.add(stored), two.all())
            assert await two.find(stored.id) == stored
        with psycopg.connect(postgres_database, autocommit=True) as connection:
            secured_rows = connection.execute(
                "SELECT relrowsecurity FROM pg_class WHERE relname = 'exchange_service_tokens'"
            ).fetchone()
            assert secured_rows == (True,)
            for role in ("anon", "authenticated"):
                connection.execute(f"SET ROLE {role}")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("SELECT * FROM exchange_service_tokens")
                connection.execute("RESET ROLE")
            dump = str(connection.execute("SELECT * FROM exchange_service_tokens").fetchall())
        assert text.split("_", 2)[2] not in dump
