"""AsyncClient and Client against a server that answers as each test says."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from exchange_service.client import AsyncClient, Client, Reconnecting, ServiceUnreachable
from exchange_service.errors import (
    CallerUnknown,
    DeadlinePassed,
    ServiceError,
    ServiceOverloaded,
    ShuttingDown,
    UserForbidden,
    VenueUnavailable,
)
from exchange_service.v1.error_reason_pb2 import ERROR_REASON_DEADLINE_PASSED
from exchange_service.v1.exchange_service_pb2 import AccountSelector
from tests.client_peer import (
    EitherClient,
    Peer,
    Refusal,
    Stream,
    answering,
    balance_of,
    error_of,
    heartbeat_of,
)
from tests.identities import Authority


@dataclass(frozen=True)
class ServerTls:
    """A server's certificate and key, and the authority of its callers' certificates."""

    files: tuple[Path, Path]
    callers: Authority | None = None

    def credentials(self) -> grpc.ServerCredentials:
        certificate, key = (file.read_bytes() for file in self.files)
        callers = self.callers.file.read_bytes() if self.callers else None
        return grpc.ssl_server_credentials([(key, certificate)], callers, self.callers is not None)


Kind = type[AsyncClient] | type[Client]
SHUTTING = Refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
ENDED = Refusal(grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")
FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVICE_OVERLOADED")

pytestmark = pytest.mark.parametrize("kind", [AsyncClient, Client], ids=["async", "sync"])


def kinds_of(events: list[Any]) -> list[str]:
    """What each event is: a balance, an error, a heartbeat, or the class of another thing."""
    return [event.WhichOneof("event") if hasattr(event, "WhichOneof") else type(event).__name__ for event in events]


async def test_a_call_is_retried_unless_the_service_says_that_it_does_not_help(kind: Kind) -> None:
    for pushback, tries in (("", 2), ("10", 2), ("-1", 1)):
        refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "VENUE_UNAVAILABLE", pushback=pushback)
        async with answering(Peer(calls=[refusal])) as peer, EitherClient(kind, peer.address) as client:
            try:
                await client.call("get_balance", "alice", "oanda")
            except VenueUnavailable:
                assert tries == 1
            assert len(peer.tokens) == tries


async def test_all_attempts_share_one_deadline(kind: Kind) -> None:
    refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "VENUE_UNAVAILABLE", pushback="60000")
    async with answering(Peer(calls=[refusal] * 3)) as peer, EitherClient(kind, peer.address, timeout=0.4) as client:
        began = time.monotonic()
        with pytest.raises(ServiceError):
            await client.call("get_balance", "alice", "oanda")
        assert time.monotonic() - began < 3


async def test_several_addresses_are_called_in_turn_and_one_that_is_away_is_passed_over(kind: Kind) -> None:
    async with answering() as first, answering() as second:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            away = f"localhost:{unused.getsockname()[1]}"
            for address in (f"{first.address},{second.address}", [first.address, away, second.address]):
                first.tokens.clear(), second.tokens.clear()
                async with EitherClient(kind, address) as client, asyncio.timeout(20):
                    while not (first.tokens and second.tokens):
                        await client.call("get_balance", "alice", "oanda")
        # One that says that it is about to end gets no further calls.
        second.health, second.tokens[:], first.tokens[:] = b"\x08\x02", [], []
        async with EitherClient(kind, [first.address, second.address]) as client:
            for _ in range(6):
                await client.call("get_balance", "alice", "oanda")
        assert (len(first.tokens), second.tokens) == (6, [])


async def test_a_token_is_asked_for_at_each_call_and_a_stream_whose_token_ends_takes_the_next_once(kind: Kind) -> None:
    made = iter("abcdefgh")

    async def later() -> str:
        return next(made)

    token = later if kind is AsyncClient else lambda: next(made)
    streams = [Stream([balance_of("oanda", 5)], ENDED), Stream([], ENDED)]
    async with answering(Peer(streams=streams)) as peer, EitherClient(kind, peer.address, token=token) as client:
        await client.call("get_balance", "alice", "oanda")
        await client.call("get_balance", "alice", "oanda")
        found = await client.events(9, "alice")
        assert kinds_of(found) == ["balance", "Reconnecting", "CallerUnknown"]
        assert peer.tokens == ["a", "b", "c", "d"]
        peer.streams += [Stream([balance_of("oanda", 6)], ENDED)]
        async with EitherClient(kind, peer.address, token="fixed") as plain:
            assert kinds_of(await plain.events(9, "alice")) == ["balance", "CallerUnknown"]


async def test_a_call_whose_token_has_ended_is_made_once_more_with_a_newer_one(kind: Kind) -> None:
    made = iter("abc")
    async with answering(Peer(calls=[ENDED])) as peer:
        async with EitherClient(kind, peer.address, token=lambda: next(made)) as client:
            await client.call("get_balance", "alice", "oanda")
        assert peer.tokens == ["a", "b"]
        # The same token again is no other answer.
        peer.calls, peer.tokens[:] = [ENDED, ENDED], []
        async with EitherClient(kind, peer.address, token=lambda: "kept") as client:
            with pytest.raises(CallerUnknown):
                await client.call("get_balance", "alice", "oanda")
        assert peer.tokens == ["kept"]


async def test_a_stream_goes_on_with_what_it_has_seen_as_the_caller_spelled_the_accounts(kind: Kind) -> None:
    first = [balance_of("oanda", 5), balance_of("aster", 7), balance_of("oanda", 6), error_of("aster")]
    streams = [Stream(first, SHUTTING), Stream([balance_of("aster", 8)], SHUTTING), Stream([heartbeat_of()])]
    async with answering(Peer(streams=streams)) as peer, EitherClient(kind, peer.address) as client:
        known = [AccountSelector(exchange_id="lighter", known_version=3)]
        found = await client.events(8, "alice", known=known)
        assert kinds_of(found) == [
            *("balance", "balance", "balance", "account_error", "Reconnecting", "balance", "Reconnecting", "heartbeat")
        ]
        again = found[4]
        assert isinstance(again, Reconnecting)
        assert (type(again.error), again.attempt) == (ShuttingDown, 1)
        assert 0.1 <= again.delay <= 0.2
        second = peer.requests[1]
        assert (list(second.accounts), second.user_id) == ([], "alice")
        seen = {one.exchange_id: (one.known_version, one.unconfirmed) for one in second.known}
        assert seen == {"lighter": (3, False), "oanda": (6, False), "aster": (7, True)}
        peer.requests.clear()
        peer.streams += [Stream([balance_of("oanda", 9)], SHUTTING), Stream([balance_of("oanda", 10)])]
        selected = [AccountSelector(exchange_id="oanda"), AccountSelector(exchange_id="aster", environment="testnet")]
        await client.events(3, "alice", selected)
        spelled = [(one.exchange_id, one.environment, one.known_version) for one in peer.requests[1].accounts]
        assert spelled == [("oanda", "", 9), ("aster", "testnet", 0)]


async def test_a_stream_that_cannot_begin_fails(kind: Kind) -> None:
    forbidden = Refusal(grpc.StatusCode.PERMISSION_DENIED, "USER_FORBIDDEN")
    for refusal, error in ((FULL, ServiceOverloaded), (forbidden, UserForbidden), (ENDED, CallerUnknown)):
        peer = Peer(streams=[Stream([], refusal)])
        async with answering(peer), EitherClient(kind, peer.address, token=lambda: "a") as client:
            assert [type(one) for one in await client.events(1, "alice")] == [error]
    # One that was taken before comes back.
    peer = Peer(streams=[Stream([balance_of("oanda", 1)], FULL), Stream([balance_of("oanda", 2)])])
    async with answering(peer), EitherClient(kind, peer.address) as client:
        assert kinds_of(await client.events(3, "alice")) == ["balance", "Reconnecting", "balance"]
        peer.streams += [Stream([balance_of("oanda", 1)], SHUTTING)]
        assert kinds_of(await client.events(9, "alice", resume=False)) == ["balance", "ShuttingDown"]


async def test_an_address_that_was_never_reached_is_an_error_within_the_timeout(kind: Kind) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for _ in ("refuses", "is silent"):
            began = time.monotonic()
            async with EitherClient(kind, address, timeout=0.3) as client:
                (error,) = await client.events(1, "alice")
            assert isinstance(error, ServiceUnreachable)
            assert address in str(error)
            assert time.monotonic() - began < 5
            silent.listen()


async def test_a_stream_finds_a_service_that_comes_back(kind: Kind) -> None:
    peer, again = Peer(streams=[Stream([balance_of("oanda", 1)])]), Peer(streams=[Stream([balance_of("oanda", 2)])])
    async with contextlib.AsyncExitStack() as stack:
        async with answering(peer):
            client = await stack.enter_async_context(EitherClient(kind, peer.address))
            events = asyncio.ensure_future(client.events(3, "alice"))
            await peer.opened.wait()
        port = int(peer.address.rpartition(":")[2])
        await stack.enter_async_context(answering(again, port=port))
        found = await asyncio.wait_for(events, 20)
    # Whether the first balance has come before the service ended is up to chance.
    (reconnecting, *_) = [event for event in found if isinstance(event, Reconnecting)]
    assert isinstance(reconnecting.error, ServiceUnreachable)
    assert 2 in [event.balance.balance.version for event in found if kinds_of([event]) == ["balance"]]


async def test_balances_gives_each_account_once(kind: Kind) -> None:
    first = [heartbeat_of("aster", "oanda", "lighter"), balance_of("oanda", 5), error_of("aster")]
    peer = Peer(streams=[Stream([*first, balance_of("lighter", 2)]), Stream([*first], asyncio.Event().wait())])
    async with answering(peer), EitherClient(kind, peer.address) as client:
        found = await client.call("balances", "alice")
        assert [(type(one).__name__, one.SerializeToString() != b"") for one in found] == [
            ("AccountErrorEvent", True),
            ("BalanceEvent", True),
            ("BalanceEvent", True),
        ]
        assert peer.requests[0].known[0].unconfirmed
        late = (await client.call("balances", "alice", timeout=0.25))[1]
        assert (late.exchange_id, late.error.reason) == ("lighter", ERROR_REASON_DEADLINE_PASSED)
        peer.streams += [Stream([heartbeat_of()])]
        assert await client.call("balances", "bob") == []
        with pytest.raises(DeadlinePassed):
            await client.call("balances", "bob", timeout=0.2)


async def test_health_is_told_by_its_name(kind: Kind) -> None:
    async with answering() as peer, EitherClient(kind, peer.address) as client:
        assert await client.call("health") == "SERVING"
        peer.health = b"\x08\x02"
        assert await client.call("health") == "NOT_SERVING"
        assert await client.call("health", "none") == "SERVICE_UNKNOWN"
    async with EitherClient(kind, "127.0.0.1:9") as client:
        with pytest.raises(ServiceUnreachable, match=r"exchange-service serve"):
            await client.call("health")


async def test_the_cause_of_a_failed_tls_connection_is_told_with_what_to_do(kind: Kind, tmp_path: Path) -> None:
    authority, other = Authority.create(tmp_path), Authority.create(tmp_path, "other")

    async def failure(served: ServerTls | None, host: str = "127.0.0.1", **options: Any) -> str:
        async with answering(credentials=served and served.credentials()) as peer:
            address = peer.address.replace("127.0.0.1", host)
            async with EitherClient(kind, address, **options) as client:
                with pytest.raises(ServiceUnreachable) as raised:
                    await client.call("health")
            return str(raised.value)

    good = ServerTls(authority.sign("good"))
    expired = ServerTls(authority.sign("expired", lifetime=-60))
    mutual = ServerTls(authority.sign("mutual"), authority)
    certificate, key = other.sign("caller")
    told = {
        "has signed its certificate.*as tls_ca": await failure(good, tls_ca=other.file),
        "has expired": await failure(expired, tls_ca=authority.file),
        "for another name.*tls_name": await failure(good, "localhost", tls_ca=authority.file),
        "does not speak TLS.*tls=False": await failure(None, tls_ca=authority.file),
        "wants TLS.*tls=True": await failure(good),
        "a client certificate.*tls_certificate": await failure(mutual, tls_ca=authority.file),
        "a client certificate.*authority that": await failure(
            mutual, tls_ca=authority.file, tls_certificate=certificate, tls_key=key
        ),
        "cannot be used.*PEM": await failure(good, tls_ca=b"-----BEGIN CERTIFICATE-----"),
    }
    assert [text for sign, text in told.items() if not re.search(sign, text)] == []
    # gRPC's own text is there to its end.
    assert all("gRPC says: UNAVAILABLE" in text and not text.endswith("OPENSSL_internal") for text in told.values())


async def test_replicas_with_tls_are_called_by_the_first_ones_name_or_the_given_one(kind: Kind, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    tls = ServerTls(authority.sign("good", "balances.internal"))
    async with answering(credentials=tls.credentials()) as first, answering(credentials=tls.credentials()) as second:
        addresses = [first.address, second.address]
        named = [one.replace("127.0.0.1", "localhost") for one in addresses]
        for where, name in ((addresses, ""), (named, "balances.internal")):
            options = {"tls_ca": authority.file.read_bytes(), "tls_name": name, "token": "secret"}
            async with EitherClient(kind, where, **options) as client:
                await client.call("get_balance", "alice", "oanda")
    assert {*first.tokens, *second.tokens} == {"secret"}


def test_arguments_that_contradict_are_refused_without_showing_a_secret(kind: Kind) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("plaintext", {"address": "10.0.0.1:1", "tls": False, "token": "secret"}),
        ("plaintext", {"address": "127.0.0.1:1,10.0.0.1:1", "tls": False, "token": lambda: "secret"}),
        ("contradicts", {"address": "10.0.0.1:1", "tls": False, "tls_ca": b"x"}),
        ("or neither", {"address": "10.0.0.1:1", "tls_key": b"secret"}),
        ("PEM", {"address": "10.0.0.1:1", "tls_ca": b"secret"}),
        ("tls_ca: the file absent.pem cannot be read", {"address": "10.0.0.1:1", "tls_ca": "absent.pem"}),
        ("empty", {"address": ""}),
        ("empty", {"address": []}),
        ("host:port", {"address": "127.0.0.1:1,dns:///x:1"}),
        ("host:port", {"address": ["127.0.0.1", "127.0.0.2"]}),
        ("IPv6", {"address": ["127.0.0.1:1", "[::1]:1"]}),
    ]
    for text, options in wrong:
        with pytest.raises(ValueError, match=text) as raised:
            kind(**options)
        assert "secret" not in str(raised.value)
    assert "secret" not in repr(vars(kind("127.0.0.1:1", token="secret", metadata=[("authorization", "secret")])))


async def test_names_among_several_addresses_without_an_address_are_told(kind: Kind) -> None:
    async with EitherClient(kind, "a.invalid:1,b.invalid:1") as client:
        with pytest.raises(ServiceUnreachable, match="have no address"):
            await client.call("get_balance", "alice", "oanda")


async def test_a_closed_client_says_so_and_one_that_was_not_used_closes(kind: Kind) -> None:
    client = EitherClient(kind, "127.0.0.1:9")
    await client.call("close")
    with pytest.raises(RuntimeError, match="closed"):
        await client.call("health")
