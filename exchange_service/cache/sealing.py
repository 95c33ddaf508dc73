"""What the service keeps in Redis is sealed: who lacks the hash key can neither read it nor write what is believed.

AES-256-GCM, because it costs less than an HMAC of the same bytes and hides amounts and users as well. A sealed value
belongs to the name under which it is kept, and is believed for a time that it holds itself.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# A sealed value is this header, the nonce, and the sealed bytes: a format, the day of its end as a number of 16 bits,
# which says what key sealed it, then the end in milliseconds since the epoch, the milliseconds from its sealing to its
# end, and the payload.
_FORMAT = 0x53
_HEADER = struct.Struct(">BH")
_NONCE = 12
_TIMES = struct.Struct(">QI")
_SECONDS_OF_A_DAY = 86_400
_MOST_DAYS = 8
# The bytes that a sealed value begins with, of which no two are alike.
HEAD = _HEADER.size + _NONCE
# What sealing adds to a payload.
OVERHEAD = HEAD + _TIMES.size + 16
# Seconds by which this process may be wrong about Redis's clock.
_TOLERANCE = 1.0
# Seconds by which a value may be from the future. Redis's clock has gone back if it is more, as when another server has
# taken its place; a delay or a count would then hold for as much longer.
AHEAD = 5.0


class Opened(NamedTuple):
    """What was sealed, and the seconds for which it is still to be believed."""

    payload: bytes
    left: float


class CacheSeal:
    """Seals and opens values under keys that are derived from the hash key, one for each day.

    A key for each day, because a key must not seal more than some billions of values with random nonces. Times are in
    seconds since the epoch, by the one clock that all replicas ask: Redis's.
    """

    def __init__(self, hash_key: bytes) -> None:
        self._root = hmac.digest(hash_key, b"exchange-service: what is kept in Redis", hashlib.sha256)
        self._keys: dict[int, AESGCM] = {}
        # Names in Redis begin with it: replicas with another key do not write over each other's values.
        self.fingerprint = hmac.digest(self._root, b"names", hashlib.sha256).hex()[:12]

    def __repr__(self) -> str:
        return "CacheSeal()"

    def seal(self, name: str, payload: bytes, now: float, seconds: float) -> bytes:
        """The payload, sealed for `name`, to be believed for so long from now on."""
        end = now + seconds
        day = int(end // _SECONDS_OF_A_DAY) & 0xFFFF
        header, nonce = _HEADER.pack(_FORMAT, day), os.urandom(_NONCE)
        inside = _TIMES.pack(round(end * 1000), max(0, round(seconds * 1000))) + payload
        return header + nonce + self._key(day).encrypt(nonce, inside, name.encode())

    def open(self, name: str, sealed: bytes, now: float) -> Opened | None:
        """What `seal` was given for this name; None for bytes that this key did not seal for it, or whose time is
        over or has not come."""
        if len(sealed) < OVERHEAD:
            return None
        form, day = _HEADER.unpack_from(sealed)
        # Yesterday's may be of this minute, around midnight; none is kept for longer than a few days.
        if form != _FORMAT or (day - int(now // _SECONDS_OF_A_DAY) + 1) & 0xFFFF > _MOST_DAYS:
            return None
        try:
            inside = self._key(day).decrypt(sealed[_HEADER.size : HEAD], sealed[HEAD:], name.encode())
        except InvalidTag:
            return None
        end, lasts = _TIMES.unpack_from(inside)
        left = end / 1000 - now
        if not -_TOLERANCE < left <= lasts / 1000 + AHEAD:
            return None
        return Opened(inside[_TIMES.size :], max(0.0, left))

    def _key(self, day: int) -> AESGCM:
        key = self._keys.get(day)
        if key is None:
            if len(self._keys) > _MOST_DAYS:
                self._keys.clear()
            key = AESGCM(hmac.digest(self._root, b"day %d" % day, hashlib.sha256))
            self._keys[day] = key
        return key
