"""The canary: secrets of known value, stored, used in every way that we know, and then searched for everywhere.

A `Canary` collects three things: the secrets, the paths on which they were used, and what each sink holds. The paths
run through the whole service, with the venues' simulators; the simulators also tell which signatures and tokens were
made of the secrets.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import re
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import grpc
import redis
import structlog
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr

from exchange_service.app import Service, start_service
from exchange_service.cli.credential_check import open_checker
from exchange_service.cli.demo import SIMULATOR_GROUP
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError
from exchange_service.model import Account, Balance, Credential, CredentialField, ExchangeMetadata
from exchange_service.plugin_api import VenueCall
from exchange_service.settings import Settings
from exchange_service.testing import DemoVenue, Fault, RecordedRequest
from exchange_service.testing.venue import SITUATIONS, TROUBLES
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.v1 import exchange_service_pb2_grpc
from exchange_service.venues.registry import Registry, load_registry
from tests.harness import PATIENCE, ScriptedPlugin, Stream, balance_request, failure_of, listing, loaded
from tests.identities import SECRET, web_token

# The names under which venues are sent secrets, and what is made of them.
_TELLING = re.compile(r"key|token|secret|sign|auth|cookie|pass", re.IGNORECASE)
_PUBLIC = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_SHORTEST = 8

FAULTS: Mapping[str, Fault] = {
    "401": Fault(status=401, body=b"{}"),
    "403": Fault(status=403, body=b"{}"),
    "429": Fault.rate_limited("7"),
    "500": Fault.html(500),
    "503": Fault(status=503, body=b"{}"),
    "a page": Fault.html(200),
    "an empty object": Fault(body=b"{}"),
    "truncated": Fault(body=b'{"account": {"id": "1'),
    "a redirect": Fault.redirect("http://127.0.0.1:9/elsewhere"),
    "an ended connection": Fault(reset=True),
    "silence": Fault(silent=True),
}


@dataclass(slots=True)
class Canary:
    """What is searched for, how it was used, and where it is searched."""

    secrets: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    sinks: dict[str, list[str]] = field(default_factory=dict)

    def add_secret(self, text: object, what: str) -> None:
        """One more secret to search for. A short text is no secret, and a wallet's address is public."""
        if isinstance(text, str) and len(text) >= _SHORTEST and not _PUBLIC.match(text):
            self.secrets.setdefault(text, what)

    def add_credential(self, row: Mapping[str, Any], metadata: ExchangeMetadata) -> None:
        """What of a stored row is a secret, as its listing says."""
        for credential_field in metadata.credential_fields:
            if credential_field.secret:
                self.add_secret(
                    row.get(credential_field.name) or row.get("extra_metadata", {}).get(credential_field.name),
                    credential_field.name,
                )
        for name in ("api_secret", "passphrase"):
            self.add_secret(row.get(name), name)

    def add_request(self, request: RecordedRequest) -> None:
        """What of a request that a venue saw is a secret, or was made of one."""
        sent = [*request.headers.items(), *request.query.items(), *_fields_of(request.body)]
        for name, value in sent:
            if isinstance(value, str) and _TELLING.search(name):
                self.add_secret(value, f"{name} of a request")
                self.add_secret(value.rpartition(" ")[2], f"{name} of a request")

    def hold(self, sink: str, *texts: object) -> None:
        """What a sink holds: texts, bytes, or anything by its `repr`."""
        held = self.sinks.setdefault(sink, [])
        held += [text if isinstance(text, str) else _as_text(text) for text in texts]

    def finds(self) -> list[str]:
        """Where a secret was found, without showing it."""
        hits = []
        for sink, texts in self.sinks.items():
            everything = "\0".join(texts)
            for secret, what in self.secrets.items():
                for form in {secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("=")}:
                    position = everything.find(form)
                    if position >= 0:
                        before = everything[max(0, position - 160) : position].rpartition("\0")[2]
                        hits.append(f"{sink} holds {what}, after {before!r}")
                        break
        return hits

    def summary(self, finds: int) -> str:
        return f"canary: {len(self.secrets)} secrets, {len(self.paths)} paths, {len(self.sinks)} sinks, {finds} finds"


def _as_text(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else repr(value)


def _fields_of(body: bytes) -> Iterator[tuple[str, object]]:
    """The named values of a body, JSON or a form."""
    text = body.decode("utf-8", "replace")
    try:
        left = [("", json.loads(text))]
    except ValueError:
        yield from parse_qsl(text)
        return
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left.extend(value.items())
        elif isinstance(value, list):
            left.extend((name, item) for item in value)
        else:
            yield name, value


# A plugin whose author was in a hurry: what a careful one never does, so that something is there to be redacted.
HASTY_SECRET = "my dog's name is Rex"
HASTY_KEY = "key-of-the-hasty-one"
HASTY_SIGNATURE = "48be6f12aa0934cd77e1b05c4f3d2e1948be6f12aa0934cd77e1b05c4f3d2e19"
HASTY_ROW = {"api_key": HASTY_KEY, "api_secret": HASTY_SECRET}
# As it behaves for a user, or for a credential that says so.
HASTY_USERS = ("quotes", "raises", "forgets", "keeps")


# Whose accounts are also connected, checked and removed by calls.
MANAGED = ("moving", "wrong key")


class HastyPlugin(ScriptedPlugin):
    """It logs requests in full, raises exceptions that quote them, and forgets tasks."""

    def __init__(self) -> None:
        fields = (
            CredentialField("api_key", "Key"),
            CredentialField("api_secret", "Secret"),
            CredentialField("manner", "Manner", required=False, secret=False),
        )
        super().__init__(listing("hasty", credential_fields=fields), answer=self._answer)

    async def _answer(self, call: VenueCall) -> Balance:
        key, secret = call.credential.api_key.reveal(), call.credential.api_secret.reveal()
        url = f"https://api.example/balance?key={key}&signature={HASTY_SIGNATURE}"
        headers = {"X-API-KEY": key, "Authorization": f"Bearer {secret}"}
        manner = call.credential.metadata.get("manner", call.account.user_id)
        if manner == "quotes":
            structlog.get_logger("hasty").debug("request", url=url, headers=headers, secret=secret, signed_with=secret)
            structlog.get_logger("hasty").info(f"asked with {secret}")
            logging.getLogger("hasty.sdk").debug("GET %s %s", url, headers)
            logging.getLogger("hasty.sdk").warning("signed with %s", secret)
        if manner == "forgets":
            forgotten = asyncio.create_task(_raise(ValueError(f"{url} {secret}")), name="forgotten")
            await asyncio.wait({forgotten})
            del forgotten
            gc.collect()
        if manner == "keeps":

            async def token() -> str:
                # Long enough for asyncio to say in its debug mode that the task was slow, with the task's result.
                asyncio.get_running_loop().call_soon(sum, range(10))
                return secret

            await call.account_state.get("token", token)
        if manner == "raises":
            try:
                raise ConnectionError(f"{headers} could not be sent")
            except ConnectionError as error:
                structlog.get_logger("hasty").exception("request.failed")
                logging.getLogger("hasty.sdk").exception("failed")
                raise ValueError(url + secret) from error
        balance: Balance = await ScriptedPlugin().answer(call)
        return balance


async def _raise(error: Exception) -> None:
    raise error


@dataclass(slots=True)
class CanaryRun:
    """One run of the canary through a service: it stores, calls, and collects."""

    canary: Canary
    service: Service
    client: ExchangeServiceClient
    venues: Mapping[str, DemoVenue]
    token: str
    # A database in a file has one writer at a time, and few connections.
    _storing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    _calling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(16))

    @property
    def stub(self) -> Any:
        return exchange_service_pb2_grpc.ExchangeServiceStub(self.client.channel)

    @property
    def bearer(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")]

    async def all_paths(self) -> None:
        """Each venue in each situation, trouble and fault, and the hasty plugin."""
        rows = {exchange_id: _rows_of(venue) for exchange_id, venue in self.venues.items()}
        for exchange_id, of_users in rows.items():
            for user, row in of_users.items():
                await self._store(exchange_id, user, row)
        await asyncio.gather(*(self._read(exchange_id, user) for exchange_id in rows for user in rows[exchange_id]))
        # Slow, and at its most talkative where something fails.
        asyncio.get_running_loop().set_debug(True)
        await asyncio.gather(*(self._faults(exchange_id, rows[exchange_id]["moving"]) for exchange_id in rows))
        for user in HASTY_USERS:
            await self._store("hasty", user, HASTY_ROW)
            await self._read("hasty", user)
            await self._manage("hasty", f"connecting {user}", HASTY_ROW | {"extra_metadata": {"manner": user}})
        self.canary.add_secret(HASTY_SIGNATURE, "signature")
        accounts = [(exchange_id, user) for exchange_id in rows for user in MANAGED if user in rows[exchange_id]]
        await asyncio.gather(
            *(self._manage(where, f"connecting {user}", rows[where][user]) for where, user in accounts)
        )
        await self._connect_badly()
        await self._other_callers()
        self.canary.paths.append("exchanges")
        self.canary.hold("replies", await self.client.list_exchanges())
        for venue in self.venues.values():
            for request in venue.requests:
                self.canary.add_request(request)

    async def _other_callers(self) -> None:
        """Callers whose tokens prove nothing, or not enough."""
        for token in (f"{self.token}x", "xst_nobody_a-secret-of-a-service-token", web_token("mallory")):
            self.canary.add_secret(token, "a caller's token")
            other_caller = replace(self, token=token)
            await other_caller._call("oanda", "moving", timeout=PATIENCE)

    async def _faults(self, exchange_id: str, row: Mapping[str, Any]) -> None:
        """Every fault of the venue, one after the other, each for a user of its own: the last one's is remembered."""
        venue = self.venues[exchange_id]
        for name, fault in FAULTS.items():
            await self._store(exchange_id, name, row)
            venue.fail(fault)
            await self._call(exchange_id, name, timeout=1.0)
            venue.recover(fault)

    async def _store(self, exchange_id: str, user: str, row: Mapping[str, Any]) -> None:
        self.canary.add_credential(row, self.service.registry.listings[exchange_id].metadata)
        async with self._storing:
            credential = Credential.from_texts(row, row.get("extra_metadata"))
            await self.service.store.put(Account(user, exchange_id), credential)

    async def _read(self, exchange_id: str, user: str) -> None:
        """Read the account: from the cache or else from the venue, by a forced read, and as a stream."""
        async with self._calling:
            # The first call may have to import a venue's library.
            await self._call(exchange_id, user, timeout=1.0 if user == "slow" else PATIENCE)
            await self._call(exchange_id, user, timeout=1.0, forced=True)
            await self._stream(exchange_id, user)

    async def _call(self, exchange_id: str, user: str, *, timeout: float, forced: bool = False) -> None:
        self.canary.paths.append(f"get {exchange_id} {user}{' forced' if forced else ''}")
        request = balance_request(exchange_id, user_id=user, max_age=Duration() if forced else None)
        try:
            reply = await self.stub.GetBalance(request, timeout=timeout, metadata=self.bearer)
        except grpc.aio.AioRpcError as error:
            metadata = error.initial_metadata(), error.trailing_metadata()
            self.canary.hold("statuses", failure_of(error), str(error), error.debug_error_string(), metadata)
        else:
            self.canary.hold("replies", reply, reply.SerializeToString())

    async def _stream(self, exchange_id: str, user: str) -> None:
        self.canary.paths.append(f"stream {exchange_id} {user}")
        accounts = [messages.AccountSelector(exchange_id=exchange_id)]
        request = messages.StreamBalancesRequest(user_id=user, accounts=accounts)
        call = self.stub.StreamBalances(request, metadata=self.bearer)
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                event = await Stream(call).next()
                self.canary.hold("stream events", event, event.SerializeToString())
        call.cancel()

    async def _manage(self, exchange_id: str, user: str, row: Mapping[str, Any]) -> None:
        """Connect an account with this row's values, and each other call about it."""
        known = {item.name for item in self.service.registry.listings[exchange_id].metadata.credential_fields}
        given = {**row, **row.get("extra_metadata", {})}
        fields = {name: str(value) for name, value in given.items() if name in known and value}
        for untried in (False, True):
            await self._ask("connect", self.client.connect_account(user, exchange_id, fields, skip_check=untried))
        await self._ask("check", self.client.check_account(user, exchange_id))
        await self._ask("list", self.client.list_accounts(user))
        await self._ask("remove", self.client.remove_account(user, exchange_id))

    async def _connect_badly(self) -> None:
        """Forms that are filled in wrongly: values in the wrong places, too long, or in no message at all."""
        long, misplaced = "a-secret-that-is-too-long" * 1000, "a-secret-in-the-place-of-a-name"
        for text in (long[:200], misplaced):
            self.canary.add_secret(text, "a field of a form")
        for fields in (
            {"api_key": long, "api_secret": f"{misplaced}\0"},
            {misplaced: "x", "api_key": misplaced},
            {"manner": f"{misplaced}\n"},
        ):
            await self._ask("connect badly", self.client.connect_account("connecting", "hasty", fields))
        await self._ask("connect badly", self.client.connect_account("connecting", misplaced[:2], {"x": misplaced}))
        raw = self.client.channel.unary_unary("/exchange_service.accounts.v1.AccountService/ConnectAccount")
        await self._ask("connect badly", raw(b"\xff" + misplaced.encode(), metadata=self.bearer))

    async def _ask(self, what: str, call: Awaitable[Any]) -> None:
        """A call about an account: its reply, or all that its error carries."""
        self.canary.paths.append(what)
        try:
            reply = await call
        except ServiceError as error:
            self.canary.hold("statuses", str(error), repr(error), vars(error))
        except grpc.aio.AioRpcError as error:
            self.canary.hold("statuses", failure_of(error), str(error), error.debug_error_string())
        else:
            self.canary.hold("replies", reply)

    async def check_keys(self, settings: Settings) -> None:
        """`credentials check`, which also asks what the keys may do."""
        async with open_checker(settings) as checker:
            for exchange_id in self.venues:
                self.canary.paths.append(f"check {exchange_id}")
                self.canary.hold("credential checks", await checker.check(Account("moving", exchange_id)))

    def look(self, settings: Settings, redis_url: str, database: Path) -> None:
        """Collect what the sinks hold that can be looked at while the service runs."""
        canary = self.canary
        canary.hold("settings", settings, str(settings), settings.model_dump(), settings.model_dump_json())
        canary.hold("settings", *Settings.model_json_schema().items())
        self.service.metrics.refresh()
        canary.hold("metrics", self.service.metrics.text())
        with redis.Redis.from_url(redis_url) as server:
            for key in server.scan_iter():
                canary.hold("Redis", key, server.dump(key), *_values(server, key))
        canary.hold("database files", *bytes_of(database))
        canary.hold("reprs", *objects_of_ours(), *(task for task in gc.get_objects() if isinstance(task, asyncio.Task)))


def bytes_of(database: Path) -> list[bytes]:
    """A SQLite database as it lies there, with its log of writes."""
    return [file.read_bytes() for file in sorted(database.parent.glob(f"{database.name}*"))]


def _values(server: Any, key: bytes) -> Iterator[bytes]:
    if server.type(key) == b"string":
        yield server.get(key)


# They hold CCXT's exception, whose text is a signed address, for as long as a call's record of answers lives: nobody is
# shown it, but a `repr` would.
_NOT_YET_SILENT = frozenset({("exchange_service_ccxt_generic.answers", name) for name in ("Answer", "Record")})


def objects_of_ours() -> Iterator[object]:
    """Every object there is of a class of the service or of a plugin, but not of the venues that are simulated here."""
    for thing in gc.get_objects():
        module = type(thing).__module__
        if not isinstance(module, str) or (module, type(thing).__name__) in _NOT_YET_SILENT:
            continue
        if module.startswith("exchange_service") and "simulator" not in module and ".testing" not in module:
            yield thing


def _rows_of(venue: DemoVenue) -> dict[str, Mapping[str, Any]]:
    """What is stored for a user in each situation and trouble that the venue can show."""
    rows = {situation: venue.demo_credential(situation) for situation in SITUATIONS}
    rows |= {trouble: venue.troubled_credential(trouble) for trouble in TROUBLES}
    return {user: row for user, row in rows.items() if row is not None}


def installed_venues(*wanted: str) -> dict[str, DemoVenue]:
    """A simulator for each exchange that has one, of those that are wanted; of all where none is named."""
    venues: dict[str, DemoVenue] = {}
    for point in entry_points(group=SIMULATOR_GROUP):
        venue: DemoVenue = point.load()()
        if not wanted or venue.exchange_id in wanted:
            venues[venue.exchange_id] = venue
    return venues


def registry_with(plugin: object) -> Registry:
    """The installed plugins and one more."""
    return Registry([*load_registry().plugins, loaded(plugin, "hasty")])


async def run_canary(canary: Canary, folder: Path, redis_url: str, *wanted: str, **changes: Any) -> None:
    """Let the canary through a whole service with its simulators, and collect from every sink but the process's
    output."""
    venues = installed_venues(*wanted)
    for venue in venues.values():
        await venue.start()
    database = folder / "canary.db"
    settings = Settings(
        address="127.0.0.1:0",
        database_url=f"sqlite:///{database}",
        cache_url=redis_url,
        hash_key=SecretStr("a hash key of the canary's"),
        jwt_secret=SecretStr(SECRET),
        venue_timeout=PATIENCE,
        poll_interval=0.5,
        manage_accounts=True,
        failed_checks=1000,
        shutdown_grace=0.5,
        venue_urls={name: venue.url for name, venue in venues.items()},
        **changes,
    )
    token = web_token("the canary", exchange_service_users={"users": "*", "manage": True})
    for text, what in (("a hash key of the canary's", "hash_key"), (SECRET, "jwt_secret"), (token, "a caller's token")):
        canary.add_secret(text, what)
    service = await start_service(settings, registry=registry_with(HastyPlugin()))
    try:
        async with ExchangeServiceClient(service.address, token=token) as client:
            run = CanaryRun(canary, service, client, venues, token)
            await run.all_paths()
            await run.check_keys(settings)
            run.look(settings, redis_url, database)
    finally:
        await service.stop()
        for venue in venues.values():
            await venue.stop()
    canary.hold("database files", *bytes_of(database))
