"""The stored credential as arguments of CCXT's constructor and `fetch_balance`: only known names and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from exchange_service.plugin_api import (
    Credential,
    CredentialInvalid,
    clean_text,
    private_key,
    read_metadata,
    required_text,
    wallet_address,
)
from exchange_service_ccxt_generic.account_types import (
    canonical,
    further_names,
    further_parameters,
    known_words,
    type_parameters,
)
from exchange_service_ccxt_generic.key_forms import secret_for_ccxt

# CCXT's credentials and our names: those that are secrets of ours, and those in the metadata.
_SECRETS = {"apiKey": "api_key", "secret": "api_secret", "password": "passphrase"}
_METADATA = {"uid": "uid", "accountId": "account_id", "login": "login"}
_WALLET_NAMES = ("wallet_address", "l1_address", "user")

# The names that users of CCXT store under "options", and our names.
_OPTIONS = {
    "defaultType": "defaultType",
    "defaultSubType": "subType",
    "subType": "subType",
    "defaultMarginMode": "marginMode",
    "marginMode": "marginMode",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """The account to read: its type, and CCXT's parameters for it.

    `named` is whether the type was chosen; otherwise it is the exchange's default.
    """

    account_type: str
    parameters: Mapping[str, Any]
    named: bool = True


@dataclass(frozen=True, slots=True)
class StoredCredential:
    """A checked credential: the arguments of CCXT's constructor, and the account that its user wants."""

    exchange_id: str
    constructor: Mapping[str, str]
    wish: Wish
    # The kind of contract and of margin, for accounts of this type alone.
    further: Mapping[str, str]

    def __repr__(self) -> str:
        return f"StoredCredential(***, {self.wish!r})"

    def wish_for(self, account_type: str) -> Wish:
        """The wish for an account of this type."""
        return self._wish(account_type, self.further)

    def wish_beside_others(self, account_type: str) -> Wish:
        """The wish for one of all the user's wallets, without the stored kind of contract and of margin.

        Each kind is a wallet of its own: with the stored kind one would be read twice and another not at all.
        """
        return self._wish(account_type, {})

    def _wish(self, account_type: str, further: Mapping[str, str]) -> Wish:
        parameters = type_parameters(self.exchange_id, account_type)
        if account_type == self.wish.account_type:
            parameters.update(further)
        return Wish(account_type, parameters)


def read_credential(
    credential: Credential, exchange_id: str, required: tuple[str, ...], offered: tuple[str, ...]
) -> StoredCredential:
    """The credential for an exchange that needs `required` (CCXT's names) and has the account types `offered`.

    Raises CredentialInvalid with the field that is missing, or the metadata that are not known.
    """
    metadata = _metadata(credential, required)
    constructor = {name: _text(name, credential, metadata, required, exchange_id) for name in required}
    for name, text in constructor.items():
        ours = _our_name(name, required)
        if ours != "api_secret":
            # A key in the wrong field would be sent as it is.
            private_key(text, ours, ())
            if not (text.isascii() and text.isprintable()):
                raise CredentialInvalid(f"{ours} holds other than plain characters.")
    account_type, named = _stored_type(metadata, exchange_id, offered)
    further = _further(metadata, exchange_id, account_type)
    wish = Wish(account_type, {**type_parameters(exchange_id, account_type if named else None), **further}, named)
    return StoredCredential(exchange_id, constructor, wish, further)


def _metadata(credential: Credential, required: tuple[str, ...]) -> dict[str, Any]:
    allowed: dict[str, type] = {"defaultType": str}
    allowed.update({_METADATA[name]: str for name in required if name in _METADATA})
    if "uid" in required:
        # The owner's application has one field for an account's number, however the venue calls it.
        allowed["account_id"] = str
    if "walletAddress" in required:
        allowed.update(dict.fromkeys(_WALLET_NAMES, str))
    if "privateKey" in required and "secret" in required:
        allowed["private_key"] = str
    allowed.update(dict.fromkeys(further_names(), str))
    return read_metadata(replace(credential, metadata=_flatten(credential.metadata)), **allowed)


def _flatten(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with the names of its `options` beside the others."""
    flat = {name: value for name, value in metadata.items() if name != "options"}
    options = metadata.get("options")
    if options is None:
        return flat
    if not isinstance(options, Mapping):
        raise CredentialInvalid('extra_metadata.options should be an object such as {"defaultType": "future"}.')
    for name, value in options.items():
        if name not in _OPTIONS:
            raise CredentialInvalid(
                f"extra_metadata.options holds an unknown name: {str(name)[:40]!r}. "
                f"Known names are {', '.join(sorted(_OPTIONS))}."
            )
        target = _OPTIONS[name]
        if target in flat and flat[target] != value:
            raise CredentialInvalid(f"extra_metadata gives {target} twice, with different values.")
        flat[target] = value
    return flat


def _text(
    name: str, credential: Credential, metadata: Mapping[str, Any], required: tuple[str, ...], exchange_id: str
) -> str:
    ours = _our_name(name, required)
    if ours == "api_secret":
        return secret_for_ccxt(required_text(credential, ours), ours, exchange_id)
    if name == "apiKey":
        return clean_text(required_text(credential, ours), ours)
    if name == "password":
        return required_text(credential, ours)
    if name == "walletAddress":
        return wallet_address(credential)
    key = ours.rpartition(".")[2]
    value: str = metadata.get(key) or (metadata.get("account_id", "") if key == "uid" else "")
    if not value:
        raise CredentialInvalid(f"{ours} is missing.", advice="Store it with `exchange-service credentials add`.")
    return clean_text(value, ours) if name == "privateKey" else value


def _our_name(name: str, required: tuple[str, ...]) -> str:
    """Our field for a credential of CCXT, as messages name it."""
    if name == "privateKey":
        return "extra_metadata.private_key" if "secret" in required else "api_secret"
    if name == "walletAddress":
        return "extra_metadata.wallet_address"
    return _SECRETS.get(name) or f"extra_metadata.{_METADATA.get(name, name)}"


def _stored_type(metadata: Mapping[str, Any], exchange_id: str, offered: tuple[str, ...]) -> tuple[str, bool]:
    """The stored account type, or the default, and whether one is stored."""
    word = metadata.get("defaultType")
    if word is None:
        return offered[0], False
    return canonical(exchange_id, _check_known("defaultType", word, known_words(exchange_id, offered))), True


def _further(metadata: Mapping[str, Any], exchange_id: str, account_type: str) -> dict[str, str]:
    values = further_parameters(exchange_id, account_type)
    further = {}
    for name in further_names():
        if name in metadata and name not in values:
            raise CredentialInvalid(
                f"extra_metadata.{name} does not apply to the {account_type} account of this exchange."
            )
        if name in metadata:
            further[name] = _check_known(name, metadata[name], values[name])
    return further


def _check_known(name: str, value: str, values: tuple[str, ...]) -> str:
    if value not in values:
        raise CredentialInvalid(f"extra_metadata.{name} should be one of {', '.join(dict.fromkeys(values))}.")
    return value
