"""The contract of a plugin, as tests to inherit. What the service relies on is tried here, as the service does it.

    class TestOurVenue(PluginContract):
        plugin = exchange_service_our_venue
        exchange_id = "our_venue"
        simulator = OurVenueSimulator

That is all for a simulator that is a `DemoVenue`; for another one say by `credential` which row opens an account
there. A plugin that so far has only a listing inherits `ListingContract`, which needs the first two lines.

Install `exchange-service[testing]` and run pytest; both modes of pytest-asyncio will do. Where blockbuster is
installed, the plugin is also watched for calls that block the event loop.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import logging
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pluggy
import pytest
from aiohttp import ClientSession, web

from exchange_service import plugin_api
from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    API_VERSION,
    ASSET_CLASSES,
    AccountUnknown,
    AddressNotAllowed,
    Balance,
    CredentialInvalid,
    CredentialRejected,
    ExchangeMetadata,
    FeatureNotEnabled,
    Http,
    Manifest,
    NotSupported,
    PermissionMissing,
    Response,
    VenueAccount,
    VenueCall,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.pytest_plugin import MALFORMED
from exchange_service.testing.calls import venue_call
from exchange_service.testing.certificates import untrusted_certificate
from exchange_service.testing.malformed import NONSENSE, poisoned
from exchange_service.testing.venue import TROUBLES, DemoVenue, Fault, LoopbackVenue

# What must not be paid for by a service that only lists the exchange: import it where it is first used.
HEAVY_LIBRARIES = (
    "ccxt",
    "eth_account",
    "grpc",
    "matplotlib",
    "numpy",
    "pandas",
    "polars",
    "redis",
    "requests",
    "scipy",
    "sqlalchemy",
    "web3",
)

_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_ID = re.compile(r"[a-z][a-z0-9_]*\Z")
# What each of the TROUBLES may become.
_ERRORS_OF_TROUBLES: Mapping[str, tuple[type[VenueError], ...]] = {
    "wrong key": (CredentialRejected,),
    "missing right": (PermissionMissing, AddressNotAllowed, AccountUnknown, FeatureNotEnabled),
    "wrong environment": (CredentialRejected, AccountUnknown),
    "unknown account": (AccountUnknown,),
    "rate limit": (VenueRateLimited,),
    "outage": (VenueUnavailable, VenueMaintenance, VenueTimeout),
}
_QUERY_IN_TEXT = re.compile(r"https?://\S*\?")
# No plugin is asked to answer sooner than this once its deadline has passed; busy machines are slow.
_GRACE = 3.0


class ListingContract:
    """What every plugin keeps, whether or not it reads balances yet: how it loads and what it says of itself."""

    # The plugin's module, the one that its entry point names, and the listing to try.
    plugin: ModuleType
    exchange_id: str

    @pytest.fixture
    def hooks(self) -> Any:
        """The plugin's hooks, behind the same door as in the service."""
        return self._hooks()

    @pytest.fixture
    def manifest(self) -> Manifest:
        """What the plugin says of itself."""
        return self._manifest()

    def _hooks(self) -> Any:
        manager = pluggy.PluginManager("exchange_service")
        manager.add_hookspecs(plugin_api)
        manager.register(self.plugin)
        manager.check_pending()
        return manager.hook

    def _manifest(self) -> Manifest:
        manifest = self._hooks().exchange_manifest()
        assert isinstance(manifest, Manifest), "exchange_manifest must give a Manifest"
        return manifest

    def _listing(self) -> ExchangeMetadata:
        for exchange in self._manifest().exchanges:
            if exchange.id == self.exchange_id:
                return exchange
        raise AssertionError(f"the manifest does not list {self.exchange_id!r}")

    def test_the_manifest_loads_and_names_this_version_of_the_door(self, manifest: Manifest) -> None:
        assert manifest.api_version == API_VERSION, "the plugin is written for another version of plugin_api"
        assert self._listing().id == self.exchange_id
        assert self._manifest() == manifest, "the manifest changes from call to call"

    def test_fetch_balance_is_a_coroutine_function(self, hooks: Any) -> None:
        assert hooks.fetch_balance.get_hookimpls(), "the plugin has no fetch_balance"
        for implementation in hooks.fetch_balance.get_hookimpls():
            assert inspect.iscoroutinefunction(implementation.function), "fetch_balance must be `async def`"

    def test_importing_it_pulls_in_neither_heavy_libraries_nor_the_service(self) -> None:
        loaded = _modules_that_an_import_loads(self.plugin.__name__)
        heavy = sorted(loaded.intersection(HEAVY_LIBRARIES))
        assert not heavy, f"importing the plugin imports {', '.join(heavy)}: import them where they are first used"
        inner = sorted(name for name in loaded if name.startswith("exchange_service."))
        assert not inner, (
            f"the plugin imports {', '.join(inner)}: all that it may import is exchange_service.plugin_api"
        )

    def test_ids_are_lower_case_and_unique(self, manifest: Manifest) -> None:
        ids = [exchange.id for exchange in manifest.exchanges]
        assert len(set(ids)) == len(ids), "an id is listed twice"
        assert all(map(_ID.match, ids)), f"ids are lower case letters, digits and _: {ids}"

    def test_the_listing_is_complete(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            assert exchange.asset_class in ASSET_CLASSES, f"{exchange.id}: unknown asset class {exchange.asset_class!r}"
            for name in ("name", "asset_types", "market_hours", "icon", "color_class", "instructions"):
                assert getattr(exchange, name).strip(), f"{exchange.id}: {name} is empty"

    def test_links_are_https(self, manifest: Manifest) -> None:
        # CCXT's own links are what they are; nothing secret goes there.
        schemes = {True: ("https", "http"), False: ("https",)}
        for exchange in manifest.exchanges:
            for link in filter(None, (exchange.documentation_url, exchange.credential_url)):
                parts = urlsplit(link)
                assert parts.scheme in schemes[exchange.is_ccxt], f"{exchange.id}: {link} is no https link"
                assert parts.hostname, f"{exchange.id}: {link} names no host"

    def test_environments_begin_with_production_and_are_told_apart(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            names = [environment.name for environment in exchange.environments]
            assert names in (["production"], ["production", "sandbox"]), f"{exchange.id}: {names}"
            words = names + [alias for environment in exchange.environments for alias in environment.aliases]
            assert len(set(words)) == len(words), f"{exchange.id}: two environments share a name"
            assert words == [word.strip().lower() for word in words], f"{exchange.id}: names are lower case"
            assert exchange.capabilities.sandbox == ("sandbox" in names), f"{exchange.id}: has it a sandbox, or not?"

    def test_venue_addresses_are_encrypted_and_bare(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            for environment in exchange.environments:
                assert environment.urls, f"{exchange.id}: {environment.name} has no address"
                for url in environment.urls.values():
                    parts = urlsplit(url)
                    assert parts.scheme in ("https", "wss"), f"{exchange.id}: {url} is not encrypted"
                    assert parts.hostname, f"{exchange.id}: {url} names no host"
                    extras = (parts.username, parts.password, parts.query, parts.fragment)
                    assert not any(extras), f"{exchange.id}: {url} holds more than scheme, host and path"

    def test_a_sandbox_is_not_the_live_venue(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            if exchange.is_ccxt:
                # Some of CCXT's venues tell their sandbox by a header, on the same host.
                continue
            addresses = [dict(environment.urls) for environment in exchange.environments]
            assert all(other != addresses[0] for other in addresses[1:]), f"{exchange.id}: its sandbox is the live host"

    def test_credential_fields_make_a_form(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            names = [field.name for field in exchange.credential_fields]
            assert len(set(names)) == len(names), f"{exchange.id}: a credential field stands twice"
            for field in exchange.credential_fields:
                assert _FIELD_NAME.match(field.name), f"{exchange.id}: {field.name!r} is no field's name"
                assert field.name not in ("sandbox", "environment"), f"{exchange.id}: the service asks for {field.name}"
                assert field.label.strip(), f"{exchange.id}: {field.name} has no label"
                hidden = field.secret or field.name not in ("api_secret", "passphrase")
                assert hidden, f"{exchange.id}: {field.name} is a secret"

    def test_what_the_sheet_asks_for_agrees_with_the_credential_fields(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            fields = {field.name: field for field in exchange.credential_fields}
            passphrase = fields.get("passphrase")
            assert not exchange.requires_passphrase or passphrase, f"{exchange.id}: asks for a passphrase it lacks"
            needed = passphrase is not None and passphrase.required
            assert exchange.requires_passphrase or not needed, f"{exchange.id}: needs a passphrase, and does not ask"
            # CCXT's own words for it stand beside ours.
            account_id = next((fields[name] for name in ("account_id", "uid", "accountId") if name in fields), None)
            assert not exchange.requires_account_id or account_id, f"{exchange.id}: asks for an account id it lacks"
            needed = account_id is not None and account_id.required
            assert exchange.requires_account_id or not needed, f"{exchange.id}: needs an account id, and does not ask"

    def test_a_read_without_secret_asks_for_none(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            if exchange.capabilities.read_without_secret:
                asked = [field.name for field in exchange.credential_fields if field.required and field.secret]
                assert not asked, f"{exchange.id}: reads without a secret, and asks for {asked}"

    def test_a_borrowed_credential_is_one_of_the_same_plugin(self, manifest: Manifest) -> None:
        lenders = {exchange.id for exchange in manifest.exchanges if not exchange.credential_of}
        for exchange in manifest.exchanges:
            fits = not exchange.credential_of or exchange.credential_of in lenders
            assert fits, f"{exchange.id}: {exchange.credential_of!r} has no credential of its own in this plugin"

    def test_exactly_an_unsupported_exchange_says_why(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            reason = exchange.unsupported_reason
            assert bool(reason) != exchange.capabilities.balance, f"{exchange.id}: balance or a reason, not both"
            assert not reason or reason.endswith("."), f"{exchange.id}: unsupported_reason is a sentence"

    def test_an_exchange_that_pushes_has_a_watch(self, hooks: Any, manifest: Manifest) -> None:
        pushes = any(exchange.capabilities.push for exchange in manifest.exchanges)
        assert not pushes or hooks.watch_balance.get_hookimpls(), "push is promised, and watch_balance is missing"

    @pytest.mark.asyncio
    async def test_an_unsupported_exchange_refuses_with_a_sentence(self, hooks: Any, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            if exchange.capabilities.balance:
                continue
            # Nothing listens there: a plugin that asks the venue all the same is found out.
            async with venue_call(exchange, override="http://127.0.0.1:1", timeout=1.0) as call:
                with pytest.raises(NotSupported) as refusal:
                    await hooks.fetch_balance(call=call)
            assert refusal.value.message.endswith("."), f"{exchange.id}: the refusal is no sentence"


class PluginContract(ListingContract):
    """The whole contract: also what the plugin makes of a venue that answers, and of one that misbehaves.

    Every call's error and every log record is searched for the secrets of the credential.
    """

    # A class or function that makes the venue on loopback.
    simulator: Callable[..., LoopbackVenue]
    # The requests that the plugin may send, such as "GET /v3/accounts/{id}/summary". Empty: those that the simulator
    # names; if that names none, they are not looked at.
    allowed_requests: Sequence[str] = ()
    nonsense: Mapping[str, Fault] = NONSENSE
    # Of one test: how many malformed answers were tried, and how many became a false balance.
    _tried = _believed = 0

    def credential(self, venue: Any) -> Mapping[str, Any]:
        """The row that opens an account with something in it: any of `api_key`, `api_secret`, `passphrase` and
        `extra_metadata`. A `DemoVenue` has one; for another simulator set the account up here."""
        assert isinstance(venue, DemoVenue), "override `credential`: this simulator does not play in the demo"
        row = venue.demo_credential("moving")
        assert row is not None
        return row

    @pytest.fixture(autouse=True)
    def _count_malformed_answers(self, record_property: Callable[[str, object], None]) -> Iterator[None]:
        """Tell `pytest_plugin` how many malformed answers the test tried, and how many became a false balance."""
        self._tried = self._believed = 0
        yield
        if self._tried:
            record_property(MALFORMED, [self.exchange_id, self._tried, self._believed])

    @pytest.fixture(autouse=True)
    def _keep_logs_free_of_secrets(self, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        self._secrets: set[str] = set()
        with caplog.at_level(logging.DEBUG):
            yield
        for record in caplog.get_records("call"):
            self._assert_no_secret(logging.Formatter().format(record), f"the log of {record.name}")

    @asynccontextmanager
    async def _venue(self) -> AsyncIterator[tuple[LoopbackVenue, Mapping[str, Any]]]:
        """The simulator, listening, and the good row. Checks at the end that no task outlives it."""
        before = asyncio.all_tasks()
        async with type(self).simulator() as venue:
            if isinstance(venue, DemoVenue):
                venue.lift_limits()
            yield venue, self.credential(venue)
        await _assert_no_new_task(before)

    @asynccontextmanager
    async def _call(
        self, venue: LoopbackVenue, row: Mapping[str, Any], *, timeout: float = 5.0, account_type: str = ""
    ) -> AsyncIterator[VenueCall]:
        listing = self._listing()
        hidden = {field.name for field in listing.credential_fields if field.secret}
        hidden.update(name for name in ("api_secret", "passphrase") if row.get(name))
        metadata = row.get("extra_metadata") or {}
        self._secrets.update(str(value) for name, value in {**metadata, **row}.items() if name in hidden and value)
        async with venue_call(
            listing,
            override=venue.url,
            api_key=row.get("api_key") or "",
            api_secret=row.get("api_secret") or "",
            passphrase=row.get("passphrase") or "",
            metadata=metadata,
            account_type=account_type,
            timeout=timeout,
        ) as call:
            yield call

    async def _fetch(self, call: VenueCall) -> Balance:
        # The deadline is the plugin's to keep; this is for the one that does not, so that the tests end.
        async with asyncio.timeout(call.remaining() + _GRACE):
            balance = await self._hooks().fetch_balance(call=call)
        assert isinstance(balance, Balance), f"fetch_balance gave {type(balance).__name__} and no Balance"
        return balance

    async def _good(self, venue: LoopbackVenue, row: Mapping[str, Any]) -> Balance:
        async with self._call(venue, row) as call:
            return await self._fetch(call)

    async def _outcome(
        self, venue: LoopbackVenue, row: Mapping[str, Any], *, timeout: float = 5.0
    ) -> Balance | VenueError:
        """What a fresh call comes to. Any exception but a VenueError is the plugin's failure, and so the test's."""
        async with self._call(venue, row, timeout=timeout) as call:
            try:
                return await self._fetch(call)
            except VenueError as error:
                self._assert_fit_to_be_told(error, venue)
                return error

    async def _refusal(
        self, venue: LoopbackVenue, row: Mapping[str, Any], when: str, *, timeout: float = 5.0
    ) -> VenueError:
        outcome = await self._outcome(venue, row, timeout=timeout)
        assert isinstance(outcome, VenueError), f"{when} became a balance: {outcome}"
        return outcome

    async def _refusal_of(self, fault: Fault, when: str, *, timeout: float = 5.0) -> tuple[VenueError, int]:
        """The error that a venue with this fault leads to, and how many requests it saw."""
        async with self._venue() as (venue, row):
            venue.fail(fault)
            error = await self._refusal(venue, row, when, timeout=timeout)
            return error, len(venue.requests)

    def _assert_fit_to_be_told(self, error: VenueError, venue: LoopbackVenue) -> None:
        """Whatever could be shown or logged of an error: its text, its arguments, the chain behind it."""
        assert error.message.strip(), f"a {type(error).__name__} says nothing"
        assert not _QUERY_IN_TEXT.search(str(error)), "an error's text holds a URL with a query"
        for request in venue.requests:
            credential = request.headers.get("Authorization", ""), request.query.get("signature", "")
            self._secrets.update(text for text in credential if len(text) > 8)
        shown = [str(error), repr(error), repr(error.args), repr(vars(error)), *traceback.format_exception(error)]
        self._assert_no_secret("\n".join(shown), f"a {type(error).__name__}")

    def _assert_no_secret(self, text: str, where: str) -> None:
        # Not shown in the message: it would end in the log of a build.
        assert not any(secret in text for secret in self._secrets), f"{where} holds a secret"

    @pytest.mark.asyncio
    async def test_a_good_credential_gives_a_balance(self) -> None:
        async with self._venue() as (venue, row):
            balance = await self._good(venue, row)
        assert balance.venue_accounts, "a balance has at least one account"
        for account in balance.venue_accounts:
            assert account.error is None, f"the good credential's account {account.id!r} has an error"
            assert account.assets, f"the good credential's account {account.id!r} has no rows"
        self._assert_well_formed(balance)

    def _assert_well_formed(self, balance: Balance) -> None:
        accounts = [account.identity for account in balance.venue_accounts]
        assert len(set(accounts)) == len(accounts), f"two accounts have one identity: {accounts}"
        rows = [(*account.identity, row.asset, row.venue_asset) for account, row in balance.rows()]
        assert len(set(rows)) == len(rows), f"two rows have one identity: {rows}"
        for account, asset in balance.rows():
            assert asset.asset.strip(), "a row has no asset"
            assert account.type in self._listing().account_types, f"account_types lacks {account.type!r}"
            amounts = (asset.total, asset.free, asset.used, asset.debt)
            assert any(amount is not None for amount in amounts), f"the row {asset.asset} says nothing"
            for amount in amounts:
                assert amount is None or isinstance(amount, Decimal), f"the row {asset.asset} holds {amount!r}"
            assert asset.used is None or asset.used >= 0, f"{asset.asset}: leave `used` out rather than negative"
        for summary in (balance.summary, *(account.summary for account in balance.venue_accounts)):
            assert summary is None or summary.currency, "a summary has no currency"
        for time in (balance.venue_time, *(account.venue_time for account in balance.venue_accounts)):
            assert time is None or time.utcoffset() == timedelta(0), "times are aware, and in UTC"

    @pytest.mark.asyncio
    async def test_it_is_read_again_with_the_state_of_the_call_before(self) -> None:
        async with self._venue() as (venue, row), self._call(venue, row) as call:
            first, second = await self._fetch(call), await self._fetch(call)
        assert _figures(second) == _figures(first)

    @pytest.mark.asyncio
    async def test_it_reads_at_the_same_time_for_several(self) -> None:
        async with self._venue() as (venue, row), self._call(venue, row) as call:
            balances = await asyncio.gather(*(self._fetch(call) for _ in range(5)))
        assert all(_figures(balance) == _figures(balances[0]) for balance in balances)

    @pytest.mark.asyncio
    async def test_it_asks_for_nothing_but_what_it_says(self) -> None:
        async with self._venue() as (venue, row):
            await self._good(venue, row)
            seen = {f"{request.method} {request.path}" for request in venue.requests}
        assert seen, "a balance was given, and the venue was not asked"
        allowed = self.allowed_requests or getattr(venue, "allowed_requests", ())
        patterns = [re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(text))) for text in allowed]
        strange = [text for text in seen if patterns and not any(pattern.fullmatch(text) for pattern in patterns)]
        assert not strange, f"allowed_requests lacks {strange}"

    @pytest.mark.asyncio
    async def test_a_missing_field_is_named_before_the_venue_is_asked(self) -> None:
        for field in self._listing().credential_fields:
            if not field.required:
                continue
            async with self._venue() as (venue, row):
                poorer = {name: value for name, value in row.items() if name not in (field.name, "extra_metadata")}
                metadata = row.get("extra_metadata") or {}
                poorer["extra_metadata"] = {name: value for name, value in metadata.items() if name != field.name}
                error = await self._refusal(venue, poorer, f"a credential without {field.name}")
                assert isinstance(error, CredentialInvalid), f"without {field.name} it raises {type(error).__name__}"
                assert field.name in error.message, f"the message does not name {field.name}"
                assert not venue.requests, f"without {field.name} the venue is asked all the same"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("name", ["urls", "hostname", "verify", "httpsProxy", "headers"])
    async def test_metadata_that_it_does_not_know_are_refused(self, name: str) -> None:
        async with self._venue() as (venue, row):
            metadata = {**(row.get("extra_metadata") or {}), name: "http://127.0.0.1:1"}
            error = await self._refusal(venue, {**row, "extra_metadata": metadata}, f"extra_metadata.{name}")
            assert isinstance(error, CredentialInvalid), f"it raises {type(error).__name__}"
            assert not venue.requests, "the venue is asked all the same"

    @pytest.mark.asyncio
    async def test_nonsense_is_never_a_balance(self) -> None:
        async with self._venue() as (venue, row):
            good = await self._good(venue, row)
            steps = len(venue.requests)
            for name, fault in self.nonsense.items():
                for step in range(steps):
                    venue.recover()
                    venue.fail(replace(fault))
                    if step:
                        venue.fail(Fault(pass_on=True, times=step))
                    outcome = await self._outcome(venue, row)
                    self._assert_honest(outcome, good, f"{name} in answer {step + 1}", whole=step == 0)

    def _assert_honest(self, outcome: Balance | VenueError, good: Balance, when: str, *, whole: bool) -> None:
        """An error that passes, or, where not the `whole` venue failed, a balance that tells what it lacks."""
        self._tried += 1
        if isinstance(outcome, VenueError):
            word = f"{when} became {type(outcome).__name__}, as if the venue had judged the credential"
            assert outcome.transient, word
            return
        self._believed += 1
        assert not whole, f"{when} became a balance: {outcome}"
        tells = outcome.notes or any(account.error for account in outcome.venue_accounts)
        assert tells, f"{when} is not told of: {outcome}"
        self._assert_nothing_invented(outcome, good, when)
        self._believed -= 1

    def _assert_nothing_invented(self, outcome: Balance, good: Balance, when: str) -> None:
        true = {account.identity: account.assets for account in good.venue_accounts}
        for account in outcome.venue_accounts:
            invented = account.error is None and account.assets != true.get(account.identity)
            assert not invented, f"{when} changed the rows of {account.identity}: {account.assets}"

    @pytest.mark.asyncio
    async def test_a_figure_that_is_no_number_is_never_believed(self) -> None:
        async with self._venue() as (venue, row):
            good, bodies = await self._recorded(venue, row)
            for step, body in enumerate(bodies):
                for where, changed in poisoned(body):
                    venue.recover()
                    venue.fail(Fault(body=changed, times=1))
                    if step:
                        venue.fail(Fault(pass_on=True, times=step))
                    outcome = await self._outcome(venue, row)
                    self._tried += 1
                    if isinstance(outcome, Balance):
                        self._believed += 1
                        self._assert_nothing_invented(outcome, good, f"{where} in answer {step + 1}")
                        self._believed -= 1

    @pytest.mark.asyncio
    async def test_a_truncated_answer_is_never_a_balance(self) -> None:
        async with self._venue() as (venue, row):
            good, bodies = await self._recorded(venue, row)
            for step, body in enumerate(bodies):
                for length in sorted({1, len(body) // 3, len(body) // 2, len(body) - 1}):
                    venue.recover()
                    venue.fail(Fault(body=body[:length]))
                    if step:
                        venue.fail(Fault(pass_on=True, times=step))
                    outcome = await self._outcome(venue, row)
                    self._assert_honest(outcome, good, f"{length} bytes of answer {step + 1}", whole=step == 0)

    async def _recorded(self, venue: LoopbackVenue, row: Mapping[str, Any]) -> tuple[Balance, list[bytes]]:
        """A good balance and the answers that it was read from, in the order of the requests."""
        bodies: list[bytes] = []
        async with self._call(venue, row) as call:
            http, public_http = _RecordingHttp(call.http, bodies), _RecordingHttp(call.public_http, bodies)
            balance = await self._fetch(replace(call, http=http, public_http=public_http))
        if len(bodies) != len(venue.requests):
            pytest.skip("the plugin brings its own HTTP, whose answers cannot be seen here")
        return balance, bodies

    @pytest.mark.asyncio
    async def test_a_refused_key_is_no_passing_trouble(self) -> None:
        error, requests = await self._refusal_of(Fault(status=401, body=b"{}"), "HTTP 401")
        assert not error.transient, f"HTTP 401 became {type(error).__name__}: the last good value would hide it"
        assert requests <= 3, f"a refused key was sent {requests} times"

    @pytest.mark.asyncio
    async def test_a_rate_limit_keeps_the_venues_own_delay(self) -> None:
        async with self._venue() as (venue, row):
            await self._good(venue, row)
            usual = len(venue.requests)
            venue.fail(Fault.rate_limited("7"))
            error = await self._refusal(venue, row, "HTTP 429")
            more = len(venue.requests) - usual
        assert isinstance(error, VenueRateLimited), f"HTTP 429 became {type(error).__name__}"
        assert error.retry_after == 7, f"Retry-After: 7 became {error.retry_after}"
        assert more <= usual, "it went on asking a venue that limits it"

    @pytest.mark.asyncio
    async def test_a_rate_limit_without_a_delay_is_one_all_the_same(self) -> None:
        error, _ = await self._refusal_of(Fault.rate_limited(""), "HTTP 429 without Retry-After")
        assert isinstance(error, VenueRateLimited), f"HTTP 429 became {type(error).__name__}"
        assert error.retry_after, "without a delay the venue would be asked again at once"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    async def test_a_venue_in_trouble_says_nothing_about_the_key(self, status: int) -> None:
        for fault in (Fault.html(status), Fault(status=status), Fault(status=status, body=b"{}")):
            error, _ = await self._refusal_of(fault, f"HTTP {status}")
            assert error.transient, f"HTTP {status} became {type(error).__name__}"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("status", [401, 403])
    async def test_a_key_that_was_good_before_is_refused_all_the_same(self, status: int) -> None:
        async with self._venue() as (venue, row), self._call(venue, row) as call:
            await self._fetch(call)
            venue.fail(Fault(status=status, body=b"{}"))
            with pytest.raises(VenueError) as refusal:
                await self._fetch(call)
            self._assert_fit_to_be_told(refusal.value, venue)
        kind = type(refusal.value).__name__
        assert not refusal.value.transient, f"HTTP {status} became {kind}: the last good value would hide it"

    @pytest.mark.asyncio
    async def test_a_ban_is_a_rate_limit(self) -> None:
        error, requests = await self._refusal_of(Fault(status=418, body=b"{}"), "HTTP 418")
        assert isinstance(error, VenueRateLimited), f"HTTP 418 became {type(error).__name__}"
        assert requests <= 3, f"a venue that bans us was asked {requests} times"

    @pytest.mark.asyncio
    async def test_a_certificate_that_nobody_trusts_ends_the_call_before_anything_is_sent(self, tmp_path: Path) -> None:
        venue = type(self).simulator()
        await venue.start(tls=untrusted_certificate(tmp_path))
        try:
            row = self.credential(venue)
            error = await self._refusal(venue, row, "a certificate that nobody trusts")
            sent = len(venue.requests)
            # It was the certificate: who does not look at it is answered.
            async with ClientSession() as session, session.get(venue.url, ssl=False) as response:
                await response.read()
        finally:
            await venue.stop()
        assert error.transient, f"a certificate that nobody trusts became {type(error).__name__}"
        assert not sent, "a request was sent to a venue that did not prove who it is"

    @pytest.mark.asyncio
    async def test_what_could_not_be_read_is_told_of_and_never_summed_over(self) -> None:
        async with self._venue() as (venue, _):
            row = venue.demo_credential("partly") if isinstance(venue, DemoVenue) else None
            if row is None:
                return
            balance = await self._good(venue, row)
        failed = [account for account in balance.venue_accounts if account.error]
        assert failed, "the situation 'partly' has an account with an error"
        assert len(failed) < len(balance.venue_accounts), "the situation 'partly' has an account without an error"
        assert balance.summary is None, "the figure for everything leaves out an account that could not be read"
        self._assert_well_formed(balance)

    @pytest.mark.asyncio
    async def test_each_of_the_venues_troubles_becomes_its_error(self) -> None:
        async with self._venue() as (venue, good):
            if not isinstance(venue, DemoVenue):
                return
            # All at once: one account's trouble must be none of another's.
            rows = {trouble: venue.troubled_credential(trouble) for trouble in TROUBLES}
            for trouble, row in rows.items():
                if row is None:
                    continue
                error = await self._refusal(venue, row, trouble)
                fits = isinstance(error, _ERRORS_OF_TROUBLES[trouble])
                assert fits, f"the trouble {trouble!r} became {type(error).__name__}"
            await self._good(venue, good)

    @pytest.mark.asyncio
    async def test_an_account_type_is_read_alone(self) -> None:
        for account_type in (*self._listing().account_types, ALL_ACCOUNT_TYPES):
            async with self._venue() as (venue, row), self._call(venue, row, account_type=account_type) as call:
                try:
                    balance = await self._fetch(call)
                except FeatureNotEnabled:
                    continue
            self._assert_well_formed(balance)

    @pytest.mark.asyncio
    async def test_an_ended_connection_is_a_passing_trouble(self) -> None:
        error, _ = await self._refusal_of(Fault(reset=True), "an ended connection")
        assert error.transient, f"an ended connection became {type(error).__name__}"

    @pytest.mark.asyncio
    async def test_nobody_listening_is_a_passing_trouble(self) -> None:
        async with self._venue() as (venue, row):
            await venue.stop()
            error = await self._refusal(venue, row, "a closed port")
        assert error.transient, f"a closed port became {type(error).__name__}"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("fault", [Fault(silent=True), Fault(drip=True)], ids=["silence", "a byte a second"])
    async def test_it_ends_with_its_deadline(self, fault: Fault) -> None:
        async with self._venue() as (venue, row):
            venue.fail(replace(fault))
            began = asyncio.get_running_loop().time()
            error = await self._refusal(venue, row, "a venue without an answer", timeout=0.4)
            took = asyncio.get_running_loop().time() - began
        assert isinstance(error, VenueTimeout), f"it became {type(error).__name__}"
        assert took < 0.4 + _GRACE / 2, f"a deadline of 0.4 s was kept after {took:.1f} s"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_is_not_followed_to_another_host(self, status: int) -> None:
        async with _Bystander() as bystander, self._venue() as (venue, row):
            venue.fail(Fault(status=status, headers={"Location": f"{bystander.url}/v1/balance"}))
            await self._refusal(venue, row, f"a redirect (HTTP {status})")
            assert not bystander.requests, "the other host was asked, with whatever the request carried"

    @pytest.mark.asyncio
    async def test_a_body_without_end_is_cut(self) -> None:
        # Larger than even public market data may be.
        huge = b'{"padding": "' + b"0" * (65 * 1024 * 1024) + b'"}'
        error, _ = await self._refusal_of(Fault(body=huge), "65 MiB")
        assert isinstance(error, VenueMalformed), f"65 MiB became {type(error).__name__}"

    @pytest.mark.asyncio
    async def test_a_compressed_bomb_is_cut(self) -> None:
        error, _ = await self._refusal_of(Fault.gzip_bomb(80 * 1024 * 1024), "80 MiB of zeros in gzip")
        assert isinstance(error, VenueMalformed), f"a bomb became {type(error).__name__}"

    @pytest.mark.asyncio
    async def test_the_call_does_not_show_the_credential(self) -> None:
        async with self._venue() as (venue, row), self._call(venue, row) as call:
            await self._fetch(call)
            shown = "\n".join((repr(call), str(call), repr(call.credential), repr(call.account_state)))
            self._assert_no_secret(shown, "the call")

    @pytest.mark.asyncio
    async def test_a_cancelled_call_ends_at_once(self) -> None:
        async with self._venue() as (venue, row), self._call(venue, row) as call:
            venue.fail(Fault(silent=True))
            task = asyncio.create_task(self._fetch(call))
            await _until(lambda: bool(venue.requests), "the venue was never asked")
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=_GRACE)
            assert done, "the plugin does not let itself be cancelled"
            assert task.cancelled(), f"a cancelled call ended with {task.exception()!r}"

    @pytest.mark.asyncio
    async def test_nothing_is_left_open(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with self._venue() as (venue, row):
                await self._good(venue, row)
                venue.fail(Fault(reset=True))
                await self._outcome(venue, row)
            gc.collect()
        left = [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]
        assert not left, f"left open: {left}"

    @pytest.mark.asyncio
    async def test_it_never_blocks_the_event_loop(self) -> None:
        blockbuster = pytest.importorskip("blockbuster", reason="blockbuster is not installed: pip install blockbuster")
        async with self._venue() as (venue, row), self._call(venue, row) as call:
            with blockbuster.blockbuster_ctx([self.plugin]):
                await self._fetch(call)

    @pytest.mark.asyncio
    async def test_a_watch_begins_with_a_whole_balance_and_ends_cleanly(self) -> None:
        if not self._listing().capabilities.push:
            # Nothing to watch: the listing says so, and the service polls.
            return
        async with self._venue() as (venue, row), self._call(venue, row) as call:
            watch = self._hooks().watch_balance(call=call)
            async with asyncio.timeout(call.remaining() + _GRACE):
                balance = await anext(watch)
            assert isinstance(balance, Balance), f"watch_balance gave {type(balance).__name__} and no Balance"
            self._assert_well_formed(balance)
            await watch.aclose()


class _Bystander(LoopbackVenue):
    """Another host, which has no part in the call."""

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        return web.json_response({})


class _RecordingHttp:
    """The call's session, keeping every answer's body."""

    def __init__(self, http: Http, bodies: list[bytes]) -> None:
        self._http = http
        self._bodies = bodies

    @property
    def client_session(self) -> Any:
        return self._http.client_session

    async def get(self, url: str, **options: Any) -> Response:
        return self._keep(await self._http.get(url, **options))

    async def post(self, url: str, **options: Any) -> Response:
        return self._keep(await self._http.post(url, **options))

    def _keep(self, response: Response) -> Response:
        self._bodies.append(response.body)
        return response


def _modules_that_an_import_loads(name: str) -> set[str]:
    """The modules that importing `name` adds to those of the plugin's door, in an interpreter of its own."""
    script = (
        "import importlib, json, sys\n"
        "sys.path[:] = json.loads(sys.argv[1])\n"
        "import exchange_service.plugin_api\n"
        "before = set(sys.modules)\n"
        "importlib.import_module(sys.argv[2])\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    command = [sys.executable, "-c", script, json.dumps(sys.path), name]
    # Our own interpreter, with the plugin's own name: nothing here comes from outside.
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    assert result.returncode == 0, f"the plugin cannot be imported by its name: {result.stderr}"
    return set(json.loads(result.stdout.splitlines()[-1]))


def _figures(balance: Balance) -> list[tuple[Any, ...]]:
    """What a balance says of the accounts, apart from times."""

    def figures(account: VenueAccount) -> tuple[Any, ...]:
        return (account.identity, account.assets, account.summary, type(account.error))

    return [figures(account) for account in balance.venue_accounts]


async def _until(condition: Callable[[], bool], otherwise: str) -> None:
    for _ in range(300):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(otherwise)


async def _assert_no_new_task(before: set[asyncio.Task[Any]]) -> None:
    def left() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() - before if not task.done()]

    # The simulator's own connections take a moment to end.
    for _ in range(200):
        if not left():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks are left behind: {left()}")
