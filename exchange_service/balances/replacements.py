"""Stores the new values of credentials whose venue gives another refresh token at each use.

The value that a plugin brings is the only one that still works, so it is never dropped lightly: the write outlives the
call, and is tried again while the database is down. It is lost if the process ends before that, or after an hour.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from exchange_service.balances.lineage import Lineage
from exchange_service.credentials import CredentialReference
from exchange_service.credentials.replacing import FieldReplacer, Fingerprints, Rewritten
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.errors import PluginFailed, ServiceError, StoreUnavailable, VenueUnavailable
from exchange_service.model import Account, Credential, Secret
from exchange_service.observability.redaction import LIVE, Held
from exchange_service.recently_used import RecentlyUsed
from exchange_service.tasks import TaskSet, without_origin
from exchange_service.venues.registry import Listing
from exchange_service.venues.replacing import check_changes

# Accounts whose credentials were opened, which alone can be replaced.
_MOST_OPENED = 40_000
# Versions that one session has replaced which are remembered: more than a call that is in progress may still name.
_MOST_OWN = 64
# Seconds between two turns of one row.
LEAST_PAUSE = 1.0
# Seconds for which a plugin waits for the store.
PATIENCE = 6.0
# Seconds until a failed write is tried again, twice as long each time from the first to the second, and until it is
# given up.
_FIRST_PAUSE, _LONGEST_PAUSE, GIVE_UP_AFTER = 2.0, 30.0, 3600.0
# Seconds that writes have at the service's end.
_ENDING = 3.0
# Rows whose new values wait for the database.
MOST_HELD = 1000

log = structlog.get_logger(__name__)

OpenCredential = Callable[[CredentialReference], Awaitable[Credential]]
# Called with the row, its version now and those before it, the latest first: it was replaced.
OnReplaced = Callable[[Account, str, tuple[str, ...]], Awaitable[None]]
# Called with the account whose row holds another credential than its session.
OnConflict = Callable[[Account], None]


async def _no_replacement(stored_as: Account, version: str, ancestors: tuple[str, ...]) -> None:
    """What is done by default."""


def _no_conflict(account: Account) -> None:
    """What is done by default."""


@dataclass(slots=True)
class _Opened:
    """What an account's session was opened from: the row, its version, and the fingerprint of the credential. `own` are
    the versions before, which the session itself has replaced, the latest first."""

    stored_as: Account
    version: str
    fingerprint: bytes
    own: tuple[str, ...] = ()


@dataclass(slots=True)
class _Held:
    """The newest values for a row, until they are stored. `expected`: the row may hold one of these."""

    opened: _Opened
    plugin: str
    expected: set[bytes]
    changes: dict[str, Secret] = field(default_factory=dict, repr=False)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Once `over`: the version that holds the newest values, or None if the row holds another credential.
    over: bool = False
    version: str | None = None
    retrying: asyncio.Task[None] | None = None
    hidden: Held | None = None


class Replacements:
    """Replaces fields of credentials that were opened here, see `ReplaceCredential`."""

    def __init__(
        self,
        store: SqlCredentialStore,
        lineage: Lineage | None = None,
        *,
        on_replaced: OnReplaced = _no_replacement,
        on_conflict: OnConflict = _no_conflict,
    ) -> None:
        self.lineage = lineage or Lineage()
        self.on_replaced = on_replaced
        self.on_conflict = on_conflict
        self._fingerprints = Fingerprints(secrets.token_bytes(32))
        self._replacer = FieldReplacer(store, self._fingerprints)
        self._opened: RecentlyUsed[Account, _Opened] = RecentlyUsed(_MOST_OPENED)
        self._held: dict[Account, _Held] = {}
        # When a row had its last turn, in the loop's time.
        self._turns: RecentlyUsed[Account, float] = RecentlyUsed(_MOST_OPENED)
        self._tasks = TaskSet()

    def __len__(self) -> int:
        """How many rows wait for the database."""
        return len(self._held)

    def opening(self, open_credential: OpenCredential, rotates: Callable[[Account], bool]) -> OpenCredential:
        """The same opening of credentials, with the values that are not stored yet. `rotates` says whether the
        account's plugin may replace anything."""

        async def opening(reference: CredentialReference) -> Credential:
            credential = await open_credential(reference)
            if rotates(reference.account):
                credential = self._note(reference, credential)
            return credential

        return opening

    def _note(self, reference: CredentialReference, credential: Credential) -> Credential:
        fingerprint = self._fingerprints.of(credential)
        before = self._opened.get(reference.account)
        own = before.own if before is not None and before.version == reference.version else ()
        self._opened[reference.account] = _Opened(reference.stored_as, reference.version, fingerprint, own)
        held = self._held.get(reference.stored_as)
        if held is None or fingerprint not in held.expected:
            return credential
        return credential.with_fields(held.changes)

    async def replace(
        self, account: Account, version: str, listing: Listing, changes: Mapping[str, Secret]
    ) -> str | None:
        """See `ReplaceCredential`. The write goes on if the caller is cancelled."""
        plugin = listing.plugin.info.name
        values = {name: value.reveal() for name, value in changes.items()}
        checked = check_changes(listing.metadata, plugin, values)
        opened = self._opened.get(account)
        if opened is None:
            return None
        if version not in (opened.version, *opened.own):
            await self._take_turn(opened.stored_as)
            self.on_conflict(account)
            return None
        held = self._hold(opened, plugin, checked)
        task = self._tasks.start(self._write_once(account, held), name="replacing a credential")
        done, _ = await asyncio.wait({task}, timeout=PATIENCE)
        if not done:
            raise _not_stored_yet(listing.metadata.name)
        error = task.exception()
        if isinstance(error, StoreUnavailable):
            raise _not_stored_yet(listing.metadata.name)
        if error is not None:
            raise error if isinstance(error, ServiceError) else PluginFailed("A credential could not be replaced.")
        return task.result()

    def _hold(self, opened: _Opened, plugin: str, changes: Mapping[str, Secret]) -> _Held:
        held = self._held.get(opened.stored_as)
        if held is None:
            held = self._held[opened.stored_as] = _Held(opened, plugin, {opened.fingerprint})
        held.changes.update(changes)
        # No line of the log shows one of these values meanwhile.
        before, held.hidden = held.hidden, LIVE.hold(value.reveal() for value in held.changes.values())
        if before is not None:
            before.release()
        return held

    async def _write_once(self, account: Account, held: _Held) -> str | None:
        """Write what is held, and go on trying beside the caller if the store does not answer."""
        try:
            return await self._write(account, held)
        except ServiceError as error:
            if isinstance(error, StoreUnavailable):
                self._try_again_later(account, held)
            else:
                self._drop(held)
            failure = without_origin(error)
        raise failure

    async def _write(self, account: Account, held: _Held) -> str | None:
        stored_as = held.opened.stored_as
        async with held.writing:
            if held.over:
                if held.version is not None:
                    self._follow(account, held.opened)
                return held.version
            await self._take_turn(stored_as)
            changes = dict(held.changes)
            rewritten = await self._replacer.replace(
                stored_as, held.expected, changes, plugin=held.plugin, on_write=partial(self._on_write, held)
            )
            if rewritten is None:
                self._drop(held)
                self._log(log.warning, "credential.replacement_refused", held, "the row holds another credential")
                self.on_conflict(account)
                return None
            await self._on_written(account, held, rewritten)
            if held.changes == changes:
                held.version = rewritten.version
                self._drop(held)
            else:
                held.expected = {rewritten.fingerprint}
            return rewritten.version

    async def _take_turn(self, stored_as: Account) -> None:
        """Wait until the row may be asked for again, however many wait."""
        now = asyncio.get_running_loop().time()
        turn = self._turns[stored_as] = max(now, (self._turns.get(stored_as) or 0.0) + LEAST_PAUSE)
        await asyncio.sleep(turn - now)

    async def _on_write(self, held: _Held, rewritten: Rewritten) -> None:
        held.expected.add(rewritten.fingerprint)
        await self.lineage.record(rewritten.version, held.opened.version)

    async def _on_written(self, account: Account, held: _Held, rewritten: Rewritten) -> None:
        opened, before = held.opened, held.opened.version
        if rewritten.version != before:
            opened.own = (before, *opened.own)[:_MOST_OWN]
            opened.version, opened.fingerprint = rewritten.version, rewritten.fingerprint
            self._follow(account, opened)
            await self.on_replaced(opened.stored_as, rewritten.version, await self.lineage.of(rewritten.version))

    def _follow(self, account: Account, written: _Opened) -> None:
        """Note the written version for the account too if it was opened again meanwhile, or is another one of the row:
        its session's next token would be taken for one of an earlier credential, and be lost."""
        opened = self._opened.get(account)
        if opened is not None and opened is not written and opened.version in written.own:
            opened.own, opened.version, opened.fingerprint = written.own, written.version, written.fingerprint

    def _try_again_later(self, account: Account, held: _Held) -> None:
        if held.over or held.retrying is not None:
            return
        if len(self._held) > MOST_HELD:
            self._drop(held)
            self._log(log.error, "credential.replacement_lost", held, "too many wait for the database")
            return
        self._log(log.warning, "credential.replacement_held", held, "the database does not answer")
        held.retrying = self._tasks.start(self._try_again(account, held), name="replacing a credential later")

    async def _try_again(self, account: Account, held: _Held) -> None:
        loop = asyncio.get_running_loop()
        give_up, pause = loop.time() + GIVE_UP_AFTER, _FIRST_PAUSE
        while loop.time() < give_up:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                await self._write(account, held)
            except StoreUnavailable:
                continue
            except ServiceError as error:
                self._drop(held)
                self._log(log.error, "credential.replacement_lost", held, error.reason)
                return
            if held.over:
                return
        self._drop(held)
        self._log(log.error, "credential.replacement_lost", held, "the database did not answer in an hour")

    def _drop(self, held: _Held) -> None:
        held.over = True
        held.changes.clear()
        if held.hidden is not None:
            held.hidden.release()
        if self._held.get(held.opened.stored_as) is held:
            del self._held[held.opened.stored_as]

    def _log(self, write: Callable[..., object], event: str, held: _Held, reason: str) -> None:
        account = held.opened.stored_as
        audit = self._replacer.store.vault.audit
        write(
            event,
            user=audit.hash_user(account.user_id),
            exchange=account.exchange_id,
            environment=account.environment,
            plugin=held.plugin,
            problem=reason,
        )

    async def close(self) -> None:
        """Store what waits, once more, for some seconds at most; what cannot be stored now is lost."""
        for held in list(self._held.values()):
            if held.retrying is not None:
                held.retrying.cancel()
            self._tasks.start(self._write(held.opened.stored_as, held), name="replacing a credential at the end")
        await self._tasks.wait(_ENDING)
        for held in list(self._held.values()):
            self._drop(held)
            self._log(log.error, "credential.replacement_lost", held, "the service ends")
        await self._tasks.close(_ENDING)


def _not_stored_yet(name: str) -> VenueUnavailable:
    return VenueUnavailable(
        f"The new credential of {name} is not stored yet, because the credential database does not answer.",
        advice="The service holds it and tries again; nothing needs to be done unless it ends before.",
    )
