"""Service tokens: `xst_<id>_<secret>`, stored as a hash, looked up by their id and compared in constant time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from cachetools import LRUCache, TTLCache

from exchange_service.errors import CallerUnknown, ServiceOverloaded
from exchange_service.identity import Identity, Kind, PresentedCredentials, Scope, Verified

log = structlog.get_logger(__name__)

PREFIX = "xst_"
# Seconds for which a token is not checked again. Together with the interval of the streams' checks, a revoked token
# works for less than 30 more seconds.
KEEP = 20.0
# Seconds for which a verified token is accepted while the database does not answer, as cached references are.
_GRACE = 300.0
_SECRET_BYTES = 32
_ID_BYTES = 6
# Anybody can invent tokens. Unverified ones may use this many of the store's ten connections at once, and this many
# may wait.
_UNVERIFIED_AT_ONCE = 5
_MAX_UNVERIFIED = 1000
_MAX_VERIFIED = 20_000
# Seconds after which the log names a token that is not signed again: its holder may try many times a second.
_SAY_AGAIN = 60.0
# Compared with if there is no such id, so that the answer takes as long.
_NO_DIGEST = "0" * 64
_RENEW = "Ask the operator for a new one."


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A row of the table. Times are in seconds since 1970; None: it does not expire, was not revoked."""

    id: str
    name: str
    digest: str = field(repr=False)
    scope: Scope
    created: int
    expires: int | None = None
    revoked: int | None = None
    # Over everything above except `revoked`; see token_signatures. Empty: not signed.
    signature: str = field(default="", repr=False)


def new_token(name: str, scope: Scope, *, lifetime: float | None = None) -> tuple[str, StoredToken]:
    """A new token's text, which cannot be recovered later, and its row. `lifetime` is in seconds; None: unlimited."""
    token_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    created = int(time.time())
    expires = None if lifetime is None else created + int(lifetime)
    return f"{PREFIX}{token_id}_{secret}", StoredToken(token_id, name, _digest(secret), scope, created, expires)


def _digest(secret: str) -> str:
    """A fast hash is enough, because 256 random bits cannot be guessed."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


class ServiceTokens:
    """Authenticates service tokens. `find` returns the row with an id, or None; `is_signed` tells whether a row is one
    that the operator's commands have written, and not another program."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[StoredToken | None]],
        close: Callable[[], Awaitable[None]],
        is_signed: Callable[[StoredToken], bool] = lambda stored: True,
    ) -> None:
        self._find = find
        self._close = close
        self._is_signed = is_signed
        # The digests of verified tokens by their ids.
        self._verified: LRUCache[str, str] = LRUCache(_MAX_VERIFIED)
        self._named: TTLCache[str, bool] = TTLCache(_MAX_UNVERIFIED, _SAY_AGAIN)
        self._unverified = 0
        self._slots = asyncio.Semaphore(_UNVERIFIED_AT_ONCE)

    async def authenticate(self, presented: PresentedCredentials) -> Verified | None:
        """The identity of the token."""
        if not presented.token.startswith(PREFIX):
            return None
        token_id, _, secret = presented.token.removeprefix(PREFIX).partition("_")
        # The store is not asked for an id that cannot be one of ours.
        digest, possible = _digest(secret), len(token_id) == 2 * _ID_BYTES and token_id.isalnum()
        stored = await self._look_up(token_id, digest) if possible else None
        same = hmac.compare_digest(digest, stored.digest if stored else _NO_DIGEST)
        if stored is None or not same:
            raise CallerUnknown("This service does not know the service token.")
        if stored.revoked is not None:
            raise CallerUnknown("The service token has been revoked.", advice=_RENEW)
        if not self._is_signed(stored):
            if stored.id not in self._named:
                self._named[stored.id] = True
                effect = "it is refused; see `exchange-service tokens list`"
                log.warning("token.not_signed", token=stored.id, effect=effect)
            raise CallerUnknown(
                "The service token's entry is not signed with this service's key.",
                advice="If the operator made it, they sign it with `exchange-service tokens sign`.",
            )
        if stored.expires is not None and stored.expires <= time.time():
            raise CallerUnknown("The service token has expired.", advice=_RENEW)
        self._verified[stored.id] = digest
        identity = Identity(f"token {stored.id}", Kind.SERVICE, stored.scope, stored.expires)
        return Verified(identity, KEEP, _GRACE)

    async def _look_up(self, token_id: str, digest: str) -> StoredToken | None:
        """The row with this id. A token that was verified before never waits for others; ServiceOverloaded if too many
        unverified tokens wait."""
        if hmac.compare_digest(self._verified.get(token_id, _NO_DIGEST), digest):
            return await self._find(token_id)
        if self._unverified >= _MAX_UNVERIFIED:
            raise ServiceOverloaded("Too many callers with tokens that were not verified yet.")
        self._unverified += 1
        try:
            async with self._slots:
                return await self._find(token_id)
        finally:
            self._unverified -= 1

    async def close(self) -> None:
        """Release the store."""
        await self._close()
