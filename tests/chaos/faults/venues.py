"""The faults of venues. Each ends with a look at whether requests have met it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.sql import open_store
from exchange_service.errors import ServiceError
from exchange_service.model import Account, Credential
from tests.chaos.accounts import EXCHANGE, secret_of, user_name
from tests.chaos.faults import fault
from tests.chaos.replicas import Replica
from tests.chaos.venue_forms import SEVERAL
from tests.chaos.venue_server import SECURE

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

# Each fault that is one mode of the venue, for all users, by its name.
MODE_OF: dict[str, tuple[str, dict[str, Any]]] = {
    "venue-401": ("unauthorized", {}),
    "venue-403": ("forbidden", {}),
    "venue-429": ("limited", {}),
    "venue-429-bare": ("limited-bare", {}),
    "venue-418": ("banned", {}),
    "venue-500": ("broken", {}),
    "venue-502-page": ("gateway", {}),
    "venue-503-maintenance": ("maintenance", {}),
    "venue-silent": ("silence", {}),
    "venue-slow-loris": ("slow-loris", {}),
    "venue-slow": ("slow", {"seconds": 0.6}),
    "venue-too-slow": ("slow", {"seconds": 1.5}),
    "venue-late": ("held", {"seconds": 0.6}),
    "venue-truncated": ("truncated", {}),
    "venue-page": ("page", {}),
    "venue-empty": ("empty", {}),
    "venue-list": ("list", {}),
    "venue-nan": ("nan", {}),
    "venue-1e400": ("huge-number", {}),
    "venue-null": ("null", {}),
    "venue-duplicates": ("duplicate", {}),
    "venue-200mb": ("huge-body", {}),
    "venue-bombs": ("bomb", {}),
    "venue-plain-text": ("plain-text", {}),
    "venue-foreign": ("foreign", {}),
    "venue-jumps-back": ("back", {}),
    "venue-resets": ("reset", {}),
    "venue-flaps": ("flapping", {}),
}


@asynccontextmanager
async def misbehaving(rig: Rig, mode: str, met: str = "", **options: Any) -> AsyncIterator[None]:
    """The venue in this mode inside the block. AssertionError if no request has met it; `met` counts in its place."""
    before = await rig.venue.met(met or mode)
    await rig.venue.set_mode(mode, **options)
    try:
        yield
        assert await rig.venue.met(met or mode) > before, f"no request has met the venue in the mode {mode}"
    finally:
        await rig.venue.set_mode("well")


def _enter_mode(name: str, mode: str, options: dict[str, Any]) -> None:
    @fault(name)
    @asynccontextmanager
    async def put(rig: Rig) -> AsyncIterator[None]:
        async with misbehaving(rig, mode, **options):
            yield


for _name, (_mode, _options) in MODE_OF.items():
    _enter_mode(_name, _mode, _options)


@fault("venue-refuses")
@asynccontextmanager
async def refuse(rig: Rig) -> AsyncIterator[None]:
    """Nothing listens where the venue was, and its connections have ended."""
    await rig.venue.set_mode("refuse")
    answered = len(rig.venue.answers)
    try:
        yield
        assert len(rig.venue.answers) == answered, "the venue has answered"
    finally:
        await rig.venue.set_mode("well")


@fault("venue-redirects")
@asynccontextmanager
async def redirect(rig: Rig) -> AsyncIterator[None]:
    """Answers lead to another host, where nobody may come with a key."""
    async with misbehaving(rig, "redirect"):
        yield
        assert await rig.venue.met("astray") == 0, "a request came to the host of the redirect"


@fault("venue-partly")
@asynccontextmanager
async def partly(rig: Rig) -> AsyncIterator[None]:
    """One of a user's two accounts is refused. It has its error, and the other is not shown as the whole."""
    await rig.store([SEVERAL])
    async with misbehaving(rig, "partial", met="refused part"):
        for replica in rig.replicas:
            reply = await replica.ask(SEVERAL, max_age=0)
            assert not isinstance(reply, ServiceError), reply
            first, second = reply.balance.venue_accounts
            assert first.assets, "the account that can be read is missing"
            assert second.HasField("error"), "the refused account has no error"
            assert not reply.balance.HasField("summary"), "half a balance has a sum"
        yield


def _enter_certificate(kind: str) -> None:
    @fault(f"venue-certificate-{kind}")
    @asynccontextmanager
    async def put(rig: Rig) -> AsyncIterator[None]:
        """A replica of its own trusts the venue's authority, and reads it by TLS before and after."""
        async with _trusting_replica(rig) as replica:
            await _expect(replica, True, "the venue's good certificate was refused")
            await rig.venue.set_mode(kind)
            try:
                await _expect(replica, False, f"a certificate was accepted: {kind}")
                yield
            finally:
                await rig.venue.set_mode("well")
            await _expect(replica, True, "the good certificate was refused afterwards")


for _kind in ("expired", "other-name", "unknown-authority"):
    _enter_certificate(_kind)

# A user that only these faults ask for.
_SECURE_USER = SEVERAL + 1
# Seconds until the venue is asked again after failures.
_PATIENCE = 20.0


async def _expect(replica: Replica, served: bool, problem: str) -> None:
    """Ask until the venue with TLS was asked as expected; it is left alone for a while after failures."""
    options: dict[str, Any] = {"environment": SECURE.rpartition(".")[2], "max_age": 0}
    patience = time.monotonic() + _PATIENCE
    while isinstance(found := await replica.ask(_SECURE_USER, **options), ServiceError) and served:
        assert time.monotonic() < patience, problem
        await asyncio.sleep(0.5)
    # A last good value would not be an answer of the venue.
    new = not isinstance(found, ServiceError) and not found.freshness.HasField("stale")
    assert new is served, problem


@asynccontextmanager
async def _trusting_replica(rig: Rig) -> AsyncIterator[Replica]:
    """A third replica that trusts the authority of the venue's certificates."""
    replica = Replica(len(rig.replicas), rig.folder, rig.replicas[0].settings)
    await _store_secure(rig)
    await replica.start(variables={"SSL_CERT_FILE": str(rig.venue.authority)})
    try:
        yield replica
    finally:
        await replica.stop()


async def _store_secure(rig: Rig) -> None:
    """Store the credential of the user of the venue with TLS."""
    settings = rig.replicas[0].settings
    store = await open_store(rig.postgres.url, settings["hash_key"].encode(), keys=GivenKeys(settings["keyset"]))
    try:
        account = Account(user_name(_SECURE_USER), EXCHANGE, SECURE.rpartition(".")[2])
        await store.put(account, Credential.from_texts({"api_key": secret_of(_SECURE_USER)}))
    finally:
        await store.close()
