"""Kraken Futures's signatures of requests and of challenges, and the nonces of a key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time

from exchange_service.plugin_api import CredentialInvalid

# What a request's path begins with and what is not signed: https://docs.kraken.com/api/docs/guides/futures-rest
UNSIGNED = "/derivatives"


def decode_secret(text: str) -> bytes:
    """The bytes of an API secret, which is base64. Raises CredentialInvalid for anything else."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise CredentialInvalid(
            "api_secret is not base64, as Kraken Futures's private keys are.",
            advice="Store the private key as Kraken Futures shows it once, with the signs = at its end.",
        ) from None


def signature(secret: bytes, nonce: str, path: str, data: str = "") -> str:
    """The header Authent of a request: base64 of 64 bytes. `data` are its parameters as they are sent."""
    return sign(secret, data + nonce + path.removeprefix(UNSIGNED))


def sign(secret: bytes, message: str) -> str:
    """HMAC-SHA-512 of the message's SHA-256, in base64. A challenge of the socket is signed as it is."""
    digest = hashlib.sha256(message.encode()).digest()
    return base64.b64encode(hmac.digest(secret, digest, hashlib.sha512)).decode()


class Nonces:
    """The nonces of one key, in milliseconds since 1970: each is greater than the one before, also after a restart.

    Requests need not arrive in their order, because the venue tolerates nonces that are out of order for a moment.
    """

    def __init__(self) -> None:
        self._last = 0

    @classmethod
    async def new(cls) -> Nonces:
        """Nonces that begin with the time, as a value of a State."""
        return cls()

    def next(self) -> str:
        """The next nonce, as it is sent."""
        self._last = max(self._last + 1, time.time_ns() // 1_000_000)
        return str(self._last)
