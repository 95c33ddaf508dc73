"""The values of a plugin's settings: from what an operator wrote to the types that the plugin's manifest declares."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from exchange_service.model import PluginSetting, Secret

SettingValue = str | bool | int | Decimal | Secret
SettingValues = Mapping[str, SettingValue]

# Characters: a private key in lines has a few thousand.
LONGEST_VALUE = 16_384
_WHOLE = re.compile(r"-?[0-9]{1,50}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,50}(?:\.[0-9]{1,50})?(?:[eE][+-]?[0-9]{1,2})?\Z")


class SettingRefused(Exception):
    """A value is not one of its setting. The text goes on behind the setting's name, and never holds the value."""


def read_value(setting: PluginSetting, given: object) -> SettingValue:
    """The value in the setting's type, from JSON, TOML or a text. Raises SettingRefused."""
    if setting.secret:
        return Secret(_text(given.reveal() if isinstance(given, Secret) else given))
    return _READERS[setting.type](given)


def read_values(declared: Iterable[PluginSetting], given: Mapping[str, object]) -> SettingValues:
    """The values of a plugin that declares these settings, defaults included. Names that it does not declare are left
    out. Raises SettingRefused for a value that does not fit, with the setting's name before it."""
    values: dict[str, SettingValue] = {}
    for setting in declared:
        if setting.name in given:
            try:
                values[setting.name] = read_value(setting, given[setting.name])
            except SettingRefused as refused:
                raise SettingRefused(f"The setting {setting.name!r} {refused}") from None
        elif setting.default is not None:
            values[setting.name] = setting.default
    return MappingProxyType(values)


def write_values(values: SettingValues) -> dict[str, str]:
    """The values as texts, secrets in the clear, from which `read_values` makes the same ones in another process."""
    return {name: _write(value) for name, value in values.items()}


def _write(value: SettingValue) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    return str(value).lower() if isinstance(value, bool) else str(value)


def secret_texts(values: SettingValues) -> Iterator[str]:
    """The secrets among the values, which no log line may show."""
    return (value.reveal() for value in values.values() if isinstance(value, Secret))


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise SettingRefused('should be a text in quotes, such as "abc".')
    if not given.strip():
        raise SettingRefused("is empty: write its value, or leave it out.")
    if len(given) > LONGEST_VALUE or "\0" in given:
        raise SettingRefused(f"should be a text of at most {LONGEST_VALUE} characters.")
    return given


def _number(given: object) -> int | Decimal:
    """A float is what JSON and TOML make of 0.25; it stands for the number that was written."""
    if isinstance(given, float) and math.isfinite(given):
        return Decimal(repr(given))
    if isinstance(given, int | Decimal) and not isinstance(given, bool):
        return given
    text = given.strip() if isinstance(given, str) else ""
    if _WHOLE.match(text):
        return int(text)
    if _NUMBER.match(text):
        return Decimal(text)
    raise SettingRefused('should be a number, such as 5 or "0.25".')


def _boolean(given: object) -> bool:
    if isinstance(given, bool):
        return given
    word = given.strip().lower() if isinstance(given, str) else ""
    if word not in ("true", "false"):
        raise SettingRefused("should be true or false.")
    return word == "true"


def _url(given: object) -> str:
    """An address without user and password: those are a secret, and a URL is not hidden."""
    text = _text(given)
    try:
        parts = urlsplit(text)
        # Raises for a port that is not a number.
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    plain = text.isascii() and text.isprintable() and " " not in text
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise SettingRefused('should be an address, such as "https://acme.example/app", without user and password.')
    return text


_READERS: Mapping[str, Callable[[Any], SettingValue]] = {
    "text": _text,
    "number": _number,
    "boolean": _boolean,
    "url": _url,
}


def fits(setting: PluginSetting, default: object) -> bool:
    """Whether a manifest's default is of the setting's own type, as the plugin would get it."""
    try:
        value = read_value(setting, default)
    except SettingRefused:
        return False
    return type(value) is type(default) and value == default
