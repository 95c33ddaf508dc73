"""The public keys of who issues JWTs (a JWKS), from a URL or a file, through their rotation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import jwt
import structlog

from exchange_service.errors import CallerUnknown, StoreUnavailable

log = structlog.get_logger(__name__)

# Read again after this long, so that a key that was withdrawn ends here too.
_REFRESH = 300.0
# An unknown key id is a reason to read again, but anybody can make one up.
_PAUSE = 5.0
# While the issuer does not answer, the keys that are known serve for so long.
_OUTAGE = 3600.0
_FETCH_LIMIT = 4.0
_LONGEST = 256 * 1024
# Signatures that a public key can check; an issuer's key is never used as a shared secret.
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})


class KeySet:
    """An issuer's keys by id. `read` gives the JWKS as text; it may raise anything."""

    def __init__(self, read: Callable[[], Awaitable[str | bytes]]) -> None:
        self._read = read
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._confirmed: float | None = None
        self._tried: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._trouble = False

    async def key(self, key_id: str | None) -> jwt.PyJWK:
        """The key with this id. CallerUnknown where the issuer has none, StoreUnavailable where he cannot be asked."""
        now = asyncio.get_running_loop().time()
        found = self._keys.get(key_id)
        if found is not None and self._confirmed is not None and now - self._confirmed < _OUTAGE:
            if now - self._confirmed >= _REFRESH:
                # Beside the call: what is known still serves it.
                self._start(now)
            return found
        task = self._start(now)
        if task is not None:
            await asyncio.wait({task})
        if self._confirmed is None or asyncio.get_running_loop().time() - self._confirmed >= _OUTAGE:
            raise StoreUnavailable("The keys of the tokens' issuer cannot be read just now.", retry_after=_PAUSE)
        found = self._keys.get(key_id)
        if found is None:
            raise CallerUnknown("The token is signed with a key that its issuer does not name.")
        return found

    def _start(self, now: float) -> asyncio.Task[None] | None:
        """Begin to read, or join who does; None where that was tried a moment ago."""
        if self._reading is not None and not self._reading.done():
            return self._reading
        if self._tried is not None and now - self._tried < _PAUSE:
            return None
        self._tried = now
        self._reading = asyncio.get_running_loop().create_task(self._refresh(), name="issuer's keys")
        return self._reading

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_FETCH_LIMIT):
                keys = _usable(json.loads(await self._read()))
        except Exception as error:
            if not self._trouble:
                log.warning("issuer.keys_unreadable", error=type(error).__name__, known=len(self._keys))
            self._trouble = True
            return
        if self._trouble:
            log.info("issuer.keys_readable_again", known=len(keys))
        self._trouble = False
        self._keys = keys
        self._confirmed = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End the reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})


def _usable(document: object) -> dict[str | None, jwt.PyJWK]:
    """The keys that can check a signature; ValueError where there is none, which no issuer would say."""
    entries = document.get("keys") if isinstance(document, dict) else None
    found: dict[str | None, jwt.PyJWK] = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        key_id = entry.get("kid")
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError):
            # One that we cannot use, perhaps of a kind to come, takes no other with it.
            continue
        if key.algorithm_name in ALGORITHMS and (key_id is None or isinstance(key_id, str)):
            found[key_id] = key
    if not found:
        raise ValueError("no key")
    return found


def from_file(path: Path) -> KeySet:
    """The keys in a file, which may be replaced while the service runs."""
    return KeySet(lambda: asyncio.to_thread(path.read_bytes))


def from_url(url: str) -> KeySet:
    """The keys at a URL; a redirect is not followed, and no proxy of the environment is used."""

    async def read() -> bytes:
        async with (
            aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise ValueError("no key set")
            body = await answer.content.read(_LONGEST)
            while not answer.content.at_eof() and len(body) < _LONGEST:
                body += await answer.content.read(_LONGEST - len(body))
            return body

    return KeySet(read)
