"""Reading what a user stored, for plugins: the field, or `CredentialInvalid` with its name and never its value."""

from __future__ import annotations

from typing import Any

from exchange_service.errors import CredentialInvalid
from exchange_service.model import Credential

# What the host itself reads from the metadata; every plugin lets them pass.
_HOST_KEYS = {"sandbox": bool, "environment": str}
_WALLET_KEYS = ("wallet_address", "l1_address", "user")
_MAX_TEXT = 1024


def required_text(credential: Credential, field: str) -> str:
    """The text of `api_key`, `api_secret` or `passphrase`, without blanks around it; CredentialInvalid if empty."""
    value: str = getattr(credential, field).reveal().strip()
    if not value:
        raise CredentialInvalid(f"{field} is missing.", advice="Store it with `exchange-service credentials add`.")
    return value


def read_metadata(credential: Credential, **allowed: type) -> dict[str, Any]:
    """The stored metadata, checked against a plugin's allow-list of names and types (str, bool, int).

    An unknown name, another type or an overlong text is CredentialInvalid: nothing is ever passed on unchecked.
    An account number stored as a JSON number is taken where a text is allowed, and digits where a number is.
    """
    result: dict[str, Any] = {}
    expected = {**_HOST_KEYS, **allowed}
    for name, value in credential.metadata.items():
        kind = expected.get(name)
        if kind is None:
            raise CredentialInvalid(
                f"extra_metadata holds a name that is not taken here: {name[:40]!r}. "
                f"Taken are: {', '.join(sorted(expected))}."
            )
        if value is None or value == "":
            continue
        if kind is str and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        elif kind is int and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CredentialInvalid(f"extra_metadata.{name} should be of type {kind.__name__}.")
        if isinstance(value, str):
            value = value.strip()
            if len(value) > _MAX_TEXT or not value.isprintable():
                raise CredentialInvalid(f"extra_metadata.{name} is too long, or not plain text.")
        result[name] = value
    return result


def wallet_address(credential: Credential) -> str:
    """The wallet address of a credential, in lower case: metadata `wallet_address` (or `l1_address`, `user`), else
    an `api_key` that is a 0x address of 42 characters. CredentialInvalid names the field where there is none, or where
    two names hold different addresses."""
    stored = {key: _address(key, credential.metadata[key]) for key in _WALLET_KEYS if credential.metadata.get(key)}
    if len(set(stored.values())) > 1:
        raise CredentialInvalid(f"extra_metadata names different wallets: {' and '.join(stored)}.", advice="Leave one.")
    if stored:
        return next(iter(stored.values()))
    key_text = credential.api_key.reveal().strip()
    if _is_address(key_text):
        return key_text.lower()
    raise CredentialInvalid(
        "extra_metadata.wallet_address is missing.", advice="Store the main wallet's address there."
    )


def _address(key: str, value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not _is_address(text):
        raise CredentialInvalid(f"extra_metadata.{key} is no wallet address: 0x and 40 hexadecimal digits.")
    return text.lower()


def _is_address(text: str) -> bool:
    if len(text) != 42 or text[:2].lower() != "0x":
        return False
    return all(digit in "0123456789abcdefABCDEF" for digit in text[2:])
