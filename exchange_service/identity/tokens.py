"""Service tokens: `xst_<id>_<secret>`, stored as a hash, looked up by their id and compared in constant time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from exchange_service.errors import CallerUnknown, ServiceOverloaded
from exchange_service.identity import Identity, Kind, Proof, Scope, Verified

PREFIX = "xst_"
# With the streams' own interval a token that was revoked is good for less than 30 seconds more.
_KEEP = 20.0
# While the database does not answer, a token that was good goes on for so long, as kept credentials do.
_GRACE = 300.0
_SECRET_BYTES = 32
_ID_BYTES = 6
# Anybody can make up tokens. So many are looked for at once, of the store's ten connections, and so many may wait.
_STRANGERS_AT_ONCE = 5
_STRANGERS = 1000
# Compared with where there is no such id, so that the answer takes as long.
_NO_DIGEST = "0" * 64


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


def new_token(name: str, scope: Scope, *, lifetime: float | None = None) -> tuple[str, StoredToken]:
    """A new token's text, which nobody can be told again, and what is stored of it. `lifetime` is in seconds."""
    token_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    created = int(time.time())
    expires = None if lifetime is None else created + int(lifetime)
    return f"{PREFIX}{token_id}_{secret}", StoredToken(token_id, name, _digest(secret), scope, created, expires)


def _digest(secret: str) -> str:
    """A fast hash is enough: nobody guesses 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


class ServiceTokens:
    """The AuthenticationMethod of service tokens; `find` gives the row with an id, or None."""

    def __init__(
        self, find: Callable[[str], Awaitable[StoredToken | None]], close: Callable[[], Awaitable[None]]
    ) -> None:
        self._find = find
        self._close = close
        # The digests of tokens that were good, by their ids.
        self._met: dict[str, str] = {}
        self._strangers = 0
        self._turns = asyncio.Semaphore(_STRANGERS_AT_ONCE)

    async def authenticate(self, proof: Proof) -> Verified | None:
        """Whose token it is."""
        if not proof.token.startswith(PREFIX):
            return None
        token_id, _, secret = proof.token.removeprefix(PREFIX).partition("_")
        # An id that cannot be one of ours is not worth a question.
        digest, possible = _digest(secret), len(token_id) == 2 * _ID_BYTES and token_id.isalnum()
        stored = await self._look_up(token_id, digest) if possible else None
        same = hmac.compare_digest(digest, stored.digest if stored else _NO_DIGEST)
        if stored is None or not same:
            raise CallerUnknown("The service token is none that this service knows.")
        if stored.revoked is not None:
            raise CallerUnknown("The service token has been revoked.", advice="Ask the operator for a new one.")
        if stored.expires is not None and stored.expires <= time.time():
            raise CallerUnknown("The service token has expired.", advice="Ask the operator for a new one.")
        self._met[stored.id] = digest
        identity = Identity(f"token {stored.id}", Kind.SERVICE, stored.scope, stored.expires)
        return Verified(identity, _KEEP, _GRACE)

    async def _look_up(self, token_id: str, digest: str) -> StoredToken | None:
        """The row with this id. Who was met before waits for no stranger; ServiceOverloaded for one too many."""
        if hmac.compare_digest(self._met.get(token_id, _NO_DIGEST), digest):
            return await self._find(token_id)
        if self._strangers >= _STRANGERS:
            raise ServiceOverloaded("Too many callers have tokens that are not known yet.")
        self._strangers += 1
        try:
            async with self._turns:
                return await self._find(token_id)
        finally:
            self._strangers -= 1

    async def close(self) -> None:
        """Release the store."""
        await self._close()
