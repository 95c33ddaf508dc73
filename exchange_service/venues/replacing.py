"""What a plugin may replace of a stored credential, and how it asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from exchange_service.credentials.rows import LONGEST_SECRET, is_storable
from exchange_service.errors import PluginFailed
from exchange_service.model import Account, ExchangeMetadata, Secret
from exchange_service.venues.registry import Listing

# Bytes of one value; a sealed one is longer by a third.
LONGEST_VALUE = LONGEST_SECRET // 2


class ReplaceCredential(Protocol):
    """Stores new values of an account's credential for its plugin."""

    async def __call__(
        self, account: Account, version: str, listing: Listing, changes: Mapping[str, Secret]
    ) -> str | None:
        """The new version of the row that the account's session was opened from with `version`. None: the row holds
        another credential by now, and is left as it is.

        Raises VenueUnavailable if the values are not stored yet, PluginFailed if the plugin may not store them, and
        NotSupported if nothing stores them.
        """


def check_changes(metadata: ExchangeMetadata, plugin: str, changes: Mapping[str, object]) -> dict[str, Secret]:
    """The new values by field. PluginFailed, without any value, for what the listing or the store does not allow."""
    checked: dict[str, Secret] = {}
    for name, value in changes.items():
        fault = _fault(metadata, name, value)
        if fault:
            raise PluginFailed(
                f"The plugin {plugin} may not replace this credential of {metadata.name}: {fault}.",
                advice="Report it to the plugin's author; docs/plugin-howtos.md says what replace_credential takes.",
            )
        checked[str(name)] = Secret(str(value))
    if not checked:
        raise PluginFailed(f"The plugin {plugin} called replace_credential without a new value.")
    return checked


def _fault(metadata: ExchangeMetadata, name: str, value: object) -> str:
    if name not in metadata.rotating_fields:
        shown = name if name in {field.name for field in metadata.credential_fields} else ""
        return f"its manifest does not mark {f'the field {shown!r}' if shown else 'such a field'} with rotates=True"
    if not isinstance(value, str):
        return f"the new {name} is of the type {type(value).__name__[:40]}, and not a text"
    if not value.strip():
        return f"the new {name} is empty"
    if not is_storable(value) or len(value.encode()) > LONGEST_VALUE:
        return f"the new {name} is longer than {LONGEST_VALUE // 1024} KiB, or has characters that no database stores"
    return ""
