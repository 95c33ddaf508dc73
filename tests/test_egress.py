"""The ways out: the setting, which account takes which way, connections through them, and their budgets."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from exchange_service.cache.redis_link import RedisLink
from exchange_service.cache.sealed_redis import SealedRedis
from exchange_service.cli.doctor_ways import check_ways
from exchange_service.credentials import CredentialReference
from exchange_service.errors import PluginFailed, ServiceError, VenueRateLimited, VenueUnavailable
from exchange_service.model import Account, Environment, RateLimit, Secret
from exchange_service.plugin_host.protocol import read_ways, write_ways
from exchange_service.plugin_host.sandbox import ports_by
from exchange_service.startup_checks import UnsafeSettings, open_egress, unused_settings
from exchange_service.testing import LoopbackVenue
from exchange_service.venue_gate import Gated
from exchange_service.venue_gate.redis_state import RedisSharedState
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.egress import Egress, EgressRefused, Proxy, Way, read_egress
from exchange_service.venues.fetching import Target
from exchange_service.venues.http import VenueHttp
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.registry import Listing
from tests.gates import Venue, gated, outcome
from tests.harness import HASH_KEY, ScriptedPlugin, listing, registry_of, settings_for
from tests.identities import Authority
from tests.venue_proxies import ConnectProxy, LoopbackProxy, SocksProxy

PASSWORD = "correct-horse-battery-staple"
KINDS = (ConnectProxy, SocksProxy)


class Seen(LoopbackVenue):
    """Answers every request, and keeps from which address each came."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str | None] = []

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/socket", self._talk), web.get("/{path:.*}", self._answer)]

    def account_of(self, request: web.Request, body: bytes) -> str:
        self.sources.append(request.remote)
        return ""

    async def _answer(self, _: web.Request) -> web.Response:
        return web.json_response({"balance": "of the venue"})

    async def _talk(self, request: web.Request) -> web.WebSocketResponse:
        talk = web.WebSocketResponse()
        await talk.prepare(request)
        await talk.send_str("hello")
        return talk


class NoNames(AbstractResolver):
    """A name server that must not be asked."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        raise AssertionError(f"{host} was looked up here")

    async def close(self) -> None:
        return None


@asynccontextmanager
async def opened(way: Way, url: str, *, by_operator: bool = True, timeout: float = 5.0) -> AsyncIterator[VenueHttp]:
    pool = VenueHttpPool(timeout=timeout, resolver=NoNames() if way.proxy else None)
    exchange = listing(environments=(Environment("production", {"api": url}),))
    try:
        yield pool.http(exchange, exchange.environments[0], url if by_operator else "", way=way)
    finally:
        await pool.close()


def through(proxy: LoopbackProxy, *, login: tuple[str, str] = ("", "")) -> Way:
    user, password = login
    kind = "http" if proxy.scheme == "http" else "socks5"
    return Way("far", Proxy(kind, "127.0.0.1", proxy.port, user, Secret(password)), counted_as="far")


async def refused(way: Way, url: str = "http://127.0.0.1:9", **options: Any) -> ServiceError:
    async with opened(way, url, **options) as http:
        with pytest.raises(ServiceError) as caught:
            await http.get(f"{url}/balance")
    return caught.value


class TestSetting:
    def test_ways_are_read_and_the_direct_one_needs_no_entry(self) -> None:
        egress = read_egress(
            {
                "ways": {
                    "frankfurt": {
                        "proxy": "http://10.0.0.5:3128",
                        "user": "desk",
                        "password": {"env": "FRANKFURT_PASSWORD"},
                        "address": "203.0.113.7",
                    },
                    "tor": {"proxy": "socks5://localhost"},
                    "second": {"local_address": "1.1.1.1"},
                    "third": {"local_address": "10.0.0.9"},
                },
                "venues": {"binance": ["frankfurt", "direct"], "kraken": "tor", "*": "second"},
                "pinned": {"alice": {"binance.sandbox": "tor"}},
            },
            {"FRANKFURT_PASSWORD": PASSWORD + "\n"},
            "198.51.100.1",
        )
        frankfurt = egress.ways["frankfurt"]
        assert frankfurt.proxy == Proxy("http", "10.0.0.5", 3128, "desk", frankfurt.proxy.password)  # type: ignore[union-attr]
        assert frankfurt.proxy.password.reveal() == PASSWORD  # type: ignore[union-attr]
        assert egress.ways["tor"].proxy == Proxy("socks5", "localhost", 1080, "", egress.ways["tor"].proxy.password)  # type: ignore[union-attr]
        assert [way.name for way in egress.of_venue("oanda")] == ["second"]
        assert egress.addresses("binance") == ("203.0.113.7", "198.51.100.1")
        # An address of a private network is not the one that venues see.
        assert (egress.ways["second"].address, egress.ways["third"].address) == ("1.1.1.1", "")
        assert egress.of_account(Account("alice", "binance", "sandbox")).name == "tor"
        assert egress.of_account(Account("alice", "kraken")).name == "tor"
        assert PASSWORD not in repr(egress)

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"way": {}}, "has a part 'way'. Did you mean 'ways'?"),
            ({"ways": {"direct": {"local_address": "127.0.0.2"}}}, "names a way 'direct'"),
            ({"ways": {"Frankfurt 1": {"local_address": "127.0.0.2"}}}, "names a way 'Frankfurt 1'"),
            ({"ways": {"a": {}}}, "neither or both"),
            ({"ways": {"a": {"proxy": "http://h", "local_address": "127.0.0.2"}}}, "neither or both"),
            ({"ways": {"a": {"proxi": "http://h"}}}, "Did you mean 'proxy'?"),
            ({"ways": {"a": {"proxy": "https://h:1"}}}, "should begin with http:// or socks5://"),
            ({"ways": {"a": {"proxy": "socks4://h:1"}}}, "should begin with http:// or socks5://"),
            ({"ways": {"a": {"proxy": "10.0.0.5:3128"}}}, "http://host:port or socks5://host:port"),
            ({"ways": {"a": {"proxy": "http://h:99999"}}}, "http://host:port or socks5://host:port"),
            ({"ways": {"a": {"proxy": "http://h:1/path"}}}, "should end behind the port"),
            ({"ways": {"a": {"proxy": f"http://desk:{PASSWORD}@h:1"}}}, "write them apart"),
            ({"ways": {"a": {"proxy": "http://h", "user": "desk", "password": PASSWORD}}}, '{"env": "NAME"}'),
            ({"ways": {"a": {"proxy": "http://h", "user": "desk"}}}, "both a user"),
            ({"ways": {"a": {"proxy": "http://h", "user": "d", "password": {"env": "UNSET"}}}}, "not set or empty"),
            ({"ways": {"a": {"local_address": "gateway.example"}}}, "not one IP address"),
            ({"ways": {"a": {"local_address": "127.0.0.2", "address": "gateway"}}}, "should be an IP address"),
            ({"ways": {"a": {"local_address": "127.0.0.2", "user": "desk"}}}, "has no proxy"),
            ({"venues": {"binance": ["frankfort"]}}, "which is not among its ways (direct)."),
            ({"venues": {"binance": []}}, "a list of ways"),
            ({"venues": {"binance": ["direct", "direct"]}}, "one way twice"),
            ({"pinned": {"alice": {"binance": "gone"}}}, "pins an account at 'binance' to the way 'gone'"),
            ({"pinned": {"alice": "direct"}}, "an object of names"),
        ],
    )
    def test_what_cannot_be_meant_is_a_sentence_without_a_password(self, given: dict[str, Any], says: str) -> None:
        with pytest.raises(EgressRefused) as caught:
            read_egress(given, {})
        assert says in str(caught.value)
        assert PASSWORD not in str(caught.value)

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"venues": {"fakec": "direct"}}, "names 'fakec' in venues, which no plugin serves. Did you mean 'fakex'?"),
            ({"venues": {"fakex.sandbox": "direct"}}, "It should be an exchange's id."),
            ({"pinned": {"alice": {"fakex.sandbox": "direct"}}}, "an exchange's id, or id.environment"),
            ({"ways": {"a": {"local_address": "203.0.113.8"}}}, "not one of this machine"),
        ],
    )
    def test_the_start_checks_it_against_the_plugins_and_the_machine(
        self, given: dict[str, Any], says: str, tmp_path: Path
    ) -> None:
        registry = registry_of(ScriptedPlugin(listing()))
        with pytest.raises(UnsafeSettings) as caught:
            open_egress(settings_for(tmp_path, egress=given), registry)
        assert str(caught.value).startswith("egress ")
        assert says in str(caught.value)

    def test_socks_without_its_package_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.startup_checks.find_spec", lambda _: None)
        settings = settings_for(tmp_path, egress={"ways": {"tor": {"proxy": "socks5://127.0.0.1:9050"}}})
        with pytest.raises(UnsafeSettings, match=r"install exchange-service\[socks\]"):
            open_egress(settings, registry_of(ScriptedPlugin(listing())))


class TestDoctor:
    async def test_it_says_which_ways_lead_to_a_venue_and_asks_the_venue_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAR_PASSWORD", "wrong")
        registry = registry_of(ScriptedPlugin(listing()))
        async with Seen() as venue, ConnectProxy() as good, SocksProxy(login=("desk", PASSWORD)) as closed:
            far = {"proxy": good.url, "address": "203.0.113.7"}
            tor = {"proxy": closed.url, "user": "desk", "password": {"env": "FAR_PASSWORD"}}
            ways = {"far": far, "tor": tor, "second": {"local_address": "127.0.0.2"}, "spare": {"proxy": good.url}}
            egress = {"ways": ways, "venues": {"*": ["far", "tor", "second"]}}
            settings = settings_for(tmp_path, egress=egress, venue_urls={"fakex": venue.url})
            checks = {check.name: check for check in await check_ways(settings, registry)}
            port = urlsplit(venue.url).port
            assert checks["far"].text == f"its proxy connects to Fakex (127.0.0.1:{port}). Venues see 203.0.113.7."
            assert not checks["tor"].works
            assert "the proxy tor refuses our user and password." in checks["tor"].text
            assert checks["second"].text == "begins at 127.0.0.2, an address of this machine."
            assert venue.requests == []
        unused = unused_settings(settings, registry)
        assert unused == ["egress has the way 'spare', which no venue and no pinned account uses."]


def named(*names: str, pinned: dict[str, dict[str, str]] | None = None) -> Egress:
    ways = {name: Way(name, counted_as=name) for name in names}
    return Egress({"direct": Way()} | ways, {"fakex": names or ("direct",)}, pinned or {})


def fakex() -> Listing:
    return registry_of(ScriptedPlugin(listing())).listings["fakex"]


class TestChoice:
    def test_accounts_stay_with_their_way_and_a_new_way_moves_only_those_that_it_gets(self) -> None:
        accounts = [Account(f"user{number}", "fakex") for number in range(600)]
        before = {account: named("a", "b").of_account(account).name for account in accounts}
        assert all(named("b", "a").of_account(account).name == way for account, way in before.items())
        after = {account: named("a", "b", "c").of_account(account).name for account in accounts}
        moved = [account for account in accounts if after[account] != before[account]]
        assert {after[account] for account in moved} == {"c"}
        assert 130 < len(moved) < 270
        for way in "abc":
            assert 130 < list(after.values()).count(way) < 270

    def test_an_account_that_uses_anothers_credential_takes_its_way(self) -> None:
        egress = Egress({name: Way(name) for name in ("direct", "a", "b")}, {"*": ("a", "b")})
        for number in range(20):
            spot, futures = Account(f"user{number}", "spot"), Account(f"user{number}", "futures")
            assert egress.of_account(futures, "Spot") == egress.of_account(spot)

    def test_a_credential_that_is_tried_takes_the_way_of_its_user(self) -> None:
        egress = named("a", "b")
        for number in range(20):
            account, stand_in = Account(f"user{number}", "fakex"), Account("candidate 1", "fakex")
            target = Target(account, fakex(), CredentialReference(stand_in, stand_in, "1"))
            assert egress.of_target(target) == egress.of_account(account)

    def test_a_process_is_given_the_ways_of_its_exchanges_and_no_others(self) -> None:
        egress = Egress(
            {name: Way(name, counted_as=name) for name in ("direct", "a", "b", "c")},
            {"fakex": ("a",), "other": ("b",)},
            {"alice": {"fakex.production": "c"}},
        )
        ways = egress.serving({"fakex"})
        assert [way.name for way in ways] == ["a", "c"]
        there = read_ways(write_ways(ways))
        assert set(there.ways) == {"direct", "a", "c"}
        alice = Account("alice", "fakex")
        target = Target(alice, fakex(), CredentialReference(alice, alice, "1"), way="a")
        assert there.of_target(target).counted_as == "a"
        with pytest.raises(VenueUnavailable, match="is not known here"):
            there.of_target(replace(target, way="b"))

    @pytest.mark.threat("T97")
    def test_where_all_ways_are_proxies_a_process_reaches_their_ports_alone(self) -> None:
        far = Way("far", Proxy("http", "10.0.0.5", 3128))
        venues = frozenset({53, 443, 8443})
        assert ports_by((far,), venues) == {53, 3128}
        assert ports_by((far, Way()), venues) == {53, 443, 3128, 8443}
        assert ports_by((), venues) == venues


class TestConnections:
    @pytest.mark.threat("T97", attack=True)
    async def test_a_proxy_answers_in_the_venues_place_unless_all_goes_through_a_tunnel(self) -> None:
        async with Seen() as venue, ConnectProxy() as proxy:
            proxy.answer = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"balance": 1}'
            async with aiohttp.ClientSession() as plain, plain.get(f"{venue.url}/b", proxy=proxy.url) as answer:
                assert await answer.text() == '{"balance": 1}'
            error = await refused(through(proxy), venue.url)
            assert error.message.endswith("the proxy far sent something of its own.")
            assert venue.sources == []

    @pytest.mark.threat("T97")
    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_proxy_sees_host_and_port_and_nothing_of_a_venue_with_tls(
        self, kind: type[LoopbackProxy], tmp_path: Path
    ) -> None:
        authority = Authority.create(tmp_path)
        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        served.load_cert_chain(*authority.sign("venue", "venue.example"))
        async with (
            Seen() as venue,
            served_by_tls(venue, served) as port,
            kind({"venue.example": ("127.0.0.1", port)}) as proxy,
        ):
            async with opened(through(proxy), "https://venue.example", by_operator=False) as http:
                context = ssl.create_default_context(cafile=authority.file)
                session = http.client_session
                headers = {"Api-Key": "key-of-alice"}
                async with session.get("https://venue.example/b", headers=headers, ssl=context) as answer:
                    assert await answer.json() == {"balance": "of the venue"}
                # A certificate of another name.
                proxy.names["other.example"] = ("127.0.0.1", port)
            async with opened(through(proxy), "https://other.example", by_operator=False) as http:
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await http.client_session.get("https://other.example/b", ssl=context)
            async with opened(through(proxy), "https://venue.example", by_operator=False) as http:
                # The authority is private: without it, nothing is trusted.
                with pytest.raises(VenueUnavailable):
                    await http.get("https://venue.example/b")
        assert proxy.asked == [("venue.example", 443), ("other.example", 443), ("venue.example", 443)]
        assert b"key-of-alice" not in proxy.passed
        assert b"balance" not in proxy.passed
        if isinstance(proxy, ConnectProxy):
            assert proxy.heads[0] == b"CONNECT venue.example:443 HTTP/1.1\r\nHost: venue.example:443\r\n\r\n"
        elif isinstance(proxy, SocksProxy):
            assert proxy.by_name == [True, True, True]

    @pytest.mark.parametrize("kind", KINDS)
    async def test_requests_and_sockets_go_through_it_with_a_password_also_without_tls(
        self, kind: type[LoopbackProxy]
    ) -> None:
        async with Seen() as venue, kind(login=("desk", PASSWORD)) as proxy:
            proxy.local_address = "127.0.0.9"
            way = through(proxy, login=("desk", PASSWORD))
            async with opened(way, venue.url) as http:
                assert (await http.get(f"{venue.url}/b")).json() == {"balance": "of the venue"}
                async with http.websocket(venue.url.replace("http", "ws") + "/socket") as talk:
                    assert await talk.receive() == "hello"
            assert venue.sources == ["127.0.0.9", "127.0.0.9"]
            port = urlsplit(venue.url).port
            assert set(proxy.asked) == {("127.0.0.1", port)}
            # Not even a proxy of ours is sent the absolute form, in which it could change what is asked.
            assert proxy.passed.startswith(b"GET /b HTTP/1.1\r\n")
            wrong = await refused(through(proxy, login=("desk", "wrong")), venue.url)
            missing = await refused(through(proxy), venue.url)
        assert wrong.message == "Fakex cannot be reached: the proxy far refuses our user and password."
        assert missing.message == "Fakex cannot be reached: the proxy far asks for a user and a password."
        assert isinstance(wrong, VenueUnavailable)
        assert isinstance(missing, VenueUnavailable)

    @pytest.mark.parametrize("kind", KINDS)
    async def test_what_a_proxy_says_is_told_as_its_own_and_never_as_the_venues(
        self, kind: type[LoopbackProxy], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.venues.http.CONNECT_TIMEOUT", 0.4)
        async with kind() as proxy:
            way = through(proxy)
            unreachable = await refused(way)
            proxy.refusal = 403 if kind is ConnectProxy else 2
            forbidden = await refused(way)
            proxy.silent = True
            silent = await refused(way, timeout=20.0)
        dead = await refused(way)
        begins = "Fakex cannot be reached: the proxy far "
        assert unreachable.message.removeprefix(begins) in (
            "does not connect to it (HTTP 502).",
            "does not connect to it (SOCKS reply 4).",
        )
        assert forbidden.message.removeprefix(begins) in (
            "does not connect to it (HTTP 403).",
            "does not connect to it (its rules forbid that).",
        )
        assert silent.message == begins + "does not answer in time."
        assert dead.message == begins + "cannot be reached."
        assert "exchange-service doctor" in dead.text

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (b"SSH-2.0-OpenSSH\r\n\r\n", "answered with something that is not HTTP"),
            (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{}", "sent something of its own"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4000, "answered with something that is not HTTP"),
            (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n", "does not connect to it (HTTP 302)"),
            (b"HTTP/1.1 200", "ended the connection"),
        ],
    )
    async def test_an_answer_that_is_not_one_to_connect_opens_nothing(self, answer: bytes, says: str) -> None:
        async with ConnectProxy() as proxy:
            proxy.answer = answer
            assert says in (await refused(through(proxy))).message

    @pytest.mark.threat("T97")
    @pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.8", "localhost", "db.internal", "[::1]"])
    async def test_a_manifest_reaches_nothing_private_through_a_proxy(self, host: str) -> None:
        async with ConnectProxy() as proxy:
            error = await refused(through(proxy), f"http://{host}:8080", by_operator=False)
        assert "not of the public internet" in error.message
        assert proxy.asked == []

    async def test_connections_begin_at_the_ways_local_address(self) -> None:
        async with Seen() as venue:
            for address in ("127.0.0.2", "127.0.0.3"):
                async with opened(Way("local", local_address=address), venue.url) as http:
                    await http.get(f"{venue.url}/b")
                    async with http.websocket(venue.url.replace("http", "ws") + "/socket"):
                        pass
            gone = await refused(Way("local", local_address="203.0.113.8"), venue.url)
        assert venue.sources == ["127.0.0.2"] * 2 + ["127.0.0.3"] * 2
        assert gone.message == "Fakex cannot be reached: the address of the way local is not one of this machine."

    @pytest.mark.threat("T97")
    async def test_a_plugin_chooses_no_proxy(self) -> None:
        async with Seen() as venue, ConnectProxy() as proxy, opened(Way(), venue.url) as http:
            with pytest.raises(PluginFailed, match="chose a proxy"):
                await http.client_session.get(f"{venue.url}/b", proxy=proxy.url)
        assert (venue.sources, proxy.opened) == ([], 0)


def gate_of(egress: Egress, **options: Any) -> Gated:
    return gated(egress=egress, attempts=1, **options)


# Two accounts of each of the ways a and b.
PINNED = {user: {"fakex": way} for user, way in (("ann", "a"), ("abe", "a"), ("ben", "b"), ("bob", "b"))}


class TestBudgets:
    async def test_each_address_has_its_own_budget_and_ways_of_one_address_share_it(self) -> None:
        venue = Venue(RateLimit("address", 4, 60))
        gate = gate_of(named("a", "b", pinned=PINNED))
        for user in ("ann", "ann", "abe", "abe", "ben", "bob"):
            await venue.through(gate, key=user, user=user)
        # Two of four are one user's part.
        assert isinstance(await outcome(venue.through(gate, key="ann", user="ann")), VenueRateLimited)
        await venue.through(gate, key="ben", user="ben")
        ways = {name: Way(name, counted_as="203.0.113.7") for name in "ab"}
        gate = gate_of(Egress({"direct": Way()} | ways, {"fakex": ("a", "b")}, PINNED))
        for user in ("ann", "ann", "ben", "ben"):
            await venue.through(gate, key=user, user=user)
        assert isinstance(await outcome(venue.through(gate, key="bob", user="bob")), VenueRateLimited)

    async def test_what_a_venue_says_of_an_address_holds_for_that_address(self) -> None:
        venue, gate = Venue(), gate_of(named("a", "b", pinned=PINNED))
        venue.failing(VenueRateLimited("Too much.", retry_after=60))
        for user in ("ann", "abe"):
            await outcome(venue.through(gate, key=user, user=user))
        venue.answer = venue.good
        asked = venue.fetches
        assert isinstance(await outcome(venue.through(gate, key="third", user="ann")), VenueRateLimited)
        assert venue.fetches == asked
        assert await venue.through(gate, key="bob", user="bob") == "a balance"

    async def test_a_proxy_that_fails_takes_the_venue_from_nobody_else(self) -> None:
        status = VenueStatus()
        venue, gate = Venue(), gate_of(named("a", "b", pinned=PINNED | {"amy": {"fakex": "a"}}), status=status)
        venue.failing(VenueUnavailable("Fakex cannot be reached: the proxy a cannot be reached."))
        for user in ("ann", "abe", "amy") * 2:
            await outcome(venue.through(gate, key=user, user=user))
        venue.answer = venue.good
        left_alone = await outcome(venue.through(gate, key="ann", user="ann"))
        assert left_alone is not None
        assert "is left alone" in left_alone.message
        assert await venue.through(gate, key="ben", user="ben") == "a balance"
        trouble = status.troubles["fakex"]
        # It serves those of other ways.
        assert trouble.serves
        assert "by a" in trouble.reason
        assert set(gate.snapshot()) == {"fakex production by a", "fakex production by b"}

    async def test_two_replicas_count_each_address_together(self, redis_url: str) -> None:
        venue = Venue(RateLimit("address", 4, 60))
        egress, prefix = named("a", "b", pinned=PINNED), f"test-{uuid.uuid4().hex}:"
        async with AsyncExitStack() as stack:
            gates = []
            for _ in range(2):
                link = RedisLink(redis_url)
                stack.push_async_callback(link.close)
                shared = RedisSharedState(SealedRedis(link, HASH_KEY, prefix=prefix))
                gates.append(gate_of(egress, shared=shared, replicas=1))
            for number, user in enumerate(("ann", "abe", "ann", "abe")):
                await venue.through(gates[number % 2], key=user, user=user)
            used_up = await outcome(venue.through(gates[1], key="abe", user="abe", timeout=1.0))
            assert isinstance(used_up, VenueRateLimited)
            for number, user in enumerate(("ben", "bob", "ben", "bob")):
                await venue.through(gates[number % 2], key=user, user=user)


@asynccontextmanager
async def served_by_tls(venue: LoopbackVenue, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port at which the venue is served by TLS too."""
    async with AsyncExitStack() as stack:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with_venue = await asyncio.open_connection("127.0.0.1", urlsplit(venue.url).port)
            both = (_copy(reader, with_venue[1]), _copy(with_venue[0], writer))
            await asyncio.gather(*both, return_exceptions=True)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        stack.callback(server.close)
        yield server.sockets[0].getsockname()[1]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
