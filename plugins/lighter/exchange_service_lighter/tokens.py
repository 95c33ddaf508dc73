"""The content of `api_key`: nothing, a wallet's address, or a token for reading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from exchange_service.plugin_api import CredentialInvalid, Secret, clean_text

# A token of Lighter's page, valid for a day to ten years: ro:{account}:{single or all}:{Unix seconds}:{hex}.
_READ_ONLY = re.compile(r"ro:\d{1,19}:(single|all):(?P<expires>\d{1,19}):[0-9a-fA-F]+\Z", re.ASCII)
# A token that an API key signs, valid for some hours: {Unix seconds}:{account}:{slot of the key}:{80 bytes in hex}.
_SIGNED = re.compile(r"(?P<expires>\d{1,19}):\d{1,19}:\d{1,3}:[0-9a-fA-F]{160}\Z", re.ASCII)
# Lighter's private keys have 40 bytes, those of an Ethereum wallet 32.
_PRIVATE_KEY = re.compile(r"(0x)?([0-9a-fA-F]{80}|[0-9a-fA-F]{64})\Z", re.ASCII | re.IGNORECASE)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z", re.ASCII | re.IGNORECASE)
# The end of the year 9999, the last year that a datetime can hold.
_LAST_SECOND = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Token:
    """A well-formed token, and when it expires."""

    text: Secret
    expires: datetime

    def has_expired(self) -> bool:
        """Whether it has expired by our clock."""
        return datetime.now(UTC) >= self.expires


def is_address(api_key: Secret) -> bool:
    """Whether a wallet's address is stored instead of a token."""
    return bool(_ADDRESS.match(api_key.reveal().strip()))


def token(api_key: Secret) -> Token | None:
    """The stored token; None for nothing or a wallet's address. Raises CredentialInvalid for any other text."""
    text = api_key.reveal().strip()
    if not text or is_address(api_key):
        return None
    text = clean_text(text, "api_key")
    if _PRIVATE_KEY.match(text):
        raise CredentialInvalid(
            "api_key holds a private key, which reading a balance at Lighter never needs.",
            advice="Remove it from this service, and replace it at Lighter if anybody else could have seen it.",
        )
    match = _READ_ONLY.match(text) or _SIGNED.match(text)
    if match is None or int(match["expires"]) > _LAST_SECOND:
        raise CredentialInvalid("api_key is not a read-only token of Lighter, which begins with ro: (it may be empty).")
    return Token(Secret(text), datetime.fromtimestamp(int(match["expires"]), UTC))
