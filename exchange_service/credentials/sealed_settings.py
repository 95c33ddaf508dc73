"""Sealed settings of plugins: the same envelope as a stored credential's, bound to the plugin and the setting."""

from __future__ import annotations

from exchange_service.credentials.configured_keyset import configured_keyset
from exchange_service.credentials.key_providers import KeyProvider
from exchange_service.credentials.keysets import KeysetInvalid
from exchange_service.credentials.sealing import AssociatedData, is_sealed, key_id_of, open_value, seal
from exchange_service.errors import CredentialUnreadable
from exchange_service.settings import Settings

# In place of a table's name, so that no value of a table opens as a setting.
_PLACE = "plugin_settings"


class SettingUnreadable(Exception):
    """A sealed setting does not open; the text goes on behind the setting's name."""


async def seal_setting(value: str, plugin: str, setting: str, keys: KeyProvider) -> str:
    """The value, sealed with the primary key for this setting of this plugin."""
    # The plugin's name where a row has its user, because case makes a difference there.
    return await seal(value, AssociatedData(_PLACE, setting, plugin, "", None), keys)


def settings_sealed_with(key_id: str, settings: Settings) -> list[str]:
    """The settings of plugins that this key seals, as "plugin.setting"."""
    return [
        f"{plugin}.{name}"
        for plugin, values in settings.plugin_settings.items()
        for name, value in values.items()
        if isinstance(value, str) and is_sealed(value) and key_id_of(value) == key_id
    ]


def open_setting(text: str, plugin: str, setting: str, settings: Settings) -> str:
    """The value that `seal_setting` sealed, by the keyset of the service's settings. Raises SettingUnreadable."""
    again = f"Seal it again: `exchange-service plugins seal {plugin} {setting}`."
    try:
        keyset = configured_keyset(settings)
        if keyset is None:
            raise SettingUnreadable("is sealed, and there is no keyset: set keyset_file.")
        value = open_value(text, keyset, column=setting, user_id=plugin, exchange="", table=_PLACE)
    except KeysetInvalid:
        # Callers may read the sentence, and the keyset's own names a path.
        problem = "is sealed, and the keyset cannot be used: `exchange-service doctor` says why."
    except CredentialUnreadable:
        problem = (
            "is sealed and does not open: it was sealed for another plugin or setting or with a key that the keyset "
            f"does not have, or it is damaged. {again}"
        )
    else:
        # None only for None.
        assert value is not None
        return value
    raise SettingUnreadable(problem)
