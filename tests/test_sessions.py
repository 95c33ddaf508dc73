"""Sessions: one opened credential and one state for each account; a plugin's deadline, errors and answers."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from exchange_service_oanda import OANDA
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    CredentialInvalid,
    CredentialRejected,
    NotSupported,
    PluginFailed,
    ServiceError,
    ServiceOverloaded,
    StoreUnavailable,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.plugin_api import (
    CASH,
    HOLDING,
    Account,
    AssetBalance,
    Balance,
    Credential,
    CredentialField,
    Environment,
    PushLimits,
    Secret,
    Summary,
    VenueAccount,
    VenueCall,
    VenueError,
    VenueReports,
)
from exchange_service.plugin_host.protocol import read_reports, write_reports
from exchange_service.testing import Fault, LoopbackVenue, venue_call
from exchange_service.venues.answers import MAX_ROWS
from exchange_service.venues.fetching import Target
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.key_states import KeyStates
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing
from exchange_service.venues.sessions import Sessions, venue_environment
from exchange_service.wire.balances import read_fetched
from tests.harness import USER, Gate, OffsetClock, ScriptedPlugin, holding, listing, loaded, raising, returning, until

ACCOUNT = Account(USER, "fakex")


def reference(version: str = "v1", account: Account = ACCOUNT) -> CredentialReference:
    return CredentialReference(account, account, version)


class Vault:
    """Opens credentials: the key is the version's name. `opened` are the references that were opened."""

    def __init__(self) -> None:
        self.opened: list[CredentialReference] = []
        self.metadata: dict[str, Any] = {}
        self.error: ServiceError | None = None

    async def open(self, reference: CredentialReference) -> Credential:
        self.opened.append(reference)
        if self.error is not None:
            raise self.error
        return Credential(api_key=Secret(reference.version), metadata=self.metadata)


@pytest.fixture
def vault() -> Vault:
    return Vault()


@pytest.fixture
async def sessions(vault: Vault) -> AsyncIterator[Sessions]:
    http = VenueHttpPool(timeout=5.0)
    made = Sessions(vault.open, http, overrides={"fakex.sandbox": "http://127.0.0.1:9", "oanda": "http://127.0.0.1:8"})
    yield made
    await made.close()
    await http.close()


async def fetch(
    sessions: Sessions, plugin: ScriptedPlugin, credential: CredentialReference | None = None, timeout: float = 5.0
) -> Balance:
    deadline = asyncio.get_running_loop().time() + timeout
    return read_fetched(await sessions.fetch(target_of(plugin, credential), deadline, Priority()))


def target_of(plugin: ScriptedPlugin, credential: CredentialReference | None = None) -> Target:
    """The account of the credential at the plugin's first exchange."""
    entry = Listing(plugin.manifest.exchanges[0], loaded(plugin))
    credential = credential or reference()
    return Target(credential.account, entry, credential)


class Imports(VenueHttpPool):
    """A pool that notes in which threads it imports the library for venues, and raises `error` the first time."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(timeout=5.0)
        self.threads: list[threading.Thread] = []
        self._error = error

    def load(self) -> None:
        self.threads.append(threading.current_thread())
        error, self._error = self._error, None
        if error is not None:
            raise error
        super().load()


class TestTheLibraryForVenues:
    async def test_is_imported_beside_the_loop_for_the_first_account_and_not_again(self, vault: Vault) -> None:
        http = Imports()
        sessions = Sessions(vault.open, http)
        for _ in range(2):
            await fetch(sessions, ScriptedPlugin())
        await sessions.close()
        await http.close()
        (thread,) = http.threads
        assert thread is not threading.main_thread()

    async def test_is_imported_later_if_the_process_has_no_file_left_for_it(self, vault: Vault) -> None:
        http = Imports(OSError(errno.EMFILE, "too many open files"))
        sessions = Sessions(vault.open, http)
        with pytest.raises(ServiceOverloaded):
            await fetch(sessions, ScriptedPlugin())
        await fetch(sessions, ScriptedPlugin())
        await sessions.close()
        await http.close()


class Closable:
    """A client that a plugin keeps in its account's state."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.closed = False

    async def close(self) -> None:
        self.closed = True


def keeping(clients: list[Closable]) -> ScriptedPlugin:
    """A plugin that keeps a client for each account, and answers with the key that it was made with."""

    async def answer(call: VenueCall) -> Balance:
        async def make() -> Closable:
            clients.append(Closable(call.credential.api_key.reveal()))
            return clients[-1]

        client = await call.account_state.get("client", make, close=Closable.close)
        assert not client.closed
        return holding(("BTC", "1"), notes=(client.key,))

    return ScriptedPlugin(answer=answer)


class TestLife:
    async def test_a_credential_is_opened_once_for_many_calls(self, sessions: Sessions, vault: Vault) -> None:
        clients: list[Closable] = []
        plugin = keeping(clients)
        for _ in range(3):
            await fetch(sessions, plugin)
        assert len(vault.opened) == len(clients) == 1

    async def test_a_changed_credential_closes_the_old_session_and_is_used_at_once(
        self, sessions: Sessions, vault: Vault
    ) -> None:
        clients: list[Closable] = []
        plugin = keeping(clients)
        await fetch(sessions, plugin)
        balance = await fetch(sessions, plugin, reference("v2"))
        assert balance.notes == ("v2",)
        assert [(client.key, client.closed) for client in clients] == [("v1", True), ("v2", False)]

    async def test_a_session_stays_open_until_its_running_call_ends(self, sessions: Sessions) -> None:
        clients: list[Closable] = []
        plugin = keeping(clients)
        await fetch(sessions, plugin)
        inner, gate = plugin.answer, Gate()

        async def slow(call: VenueCall) -> Balance:
            await gate(call)
            balance: Balance = await inner(call)
            return balance

        plugin.answer = slow
        old = asyncio.ensure_future(fetch(sessions, plugin))
        await gate.entered.wait()
        plugin.answer = inner
        await fetch(sessions, plugin, reference("v2"))
        assert not clients[0].closed
        gate.opened.set()
        assert (await old).notes == ("v1",)
        await until(lambda: clients[0].closed)

    @pytest.mark.threat("T16")
    async def test_accounts_never_share_a_session(self, sessions: Sessions) -> None:
        clients: list[Closable] = []
        plugin = keeping(clients)
        bob = Account("bob", "fakex")
        assert (await fetch(sessions, plugin, reference("alices"))).notes == ("alices",)
        assert (await fetch(sessions, plugin, reference("bobs", bob))).notes == ("bobs",)
        assert (await fetch(sessions, plugin, reference("alices"))).notes == ("alices",)
        assert len(clients) == 2

    async def test_a_credential_that_could_not_be_opened_is_tried_again(self, sessions: Sessions, vault: Vault) -> None:
        vault.error = StoreUnavailable("The database is down.")
        with pytest.raises(StoreUnavailable):
            await fetch(sessions, ScriptedPlugin())
        vault.error = None
        assert (await fetch(sessions, ScriptedPlugin())).venue_accounts

    async def test_an_idle_session_is_closed_and_a_used_one_is_not(
        self, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clients: list[Closable] = []
        plugin = keeping(clients)
        offset_clock = OffsetClock(monkeypatch)
        await fetch(sessions, plugin)
        closed = asyncio.Event()

        async def announce(client: Closable) -> None:
            closed.set()

        monkeypatch.setattr(Closable, "close", announce)
        await fetch(sessions, plugin, reference("bobs", Account("bob", "fakex")))
        offset_clock.advance(290)
        # The sweeper looks now, and both sessions may be idle for longer.
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(sessions.snapshot()) == 2
        await fetch(sessions, plugin, reference())
        offset_clock.advance(290)
        await asyncio.wait_for(closed.wait(), 5)
        assert sessions.snapshot() == {ACCOUNT}

    async def test_a_forgotten_account_is_closed(self, sessions: Sessions) -> None:
        clients: list[Closable] = []
        await fetch(sessions, keeping(clients))
        sessions.forget(ACCOUNT)
        sessions.forget(Account("nobody", "fakex"))
        await until(lambda: clients[0].closed)

    async def test_a_closing_that_hangs_delays_neither_the_next_call_nor_the_end(self, vault: Vault) -> None:
        http = VenueHttpPool(timeout=5.0)
        sessions = Sessions(vault.open, http)

        async def hang(_: object) -> None:
            await asyncio.Event().wait()

        async def answer(call: VenueCall) -> Balance:
            await call.account_state.get("client", _nothing, close=hang)
            return Balance(())

        await fetch(sessions, ScriptedPlugin(answer=answer))
        async with asyncio.timeout(1):
            await fetch(sessions, ScriptedPlugin(), reference("v2"))
        async with asyncio.timeout(8):
            await sessions.close()
        await http.close()

    async def test_the_state_of_a_hook_that_was_left_behind_stays_open_until_it_ends(self, sessions: Sessions) -> None:
        clients: list[Closable] = []
        plugin = keeping(clients)
        await fetch(sessions, plugin)
        go, ended = asyncio.Event(), asyncio.Event()

        async def stubborn(call: VenueCall) -> Balance:
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    continue
            ended.set()
            return Balance(())

        with pytest.raises(VenueTimeout):
            await fetch(sessions, ScriptedPlugin(answer=stubborn), timeout=0.05)
        sessions.forget(ACCOUNT)
        await asyncio.sleep(0)
        assert not clients[0].closed
        go.set()
        await ended.wait()
        await asyncio.sleep(0)
        await until(lambda: clients[0].closed)

    async def test_the_end_closes_every_session(self, vault: Vault) -> None:
        http = VenueHttpPool(timeout=5.0)
        sessions = Sessions(vault.open, http)
        clients: list[Closable] = []
        plugin = keeping(clients)
        for user in ("a", "b", "c"):
            await fetch(sessions, plugin, reference(user, Account(user, "fakex")))
        await sessions.close()
        await http.close()
        assert [client.closed for client in clients] == [True] * 3


class Keys:
    """Opens credentials by version: each is given as it was stored."""

    def __init__(self, **stored: Credential) -> None:
        self.stored = stored

    async def open(self, reference: CredentialReference) -> Credential:
        return self.stored[reference.version]


def key(key: str, secret: str = "s", **metadata: Any) -> Credential:
    return Credential.from_texts({"api_key": key, "api_secret": secret}, metadata)


def counting(closed: list[int]) -> ScriptedPlugin:
    """A plugin that keeps a number for each key, and answers with it."""
    numbers = itertools.count(1)

    async def answer(call: VenueCall) -> Balance:
        async def make() -> int:
            return next(numbers)

        async def close(number: int) -> None:
            closed.append(number)

        return holding(("BTC", "1"), notes=(str(await call.key_state.get("number", make, close=close)),))

    return ScriptedPlugin(answer=answer)


class TestStateOfAKey:
    """`fetch` for accounts of several users, whose credentials are those of their versions."""

    @asynccontextmanager
    async def opened(self, **stored: Credential) -> AsyncIterator[Sessions]:
        http = VenueHttpPool(timeout=5.0)
        made = Sessions(Keys(**stored).open, http)
        try:
            yield made
        finally:
            await made.close()
            await http.close()
        assert len(made._key_states) == 0

    async def number(
        self, sessions: Sessions, plugin: ScriptedPlugin, user: str, version: str, environment: str = "production"
    ) -> int:
        account = Account(user, "fakex", environment)
        (note,) = (await fetch(sessions, plugin, reference(version, account))).notes
        return int(note)

    async def test_two_users_with_one_key_share_it_and_others_do_not(self) -> None:
        async with self.opened(a=key("one", label="x"), b=key("one", label="y"), c=key("two")) as sessions:
            plugin = counting([])
            assert [await self.number(sessions, plugin, user, user) for user in "abcab"] == [1, 1, 2, 1, 1]

    @pytest.mark.threat("T16")
    @pytest.mark.parametrize(
        "guessed",
        [
            key("one", "another"),
            key("one", ""),
            Credential.from_texts({"api_key": "one", "api_secret": "s", "passphrase": "p"}),
            key("one", "s", refresh_token="another"),
            key("", "s", api_key="one"),
        ],
        ids=["another secret", "no secret", "another passphrase", "another token", "the key elsewhere"],
    )
    async def test_a_user_who_knows_the_key_of_another_and_not_its_secrets_shares_nothing(
        self, guessed: Credential
    ) -> None:
        async with self.opened(a=key("one"), b=guessed) as sessions:
            plugin = counting([])
            assert [await self.number(sessions, plugin, user, user) for user in "ab"] == [1, 2]

    async def test_without_a_secret_all_values_tell_keys_apart(self) -> None:
        stored = {
            name: Credential(metadata={"wallet": name[:1], "more": [1, {"x": None}]}) for name in ("a1", "a2", "b")
        }
        async with self.opened(**stored) as sessions:
            plugin = counting([])
            assert [await self.number(sessions, plugin, name, name) for name in stored] == [1, 1, 2]

    async def test_another_environment_exchange_or_plugin_has_another(self) -> None:
        sandbox = (*listing().environments, Environment("sandbox", {"api": "https://test.example"}))
        async with self.opened(a=key("one")) as sessions:
            closed: list[int] = []
            plugin = counting(closed)
            plugin.manifest = replace(plugin.manifest, exchanges=(listing(environments=sandbox),))
            assert await self.number(sessions, plugin, "a", "a") == 1
            assert await self.number(sessions, plugin, "b", "a", "sandbox") == 2
            plugin.manifest = replace(plugin.manifest, exchanges=(listing("other"),))
            assert await self.number(sessions, plugin, "c", "a") == 3
            entry = Listing(listing(), loaded(plugin, "second"))
            target = Target(Account("d", "fakex"), entry, reference("a", Account("d", "fakex")))
            deadline = asyncio.get_running_loop().time() + 5
            assert read_fetched(await sessions.fetch(target, deadline, Priority())).notes == ("4",)

    async def test_two_listings_of_one_credential_share_it(self) -> None:
        async with self.opened(a=key("one")) as sessions:
            plugin, options = counting([]), listing("quotes", credential_of="fakex")
            assert await self.number(sessions, plugin, "a", "a") == 1
            plugin.manifest = replace(plugin.manifest, exchanges=(options, *plugin.manifest.exchanges))
            account = Account("a", "quotes")
            assert (await fetch(sessions, plugin, reference("a", account))).notes == ("1",)

    async def test_a_token_that_rotates_stays_of_the_same_key_however_often(self) -> None:
        stored = {"a": key("one", refresh="t0"), "other": key("one", refresh="of another")}
        rotates = CredentialField("refresh", "Refresh token", secret=True, rotates=True)
        venue = listing(credential_fields=(CredentialField("api_key", "Key"), rotates))
        plugin, quotes = counting([]), replace(venue, id="quotes", credential_of="fakex")
        plugin.manifest = replace(plugin.manifest, exchanges=(venue,))
        count = plugin.answer

        async def rotate(call: VenueCall) -> Balance:
            answer: Balance = await count(call)
            assert await call.replace_credential(metadata={"refresh": f"t{len(plugin.calls)}"})
            return answer

        async def store(account: Account, version: str, entry: Listing, changes: Mapping[str, Secret]) -> str:
            return version

        async with self.opened(**stored) as sessions:
            sessions._replace_credential = store
            plugin.answer = rotate
            for _ in range(12):
                assert await self.number(sessions, plugin, "a", "a") == 1
            assert len(sessions._key_states._states) <= 8
            plugin.answer = count
            plugin.manifest = replace(plugin.manifest, exchanges=(quotes, venue))
            sessions._open_credential = Keys(a=key("one", refresh="t12"), other=stored["other"]).open
            assert (await fetch(sessions, plugin, reference("a", Account("a", "quotes")))).notes == ("1",)
            assert (await fetch(sessions, plugin, reference("other", Account("b", "quotes")))).notes == ("2",)

    async def test_it_is_closed_with_the_last_session_that_uses_it_and_then_made_again(self) -> None:
        closed: list[int] = []
        plugin = counting(closed)
        async with self.opened(a=key("one"), b=key("one")) as sessions:
            for user in "ab":
                await self.number(sessions, plugin, user, user)
            sessions.forget(Account("a", "fakex"))
            await sessions._closing.wait()
            assert closed == []
            assert await self.number(sessions, plugin, "b", "b") == 1
            sessions.forget(Account("b", "fakex"))
            await until(lambda: closed == [1])
            assert await self.number(sessions, plugin, "a", "a") == 2
        assert closed == [1, 2]

    async def test_a_changed_key_gets_another_while_the_other_user_keeps_it(self) -> None:
        closed: list[int] = []
        plugin = counting(closed)
        async with self.opened(a=key("one"), b=key("one"), newer=key("two")) as sessions:
            assert [await self.number(sessions, plugin, user, user) for user in "ab"] == [1, 1]
            assert await self.number(sessions, plugin, "a", "newer") == 2
            assert await self.number(sessions, plugin, "b", "b") == 1
            assert closed == []

    async def test_it_stays_while_a_call_of_a_closed_session_runs(self) -> None:
        closed: list[int] = []
        plugin, gate = counting(closed), Gate()
        async with self.opened(a=key("one")) as sessions:
            await self.number(sessions, plugin, "a", "a")
            inner = plugin.answer

            async def slow(call: VenueCall) -> Balance:
                await gate(call)
                balance: Balance = await inner(call)
                return balance

            plugin.answer = slow
            running = asyncio.ensure_future(self.number(sessions, plugin, "a", "a"))
            await gate.entered.wait()
            sessions.forget(Account("a", "fakex"))
            plugin.answer = inner
            assert await self.number(sessions, plugin, "b", "a") == 1
            gate.opened.set()
            assert await running == 1
            assert closed == []

    async def test_what_it_is_found_by_tells_nothing_outside_of_the_process(self) -> None:
        shown = [KeyStates().take("fakex", listing(), "production", key("one")) for _ in range(2)]
        assert shown[0].digests != shown[1].digests
        assert "digest" not in repr(shown[0])


class TestEnvironment:
    with_sandbox = listing(
        environments=(
            Environment("production", {"api": "https://api.fakex.example"}),
            Environment("sandbox", {"api": "https://test.fakex.example"}, aliases=("practice",)),
        )
    )

    @pytest.mark.parametrize(
        ("requested", "metadata", "expected"),
        [
            ("production", {}, "production"),
            ("sandbox", {}, "sandbox"),
            ("production", {"sandbox": True}, "sandbox"),
            ("production", {"sandbox": False}, "production"),
            ("production", {"sandbox": "true"}, "production"),
            ("production", {"environment": "practice"}, "sandbox"),
            ("sandbox", {"environment": "production"}, "sandbox"),
        ],
    )
    def test_the_stored_metadata_may_choose_the_test_host_and_never_the_live_one(
        self, requested: str, metadata: dict[str, Any], expected: str
    ) -> None:
        account = Account(USER, "fakex", requested)
        assert venue_environment(self.with_sandbox, account, Credential(metadata=metadata)).name == expected

    def test_a_sandbox_that_the_venue_lacks_is_not_supported(self) -> None:
        with pytest.raises(NotSupported, match="sandbox"):
            venue_environment(listing(), ACCOUNT, Credential(metadata={"sandbox": True}))

    @pytest.mark.parametrize("word", ["moon", "production2", "pro duction"])
    def test_an_environment_in_the_metadata_that_the_venue_lacks_makes_the_credential_invalid(self, word: str) -> None:
        with pytest.raises(CredentialInvalid, match=r"extra_metadata\.environment names no environment of Fakex"):
            venue_environment(self.with_sandbox, ACCOUNT, Credential(metadata={"environment": word}))

    async def test_another_environment_than_the_requested_one_is_mentioned_in_a_note(
        self, sessions: Sessions, vault: Vault
    ) -> None:
        plugin = ScriptedPlugin(self.with_sandbox, answer=returning(holding(("BTC", "1"), notes=("Its own.",))))
        assert (await fetch(sessions, plugin)).notes == ("Its own.",)
        for version, metadata in (("v2", {"sandbox": True}), ("v3", {"environment": "practice"})):
            vault.metadata = metadata
            balance = await fetch(sessions, plugin, reference(version))
            assert balance.notes == ("Its own.", "Read from Fakex's sandbox, which the stored metadata choose.")
        requested = reference("v4", Account(USER, "fakex", "sandbox"))
        assert (await fetch(sessions, plugin, requested)).notes == ("Its own.",)

    async def test_the_plugin_gets_the_environments_address_or_the_operators(
        self, sessions: Sessions, vault: Vault
    ) -> None:
        plugin = ScriptedPlugin(self.with_sandbox)
        await fetch(sessions, plugin)
        vault.metadata = {"sandbox": True}
        await fetch(sessions, plugin, reference("v2"))
        production, sandbox = plugin.calls
        assert production.url() == "https://api.fakex.example"
        assert (sandbox.environment.name, sandbox.url()) == ("sandbox", "http://127.0.0.1:9")
        assert (production.account, production.exchange.id) == (ACCOUNT, "fakex")

    async def test_a_plugin_reaches_the_operators_host_and_no_other(self, vault: Vault) -> None:
        async with OandaSimulator() as venue, OandaSimulator() as other:
            venue.add_token("v1", SimulatedAccount("101-004-7654321-001"))

            async def elsewhere(call: VenueCall) -> Balance:
                await call.http.get(other.url + "/v3/accounts")
                raise AssertionError("it should not be reached")

            polled = replace(OANDA, capabilities=replace(OANDA.capabilities, push=False), push=PushLimits())
            http = VenueHttpPool(timeout=5.0)
            sessions = Sessions(vault.open, http, overrides={"oanda": venue.url})
            requested = reference("v1", Account(USER, "oanda"))
            with pytest.raises(PluginFailed, match="asked for the port"):
                await fetch(sessions, ScriptedPlugin(polled, answer=elsewhere), requested)
            await sessions.close()
            await http.close()
            assert other.requests == []


class Halves(LoopbackVenue):
    """A venue that begins to answer at once, and ends when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{path:.*}", self._begin)]

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"[")
        await self.may_end.wait()
        await response.write(b"]")
        return response


class TestTimeOfAnAnswer:
    async def test_a_balance_is_as_old_as_the_beginning_of_the_accounts_first_answer(self, vault: Vault) -> None:
        times: dict[str, float] = {}

        async def read(call: VenueCall) -> Balance:
            # In a task of its own, as libraries do it.
            first = asyncio.create_task(call.http.get(venue.url + "/balance"))
            await until(lambda: venue.requests and call.reports.answered_at is not None, "the beginning")
            times["began"] = time.monotonic()
            await asyncio.sleep(0.2)
            venue.may_end.set()
            await first
            await call.http.get(venue.url + "/positions")
            return holding(("BTC", "1"))

        async with Halves() as venue, opened(vault, venue.url) as sessions:
            target = target_of(ScriptedPlugin(answer=read))
            await sessions.fetch(target, asyncio.get_running_loop().time() + 5, Priority())
            assert target.reports.answered_at is not None
            assert times["began"] - 0.2 < target.reports.answered_at <= times["began"]
            assert time.monotonic() - target.reports.answered_at >= 0.2

    async def test_public_answers_and_errors_say_nothing_of_its_age(self, vault: Vault) -> None:
        times: dict[str, float] = {}

        async def read(call: VenueCall) -> Balance:
            venue.may_end.set()
            await call.public_http.get(venue.url + "/markets")
            venue.fail(Fault(status=500, times=1))
            await call.http.get(venue.url + "/balance")
            times["before"] = time.monotonic()
            await call.http.get(venue.url + "/balance")
            return holding(("BTC", "1"))

        async with Halves() as venue, opened(vault, venue.url) as sessions:
            target = target_of(ScriptedPlugin(answer=read))
            await sessions.fetch(target, asyncio.get_running_loop().time() + 5, Priority())
            assert target.reports.answered_at is not None
            assert target.reports.answered_at > times["before"]

    async def test_an_answer_that_came_by_another_way_is_of_the_hooks_end(self, sessions: Sessions) -> None:
        target, before = target_of(ScriptedPlugin()), time.monotonic()
        await sessions.fetch(target, asyncio.get_running_loop().time() + 5, Priority())
        assert target.reports.answered_at is not None
        assert before <= target.reports.answered_at <= time.monotonic()


@asynccontextmanager
async def opened(vault: Vault, url: str) -> AsyncIterator[Sessions]:
    """Sessions that reach a venue of the test's."""
    http = VenueHttpPool(timeout=5.0)
    made = Sessions(vault.open, http, overrides={"fakex": url})
    yield made
    await made.close()
    await http.close()


class _Fancy(CredentialRejected):
    """A class of a plugin's own, derived from one of ours."""


class _Wordless(VenueUnavailable):
    """An error that is made without a message."""

    def __init__(self) -> None:
        return


def _changed(**attributes: Any) -> VenueUnavailable:
    """An error of ours that a plugin has changed after it was made."""
    error = VenueUnavailable("It is down.")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


class _Own(VenueError):
    reason = "MY_OWN_REASON"


class TestErrors:
    async def test_an_error_keeps_nothing_of_the_answer_that_led_to_it(self, sessions: Sessions) -> None:
        class Answer:
            pass

        answers: list[weakref.ref[Answer]] = []

        async def fail(call: VenueCall) -> Balance:
            answer = Answer()
            answers.append(weakref.ref(answer))
            try:
                raise ValueError(answer)
            except ValueError:
                raise VenueMalformed("It cannot be read.") from None

        with pytest.raises(VenueMalformed) as kept:
            await fetch(sessions, ScriptedPlugin(answer=fail))
        assert answers[0]() is None
        assert kept.value.message == "It cannot be read."

    @pytest.mark.parametrize("error", [CredentialRejected("No."), VenueRateLimited("Too many.", retry_after=3.0)])
    async def test_our_errors_pass_as_they_are(self, sessions: Sessions, error: ServiceError) -> None:
        with pytest.raises(ServiceError) as raised:
            await fetch(sessions, ScriptedPlugin(answer=raising(error)))
        assert raised.value is error

    async def test_a_class_of_the_plugins_own_counts_as_the_one_it_derives_from(self, sessions: Sessions) -> None:
        error = _Fancy("No.")
        error.venue_was_asked = False
        with pytest.raises(CredentialRejected) as raised:
            await fetch(sessions, ScriptedPlugin(answer=raising(error)))
        assert type(raised.value) is CredentialRejected
        assert (raised.value.message, raised.value.venue_was_asked) == ("No.", False)

    @pytest.mark.parametrize(
        "changes", [{"message": "\ud800"}, {"message": "x" * 20_000}, {"retry_after": 1e300}, {"retry_after": "soon"}]
    )
    async def test_an_error_that_a_plugin_has_changed_can_still_be_sent(
        self, sessions: Sessions, changes: dict[str, Any]
    ) -> None:
        with pytest.raises(VenueUnavailable) as raised:
            await fetch(sessions, ScriptedPlugin(answer=raising(_changed(**changes))))
        assert 0 < len(raised.value.message.encode()) <= 1000
        assert raised.value.retry_after in (3600.0, VenueUnavailable.default_retry_after)

    @pytest.mark.parametrize("error", [_Wordless(), _changed(message=7), _changed(message=None)])
    async def test_an_error_without_a_text_is_the_plugins_failure(
        self, sessions: Sessions, error: ServiceError
    ) -> None:
        with pytest.raises(PluginFailed, match="fakex"):
            await fetch(sessions, ScriptedPlugin(answer=raising(error)))

    @pytest.mark.parametrize("error", [VenueError("No."), _Own("No.")])
    async def test_an_error_that_the_status_table_does_not_know_is_the_plugins_failure(
        self, sessions: Sessions, error: ServiceError
    ) -> None:
        with pytest.raises(PluginFailed) as raised:
            await fetch(sessions, ScriptedPlugin(answer=raising(error)))
        assert "signature" not in raised.value.message

    @pytest.mark.parametrize("delay", [float("nan"), float("inf"), -5.0, "7"])
    async def test_a_delay_that_is_not_a_number_of_seconds_is_left_out(self, sessions: Sessions, delay: Any) -> None:
        error = VenueRateLimited("Too many.", retry_after=delay)
        with pytest.raises(VenueRateLimited) as raised:
            await fetch(sessions, ScriptedPlugin(answer=raising(error)))
        assert raised.value.retry_after == VenueRateLimited.default_retry_after

    @pytest.mark.parametrize(
        "error",
        [ValueError("signature=48be"), SystemExit("signature=48be"), GeneratorExit("signature=48be"), MemoryError()],
    )
    async def test_the_type_of_any_other_exception_is_named_and_its_text_not_quoted(
        self, sessions: Sessions, error: BaseException
    ) -> None:
        with pytest.raises(PluginFailed) as raised:
            await fetch(sessions, ScriptedPlugin(answer=raising(error)))
        assert type(error).__name__ in raised.value.message
        assert "exchange-service-fakex" in raised.value.message
        assert "signature" not in raised.value.message

    async def test_a_timeout_of_the_plugins_own_is_the_venues(self, sessions: Sessions) -> None:
        with pytest.raises(VenueTimeout):
            await fetch(sessions, ScriptedPlugin(answer=raising(TimeoutError())))

    async def test_a_plugin_that_cancels_itself_has_failed(self, sessions: Sessions) -> None:
        with pytest.raises(PluginFailed, match="cancelled its own call"):
            await fetch(sessions, ScriptedPlugin(answer=raising(asyncio.CancelledError())))


@pytest.mark.threat("T12")
class TestTime:
    async def test_a_plugin_is_cancelled_at_its_deadline(self, sessions: Sessions) -> None:
        gate = Gate()
        with pytest.raises(VenueTimeout):
            await fetch(sessions, ScriptedPlugin(answer=gate), timeout=0.1)
        await asyncio.wait_for(gate.cancelled.wait(), 5)

    async def test_a_plugin_that_ignores_its_cancellation_delays_no_caller(self, sessions: Sessions) -> None:
        released, ended = asyncio.Event(), asyncio.Event()

        async def stubborn(_: VenueCall) -> Balance:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue
            ended.set()
            return holding()

        started = time.monotonic()
        with pytest.raises(VenueTimeout):
            await fetch(sessions, ScriptedPlugin(answer=stubborn), timeout=0.2)
        assert time.monotonic() - started < 1.0
        assert not ended.is_set()
        released.set()
        await asyncio.wait_for(ended.wait(), 5)

    async def test_a_caller_that_gives_up_cancels_the_plugins_call(self, sessions: Sessions) -> None:
        gate = Gate()
        caller = asyncio.ensure_future(fetch(sessions, ScriptedPlugin(answer=gate)))
        await gate.entered.wait()
        caller.cancel()
        await asyncio.wait_for(gate.cancelled.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await caller


def _row(asset: Any = "BTC", **amounts: Any) -> AssetBalance:
    return AssetBalance(asset, **(amounts or {"total": Decimal(1)}))


async def _nothing() -> None:
    return None


WRONG_SHAPES = {
    "nothing": (None, "NoneType"),
    "a dictionary": ({"total": {"BTC": 1.5}}, "dict"),
    "a float": (1.5, "float"),
    "accounts of another type": (Balance(("BTC",)), "VenueAccount"),  # type: ignore[arg-type]
    "accounts in a number": (Balance(7), "tuple"),  # type: ignore[arg-type]
    "an id that is not a text": (Balance((VenueAccount(id=7),)), "texts"),  # type: ignore[arg-type]
    "two accounts of one identity": (Balance((VenueAccount("1"), VenueAccount("1"))), "same id"),
    "a row of another type": (Balance((VenueAccount(assets=("BTC",)),)), "AssetBalance"),  # type: ignore[arg-type]
    "a row without an asset": (Balance((VenueAccount(assets=(_row(""),)),)), "asset"),
    "a row with a number as asset": (Balance((VenueAccount(assets=(_row(7),)),)), "asset"),
    "two rows for one asset": (Balance((VenueAccount(assets=(_row(), _row(free=Decimal(0)))),)), "two rows"),
    "a summary of another type": (Balance((), summary={"total": 1}), "summary"),  # type: ignore[arg-type]
    "an account's summary of another type": (Balance((VenueAccount(summary=1.5),)), "summary"),  # type: ignore[arg-type]
    "an account's error of another type": (Balance((VenueAccount(error=ValueError()),)), "error"),  # type: ignore[arg-type]
    "too many accounts": (
        Balance(tuple(VenueAccount(id=str(number)) for number in range(MAX_ROWS + 1))),
        f"accounts are more than {MAX_ROWS}",
    ),
    "an account's name without an end": (Balance((VenueAccount(sub_account="a" * 301),)), "over 300 characters"),
    "an asset's name without an end": (Balance((VenueAccount(assets=(_row("A" * 301),)),)), "over 300 characters"),
    "a venue's code without an end": (
        Balance((VenueAccount(assets=(_row(venue_asset="A" * 301),)),)),
        "over 300 characters",
    ),
    "a venue's code that is no text": (Balance((VenueAccount(assets=(_row(venue_asset=5),)),)), "not a text"),
    "too many rows": (
        Balance((VenueAccount(assets=tuple(_row(f"A{number}") for number in range(MAX_ROWS + 1))),)),
        f"more than {MAX_ROWS}",
    ),
}


class TestShape:
    @pytest.mark.parametrize("name", WRONG_SHAPES)
    async def test_an_answer_of_another_shape_is_the_plugins_failure(self, sessions: Sessions, name: str) -> None:
        answer, word = WRONG_SHAPES[name]
        with pytest.raises(PluginFailed, match=word):
            await fetch(sessions, ScriptedPlugin(answer=returning(answer)))

    @pytest.mark.parametrize("amount", [1.5, float("nan"), Decimal("NaN"), Decimal("Infinity"), "1.5", True])
    async def test_an_amount_that_is_not_exact_and_finite_is_the_plugins_failure(
        self, sessions: Sessions, amount: Any
    ) -> None:
        async def careless(_: VenueCall) -> Balance:
            return Balance((VenueAccount(assets=(AssetBalance("BTC", total=amount),)),))

        with pytest.raises(PluginFailed):
            await fetch(sessions, ScriptedPlugin(answer=careless))

    async def test_figures_beside_an_error_are_refused(self, sessions: Sessions) -> None:
        async def careless(_: VenueCall) -> Balance:
            return Balance((VenueAccount(summary=Summary("USD"), error=VenueUnavailable("Down.")),))

        with pytest.raises(PluginFailed):
            await fetch(sessions, ScriptedPlugin(answer=careless))

    async def test_as_many_rows_as_are_allowed_pass(self, sessions: Sessions) -> None:
        rows = tuple(_row(f"A{number}") for number in range(MAX_ROWS))
        balance = await fetch(sessions, ScriptedPlugin(answer=returning(Balance((VenueAccount(assets=rows),)))))
        assert len(balance.venue_accounts[0].assets) == MAX_ROWS

    async def test_one_asset_under_two_codes_of_the_venue_is_two_rows(self, sessions: Sessions) -> None:
        rows = (_row(total=Decimal(1), venue_asset="XXBT"), _row(total=Decimal(2), venue_asset="XBT.F"))
        balance = await fetch(sessions, ScriptedPlugin(answer=returning(Balance((VenueAccount(assets=rows),)))))
        assert len(balance.venue_accounts[0].assets) == 2

    async def test_a_currency_and_a_stock_of_the_same_name_are_two_rows(self, sessions: Sessions) -> None:
        rows = (_row("USD", kind=CASH), _row("USD", kind=HOLDING), _row("USD"))
        balance = await fetch(sessions, ScriptedPlugin(answer=returning(Balance((VenueAccount(assets=rows),)))))
        assert [row.kind for row in balance.venue_accounts[0].assets] == [CASH, HOLDING, ""]

    async def test_two_rows_of_one_asset_and_kind_are_refused(self, sessions: Sessions) -> None:
        rows = (_row("USD", kind=CASH), _row("USD", kind=CASH))
        with pytest.raises(PluginFailed, match="two rows for one asset and kind"):
            await fetch(sessions, ScriptedPlugin(answer=returning(Balance((VenueAccount(assets=rows),)))))


class TestReports:
    """What a plugin reports of the venue's limits goes to the gate, and perhaps to another process first."""

    @pytest.mark.parametrize("number", ["12", None, float("nan"), float("inf")])
    @pytest.mark.parametrize(
        "report", [VenueCall.report_cooldown, VenueCall.report_cost, lambda call, used: call.report_usage(used, 60)]
    )
    async def test_a_report_without_a_number_is_the_plugins_failure(
        self, sessions: Sessions, report: Callable[[VenueCall, Any], None], number: Any
    ) -> None:
        async def answer(call: VenueCall) -> Balance:
            report(call, number)
            return holding(("BTC", "1"))

        with pytest.raises(PluginFailed, match="fakex"):
            await fetch(sessions, ScriptedPlugin(answer=answer))

    @pytest.mark.parametrize(("used", "counted"), [(12, 12), (3.5, 3), (-1, 0), (10**30, 2**53)])
    async def test_a_report_is_in_units_that_can_be_counted_and_sent(self, used: Any, counted: int) -> None:
        async with venue_call(listing("fakex")) as call:
            call.report_usage(used, 60, resets_after=-2)
            call.report_cooldown(-2)
        reports = VenueReports()
        read_reports(write_reports(call.reports), reports)
        assert reports == VenueReports({60: (counted, 0.0)}, 0.0)
