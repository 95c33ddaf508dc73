"""Scopes: which users' accounts a caller reads, whatever is cached and however the caller asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exchange_service.identity import Scope, tokens
from exchange_service.v1 import error_reason_pb2
from tests.authenticated_service import (
    ACTS_FOR_ALL,
    EVERYBODY,
    EXCHANGES,
    OUTSIDE,
    STORED,
    USERS,
    amount,
    authenticated_service,
    make_plugin,
    open_stream,
    read_balance,
)
from tests.harness import (
    Running,
    ScriptedPlugin,
    balance_request,
    failure,
    failure_of,
    registry_of,
    serving,
    totals,
    until,
)
from tests.identities import bearer, service_token, web_token


@dataclass(frozen=True, slots=True)
class Attempt:
    """A caller, the user that the call names by x-act-as, and the requested account."""

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
        """The rules of scopes, implemented again in another way than the service does."""
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
    return Attempt(kind, frozenset({"bob"}), act_as, target, "fakex", streamed, warm, False)


async def metadata_of(running: Running, attempt: Attempt) -> list[tuple[str, str]]:
    """The metadata of the attempt."""
    users = sorted(attempt.users)
    claim = "*" if "all" in attempt.kind else "act-as" if "acting" in attempt.kind else users
    scope = EVERYBODY if "all" in attempt.kind else ACTS_FOR_ALL if "acting" in attempt.kind else Scope(attempt.users)
    act_as = [] if attempt.act_as is None else [("x-act-as", attempt.act_as)]
    if attempt.kind == "own token":
        return [*bearer(web_token(users[0])), *act_as]
    if attempt.kind.endswith("by JWT"):
        return [*bearer(web_token("a service", exchange_service_users=claim)), *act_as]
    if attempt.kind.endswith("by token"):
        return [*bearer((await service_token(running, scope))[0]), *act_as]
    worthless = {
        "no secret": web_token("a service", secret="x" * 32, exchange_service_users="*"),
        "no time left": web_token("a service", lifetime=-600, exchange_service_users="*"),
        "no such token": tokens.new_token("x", EVERYBODY)[0],
    }
    return [*(bearer(worthless[attempt.kind]) if attempt.kind in worthless else []), *act_as]


@dataclass(repr=False, slots=True)
class WatchedService:
    """A service with authentication, and a record of what a call reached behind it."""

    running: Running
    plugin: ScriptedPlugin
    statements: list[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of an attempt: a balance, or the error's reason and message."""

    balance: Any = None
    reason: str = ""
    message: str = ""


class TestScope:
    @pytest.fixture
    async def watched(self, tmp_path: Path) -> AsyncIterator[WatchedService]:
        plugin, statements = make_plugin(), list[str]()
        quotas = ("calls", "refreshes", "streams")
        plenty = {f"{kind}_{quota}": 10**6 for kind in ("user", "service") for quota in quotas}
        # What is streamed is read once, so that only an attempt reaches anything.
        once = {"poll_interval": 3600.0, "poll_interval_still": 3600.0}
        async with authenticated_service(tmp_path, plugin=plugin, **plenty, **once) as running:

            def record(*arguments: Any) -> None:
                # Identifying the caller may ask the table of tokens.
                if "bot_credentials" in arguments[2]:
                    statements.append(arguments[2])

            sa.event.listen(sa.Engine, "before_cursor_execute", record)
            try:
                yield WatchedService(running, plugin, statements)
            finally:
                sa.event.remove(sa.Engine, "before_cursor_execute", record)

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
    async def test_a_caller_gets_nothing_outside_the_scope_whatever_is_cached_and_however_it_is_requested(
        self, watched: WatchedService, attempt: Attempt
    ) -> None:
        running = watched.running
        auditor = bearer(web_token("auditor", exchange_service_users="*"))
        await running.service.cache.close()
        followed = None
        if attempt.warm:
            # A caller that may read the account has just read it, and follows it.
            followed = open_stream(running, auditor, attempt.target, attempt.exchange_id)
            await followed.next()
        metadata = await metadata_of(running, attempt)
        await self.finish_lookups(running)
        calls, statements = len(watched.plugin.calls), len(watched.statements)
        result = await self.make_attempt(running, metadata, attempt)
        if followed is not None:
            followed.call.cancel()
        # A feed that goes on would read again when the next example empties the cache.
        await until(lambda: running.service.streams.counts() == (0, 0), "the end of all streams")
        if not (attempt.is_known and attempt.may_read):
            assert result.balance is None
            assert result.reason == ("USER_FORBIDDEN" if attempt.is_known else "CALLER_UNKNOWN")
            # Authentication stopped the call: neither a venue nor the credential table was asked.
            assert len(watched.plugin.calls) == calls
            assert len(watched.statements) == statements
            assert not any(user in result.message for user in USERS)
        elif (attempt.target, attempt.exchange_id) in STORED:
            assert not result.reason
            assert result.balance.user_id == attempt.target
            assert totals(result.balance) == {"BTC": amount(attempt.target, attempt.exchange_id)}
        else:
            assert result.reason == "CREDENTIAL_MISSING"

    @staticmethod
    async def finish_lookups(running: Running) -> None:
        """Wait for the lookups that were started beside a call, because a cached reference was old."""
        while requests := running.service.balances.references._requests.values():
            await asyncio.wait({request.answer for request in requests})

    @staticmethod
    async def make_attempt(running: Running, metadata: list[tuple[str, str]], attempt: Attempt) -> AttemptResult:
        """The attempt, by a call or by a stream."""
        request = balance_request(attempt.exchange_id, user_id=attempt.target)
        if attempt.forced:
            request.max_age.FromSeconds(0)
        try:
            if not attempt.streamed:
                return AttemptResult((await running.stub.GetBalance(request, metadata=metadata)).balance)
            stream = open_stream(running, metadata, attempt.target, attempt.exchange_id)
            event = await stream.next()
            stream.call.cancel()
        except grpc.aio.AioRpcError as error:
            failed = failure_of(error)
            return AttemptResult(None, failed.reason, failed.message)
        if event.HasField("balance"):
            return AttemptResult(event.balance.balance)
        fault = event.account_error.error
        return AttemptResult(
            None, error_reason_pb2.ErrorReason.Name(fault.reason).removeprefix("ERROR_REASON_"), fault.message
        )

    @pytest.mark.threat("T1", attack=True)
    async def test_without_authentication_every_caller_reads_every_user(self, tmp_path: Path) -> None:
        """The attack that scopes are against: without them it succeeds."""
        async with serving(tmp_path, registry=registry_of(make_plugin())) as running:
            await running.store(user="alice")
            reply = await read_balance(running, bearer(web_token("bob")), "alice")
            assert totals(reply.balance) == {"BTC": amount("alice", "fakex")}
        async with authenticated_service(tmp_path) as running:
            failed = await failure(read_balance(running, bearer(web_token("bob")), "alice"))
        assert failed.message.startswith(OUTSIDE)

    async def test_existing_and_unknown_users_are_refused_with_the_same_message(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            answers = set()
            for user in ("alice", "dave", "nobody-at-all", "\N{GRINNING FACE}"):
                for changes in ({}, {"exchange_id": "nowhere"}, {"environment": "moon"}):
                    failed = await failure(read_balance(running, bearer(web_token("bob")), user, **changes))
                    answers.add((failed.code, failed.message, str(failed.details)))
                for exchanges in (("nowhere",), ("fakex",), ()):
                    failed = await failure(open_stream(running, bearer(web_token("bob")), user, *exchanges).next())
                    answers.add((failed.code, failed.message, str(failed.details)))
        ((code, message, _),) = answers
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert message.startswith(OUTSIDE)

    async def test_a_caller_that_acts_for_users_must_name_the_user(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            token, _ = await service_token(running, ACTS_FOR_ALL)
            assert (await read_balance(running, bearer(token, "alice"))).balance.user_id == "alice"
            silent = await failure(read_balance(running, bearer(token)))
            other = await failure(read_balance(running, bearer(token, "bob")))
            streamed = await failure(open_stream(running, bearer(token, "bob"), "alice", "fakex").next())
        assert silent.reason == other.reason == streamed.reason == "USER_FORBIDDEN"
        assert "x-act-as" in silent.message
        assert "x-act-as" in other.message
