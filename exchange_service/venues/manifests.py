"""What a plugin's manifest must be, when it is loaded and when the plugin gives a newer one, and its form between
processes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

import structlog

from exchange_service.model import Manifest, PluginSetting
from exchange_service.plugin_api import API_VERSION, SERVED_API_VERSIONS
from exchange_service.tasks import beside_the_loop
from exchange_service.venues.manifest_rules import broken_rules
from exchange_service.venues.manifest_types import wrong_types

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# Bytes of a third-party plugin's manifest: callers are shown it with the catalogue.
LONGEST_MANIFEST = 512 * 1024

log = structlog.get_logger(__name__)


class PluginRejected(Exception):
    """A plugin cannot serve; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class ManifestReply:
    """The manifest of a third-party plugin, read in another process. `refreshes`: the plugin may give a newer one."""

    manifest: Manifest
    refreshes: bool


def validate_manifest(manifest: object) -> Manifest:
    """The manifest, if everything that the service relies on holds; else PluginRejected is raised."""
    for fault in manifest_faults(manifest):
        raise PluginRejected(fault)
    assert isinstance(manifest, Manifest)
    return manifest


def manifest_faults(manifest: object) -> Iterator[str]:
    """A sentence for everything for which the service refuses a manifest. Rules for values are looked at only if all
    have the right types."""
    if type(manifest) is not Manifest:
        yield (
            f"exchange_manifest should return a Manifest, and returned {type(manifest).__name__[:64]}: write "
            f"`return Manifest(api_version={API_VERSION}, exchanges=(...,))`."
        )
        return
    if type(manifest.api_version) is int and manifest.api_version not in SERVED_API_VERSIONS:
        yield _not_served(manifest.api_version)
        return
    wrong = [f"In its manifest, {sentence}" for sentence in wrong_types(manifest)]
    yield from wrong or broken_rules(manifest)


def _not_served(version: int) -> str:
    served = " and ".join(map(str, SERVED_API_VERSIONS))
    if version < 1:
        return f"It says api_version={version}, and the versions begin with 1: write api_version={API_VERSION}."
    return (
        f"It was written for version {version} of the plugin API, and this release of the service serves {served}: "
        f"write api_version={API_VERSION} if it was not, or install a release of one of them that fits the other."
    )


@cache
def _manifest_adapter() -> TypeAdapter[Manifest]:
    # Late: a process that never exchanges a manifest does not need it.
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def write_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON; ValueError if a value is not of its field's type."""
    return _manifest_adapter().dump_json(manifest, warnings="error")


def read_manifest(data: bytes) -> Manifest:
    """The manifest that `write_manifest` wrote; ValueError for anything else."""
    manifest = _manifest_adapter().validate_json(data, strict=True)
    if not any(_is_written_number(setting) for setting in manifest.settings):
        return manifest
    return replace(manifest, settings=tuple(map(_with_exact_default, manifest.settings)))


def _is_written_number(setting: PluginSetting) -> bool:
    return setting.type == "number" and isinstance(setting.default, str)


def _with_exact_default(setting: PluginSetting) -> PluginSetting:
    """JSON has a Decimal as a text."""
    if not _is_written_number(setting):
        return setting
    try:
        return replace(setting, default=Decimal(str(setting.default)))
    except ArithmeticError:
        raise ValueError("a default is not a number") from None


def manifest_digest(manifest: Manifest) -> bytes:
    """The same for equal manifests, whichever process they are in.

    Without fields that have their default: another version of this project may lack one, and reads the manifest alike.
    """
    data = _manifest_adapter().dump_json(manifest, exclude_defaults=True, warnings="error")
    return hashlib.sha256(data).digest()


async def refreshed_manifest(plugin: str, refresh: Callable[[], Awaitable[object]]) -> Manifest | None:
    """The newer manifest that `refresh` gives, validated; None, with a line in the log, if it fails or gives nothing.

    The plugin then serves on with the manifest that it has.
    """
    try:
        manifest = await refresh()
        # In a thread: that of CCXT has more than a hundred listings.
        return None if manifest is None else await beside_the_loop(validate_manifest, manifest)
    except PluginRejected as rejection:
        log.warning("plugin.refresh_refused", plugin=plugin, reason=str(rejection))
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    # SystemExit would end the service if it left the task.
    except BaseException as error:
        log.warning("plugin.refresh_failed", plugin=plugin, error=type(error).__name__)
    return None
