"""The public keys of an issuer of JWTs (a JWKS), from a URL or a file, also while the issuer rotates them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import jwt
import structlog

from exchange_service.errors import CallerUnknown, StoreUnavailable

log = structlog.get_logger(__name__)

# Seconds after which the keys are read again, so that a withdrawn key stops working here too.
_REFRESH = 300.0
# An unknown key id is a reason to read the keys again, but not more often than this: anybody can invent a key id.
MIN_INTERVAL = 5.0
# Seconds for which the known keys serve while the issuer does not answer.
_OUTAGE = 3600.0
_FETCH_LIMIT = 4.0
_LONGEST = 256 * 1024
# Algorithms that a public key can check; an issuer's key is never used as a shared secret.
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})


class KeySet:
    """An issuer's keys by id. `read` returns the JWKS as JSON text; it may raise any exception."""

    def __init__(self, read: Callable[[], Awaitable[str | bytes]]) -> None:
        self._read = read
        self._keys: tuple[jwt.PyJWK, ...] = ()
        self._confirmed: float | None = None
        self._tried: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._unreadable = False

    async def key(self, key_id: str | None, algorithm: str) -> jwt.PyJWK:
        """The key with this id; without an id the one key that is for this algorithm.

        CallerUnknown if the issuer does not publish it, StoreUnavailable if the keys cannot be read.
        """
        now = asyncio.get_running_loop().time()
        key = self._find(key_id, algorithm)
        if key is not None and self._confirmed is not None and now - self._confirmed < _OUTAGE:
            if now - self._confirmed >= _REFRESH:
                # Beside the call, which the known key still serves.
                self._start_reading(now)
            return key
        task = self._start_reading(now)
        if task is not None:
            await asyncio.wait({task})
        if self._confirmed is None or asyncio.get_running_loop().time() - self._confirmed >= _OUTAGE:
            raise StoreUnavailable("The keys of the tokens' issuer cannot be read right now.", retry_after=MIN_INTERVAL)
        key = self._find(key_id, algorithm)
        if key is not None:
            return key
        if key_id is None:
            raise CallerUnknown("The token does not name its key, and not exactly one key of its issuer fits it.")
        raise CallerUnknown("The token is signed with a key that its issuer does not publish.")

    def _find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        if key_id is not None:
            return next((key for key in self._keys if key.key_id == key_id), None)
        fitting = [key for key in self._keys if key.algorithm_name == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _start_reading(self, now: float) -> asyncio.Task[None] | None:
        """The running read, or a new one; None if the last one began less than MIN_INTERVAL ago."""
        if self._reading is not None and not self._reading.done():
            return self._reading
        if self._tried is not None and now - self._tried < MIN_INTERVAL:
            return None
        self._tried = now
        self._reading = asyncio.get_running_loop().create_task(self._refresh(), name="issuer's keys")
        return self._reading

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_FETCH_LIMIT):
                keys = _select_usable(json.loads(await self._read()))
        except Exception as error:
            if not self._unreadable:
                log.warning("issuer.keys_unreadable", error=type(error).__name__, known=len(self._keys))
            self._unreadable = True
            return
        if self._unreadable:
            log.info("issuer.keys_readable_again", known=len(keys))
        self._unreadable = False
        self._keys = keys
        self._confirmed = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End a running read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})


def _select_usable(document: object) -> tuple[jwt.PyJWK, ...]:
    """The keys that can check a signature; ValueError for a set without one, which no issuer would publish."""
    entries = document.get("keys") if isinstance(document, dict) else None
    keys: dict[object, jwt.PyJWK] = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        key_id = entry.get("kid")
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError):
            # An unusable key, perhaps of a newer type, must not affect the others.
            continue
        if key.algorithm_name in ALGORITHMS and (key_id is None or isinstance(key_id, str)):
            # Of two with the same id the later one counts; those without an id are all kept.
            keys[key_id or object()] = key
    if not keys:
        raise ValueError("no key")
    return tuple(keys.values())


def from_file(path: Path) -> KeySet:
    """The keys in a file, which may be replaced while the service runs."""
    return KeySet(lambda: asyncio.to_thread(path.read_bytes))


def from_url(url: str) -> KeySet:
    """The keys at a URL. Redirects are not followed, and proxies named by the environment are not used."""
    # Late, because the other sources of keys do without it.
    import aiohttp

    async def read() -> bytes:
        async with (
            aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError("no key set")
            body = await response.content.read(_LONGEST)
            while not response.content.at_eof() and len(body) < _LONGEST:
                body += await response.content.read(_LONGEST - len(body))
            return body

    return KeySet(read)
