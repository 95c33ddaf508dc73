"""The rules for the values of a manifest: one set for the loader, the contract suite and docs/plugins.md."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from urllib.parse import SplitResult, urlsplit

from exchange_service.model import (
    ALL_ACCOUNT_TYPES,
    ASSET_CLASSES,
    LARGEST_ANSWER_LIMIT,
    LARGEST_PUBLIC_ANSWER_LIMIT,
    PRODUCTION,
    SANDBOX,
    CredentialField,
    ExchangeMetadata,
    Manifest,
    PluginSetting,
    PushLimits,
    RetiredExchange,
)
from exchange_service.plugin_kit.key_texts import KEY_KINDS
from exchange_service.venues.lookalikes import is_printable, mixes_alphabets, shape
from exchange_service.venues.setting_values import fits

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")
# What venues call an environment with real money, and one without.
_WORDS_FOR_PRODUCTION = ("live", "real", "main", "prod")
_WORDS_FOR_SANDBOXES = ("paper", "demo", "practice", "test", "sim", "uat", "sandbox", "fake", "virtual")
# Characters of a name, and of any other text.
_LONGEST_NAME = 100
_LONGEST_TEXT = 2000
# Of a manifest.
_MOST_SETTINGS = 32
# Of a rate limit: requests or weights, and seconds.
_MOST_UNITS, _LONGEST_WINDOW = 10**9, 366 * 24 * 3600


def broken_rules(manifest: Manifest) -> Iterator[str]:
    """A sentence for each rule that a manifest breaks whose values have the right types."""
    if not manifest.exchanges:
        yield "It lists no exchange: write exchanges=(ExchangeMetadata(...),)."
    for place, note in enumerate(manifest.notes):
        yield from (f"It {fault}" for fault in _text_faults(f"notes[{place}]", note))
    ids = [metadata.id for metadata in manifest.exchanges]
    for twice in sorted({exchange_id for exchange_id in ids if ids.count(exchange_id) > 1}):
        yield f"It lists the exchange id {twice[:64]!r} twice: give each listing an id of its own."
    for fault in _setting_faults(manifest.settings):
        yield f"It {fault}"
    for entry in manifest.retired:
        yield from (f"Its retired exchange {entry.id[:64]!r} {fault}" for fault in _retired_faults(entry))
    for metadata in manifest.exchanges:
        where = f"The listing {metadata.id[:64]!r}"
        for fault in _listing_faults(metadata, ids):
            yield f"{where} {fault}"


def _retired_faults(entry: RetiredExchange) -> Iterator[str]:
    if not _ID.match(entry.id):
        yield "has an id that no listing can have: write the one that its listing had."
    for name in ("name", "reason"):
        if not getattr(entry, name).strip():
            yield f"lacks {name}: write a text."
    for name in ("name", "reason", "advice"):
        yield from _text_faults(name, getattr(entry, name))
    if len(entry.name) > _LONGEST_NAME:
        yield f"has a name of more than {_LONGEST_NAME} characters."


def _setting_faults(settings: Collection[PluginSetting]) -> Iterator[str]:
    names = [setting.name for setting in settings]
    if len(set(names)) != len(names):
        yield "declares a setting twice."
    if len(names) > _MOST_SETTINGS:
        yield f"declares more than {_MOST_SETTINGS} settings."
    for setting in settings:
        if not _FIELD_NAME.match(setting.name):
            yield "declares a setting whose name is not a letter followed by letters, digits and '_', at most 64."
            continue
        if not setting.description.strip():
            yield f"has no description for the setting {setting.name!r}: say what the operator should write."
        yield from _text_faults(f"the description of the setting {setting.name!r}", setting.description)
        if setting.secret and (setting.type != "text" or setting.default is not None):
            yield f"declares the secret {setting.name!r} with another type than text, or with a default."
        elif setting.required and setting.default is not None:
            yield f"has a default for the setting {setting.name!r}, which is required: leave one of the two out."
        elif setting.default is not None and not fits(setting, setting.default):
            yield f"has a default for the setting {setting.name!r} that is not a {setting.type}."


def _listing_faults(metadata: ExchangeMetadata, ids: Collection[str]) -> Iterator[str]:
    if not _ID.match(metadata.id):
        yield (
            "has an id that is not 1 to 64 lower case letters, digits, '_' and '-', or begins with '_' or '-': write "
            'one such as id="acme".'
        )
    for item in fields(metadata):
        value = getattr(metadata, item.name)
        if isinstance(value, str):
            yield from _text_faults(item.name, value)
    for name in ("name", "asset_types", "market_hours"):
        if not getattr(metadata, name).strip():
            yield f"lacks {name}: write a text."
    if metadata.name.strip() and not shape(metadata.name):
        yield "has a name without a letter or digit."
    if len(metadata.name) > _LONGEST_NAME:
        yield f"has a name of more than {_LONGEST_NAME} characters."
    if mixes_alphabets(metadata.name):
        yield "mixes letters of two alphabets that look alike in one word of its name."
    if metadata.asset_class not in ASSET_CLASSES:
        yield f"has an asset_class that is not one of {', '.join(ASSET_CLASSES)}."
    if metadata.credential_of and metadata.credential_of not in ids:
        yield "uses the credential of an exchange of another plugin."
    for place, country in enumerate(metadata.countries):
        yield from _text_faults(f"countries[{place}]", country)
    for name, most in (("answer_limit", LARGEST_ANSWER_LIMIT), ("public_answer_limit", LARGEST_PUBLIC_ANSWER_LIMIT)):
        limit = getattr(metadata, name)
        if not 1 <= limit <= most:
            yield f"has {name} {limit}, which is not a number of bytes from 1 to {most}."
    if any(limit.count > _MOST_UNITS or limit.seconds > _LONGEST_WINDOW for limit in metadata.limits):
        yield f"has a RateLimit of more than {_MOST_UNITS} units, or of more than {_LONGEST_WINDOW} seconds."
    known = {*metadata.account_types, ALL_ACCOUNT_TYPES}
    if any(name not in known for limit in metadata.limits for name in limit.costs):
        yield f"has a RateLimit with costs of an account type that is neither listed nor {ALL_ACCOUNT_TYPES!r}."
    for item in fields(metadata.push):
        most = getattr(metadata.push, item.name)
        if most is not None and not 1 <= most <= _MOST_UNITS:
            yield f"has push.{item.name} {most}, which is not a number from 1 to {_MOST_UNITS}."
    if metadata.push != PushLimits() and not metadata.capabilities.push:
        yield "has limits of push and says in capabilities.push that there is no push."
    yield from _environment_faults(metadata)
    yield from _link_faults(metadata)
    yield from _field_faults(metadata.credential_fields)
    yield from _account_type_faults(metadata)


def _text_faults(name: str, text: str) -> Iterator[str]:
    if not is_printable(text):
        yield f"has a character in {name} that is not shown as itself, such as a line end, an escape or a direction."
    if len(text) > _LONGEST_TEXT:
        yield f"has more than {_LONGEST_TEXT} characters in {name}."


def _environment_faults(metadata: ExchangeMetadata) -> Iterator[str]:
    names = [environment.name for environment in metadata.environments]
    meant = list(_meant(names))
    yield from (_name_to_write(name, word) for name, word in zip(names, meant, strict=True) if name != word)
    if "" not in meant and meant not in ([PRODUCTION], [PRODUCTION, SANDBOX]):
        yield f"should name the environment {PRODUCTION!r} first, then {SANDBOX!r} if there is one, and no other."
    words = names + [alias for environment in metadata.environments for alias in environment.aliases]
    if len(set(words)) != len(words):
        yield "has two environments that share a name or an alias."
    for word in words:
        if not word or word != word.strip().lower():
            yield "has a name or an alias of an environment that is empty, or not lower case without blanks around it."
        yield from _text_faults("the name or an alias of an environment", word)
    if "" not in meant and metadata.capabilities.sandbox != (SANDBOX in meant):
        yield f"says another thing in capabilities.sandbox than in its environments: {SANDBOX!r} is in both or in none."
    for environment in metadata.environments:
        if not environment.urls:
            yield f"has no address for the environment {environment.name[:64]!r}."
        for name, url in environment.urls.items():
            yield from _text_faults("the name of an address", name)
            where = f"({name[:64]!r} of {environment.name[:64]!r})"
            yield from (f"has an address {fault}" for fault in _address_faults(url, where))


def _meant(names: Sequence[str]) -> Iterator[str]:
    """The service's name for each environment: its own, or that which the venue's word stands for; empty if the listing
    has no room for it."""
    free = [name for name in (PRODUCTION, SANDBOX) if name not in names]
    for name in names:
        if name in (PRODUCTION, SANDBOX):
            yield name
            continue
        excluded = [
            other
            for other, words in ((PRODUCTION, _WORDS_FOR_SANDBOXES), (SANDBOX, _WORDS_FOR_PRODUCTION))
            if any(word in name.lower() for word in words)
        ]
        meant = next((word for word in free if word not in excluded), "")
        yield meant
        free = [word for word in free if word != meant]


def _name_to_write(name: str, word: str) -> str:
    """What to write in place of an environment of this name."""
    shown = json.dumps(name[:64])
    wrong = f"has an environment {shown}. Environments are called {PRODUCTION!r} and {SANDBOX!r}, one of each at most"
    if word:
        return f'{wrong}: write Environment("{word}", {{...}}, aliases=({json.dumps(name[:64].strip().lower())},)).'
    return f"{wrong}: give this one a listing of its own, with another id."


def _address_faults(url: str, where: str) -> Iterator[str]:
    """What is wrong with an address, without the address: it may hold a key."""
    parts = _split(url)
    if parts is None or not parts.hostname or not _is_plain(url):
        yield f'without a host, or with a wrong one {where}: write it whole, as in "https://api.acme.example".'
        return
    if parts.scheme not in ("https", "wss"):
        yield (
            f'that does not begin with https:// or wss:// {where}: write "https://..." in place of '
            f'"{parts.scheme[:16]}://...".'
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        yield f"that holds more than scheme, host and path {where}: leave the rest out, and send it with a request."


def _link_faults(metadata: ExchangeMetadata) -> Iterator[str]:
    for name in ("documentation_url", "credential_url", "logo"):
        link = getattr(metadata, name)
        parts = _split(link)
        if not link or (name == "logo" and _is_own_file(link)):
            continue
        if parts is None or parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or not _is_plain(link):
            form = "https://, or /a-file.png of the application that shows it" if name == "logo" else "https://"
            yield f"has a {name} that is not a link: it should begin with {form}."


def _is_own_file(link: str) -> bool:
    """Whether it is a path within the application that shows the listing; "//" would begin another host."""
    return link.startswith("/") and not link.startswith("//") and "\\" not in link and ":" not in link


def _is_plain(url: str) -> bool:
    """Whether it has no letters of other alphabets, by which a host would look like another one, and no blanks."""
    return url.isascii() and url.isprintable() and " " not in url


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        # Raises for a port that is not a number.
        _ = parts.port
    except ValueError:
        return None
    return parts


def _field_faults(credential_fields: Collection[CredentialField]) -> Iterator[str]:
    names = [field.name for field in credential_fields]
    if len(set(names)) != len(names):
        yield "has a credential field twice."
    for field in credential_fields:
        if not _FIELD_NAME.match(field.name):
            yield "has a credential field whose name is not a letter followed by letters, digits and '_'."
            continue
        if field.name in ("sandbox", "environment"):
            yield f"has the credential field {field.name!r}, which the service itself reads."
        if not field.label.strip():
            yield f"has no label for the credential field {field.name!r}."
        if field.name in ("api_secret", "passphrase") and not field.secret:
            yield f"must mark the credential field {field.name!r} as secret."
        if not set(field.private_keys or ()) <= set(KEY_KINDS):
            yield f"names a kind of private key for {field.name!r} that is not one of {', '.join(KEY_KINDS)}."
        if field.rotates and field.name == "api_key":
            yield "says that api_key rotates: only api_secret, passphrase and fields of the metadata can be replaced."
        if field.rotates and not field.secret:
            yield f"must mark the credential field {field.name!r} as secret, because it rotates."
        for name in ("label", "description"):
            yield from _text_faults(f"the {name} of the credential field {field.name!r}", getattr(field, name))


def _account_type_faults(metadata: ExchangeMetadata) -> Iterator[str]:
    types = metadata.account_types
    for name in types:
        if not name or name != name.strip() or name.lower() == ALL_ACCOUNT_TYPES:
            yield f"has an account type that is empty, has blanks around it, or is {ALL_ACCOUNT_TYPES!r}."
        yield from _text_faults("an account type", name)
    if len({name.lower() for name in types}) != len(types):
        yield "has an account type twice."
    if not set(metadata.default_account_types) <= set(types):
        yield "has a type in default_account_types that account_types does not list."
