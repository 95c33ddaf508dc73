"""Which exchanges sign with a private key in lines, and the form in which CCXT takes it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from exchange_service.plugin_api import KEY_KINDS, CredentialInvalid, PrivateKey, clean_text, private_key

# By id: the kinds of private key that CCXT signs with, where the secret may be a key in lines.
KEYS_IN_LINES: Mapping[str, tuple[str, ...]] = {
    "binance": ("rsa", "ed25519"),  # witness: CCXT: binance (its sign)
    "binancecoinm": ("rsa", "ed25519"),  # witness: CCXT: binancecoinm (a subclass, which inherits sign)
    "binanceus": ("rsa", "ed25519"),  # witness: CCXT: binanceus (a subclass, which inherits sign)
    "binanceusdm": ("rsa", "ed25519"),  # witness: CCXT: binanceusdm (a subclass, which inherits sign)
    "bybit": ("rsa",),  # witness: CCXT: bybit (its sign)
    "bybiteu": ("rsa",),  # witness: CCXT: bybiteu (a subclass, which inherits sign)
    "bybitid": ("rsa",),  # witness: CCXT: bybitid (a subclass, which inherits sign)
    "coinbase": ("p256", "ed25519"),  # witness: CCXT: coinbase (its create_auth_token)
    "lbank": ("rsa",),  # witness: CCXT: lbank (its sign)
    "revolutx": ("ed25519",),  # witness: CCXT: revolutx (its sign)
}
# CCXT takes a longer secret of LBank's for an RSA key.
_LONGEST_LBANK_SECRET = 32
_LINE = 64


def secret_for_ccxt(text: str, field: str, exchange_id: str) -> str:
    """The stored secret or private key as CCXT signs with it. Raises CredentialInvalid if it could not sign."""
    kinds = KEYS_IN_LINES.get(exchange_id, ())
    key = private_key(text, field, kinds)
    if key is not None:
        return _as_ccxt_reads(key, exchange_id)
    secret = clean_text(text, field)
    if exchange_id == "revolutx":
        raise _no_key(field, kinds)
    if exchange_id == "lbank" and len(secret) > _LONGEST_LBANK_SECRET:
        raise _no_key(field, kinds)
    if exchange_id == "coinbase" and secret.endswith("=") and _decoded_length(secret) not in (32, 64):
        raise _no_key(field, kinds)
    return secret


def _as_ccxt_reads(key: PrivateKey, exchange_id: str) -> str:
    if exchange_id == "coinbase" and key.kind == "ed25519":
        # CCXT takes Coinbase's own form, and signs with its first 32 bytes.
        return base64.b64encode(key.raw() * 2).decode()
    if exchange_id == "lbank":
        # CCXT makes the lines itself, and leaves out one that is not full.
        body = key.pkcs8_body()
        return body.ljust(-(-len(body) // _LINE) * _LINE)
    # With a line end behind it Binance's Ed25519 key is as long as CCXT allows.
    return key.pem


def _no_key(field: str, kinds: tuple[str, ...]) -> CredentialInvalid:
    wanted = " or ".join(KEY_KINDS[kind] for kind in kinds)
    return CredentialInvalid(
        f"{field} is not {wanted}, and no other secret of this exchange looks like it.", advice="Copy it again, whole."
    )


def _decoded_length(text: str) -> int:
    try:
        return len(base64.b64decode(text, validate=True))
    except binascii.Error:
        return 0
