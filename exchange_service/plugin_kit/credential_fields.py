"""Reading what a user stored. An error names the field and never holds its value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exchange_service.errors import CredentialInvalid
from exchange_service.model import SECRET_FIELDS, Credential, CredentialField, ExchangeMetadata, Secret
from exchange_service.plugin_kit.key_texts import private_key, stored_text

# The host itself reads these from the metadata, so every plugin accepts them.
_HOST_KEYS = {"sandbox": bool, "environment": str}
_WALLET_KEYS = ("wallet_address", "l1_address", "user")
_MAX_TEXT = 1024


def required_text(credential: Credential, field: str, *, plain: bool = False) -> str:
    """The secret called `field` (api_key, api_secret or passphrase), without blanks around it.

    Raises CredentialInvalid if it is empty, or if it must be `plain` and holds anything but printable ASCII, which
    an HTTP header could not carry.
    """
    value: str = getattr(credential, field).reveal().strip()
    if not value:
        raise CredentialInvalid(f"{field} is missing.", advice="Store it with `exchange-service credentials add`.")
    if plain and not (value.isascii() and value.isprintable()):
        raise CredentialInvalid(
            f"{field} holds other than plain characters.", advice="Copy it again, and nothing around it."
        )
    return value


def read_metadata(credential: Credential, **allowed: type) -> dict[str, Any]:
    """The stored metadata, checked against the names and types (str, bool, int) that the plugin allows.

    A number is accepted where a text is allowed, and a text of digits where a number is. Raises CredentialInvalid for
    an unknown name, another type, or a text over 1024 characters or with control characters.
    """
    result: dict[str, Any] = {}
    expected = {**_HOST_KEYS, **allowed}
    for name, value in credential.metadata.items():
        kind = expected.get(name)
        if kind is None:
            raise CredentialInvalid(
                f"extra_metadata holds an unknown name: {name[:40]!r}. Known names are {', '.join(sorted(expected))}."
            )
        if value is None or value == "":
            continue
        result[name] = _check_value(name, _convert(value, kind), kind)
    return result


def wallet_address(credential: Credential) -> str:
    """The wallet address of a credential, in lower case.

    It is read from the metadata `wallet_address`, `l1_address` or `user`, otherwise from an `api_key` that is an
    address of 42 characters. Raises CredentialInvalid if there is no address, or if two names hold different ones.
    """
    stored = {key: _address(key, credential.metadata[key]) for key in _WALLET_KEYS if credential.metadata.get(key)}
    if len(set(stored.values())) > 1:
        raise CredentialInvalid(
            f"extra_metadata names different wallets: {' and '.join(stored)}.", advice="Keep one of them."
        )
    if stored:
        return next(iter(stored.values()))
    key_text = credential.api_key.reveal().strip()
    if _is_address(key_text):
        return key_text.lower()
    raise CredentialInvalid(
        "extra_metadata.wallet_address is missing.", advice="Store the main wallet's address there."
    )


def stored_field(field: CredentialField, text: str) -> str:
    """What a user gave for a field, as it is best stored. Raises CredentialInvalid if the field does not take it."""
    name = field.name if field.name in SECRET_FIELDS else f"extra_metadata.{field.name}"
    if field.name in _WALLET_KEYS:
        return _address(field.name, text)
    if field.private_keys is None:
        return text.strip()
    return stored_text(text, name, field.private_keys)


def stored_form(metadata: ExchangeMetadata, credential: Credential) -> Credential:
    """The credential as it is best stored: each text in the form that its field takes.

    Raises CredentialInvalid with the first field that does not take what it holds.
    """
    fields = {field.name: field for field in metadata.credential_fields}
    texts = {name: getattr(credential, name).reveal() for name in SECRET_FIELDS}
    if any(field.private_keys is not None for field in fields.values()):
        # A private key in a field that is for something else would be sent as it is.
        for name in texts.keys() - {name for name, field in fields.items() if field.private_keys}:
            private_key(texts[name], name, ())
    given = {name: text for name, text in texts.items() if text and name in fields}
    values = {
        name: stored_field(fields[name], value) if name in fields and isinstance(value, str) and value else value
        for name, value in credential.metadata.items()
    }
    secrets = {name: Secret(stored_field(fields[name], text)) for name, text in given.items()}
    return replace(credential, **secrets, metadata=values)


def _convert(value: Any, kind: type) -> Any:
    """An account number as the kind that is allowed: forms store the same number as text or as JSON number."""
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind is int and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value


def _check_value(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CredentialInvalid(f"extra_metadata.{name} should be of type {kind.__name__}.")
    if not isinstance(value, str):
        return value
    value = value.strip()
    if len(value) > _MAX_TEXT or not value.isprintable():
        raise CredentialInvalid(f"extra_metadata.{name} is too long, or not plain text.")
    return value


def _address(key: str, value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not _is_address(text):
        raise CredentialInvalid(
            f"extra_metadata.{key} is not a wallet address, which has 0x and 40 hexadecimal digits."
        )
    return text.lower()


def _is_address(text: str) -> bool:
    if len(text) != 42 or text[:2].lower() != "0x":
        return False
    return all(digit in "0123456789abcdefABCDEF" for digit in text[2:])
