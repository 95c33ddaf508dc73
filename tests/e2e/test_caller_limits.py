"""What ends a caller's streams, and the quotas of callers."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from exchange_service.credentials import database
from exchange_service.identity import Scope, authenticator, token_store, tokens
from exchange_service.identity.token_signatures import configured_signatures
from exchange_service.identity.tokens import StoredToken
from exchange_service.v1 import exchange_service_pb2 as messages
from tests import identities
from tests.authenticated_service import (
    EVERYBODY,
    authenticated_service,
    make_plugin,
    open_stream,
    read_balance,
)
from tests.harness import (
    PATIENCE,
    Running,
    balance_request,
    failure,
    failure_of,
)
from tests.identities import bearer, service_token, web_token


async def change_scope(running: Running, stored: StoredToken, **columns: str) -> None:
    """Write the token's scope into its row, with these columns and without a command."""
    scope = json.dumps(stored.scope.as_value())
    change = sa.update(token_store.TOKENS).where(token_store.TOKENS.c.id == stored.id).values(scope=scope, **columns)
    async with identities.token_store(running.service.settings.database_url) as store:
        await store.execute(change)


class TestStreams:
    async def test_a_stream_ends_with_its_token(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path, jwt_leeway=0) as running:
            stream = open_stream(running, bearer(web_token(lifetime=2)), "alice", "fakex")
            await stream.next_of("balance")
            async with asyncio.timeout(PATIENCE):
                ended = await stream.failure()
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")
        assert ended.message.startswith("CALLER_UNKNOWN: The token has expired. Open the stream again with a new one.")

    @pytest.fixture
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The callers of streams are checked again at once, and their tokens at each check."""
        monkeypatch.setattr(authenticator, "RECHECK_INTERVAL", 0.05)
        monkeypatch.setattr(tokens, "KEEP", 0.0)

    def test_a_revoked_token_is_good_for_less_than_thirty_seconds(self) -> None:
        assert tokens.KEEP + authenticator.RECHECK_INTERVAL + database.CALL_LIMIT < 30

    @pytest.mark.usefixtures("quick")
    async def test_a_revoked_token_ends_its_own_streams_only(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            revoked, stored = await service_token(running, EVERYBODY)
            valid_token, _ = await service_token(running, EVERYBODY)
            streams = [open_stream(running, bearer(revoked), user, "fakex") for user in ("alice", "bob")]
            other = open_stream(running, bearer(valid_token), "alice", "fakex")
            for stream in (*streams, other):
                await stream.next_of("balance")
            async with identities.token_store(running.service.settings.database_url) as store:
                assert await store.revoke(stored.id)
            for stream in streams:
                ended = await stream.failure()
                assert (ended.reason, "revoked" in ended.message) == ("CALLER_UNKNOWN", True)
            assert (await failure(read_balance(running, bearer(revoked)))).reason == "CALLER_UNKNOWN"
            assert (await read_balance(running, bearer(valid_token))).balance.user_id == "alice"
            assert not other.call.done()
            other.call.cancel()

    @pytest.mark.usefixtures("quick")
    async def test_a_scope_that_shrinks_ends_the_streams_of_users_outside_it(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            token, stored = await service_token(running, Scope(frozenset({"alice", "bob"})))
            leaves, stays = (open_stream(running, bearer(token), user, "fakex") for user in ("alice", "bob"))
            await leaves.next_of("balance")
            await stays.next_of("balance")
            smaller = replace(stored, scope=Scope(frozenset({"bob"})))
            signature = configured_signatures(running.service.settings).sign(smaller)
            await change_scope(running, smaller, signature=signature)
            assert (await leaves.failure()).reason == "USER_FORBIDDEN"
            assert not stays.call.done()
            stays.call.cancel()

    @pytest.mark.usefixtures("quick")
    async def test_a_scope_that_another_program_changes_ends_all_streams_of_the_token(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            token, stored = await service_token(running, Scope(frozenset({"alice", "bob"})))
            streams = [open_stream(running, bearer(token), user, "fakex") for user in ("alice", "bob")]
            for stream in streams:
                await stream.next_of("balance")
            await change_scope(running, replace(stored, scope=Scope(frozenset({"bob"}))))
            for stream in streams:
                ended = await stream.failure()
                assert (ended.reason, "is not signed" in ended.message) == ("CALLER_UNKNOWN", True)

    @pytest.mark.usefixtures("quick")
    async def test_a_database_that_is_down_ends_no_stream_and_admits_no_new_caller(
        self, tmp_path: Path, own_postgres_database: str, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with authenticated_service(tmp_path, database_url=own_postgres_database) as running:
            known, _ = await service_token(running, EVERYBODY)
            unknown, _ = await service_token(running, EVERYBODY)
            stream = open_stream(running, bearer(known), "alice", "fakex")
            await stream.next_of("balance")
            with postgres_server.frozen():
                # Not before: a busy machine takes longer to store what the test needs.
                monkeypatch.setattr(database, "CALL_LIMIT", 0.3)
                failed = await failure(read_balance(running, bearer(unknown)))
                assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
                assert (await read_balance(running, bearer(known))).balance.user_id == "alice"
                assert not stream.call.done()
            stream.call.cancel()


class TestQuotas:
    @pytest.mark.threat("T13")
    async def test_calls_beyond_the_quota_are_refused_with_a_delay_and_reach_nothing(self, tmp_path: Path) -> None:
        plugin = make_plugin()
        async with authenticated_service(tmp_path, plugin=plugin, user_calls=5) as running:
            replies = [read_balance(running, bearer(web_token("alice"))) for _ in range(12)]
            failures = []
            for reply in replies:
                try:
                    await reply
                except grpc.aio.AioRpcError as error:
                    failures.append(failure_of(error))
            # Another caller has a quota of its own.
            await read_balance(running, bearer(web_token("bob")), "bob")
        assert len(failures) >= 6
        for failed in failures:
            assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLER_RATE_LIMITED")
            assert failed.retry_delay is not None
            assert 0 < failed.retry_delay <= 1

    @pytest.mark.threat("T14")
    async def test_refreshes_that_are_forced_have_a_quota_of_their_own(self, tmp_path: Path) -> None:
        plugin = make_plugin()
        async with authenticated_service(tmp_path, plugin=plugin, user_refreshes=3) as running:
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
            # The caller may still have the cached balance.
            assert (await read_balance(running, token)).balance.user_id == "alice"
            assert len(plugin.calls) == 3

    @pytest.mark.threat("T13")
    async def test_streams_beyond_the_quota_are_refused_until_one_ends(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path, user_streams=2) as running:
            token = bearer(web_token("alice"))
            streams = [open_stream(running, token, "alice", "fakex") for _ in range(2)]
            for stream in streams:
                await stream.next_of("balance")
            failed = await failure(open_stream(running, token, "alice", "fakex").next())
            assert failed.reason == "CALLER_RATE_LIMITED"
            assert failed.retry_delay is not None
            streams.pop().call.cancel()
            async with asyncio.timeout(PATIENCE):
                while True:
                    again = open_stream(running, token, "alice", "fakex")
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
        async with (
            authenticated_service(tmp_path, **shared) as first,
            authenticated_service(tmp_path, **shared) as second,
        ):
            calls = [side.stub.ListExchanges(request, metadata=token) for _ in range(60) for side in (first, second)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        taken = sum(not isinstance(answer, BaseException) for answer in answers)
        # A second may end while they are made; each process alone would take 40 of its 60.
        assert taken in (40, 80)

    async def test_while_redis_is_down_each_replica_counts_for_itself(self, tmp_path: Path, redis_server: Any) -> None:
        redis_server.kill()
        async with authenticated_service(
            tmp_path, cache_url=redis_server.url, hash_key="0123456789abcdef", user_calls=3
        ) as running:
            token = bearer(web_token("alice"))
            answers = await asyncio.gather(*(read_balance(running, token) for _ in range(10)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert len(refused) >= 4
        assert {failure_of(error).reason for error in refused} == {"CALLER_RATE_LIMITED"}
