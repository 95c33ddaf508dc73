"""The parts of authentication: what is remembered and for how long, an issuer's keys, and how calls are counted."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from exchange_service.cache.redis_link import RedisLink
from exchange_service.cache.sealed_redis import SealedRedis
from exchange_service.errors import (
    CallerRateLimited,
    CallerUnknown,
    ServiceFailed,
    ServiceOverloaded,
    StoreUnavailable,
    UserForbidden,
)
from exchange_service.identity import (
    ANYBODY,
    Caller,
    Identity,
    Kind,
    PresentedCredentials,
    Scope,
    Verified,
    authenticator,
    scope_from,
    tokens,
)
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.certificates import ClientCertificates
from exchange_service.identity.key_sets import KeySet, from_url
from exchange_service.identity.quotas import Action, Allowance, Quotas
from exchange_service.identity.redis_quotas import RedisQuotas
from exchange_service.identity.tokens import ServiceTokens, StoredToken, new_token
from exchange_service.identity.web_tokens import JsonWebTokens
from exchange_service.settings import Settings
from tests.harness import PATIENCE, OffsetClock, eventually, until
from tests.identities import SECRET, issuing, web_token
from tests.servers import RedisServer

PLENTY = {kind: Allowance(10**6, 10**6, 10**6) for kind in (Kind.USER, Kind.SERVICE)}
ALICE = Identity("user alice", Kind.USER, Scope(frozenset({"alice"})))


class CountingMethod:
    """A method of authentication that counts the calls of another one."""

    def __init__(self, inner: JsonWebTokens | ServiceTokens) -> None:
        self.inner = inner
        self.calls = 0

    async def authenticate(self, presented: PresentedCredentials) -> Verified | None:
        self.calls += 1
        return await self.inner.authenticate(presented)

    async def close(self) -> None:
        await self.inner.close()


class FakeTokenStore:
    """Stored service tokens, and whether the store can be reached."""

    def __init__(self) -> None:
        self.rows: dict[str, StoredToken] = {}
        self.away = False
        self.running = 0
        self.answering = asyncio.Event()
        self.answering.set()

    def add(self, scope: Scope, **options: Any) -> str:
        text, stored = new_token("x", scope, **options)
        self.rows[stored.id] = stored
        return text

    async def find(self, token_id: str) -> StoredToken | None:
        if self.away:
            raise StoreUnavailable("It is away.")
        self.running += 1
        await self.answering.wait()
        self.running -= 1
        return self.rows.get(token_id)

    async def close(self) -> None:
        return


def web_tokens(**options: Any) -> CountingMethod:
    return CountingMethod(JsonWebTokens(secret=SECRET, **options))


class TestScopes:
    @given(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.lists(st.text() | st.integers() | st.none() | st.just("*"))
        | st.dictionaries(st.text(), st.text())
    )
    def test_a_value_is_a_scope_that_comes_back_the_same_or_is_not_a_scope(self, value: Any) -> None:
        try:
            scope = scope_from(value)
        except ValueError:
            return
        assert scope_from(scope.as_value()) == scope
        managing = scope_from({"users": value, "manage": True})
        assert managing.manage
        assert not scope.manage
        assert scope_from(managing.as_value()) == managing
        assert scope.everybody == (value in ("*", "act-as"))
        if not scope.everybody:
            assert scope.users == set(value)

    @pytest.mark.parametrize(
        "value", [[], ["*"], ["alice", "act-as"], ["alice", ""], [" "], ["a\nb"], "alice", {}, {"users": []}]
    )
    def test_a_value_that_could_be_a_typing_error_is_not_a_scope(self, value: Any) -> None:
        with pytest.raises(ValueError, match="a scope is"):
            scope_from(value)

    @pytest.mark.parametrize(
        "value",
        [
            {"manage": True},
            {"users": {"users": "*"}, "manage": True},
            {"users": "*", "manage": 1},
            {"users": "*", "manage": "true"},
            {"users": "*", "manage": True, "mange": True},
        ],
    )
    def test_an_object_with_anything_else_in_it_is_not_a_scope(self, value: Any) -> None:
        with pytest.raises(ValueError, match="a scope"):
            scope_from(value)

    def test_the_right_to_manage_covers_no_other_users_than_the_scope(self) -> None:
        identity = Identity("x", Kind.SERVICE, scope_from({"users": ["alice"], "manage": True}))
        caller = Caller(identity, PresentedCredentials(token="x"))
        caller.require_management("alice")
        with pytest.raises(UserForbidden, match="outside"):
            caller.require_management("bob")

    @pytest.mark.parametrize("value", ["*", "act-as", ["alice"], {"users": ["alice"]}])
    def test_who_may_read_may_not_manage(self, value: Any) -> None:
        caller = Caller(Identity("x", Kind.SERVICE, scope_from(value)), PresentedCredentials(token="x", act_as="alice"))
        caller.require("alice")
        with pytest.raises(UserForbidden, match="not manage"):
            caller.require_management("alice")

    @given(
        act_as=st.none() | st.sampled_from("ab"), user=st.sampled_from("ab"), users=st.frozensets(st.sampled_from("ab"))
    )
    def test_a_header_never_widens_a_scope(self, act_as: str | None, user: str, users: frozenset[str]) -> None:
        caller = Caller(Identity("x", Kind.SERVICE, Scope(users)), PresentedCredentials(token="x", act_as=act_as))
        if user in users and act_as in (None, user):
            caller.require(user)
        else:
            with pytest.raises(UserForbidden):
                caller.require(user)


class TestMemory:
    async def test_a_signature_is_checked_once_and_not_at_every_call(self) -> None:
        checked = web_tokens()
        authentication = Authenticator([checked], Quotas(PLENTY))
        presented = PresentedCredentials(token=web_token("alice"))
        identities = {(await authentication.admit(presented)).identity for _ in range(100)}
        assert [identity.name for identity in identities] == ["user alice"]
        assert checked.calls == 1
        await authentication.close()

    async def test_simultaneous_calls_with_one_token_share_one_verification(self) -> None:
        store = FakeTokenStore()
        checked = CountingMethod(ServiceTokens(store.find, store.close))
        authentication = Authenticator([checked], Quotas(PLENTY))
        presented = PresentedCredentials(token=store.add(Scope(everybody=True)))
        await asyncio.gather(*(authentication.admit(presented) for _ in range(50)))
        assert checked.calls == 1
        await authentication.close()

    async def test_it_ends_with_the_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checked = web_tokens(leeway=0)
        authentication = Authenticator([checked], Quotas(PLENTY))
        presented = PresentedCredentials(token=web_token("alice"))
        await authentication.admit(presented)
        after_its_end = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: after_its_end)
        with pytest.raises(CallerUnknown, match="expired"):
            await authentication.admit(presented)
        assert checked.calls == 2
        await authentication.close()

    async def test_a_service_token_is_checked_again_within_half_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, store = OffsetClock(monkeypatch), FakeTokenStore()
        checked = CountingMethod(ServiceTokens(store.find, store.close))
        authentication = Authenticator([checked], Quotas(PLENTY))
        presented = PresentedCredentials(token=store.add(Scope(everybody=True)))
        await authentication.admit(presented)
        store.rows.clear()
        clock.advance(15)
        await authentication.admit(presented)
        clock.advance(15)
        with pytest.raises(CallerUnknown):
            await authentication.admit(presented)
        await authentication.close()

    async def test_a_stream_ends_even_if_a_call_has_seen_the_smaller_scope_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, store = OffsetClock(monkeypatch), FakeTokenStore()
        authentication = Authenticator([ServiceTokens(store.find, store.close)], Quotas(PLENTY))
        presented = PresentedCredentials(token=store.add(Scope(frozenset({"alice", "bob"}))))
        caller, ended = await authentication.admit(presented), list[Any]()
        with authentication.streaming(caller, "alice") as watch:
            watch(ended.append)
            for token_id, stored in store.rows.items():
                store.rows[token_id] = replace(stored, scope=Scope(frozenset({"bob"})))
            await authentication.recheck()
            assert not ended
            clock.advance(21)
            await authentication.admit(presented)
            await authentication.recheck()
        assert [type(error) for error in ended] == [UserForbidden]
        await authentication.recheck()
        assert len(ended) == 1
        await authentication.close()

    async def test_a_token_that_is_not_signed_is_named_once_a_minute_however_often_it_is_tried(self) -> None:
        store = FakeTokenStore()
        unsigned = ServiceTokens(store.find, store.close, lambda stored: False)
        texts = [store.add(Scope(everybody=True)) for _ in range(2)]
        with capture_logs() as lines:
            for text in texts * 3:
                with pytest.raises(CallerUnknown, match="not signed"):
                    await unsigned.authenticate(PresentedCredentials(token=text))
        assert [line["event"] for line in lines] == ["token.not_signed"] * 2
        assert {line["token"] for line in lines} == set(store.rows)

    async def test_a_stream_without_act_as_ends_when_its_caller_must_name_the_user(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokens, "KEEP", 0.0)
        store = FakeTokenStore()
        authentication = Authenticator([ServiceTokens(store.find, store.close)], Quotas(PLENTY))
        text = store.add(Scope(everybody=True))
        ended: dict[str | None, list[Any]] = {None: [], "alice": []}
        with ExitStack() as stack:
            for act_as, errors in ended.items():
                caller = await authentication.admit(PresentedCredentials(token=text, act_as=act_as))
                stack.enter_context(authentication.streaming(caller, "alice"))(errors.append)
            for token_id, stored in store.rows.items():
                store.rows[token_id] = replace(stored, scope=Scope(everybody=True, requires_act_as=True))
            await authentication.recheck()
        assert [type(error) for error in ended[None]] == [UserForbidden]
        assert ended["alice"] == []
        await authentication.close()

    async def test_a_check_that_breaks_ends_its_stream_and_leaves_the_others_watched(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokens, "KEEP", 0.0)
        monkeypatch.setattr(authenticator, "RECHECK_INTERVAL", 0.01)
        store = FakeTokenStore()
        authentication = Authenticator([ServiceTokens(store.find, store.close)], Quotas(PLENTY))
        broken, revoked = store.add(Scope(everybody=True)), store.add(Scope(everybody=True))
        with ExitStack() as stack:
            ends = [asyncio.get_running_loop().create_future() for _ in range(2)]
            for text, end in zip((broken, revoked), ends, strict=True):
                stack.enter_context(
                    authentication.streaming(await authentication.admit(PresentedCredentials(token=text)), "alice")
                )(end.set_result)
            # A text that cannot be a digest was written into the row.
            token_id = broken.split("_")[1]
            store.rows[token_id] = replace(store.rows[token_id], digest="\N{GRINNING FACE}")
            async with asyncio.timeout(PATIENCE):
                assert isinstance(await ends[0], ServiceFailed)
                del store.rows[revoked.split("_")[1]]
                assert isinstance(await ends[1], CallerUnknown)
        await authentication.close()

    async def test_while_the_store_is_down_a_known_caller_is_accepted_for_five_minutes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, store = OffsetClock(monkeypatch), FakeTokenStore()
        checked = CountingMethod(ServiceTokens(store.find, store.close))
        authentication = Authenticator([checked], Quotas(PLENTY))
        known, new = (PresentedCredentials(token=store.add(Scope(everybody=True))) for _ in range(2))
        await authentication.admit(known)
        store.away = True
        clock.advance(30)
        for _ in range(20):
            await authentication.admit(known)
        # The store is not asked at each call, because each call would wait.
        assert checked.calls == 2
        with pytest.raises(StoreUnavailable):
            await authentication.admit(new)
        clock.advance(300)
        with pytest.raises(StoreUnavailable):
            await authentication.admit(known)
        await authentication.close()

    async def test_invented_tokens_displace_no_known_caller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(authenticator, "MAX_REFUSALS", 10)
        checked = web_tokens()
        authentication = Authenticator([checked], Quotas(PLENTY))
        presented = PresentedCredentials(token=web_token("alice"))
        await authentication.admit(presented)
        for number in range(200):
            with pytest.raises(CallerUnknown):
                await authentication.admit(PresentedCredentials(token=f"made up {number}"))
        before = checked.calls
        await authentication.admit(presented)
        assert checked.calls == before
        assert authentication.remembered_refusals == 10
        await authentication.close()

    @pytest.mark.parametrize(
        ("claim", "kind", "users"),
        [
            ({"users": ["alice"], "manage": True}, Kind.USER, {"alice"}),
            ({"users": ["bob"], "manage": True}, Kind.SERVICE, {"alice", "bob"}),
            (["bob"], Kind.SERVICE, {"alice", "bob"}),
        ],
    )
    async def test_a_claim_may_let_a_user_manage_without_making_a_service_of_them(
        self, claim: Any, kind: Kind, users: set[str]
    ) -> None:
        authentication = Authenticator([web_tokens()], Quotas(PLENTY))
        token = web_token("alice", exchange_service_users=claim)
        identity = (await authentication.admit(PresentedCredentials(token=token))).identity
        assert (identity.kind, identity.scope.users) == (kind, users)
        assert identity.scope.manage == isinstance(claim, dict)
        await authentication.close()

    async def test_nothing_in_memory_shows_a_token(self) -> None:
        token = web_token("alice")
        store = FakeTokenStore()
        service = store.add(Scope(everybody=True))
        methods = [JsonWebTokens(secret=SECRET), ServiceTokens(store.find, store.close)]
        authentication = Authenticator(methods, Quotas(PLENTY))
        held = [await authentication.admit(PresentedCredentials(token=text)) for text in (token, service)]
        presented = repr((held, vars(authentication), methods, list(store.rows.values()), Settings(jwt_secret=SECRET)))
        for secret in (token, token.split(".")[2], service, service.split("_", 2)[2], SECRET):
            assert secret not in presented
        await authentication.close()

    async def test_without_any_method_every_caller_is_anybody(self) -> None:
        authentication = Authenticator([], Quotas(PLENTY))
        assert authentication.open_to_all
        assert (await authentication.admit(PresentedCredentials())).identity is ANYBODY
        await authentication.close()


class TestServiceTokens:
    async def test_one_is_good_with_its_whole_secret_and_until_its_end_alone(self) -> None:
        store = FakeTokenStore()
        method = ServiceTokens(store.find, store.close)
        good, over, other = store.add(Scope(everybody=True)), store.add(Scope(), lifetime=0), store.add(Scope())
        verified = await method.authenticate(PresentedCredentials(token=good))
        assert verified is not None
        assert verified.identity.scope.everybody
        token_id, secret = good.removeprefix("xst_").split("_", 1)
        changed = "A" if secret[-1] != "A" else "B"
        for token in (
            over,
            f"xst_{token_id}_{secret[:-1]}{changed}",
            f"xst_{token_id}_{secret}x",
            f"xst_{token_id}_",
            f"xst_{token_id}",
            f"xst_{token_id}_{other.split('_', 2)[2]}",
            # Not what is stored either.
            f"xst_{token_id}_{store.rows[token_id].digest}",
        ):
            with pytest.raises(CallerUnknown):
                await method.authenticate(PresentedCredentials(token=token))

    async def test_impossible_ids_are_not_looked_up(self) -> None:
        store = FakeTokenStore()
        store.away = True
        method = ServiceTokens(store.find, store.close)
        for token in ("xst_", "xst_a_b", "xst__" + "x" * 43, "xst_" + "%" * 12 + "_x", "xst_" + "a" * 500):
            with pytest.raises(CallerUnknown):
                await method.authenticate(PresentedCredentials(token=token))

    @pytest.mark.threat("T13")
    async def test_a_flood_of_invented_tokens_makes_few_requests_and_delays_no_known_caller(
        self,
    ) -> None:
        store = FakeTokenStore()
        method = ServiceTokens(store.find, store.close)
        good = store.add(Scope(everybody=True))
        await method.authenticate(PresentedCredentials(token=good))
        store.answering.clear()
        # The id is not a secret: a caller that has seen it may send it with another secret.
        names = [*(f"xst_{number:012x}_x" for number in range(3000)), *(f"{good}{number}" for number in range(100))]
        flood = [asyncio.create_task(method.authenticate(PresentedCredentials(token=name))) for name in names]
        await asyncio.sleep(0)
        known = asyncio.create_task(method.authenticate(PresentedCredentials(token=good)))
        await until(lambda: sum(task.done() for task in flood) >= 2000, "the refusals")
        assert store.running <= 6
        # More than can wait are refused at once, so that they pile up nowhere.
        assert sum(task.done() for task in flood) >= 2000
        store.answering.set()
        async with asyncio.timeout(PATIENCE):
            assert await known is not None
            answers = await asyncio.gather(*flood, return_exceptions=True)
        assert {type(answer) for answer in answers} == {CallerUnknown, ServiceOverloaded}
        # It is over with the flood.
        with pytest.raises(CallerUnknown):
            await method.authenticate(PresentedCredentials(token="xst_" + "a" * 12 + "_x"))

    def test_a_secret_is_256_bits_of_chance(self) -> None:
        secrets = {new_token("x", Scope())[0].split("_", 2)[2] for _ in range(200)}
        assert len(secrets) == 200
        assert {len(secret) for secret in secrets} == {43}


class TestCertificates:
    async def test_a_certificate_sent_with_a_token_is_ignored(self) -> None:
        method = ClientCertificates({"billing": Scope(everybody=True)})
        presented = PresentedCredentials(token="x", certificate=b"x", certificate_names=("billing",))
        assert await method.authenticate(presented) is None

    async def test_a_certificate_that_cannot_be_read_proves_nothing(self) -> None:
        method = ClientCertificates({"billing": Scope(everybody=True)})
        with pytest.raises(CallerUnknown):
            await method.authenticate(PresentedCredentials(certificate=b"x", certificate_names=("billing",)))


class TestIssuersKeys:
    async def test_an_outage_admits_no_new_key_and_known_keys_serve_an_hour(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = OffsetClock(monkeypatch)
        async with issuing("spring") as issuer:
            keys = from_url(issuer.url)
            await keys.key("spring", "ES256")
            issuer.down = True
            clock.advance(1800)
            # The one that it is answered with at once, and the one that is read beside it.
            await keys.key("spring", "ES256")
            with pytest.raises(CallerUnknown):
                await keys.key("autumn", "ES256")
            clock.advance(1801)
            with pytest.raises(StoreUnavailable):
                await keys.key("spring", "ES256")
            issuer.down = False
            clock.advance(10)
            await keys.key("spring", "ES256")
            await keys.close()

    async def test_an_issuer_that_never_answered_admits_no_caller(self) -> None:
        async with issuing("spring") as issuer:
            issuer.down = True
            keys = from_url(issuer.url)
            with pytest.raises(StoreUnavailable):
                await keys.key("spring", "ES256")
            await keys.close()

    async def test_a_key_that_is_withdrawn_counts_no_more_after_the_next_reading(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = OffsetClock(monkeypatch)
        async with issuing("spring", "autumn") as issuer:
            keys = from_url(issuer.url)
            await keys.key("spring", "ES256")
            issuer.published.remove("spring")
            clock.advance(301)
            await keys.key("autumn", "ES256")

            async def is_withdrawn() -> bool:
                try:
                    await keys.key("spring", "ES256")
                except CallerUnknown:
                    return True
                return False

            await eventually(is_withdrawn, "the withdrawal")
            await keys.close()

    async def test_invented_key_ids_do_not_make_the_service_flood_the_issuer(self) -> None:
        async with issuing("spring") as issuer:
            keys = from_url(issuer.url)
            for number in range(50):
                with pytest.raises(CallerUnknown):
                    await keys.key(f"made up {number}", "ES256")
            assert issuer.requests == 1
            await keys.close()

    async def test_a_redirect_leads_to_no_other_issuer(self) -> None:
        async with issuing("spring") as issuer, issuing("spring") as forger:
            issuer.redirect = forger.url
            keys = from_url(issuer.url)
            with pytest.raises(StoreUnavailable):
                await keys.key("spring", "ES256")
            assert forger.requests == 0
            await keys.close()

    async def test_without_an_id_the_one_key_that_fits_is_meant(self) -> None:
        other = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))
        async with issuing("spring") as issuer:
            (spring,) = issuer.document()["keys"]
        nameless = {name: value for name, value in spring.items() if name not in ("kid", "alg", "use")}
        for entries in ([spring], [nameless], [spring, other], [other | {"kid": "a"}, nameless]):

            async def read(entries: object = entries) -> str:
                return json.dumps({"keys": entries})

            keys = KeySet(read)
            tokens = JsonWebTokens(keys=keys)
            verified = await tokens.authenticate(PresentedCredentials(token=issuer.sign("spring", named=False)))
            assert verified is not None
            assert verified.identity.scope.users == {"alice"}
            with pytest.raises(CallerUnknown):
                await tokens.authenticate(PresentedCredentials(token=issuer.sign("spring", named=False) + "x"))
            await tokens.close()

    async def test_without_an_id_a_token_is_refused_where_several_keys_fit_or_none(self) -> None:
        async with issuing("spring", "autumn") as issuer:
            entries = issuer.document()["keys"]
        nameless = [{name: value for name, value in entry.items() if name != "kid"} for entry in entries]
        for several in (entries, nameless, [entries[0], nameless[1]]):

            async def read(several: object = several) -> str:
                return json.dumps({"keys": several})

            tokens = JsonWebTokens(keys=KeySet(read))
            with pytest.raises(CallerUnknown, match="not exactly one key of its issuer fits"):
                await tokens.authenticate(PresentedCredentials(token=issuer.sign("spring", named=False)))
            await tokens.close()

    @pytest.mark.parametrize(
        "odd",
        [{"kid": ["a"]}, {"kid": {}}, {"alg": ["ES256"]}, {"alg": "none"}, {"kty": ["EC"]}, {"x": 7}, {"crv": "?"}],
    )
    async def test_one_key_that_cannot_be_used_takes_no_other_with_it(self, odd: dict[str, Any]) -> None:
        async with issuing("spring", "autumn") as issuer:
            spring, autumn = issuer.document()["keys"]

        async def read() -> str:
            return json.dumps({"keys": [autumn | odd, spring]})

        keys = KeySet(read)
        assert (await keys.key("spring", "ES256")).key_id == "spring"
        await keys.close()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "null",
            "[]",
            '{"keys": []}',
            '{"keys": {}}',
            '{"keys": [7, null, {}, {"kty": "EC"}, {"kty": "oct", "k": "c2VjcmV0", "kid": "spring"}]}',
            "[" * 100_000,
        ],
    )
    async def test_a_document_that_is_not_a_set_of_public_keys_gives_no_key(self, text: str) -> None:
        async def read() -> str:
            return text

        keys = KeySet(read)
        with pytest.raises(StoreUnavailable):
            await keys.key("spring", "ES256")
        await keys.close()


async def count_permitted(quotas: Quotas, count: int, identity: Identity = ALICE, action: Action = Action.CALL) -> int:
    """The number of permitted actions out of `count`."""
    answers = await asyncio.gather(*(quotas.take(identity, action) for _ in range(count)), return_exceptions=True)
    assert all(answer is None or isinstance(answer, CallerRateLimited) for answer in answers)
    return answers.count(None)


class TestQuotas:
    async def test_each_second_brings_a_new_allowance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = OffsetClock(monkeypatch)
        quotas = Quotas({Kind.USER: Allowance(10, 4, 1)})
        assert await count_permitted(quotas, 30) == 10
        assert await count_permitted(quotas, 30, action=Action.REFRESH) == 4
        clock.advance(1)
        assert await count_permitted(quotas, 30) == 10
        assert await count_permitted(quotas, 30, action=Action.REFRESH) == 0
        clock.advance(59)
        assert await count_permitted(quotas, 30, action=Action.REFRESH) == 4

    async def test_what_is_given_back_can_be_taken_again_until_its_window_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = OffsetClock(monkeypatch)
        quotas = Quotas({Kind.USER: Allowance(10, 4, 1)})
        quotas.give_back(ALICE, Action.REFRESH)
        assert await count_permitted(quotas, 10, action=Action.REFRESH) == 4
        quotas.give_back(ALICE, Action.REFRESH)
        assert await count_permitted(quotas, 10, action=Action.REFRESH) == 1
        clock.advance(60)
        for _ in range(9):
            quotas.give_back(ALICE, Action.REFRESH)
        assert await count_permitted(quotas, 10, action=Action.REFRESH) == 4

    async def test_callers_that_are_not_authenticated_are_not_counted(self) -> None:
        quotas = Quotas({Kind.USER: Allowance(1, 1, 1)})
        assert await count_permitted(quotas, 50, ANYBODY) == 50

    @pytest.mark.parametrize("redis", [False, True])
    @pytest.mark.parametrize("limit", [1, 20, 60])
    async def test_streams_that_select_more_than_a_window_has_are_opened_one_after_the_other(
        self, monkeypatch: pytest.MonkeyPatch, redis: bool, limit: int
    ) -> None:
        """Each has taken a permit before any of them says how many accounts it selects, and all come back together."""
        clock, taken = OffsetClock(monkeypatch), 0

        class Shared:
            async def take(self, key: str, action: Action, limit: int, count: int) -> bool:
                nonlocal taken
                if taken + count > limit:
                    return False
                taken += count
                return True

        quotas = Quotas({Kind.USER: Allowance(limit, 1, limit)}, shared=Shared() if redis else None)
        waiting = min(limit, 20)
        for _ in range(waiting):
            assert await count_permitted(quotas, waiting, action=Action.OPENING) == waiting
            opened = [quotas.take_selectors(ALICE, 200) for _ in range(waiting)]
            refusals = await asyncio.gather(*opened, return_exceptions=True)
            assert refusals.count(None) == 1
            waiting -= 1
            clock.advance(1)
            taken = 0

    @pytest.fixture
    async def replicas(self, redis_url: str) -> AsyncIterator[list[Quotas]]:
        """Three processes' counts of one Redis: sixty calls a second for a service."""
        allowances = {Kind.SERVICE: Allowance(60, 40, 1)}
        prefix = f"test-{uuid.uuid4().hex}:"
        links = [RedisLink(redis_url) for _ in range(3)]
        stores = [RedisQuotas(SealedRedis(link, b"0123456789abcdef", prefix=prefix)) for link in links]
        yield [Quotas(allowances, shared=store, hash_key=b"0123456789abcdef") for store in stores]
        for link in links:
            await link.close()

    async def test_replicas_share_one_allowance(self, replicas: list[Quotas]) -> None:
        desk = Identity("service desk", Kind.SERVICE, Scope(everybody=True))
        # By the minute, so that no window ends meanwhile.
        shares = await asyncio.gather(*(count_permitted(quotas, 40, desk, Action.REFRESH) for quotas in replicas))
        assert sum(shares) == 40

    async def test_most_calls_wait_for_no_redis(self, replicas: list[Quotas], monkeypatch: pytest.MonkeyPatch) -> None:
        requests = []
        take = RedisQuotas.take

        async def count_and_take(self: RedisQuotas, *arguments: Any) -> bool | None:
            requests.append(arguments)
            return await take(self, *arguments)

        monkeypatch.setattr(RedisQuotas, "take", count_and_take)
        monkeypatch.setattr("exchange_service.identity.quotas.BATCHES", 4)
        desk = Identity("service desk", Kind.SERVICE, Scope(everybody=True))
        assert await count_permitted(replicas[0], 40, desk, Action.REFRESH) == 40
        assert await count_permitted(replicas[0], 40, desk, Action.REFRESH) == 0
        assert len(requests) == 4

    async def test_a_process_that_finds_no_shared_permits_asks_again_before_its_own_window_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Redis's window is not that of the process: it may end a moment after the request."""
        clock, requests, left = OffsetClock(monkeypatch), list[int](), False

        class Shared:
            async def take(self, key: str, action: Action, limit: int, count: int) -> bool:
                requests.append(count)
                return left

        quotas = Quotas({Kind.USER: Allowance(60, 60, 1)}, shared=Shared())
        assert await count_permitted(quotas, 50, action=Action.REFRESH) == 0
        assert len(requests) == 1
        with pytest.raises(CallerRateLimited) as refused:
            await quotas.take(ALICE, Action.REFRESH)
        assert 0 < (refused.value.retry_after or 0) <= 3
        left = True
        clock.advance(4)
        assert await count_permitted(quotas, 50, action=Action.REFRESH) == 50

    async def test_counters_in_redis_do_not_name_a_caller(self, replicas: list[Quotas], redis_url: str) -> None:
        import redis

        identity = Identity(f"service {uuid.uuid4().hex}", Kind.SERVICE, Scope(everybody=True))
        await count_permitted(replicas[0], 1, identity)
        with redis.Redis.from_url(redis_url) as client:
            keys = [key.decode() for key in client.scan_iter("test-*")]
        assert keys
        assert not [key for key in keys if identity.name.split()[1] in key]

    async def test_a_redis_that_hangs_delays_one_call_a_little_and_the_next_not_at_all(
        self, redis_server: RedisServer
    ) -> None:
        link = RedisLink(redis_server.url)
        quotas = Quotas(
            {Kind.USER: Allowance(5, 5, 1)}, shared=RedisQuotas(SealedRedis(link, b"0123456789abcdef", prefix="x:"))
        )
        redis_server.freeze()
        began = time.monotonic()
        assert await count_permitted(quotas, 20) == 5
        for number in range(5):
            assert await count_permitted(quotas, 1, Identity(f"user {number}", Kind.USER, Scope())) == 1
        assert time.monotonic() - began < 2.0
        # Three failures are enough: from then on it is left alone.
        began = time.monotonic()
        assert await count_permitted(quotas, 1, Identity("user of later", Kind.USER, Scope())) == 1
        assert time.monotonic() - began < 0.1
        redis_server.thaw()
        await link.close()
