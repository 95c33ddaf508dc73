"""Authentication of calls: JWTs, client certificates, an issuer's keys, and the calls that need none."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from exchange_service.client import ServiceUnreachable
from exchange_service.errors import CallerUnknown, UserForbidden
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.identity import key_sets, token_store, tokens
from exchange_service.v1 import exchange_service_pb2 as messages
from tests import identities
from tests.authenticated_service import (
    EVERYBODY,
    amount,
    authenticated_service,
    make_plugin,
    open_stream,
    read_balance,
    tls_settings,
)
from tests.harness import (
    Running,
    Stream,
    balance_request,
    failure,
    registry_of,
    serving,
    totals,
)
from tests.identities import SECRET, Authority, bearer, client_of, issuing, service_token, web_token


def with_changes(token: str, **header: Any) -> str:
    """The token with another header, and the signature that it had."""
    _, payload, signature = token.split(".")
    changed = jwt.utils.base64url_encode(json.dumps({"typ": "JWT", "alg": "HS256", **header}).encode()).decode()
    return f"{changed}.{payload}.{signature}"


# Tokens that prove nothing: each is well made, but without the secret, or has expired.
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
    "an end that is not a time": web_token(exp="never"),
    "endless": web_token(exp=float("inf")),
    "longer than any clock": web_token(exp=10**400),
    "no subject": web_token(None),
    "an empty subject": web_token(" "),
    "the subject of all": web_token("*"),
    "Supabase's key for everybody": web_token(None, role="anon", aud=None),
    "another audience": web_token(aud="somebody else"),
    "no audience": web_token(aud=None),
    "not yet": web_token(nbf=4_000_000_000),
    "a claim of users that is not a list": web_token(exchange_service_users={"all": True}),
    "a claim of users with a number": web_token(exchange_service_users=["alice", 7]),
    "a claim of no users": web_token(exchange_service_users=[]),
    "a service token that was never made": tokens.new_token("x", EVERYBODY)[0],
    "the beginning of a service token": "xst_",
    "a service token of another shape": "xst_" + "z" * 12 + "_secret",
}


class TestPresentedCredentials:
    async def test_without_any_a_call_gets_nothing(self, tmp_path: Path) -> None:
        plugin = make_plugin()
        async with authenticated_service(tmp_path, plugin=plugin) as running:
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
    async def test_worthless_tokens_open_nothing_and_are_not_repeated(self, tmp_path: Path) -> None:
        plugin = make_plugin()
        async with authenticated_service(tmp_path, plugin=plugin) as running:
            # A cached balance must not bypass authentication.
            await read_balance(running, bearer(web_token()))
            before = len(plugin.calls)
            with capture_logs() as lines:
                for name, token in WORTHLESS.items():
                    for call in (read_balance(running, bearer(token)), open_stream(running, bearer(token)).next()):
                        failed = await failure(call)
                        assert failed.reason == "CALLER_UNKNOWN", name
                        assert len(token) < 8 or token not in repr(failed), name
            assert len(plugin.calls) == before
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
    async def test_ambiguous_metadata_is_refused(self, tmp_path: Path, metadata: list[tuple[str, str]]) -> None:
        async with authenticated_service(tmp_path) as running:
            failed = await failure(read_balance(running, metadata))
        assert failed.reason == "CALLER_UNKNOWN"

    async def test_a_users_own_token_reads_that_user_alone(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running, client_of(running, token=web_token("bob")) as client:
            assert totals((await client.get_balance("bob", "fakex")).balance) == {"BTC": amount("bob", "fakex")}
            assert (await client.list_exchanges()).stats.total == 2
            with pytest.raises(UserForbidden):
                await client.get_balance("alice", "fakex")

    async def test_a_claim_widens_a_token_to_the_users_that_it_names(self, tmp_path: Path) -> None:
        token = web_token("desk", exchange_service_users=["alice", "bob"])
        async with authenticated_service(tmp_path) as running, client_of(running, token=token) as client:
            for user in ("alice", "bob"):
                await client.get_balance(user, "fakex")
            with pytest.raises(UserForbidden):
                await client.get_balance("carol", "other_venue")

    async def test_the_claim_that_widens_may_have_another_name_and_then_only_that_one_counts(
        self, tmp_path: Path
    ) -> None:
        async with authenticated_service(tmp_path, jwt_users_claim="readers") as running:
            await read_balance(running, bearer(web_token("desk", readers="*")))
            failed = await failure(read_balance(running, bearer(web_token("desk", exchange_service_users="*"))))
        assert failed.reason == "USER_FORBIDDEN"

    async def test_an_issuer_and_an_audience_that_are_set_must_be_the_tokens(self, tmp_path: Path) -> None:
        async with authenticated_service(
            tmp_path, jwt_issuer="https://issuer.example", jwt_audience="balances"
        ) as running:
            good = {"iss": "https://issuer.example", "aud": "balances"}
            await read_balance(running, bearer(web_token(**good)))
            for claims in (good | {"iss": "https://other.example"}, good | {"aud": "other"}, good | {"iss": None}):
                failed = await failure(read_balance(running, bearer(web_token(**claims))))
                assert failed.reason == "CALLER_UNKNOWN", claims

    async def test_a_token_whose_clock_is_behind_by_less_than_the_leeway_is_taken(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path, jwt_leeway=60) as running:
            await read_balance(running, bearer(web_token(lifetime=-20)))
        (tmp_path / "strict").mkdir()
        async with authenticated_service(tmp_path / "strict", jwt_leeway=0) as running:
            assert (await failure(read_balance(running, bearer(web_token(lifetime=-20))))).reason == "CALLER_UNKNOWN"


@pytest.mark.needs_grpcio("The native engine has no TLS.")
class TestCertificates:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority.create(tmp_path / "authority")

    @pytest.fixture
    async def running(self, tmp_path: Path, authority: Authority) -> AsyncIterator[Running]:
        scopes = {"billing": "*", "desk.example": ["alice"], "gateway": "act-as", "twice": ["bob"]}
        changes = tls_settings(authority, tls_client_ca=authority.file, client_certificates=scopes, jwt_secret=SECRET)
        async with authenticated_service(tmp_path, **changes) as running:
            yield running

    async def test_a_certificates_common_name_or_dns_name_decides_which_users_it_reads(
        self, running: Running, authority: Authority
    ) -> None:
        billing = authority.channel_credentials(authority.sign("billing"))
        desk = authority.channel_credentials(authority.sign("whatever", "desk.example"))
        async with client_of(running, credentials=billing) as client:
            assert totals((await client.get_balance("carol", "other_venue")).balance) == {
                "BTC": amount("carol", "other_venue")
            }
        async with client_of(running, credentials=desk) as client:
            await client.get_balance("alice", "fakex")
            with pytest.raises(UserForbidden):
                await client.get_balance("bob", "fakex")

    async def test_a_gateways_certificate_reads_the_user_that_each_call_names(
        self, running: Running, authority: Authority
    ) -> None:
        gateway = authority.channel_credentials(authority.sign("gateway"))
        async with client_of(running, credentials=gateway, metadata=[("x-act-as", "bob")]) as client:
            await client.get_balance("bob", "fakex")
            with pytest.raises(UserForbidden):
                await client.get_balance("alice", "fakex")

    @pytest.mark.parametrize(
        "names",
        [
            ("unlisted",),
            ("BILLING",),
            # Who signs may have looked at the DNS names alone, and let the holder choose the rest.
            ("billing", "unlisted.example"),
            ("whatever", "desk.example", "twice"),
        ],
        ids=" and ".join,
    )
    async def test_unknown_names_and_names_of_different_scopes_read_nothing(
        self, running: Running, authority: Authority, names: tuple[str, ...]
    ) -> None:
        presented = authority.channel_credentials(authority.sign(*names))
        async with client_of(running, credentials=presented) as client:
            with pytest.raises(CallerUnknown):
                await client.get_balance("alice", "fakex")
            with pytest.raises(CallerUnknown):
                await client.list_exchanges()

    async def test_a_token_counts_before_the_certificate_that_opened_the_connection(
        self, running: Running, authority: Authority
    ) -> None:
        billing = authority.channel_credentials(authority.sign("billing"))
        async with client_of(running, credentials=billing, token=web_token("bob")) as client:
            await client.get_balance("bob", "fakex")
            with pytest.raises(UserForbidden):
                await client.get_balance("alice", "fakex")
        # A token that is no good does not fall back on it either.
        async with client_of(running, credentials=billing, token="nonsense") as client:
            with pytest.raises(CallerUnknown):
                await client.get_balance("bob", "fakex")

    async def test_without_a_certificate_of_the_authority_there_is_no_connection(
        self, running: Running, authority: Authority, tmp_path: Path
    ) -> None:
        forger = Authority.create(tmp_path / "forger")
        forged = grpc.ssl_channel_credentials(
            authority.file.read_bytes(), *(file.read_bytes() for file in reversed(forger.sign("billing")))
        )
        for presented in (authority.channel_credentials(), forged):
            async with client_of(running, credentials=presented, timeout=2) as client:
                with pytest.raises(ServiceUnreachable):
                    await client.get_balance("alice", "fakex")

    async def test_a_stream_ends_with_its_certificate(self, running: Running, authority: Authority) -> None:
        short = authority.channel_credentials(authority.sign("billing", lifetime=2))
        async with client_of(running, credentials=short) as client:
            stream = open_stream(Running(running.service, client), [], "alice", "fakex")
            await stream.next_of("balance")
            ended = await stream.failure()
        assert ended.reason == "CALLER_UNKNOWN"
        assert "expired" in ended.message


class TestHealthAndReflection:
    async def test_health_needs_no_authentication(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            stub: Any = health_pb2_grpc.HealthStub(running.client.channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING

    @pytest.mark.threat("T19", attack=True)
    async def test_reflection_is_for_authenticated_callers(self, tmp_path: Path) -> None:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async with serving(tmp_path, registry=registry_of(make_plugin())) as running:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
            reply = await stub.ServerReflectionInfo(iter([request])).read()
            assert SERVICE in [item.name for item in reply.list_services_response.service]
        async with authenticated_service(tmp_path, reflection=True) as running:
            stub = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
            failed = await failure(stub.ServerReflectionInfo(iter([request])).read())
            assert failed.reason == "CALLER_UNKNOWN"
            call = stub.ServerReflectionInfo(iter([request]), metadata=bearer(web_token()))
            reply = await call.read()
            assert SERVICE in [item.name for item in reply.list_services_response.service]
            call.cancel()

    async def test_a_check_that_breaks_before_reflection_is_reported_without_the_exceptions_text(
        self, tmp_path: Path
    ) -> None:
        async with authenticated_service(tmp_path, reflection=True) as running:
            token, stored = await service_token(running, EVERYBODY)
            async with identities.token_store(running.service.settings.database_url) as store:
                spoilt = sa.update(token_store.TOKENS).where(token_store.TOKENS.c.id == stored.id)
                await store.execute(spoilt.values(digest="\N{GRINNING FACE}"))
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            call = stub.ServerReflectionInfo(iter([request]), metadata=bearer(token))
            assert (await failure(call.read())).reason == "SERVICE_FAILED"

    async def test_each_request_of_a_reflection_call_is_authenticated_and_counted(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path, reflection=True, user_calls=3) as running:
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
        monkeypatch.setattr(key_sets, "MIN_INTERVAL", 0.0)

    async def test_a_token_of_the_issuers_key_is_taken_and_keys_may_change_meanwhile(self, tmp_path: Path) -> None:
        async with (
            issuing("spring") as issuer,
            authenticated_service(tmp_path, jwt_secret=None, jwt_jwks_url=issuer.url) as running,
        ):
            await read_balance(running, bearer(issuer.sign("spring")))
            await read_balance(running, bearer(issuer.sign("spring", named=False)))
            issuer.add_key("autumn")
            await read_balance(running, bearer(issuer.sign("autumn")))
            # What was signed before is still good.
            await read_balance(running, bearer(issuer.sign("spring", "bob")), "bob")
            assert issuer.requests == 2

    async def test_a_published_key_is_never_a_shared_secret(self, tmp_path: Path) -> None:
        async with (
            issuing("spring") as issuer,
            authenticated_service(tmp_path, jwt_secret=None, jwt_jwks_url=issuer.url) as running,
        ):
            public = json.dumps(issuer.document()["keys"][0])
            for secret in (public, SECRET):
                # By hand: the library does not sign with what is a public key.
                head, payload, _ = web_token().split(".")
                head = jwt.utils.base64url_encode(b'{"typ":"JWT","alg":"HS256","kid":"spring"}').decode()
                signature = hmac.digest(secret.encode(), f"{head}.{payload}".encode(), "sha256")
                forged = f"{head}.{payload}.{jwt.utils.base64url_encode(signature).decode()}"
                assert (await failure(read_balance(running, bearer(forged)))).reason == "CALLER_UNKNOWN"

    async def test_a_file_of_keys_may_be_replaced(self, tmp_path: Path) -> None:
        async with issuing("spring") as issuer:
            file = tmp_path / "keys.json"
            file.write_text(json.dumps(issuer.document()))
            async with authenticated_service(tmp_path, jwt_secret=None, jwt_jwks_file=file) as running:
                await read_balance(running, bearer(issuer.sign("spring")))
                issuer.add_key("autumn")
                file.write_text(json.dumps(issuer.document()))
                await read_balance(running, bearer(issuer.sign("autumn")))
