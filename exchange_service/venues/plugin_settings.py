"""What the operator has set for each plugin by `plugin_settings`: which plugin gets it, and where a secret comes from.

A plugin gets its own values and no others. What is wrong is a sentence for the operator that holds no value.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exchange_service.model import PluginInfo, PluginSetting
from exchange_service.observability.redaction import redact_text
from exchange_service.venues.loading import OURS, goes_by, same_distribution
from exchange_service.venues.manifests import PluginRejected
from exchange_service.venues.setting_values import SettingRefused, SettingValues, read_value, read_values

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}\Z")
# A name that is shown. Of other forms it may be the secret itself, written in the wrong place.
_SHOWN_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\Z")
_SEALED = re.compile(r"xs\d+:")
# Characters of a setting's description in a sentence.
_LONGEST_DESCRIPTION = 200


def _opens_nothing(plugin: str, setting: str, text: str) -> str:
    raise SettingRefused("is sealed, and there is no keyset: set keyset_file.")


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """The setting `plugin_settings`, and what opens the secrets in it.

    `given`: by a plugin's name, or its distribution's, a value for each setting. `open_sealed` opens the sealed text of
    a plugin's setting, and raises SettingRefused. `environment` has the variables that values may name. `stand_ins`: by
    distribution, plain values that are used in place of what is given, for the demo.
    """

    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    open_sealed: Callable[[str, str, str], str] = field(default=_opens_nothing, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    stand_ins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def values(
        self, info: PluginInfo, declared: Sequence[PluginSetting], installed: Collection[PluginInfo]
    ) -> SettingValues:
        """The values of a plugin that declares these settings, defaults included.

        `installed` are all plugins that may be loaded, this one among them. Raises PluginRejected.
        """
        stand_ins = self.stand_ins.get(info.distribution)
        key, given = (info.name, stand_ins) if stand_ins is not None else self._given(info, installed)
        known = {setting.name: setting for setting in declared}
        for name in given:
            if name not in known:
                raise PluginRejected(_unknown(key, name, list(known)))
        for setting in declared:
            if setting.required and setting.name not in given:
                raise PluginRejected(_missing(key, setting))
        if stand_ins is not None:
            return self._typed(info, declared, stand_ins)
        plain: dict[str, object] = {}
        for name, value in given.items():
            try:
                plain[name] = read_value(known[name], self._plain(info, known[name], value))
            except SettingRefused as refused:
                raise PluginRejected(f"The setting {name!r} of {key} in plugin_settings {refused}") from None
        return self._typed(info, declared, plain)

    def _typed(self, info: PluginInfo, declared: Sequence[PluginSetting], plain: Mapping[str, object]) -> SettingValues:
        try:
            return read_values(declared, plain)
        except SettingRefused as refused:
            raise PluginRejected(f"{refused} It is one of {info.name}.") from None

    def _given(self, info: PluginInfo, installed: Collection[PluginInfo]) -> tuple[str, Mapping[str, Any]]:
        """The operator's name for the plugin, and what stands below it."""
        keys = [key for key in self.given if goes_by(info, key) and _is_meant(info, key, installed)]
        if len(keys) > 1:
            raise PluginRejected(
                f"plugin_settings names it twice, as {keys[0]!r} and as {keys[1]!r}. Write one of the two."
            )
        return (keys[0], self.given[keys[0]]) if keys else (info.name, {})

    def _plain(self, info: PluginInfo, setting: PluginSetting, value: object) -> object:
        """The value as it would be without the environment and without a seal."""
        if isinstance(value, Mapping):
            return self._from_environment(value)
        if isinstance(value, str) and _SEALED.match(value):
            return self.open_sealed(info.name, setting.name, value)
        if setting.secret:
            raise SettingRefused(_in_plain_text(info.name, setting.name))
        return value

    def _from_environment(self, value: Mapping[str, object]) -> str:
        name = value.get("env")
        if set(value) != {"env"} or not isinstance(name, str) or not _VARIABLE.match(name):
            raise SettingRefused(
                'should be a value, or {"env": "NAME"} with the name of an environment variable that holds it.'
            )
        found = self.environment.get(name, "")
        if not found.strip():
            shown = name if _SHOWN_VARIABLE.match(name) and redact_text(name) == name else "that it names"
            raise SettingRefused(
                f"comes from the environment variable {shown}, which is not set or empty. Set it where the service is "
                "started."
            )
        # What a shell reads from a file may end with a line break, and `plugins seal` leaves it out as well.
        return found.rstrip("\r\n")


def _is_meant(info: PluginInfo, key: str, installed: Collection[PluginInfo]) -> bool:
    """Whether the operator's name is that of this plugin alone, or of a sister in the same distribution.

    A plugin may call itself as the distribution of another: it must not get the other's secrets, so the plugins of
    this project come first, and of two others neither gets anything. Raises PluginRejected for those.
    """
    others = [other for other in installed if other != info and goes_by(other, key)]
    foreign = [other for other in others if not same_distribution(other.distribution, info.distribution)]
    if not foreign or info.distribution in OURS:
        return True
    if any(other.distribution in OURS for other in foreign):
        return False
    other = foreign[0]
    instead = info.name if same_distribution(key, info.distribution) else info.distribution
    raise PluginRejected(
        f"plugin_settings names {key!r}, which is a name of {info.distribution} and of {other.distribution}, so "
        f"neither gets it. Write {instead!r} for this one."
    )


def _unknown(key: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:64], known, n=1)
    has = f"It has {', '.join(known)}." if known else "It has no settings."
    advice = f"Did you mean {near[0]!r}?" if near else has
    return f"plugin_settings gives {key} the setting {name[:64]!r}, which it does not have. {advice}"


def _missing(key: str, setting: PluginSetting) -> str:
    examples: dict[str, object] = {"text": "...", "number": 5, "boolean": True, "url": "https://..."}
    example = {"env": variable_name(key, setting.name)} if setting.secret else examples[setting.type]
    write = json.dumps({key: {setting.name: example}})
    description = setting.description[:_LONGEST_DESCRIPTION].rstrip(".")
    return f"It needs the setting {setting.name!r} ({description}). Add it to plugin_settings, such as {write}."


def _in_plain_text(plugin: str, setting: str) -> str:
    write = json.dumps({"env": variable_name(plugin, setting)})
    return (
        f"is a secret, and stands there in plain text. Write {write} and set that variable, or write the text that "
        f"`exchange-service plugins seal {plugin} {setting}` prints."
    )


def variable_name(plugin: str, setting: str) -> str:
    """A name for the environment variable that holds a secret, for examples."""
    return re.sub(r"[^A-Z0-9]+", "_", f"{plugin}_{setting}".upper()).strip("_")
