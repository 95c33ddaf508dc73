"""What a user stored, as what CCXT's constructor and `fetch_balance` take: only known names with known values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from exchange_service.plugin_api import Credential, CredentialInvalid, read_metadata, required_text, wallet_address
from exchange_service_ccxt_generic.account_types import (
    canonical,
    further_names,
    further_parameters,
    known_words,
    type_parameters,
)

# CCXT's credentials that are columns of ours, and those that are keys of the metadata.
_COLUMNS = {"apiKey": "api_key", "secret": "api_secret", "password": "passphrase"}
_METADATA = {"uid": "uid", "accountId": "account_id", "login": "login"}
_WALLET_NAMES = ("wallet_address", "l1_address", "user")

# What users of CCXT store under "options", and our name for it.
_OPTIONS = {
    "defaultType": "defaultType",
    "defaultSubType": "subType",
    "subType": "subType",
    "defaultMarginMode": "marginMode",
    "marginMode": "marginMode",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """Which account is to be read: its type, and the parameters by which CCXT is asked for it.

    `named` tells whether somebody chose the type; otherwise it is the exchange's default.
    """

    account_type: str
    parameters: Mapping[str, Any]
    named: bool = True


@dataclass(frozen=True, slots=True)
class StoredCredential:
    """A stored credential, checked: what goes into CCXT's constructor, and what its user wishes to read."""

    exchange_id: str
    constructor: Mapping[str, str]
    wish: Wish
    # The kind of contract and of margin, for accounts of the wished type alone.
    further: Mapping[str, str]

    def __repr__(self) -> str:
        return f"StoredCredential(***, {self.wish!r})"

    def wish_for(self, account_type: str) -> Wish:
        """What to ask CCXT for an account of this type."""
        return self._wish(account_type, self.further)

    def wish_beside_others(self, account_type: str) -> Wish:
        """The same for one of all the user's wallets, where each kind of contract is a wallet of its own: with the
        stored kind one of them would be read twice, and another not at all."""
        return self._wish(account_type, {name: value for name, value in self.further.items() if name != "subType"})

    def _wish(self, account_type: str, further: Mapping[str, str]) -> Wish:
        parameters = type_parameters(self.exchange_id, account_type)
        if account_type == self.wish.account_type:
            parameters.update(further)
        return Wish(account_type, parameters)


def read_credential(
    credential: Credential, exchange_id: str, required: tuple[str, ...], offered: tuple[str, ...]
) -> StoredCredential:
    """The credential for an exchange that needs `required` (CCXT's names) and has the account types `offered`.

    CredentialInvalid names the field that is missing, or the metadata that is not taken.
    """
    metadata = _metadata(credential, required)
    constructor = {name: _text(name, credential, metadata, required) for name in required}
    for name, text in constructor.items():
        if name not in ("secret", "privateKey") and not (text.isascii() and text.isprintable()):
            raise CredentialInvalid(f"{_our_name(name, required)} holds other than plain characters.")
    account_type, named = _wished_type(metadata, exchange_id, offered)
    further = _further(metadata, exchange_id, account_type)
    wish = Wish(account_type, {**type_parameters(exchange_id, account_type if named else None), **further}, named)
    return StoredCredential(exchange_id, constructor, wish, further)


def _metadata(credential: Credential, required: tuple[str, ...]) -> dict[str, Any]:
    allowed: dict[str, type] = {"defaultType": str}
    allowed.update({_METADATA[name]: str for name in required if name in _METADATA})
    if "uid" in required:
        # The application's form has one field for an account's number, whatever the venue calls it.
        allowed["account_id"] = str
    if "walletAddress" in required:
        allowed.update(dict.fromkeys(_WALLET_NAMES, str))
    if "privateKey" in required and "secret" in required:
        allowed["private_key"] = str
    allowed.update(dict.fromkeys(further_names(), str))
    return read_metadata(replace(credential, metadata=_flattened(credential.metadata)), **allowed)


def _flattened(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with what is known of its `options` beside the rest."""
    flat = {name: value for name, value in metadata.items() if name != "options"}
    options = metadata.get("options")
    if options is None:
        return flat
    if not isinstance(options, Mapping):
        raise CredentialInvalid('extra_metadata.options should be an object such as {"defaultType": "future"}.')
    for name, value in options.items():
        if name not in _OPTIONS:
            raise CredentialInvalid(
                f"extra_metadata.options holds a name that is not taken here: {str(name)[:40]!r}. "
                f"Taken are: {', '.join(sorted(_OPTIONS))}."
            )
        target = _OPTIONS[name]
        if target in flat and flat[target] != value:
            raise CredentialInvalid(f"extra_metadata gives {target} twice, with different values.")
        flat[target] = value
    return flat


def _text(name: str, credential: Credential, metadata: Mapping[str, Any], required: tuple[str, ...]) -> str:
    if name in _COLUMNS:
        return required_text(credential, _COLUMNS[name])
    if name == "walletAddress":
        return wallet_address(credential)
    ours = _our_name(name, required)
    if ours == "api_secret":
        return required_text(credential, "api_secret")
    key = ours.rpartition(".")[2]
    value: str = metadata.get(key) or (metadata.get("account_id", "") if key == "uid" else "")
    if not value:
        raise CredentialInvalid(f"{ours} is missing.", advice="Store it with `exchange-service credentials add`.")
    return value


def _our_name(name: str, required: tuple[str, ...]) -> str:
    """Our field for one of CCXT's credentials, as a user knows it."""
    if name == "privateKey":
        return "extra_metadata.private_key" if "secret" in required else "api_secret"
    if name == "walletAddress":
        return "extra_metadata.wallet_address"
    return _COLUMNS.get(name) or f"extra_metadata.{_METADATA.get(name, name)}"


def _wished_type(metadata: Mapping[str, Any], exchange_id: str, offered: tuple[str, ...]) -> tuple[str, bool]:
    """The stored account type, else the default, and whether one is stored."""
    word = metadata.get("defaultType")
    if word is None:
        return offered[0], False
    return canonical(exchange_id, _known("defaultType", word, known_words(exchange_id, offered))), True


def _further(metadata: Mapping[str, Any], exchange_id: str, account_type: str) -> dict[str, str]:
    values = further_parameters(exchange_id, account_type)
    further = {}
    for name in further_names():
        if name in metadata and name not in values:
            raise CredentialInvalid(
                f"extra_metadata.{name} is not taken for the {account_type} account of this exchange."
            )
        if name in metadata:
            further[name] = _known(name, metadata[name], values[name])
    return further


def _known(name: str, value: str, values: tuple[str, ...]) -> str:
    if value not in values:
        raise CredentialInvalid(f"extra_metadata.{name} should be one of {', '.join(dict.fromkeys(values))}.")
    return value
