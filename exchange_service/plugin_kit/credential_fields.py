"""Reading what a user stored. An error names the field and never holds its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exchange_service.errors import CredentialInvalid
from exchange_service.model import SECRET_FIELDS, Credential, CredentialField, ExchangeMetadata, WrongValue
from exchange_service.plugin_kit.key_texts import private_key, stored_text

# The host itself reads these from the metadata, so every plugin accepts them.
_HOST_KEYS = {"sandbox": bool, "environment": str}
_WALLET_KEYS = ("wallet_address", "l1_address", "user")
_MAX_TEXT = 1024


def required_text(credential: Credential, field: str, *, plain: bool = False) -> str:
    """The secret called `field` (api_key, api_secret or passphrase), without blanks around it.

    Raises CredentialInvalid if it is empty, or if it must be `plain` and holds anything but printable ASCII, which
    an HTTP header could not carry. Raises ValueError for another field.
    """
    if field not in SECRET_FIELDS:
        raise WrongValue(f"required_text reads {', '.join(SECRET_FIELDS)}: read another field by read_metadata")
    value: str = getattr(credential, field).reveal().strip()
    if not value:
        error = CredentialInvalid(f"{field} is missing.", advice="Store it with `exchange-service credentials add`.")
        error.missing_field = field
        raise error
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
    stored, faults = read_form(metadata, credential)
    for fault in faults.values():
        raise fault
    return stored


def read_form(metadata: ExchangeMetadata, credential: Credential) -> tuple[Credential, Mapping[str, CredentialInvalid]]:
    """The credential as it is best stored, and by its name each field that does not take what it holds."""
    fields = {field.name: field for field in metadata.credential_fields}
    takes_keys = any(field.private_keys is not None for field in fields.values())
    texts: dict[str, Any] = {name: getattr(credential, name).reveal() for name in SECRET_FIELDS}
    values: dict[str, Any] = dict(credential.metadata)
    faults: dict[str, CredentialInvalid] = {}
    for held in (texts, values):
        for name, text in list(held.items()):
            field = fields.get(name)
            if not isinstance(text, str) or not text:
                continue
            try:
                if takes_keys and held is texts and (field is None or not field.private_keys):
                    # A private key in a field that is for something else would be sent as it is.
                    private_key(text, name, ())
                held[name] = text if field is None else stored_field(field, text)
            except CredentialInvalid as fault:
                faults[name] = fault.with_traceback(None)
    return Credential.from_texts(texts, values), faults


def missing_fields(metadata: ExchangeMetadata, credential: Credential) -> list[str]:
    """The names of the required fields that the credential lacks."""
    return [field.name for field in metadata.credential_fields if field.required and not _holds(credential, field.name)]


def _holds(credential: Credential, name: str) -> bool:
    if name in SECRET_FIELDS:
        return bool(getattr(credential, name))
    if name == "wallet_address":
        # A wallet's address may also have another name, or be the key.
        return any(credential.metadata.get(key) for key in _WALLET_KEYS) or bool(credential.api_key)
    return bool(credential.metadata.get(name))


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
