"""A credential of the right form for each exchange, so that its real class can sign with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from exchange_service.plugin_api import ExchangeMetadata

API_KEY = "abcdef0123456789"
# Base64 of 32 bytes: many exchanges decode the secret, and those that do not take any text.
_SECRET = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="
_WALLET_KEY = "0x" + "11" * 32
# The bytes 1 to 32 in base58.
_ED25519_SEED = "4wBqpZM9xaSheZzJSMawUKKwhdpChKbZ5eu5ky4Vigw"
_METADATA = {"uid": "12345", "account_id": "12345", "login": "bob", "wallet_address": "0x" + "1a" * 20}

_KEYS: Mapping[str, str] = {"gemini": "account-abcdefgh", "coinbase": "organizations/abcd/apiKeys/efgh"}


@cache
def _coinbase_key() -> str:
    """An EC key in lines, as Coinbase gives it."""
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


@cache
def _ed25519_key() -> str:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


_SECRETS: Mapping[str, Callable[[], str]] = {
    "coinbase": _coinbase_key,
    # A longer secret of LBank's is an RSA key.
    "lbank": lambda: "0123456789abcdef0123456789abcdef",
    "modetrade": lambda: _ED25519_SEED,
    "revolutx": _ed25519_key,
    "woofipro": lambda: _ED25519_SEED,
}


def credential(listing: ExchangeMetadata) -> dict[str, Any]:
    """The arguments of `venue_call` for a user of this exchange."""
    wallet = any(field.label == "Private key" for field in listing.credential_fields)
    make = _SECRETS.get(listing.id)
    secret = make() if make else (_WALLET_KEY if wallet else _SECRET)
    names = {field.name for field in listing.credential_fields}
    return {
        "api_key": _KEYS.get(listing.id, API_KEY),
        "api_secret": secret,
        "passphrase": "words",
        "metadata": {name: value for name, value in _METADATA.items() if name in names},
    }


def traces(listing: ExchangeMetadata) -> tuple[str, ...]:
    """What of the credential a signed request shows: the key, or the account where there is no key."""
    if listing.id == "lighter":
        # The number of the account, which the request before learns from the wallet's address.
        return ("666666",)
    given = credential(listing)
    names = [field.name for field in listing.credential_fields]
    if "api_key" in names:
        return (given["api_key"],)
    if "wallet_address" in names:
        return (given["metadata"]["wallet_address"].removeprefix("0x"),)
    return (given["api_secret"], given["metadata"].get("uid", given["api_secret"]))
