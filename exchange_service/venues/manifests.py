"""What a plugin's manifest must be, at the load and when the plugin gives a newer one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from exchange_service.model import (
    LARGEST_ANSWER_LIMIT,
    LARGEST_PUBLIC_ANSWER_LIMIT,
    PRODUCTION,
    ExchangeMetadata,
    Manifest,
)
from exchange_service.plugin_api import API_VERSION

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")

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
    if not isinstance(manifest, Manifest):
        raise PluginRejected(f"exchange_manifest should return a Manifest, and returned {type(manifest).__name__}.")
    if manifest.api_version != API_VERSION:
        raise PluginRejected(
            f"It was written for version {manifest.api_version} of the plugin API; this service has {API_VERSION}. "
            "Install a matching release of one of them."
        )
    ids = [metadata.id for metadata in manifest.exchanges]
    if len(set(ids)) != len(ids):
        raise PluginRejected("It lists an exchange id twice.")
    for metadata in manifest.exchanges:
        _validate_listing(metadata, ids)
    return manifest


def _validate_listing(metadata: ExchangeMetadata, ids: Sequence[str]) -> None:
    where = f"The listing {str(metadata.id)[:64]!r}"
    if not isinstance(metadata.id, str) or not _ID.match(metadata.id):
        raise PluginRejected(f"{where} has an id that is not lower case letters, digits, '_' and '-'.")
    if not metadata.name or not metadata.asset_class:
        raise PluginRejected(f"{where} lacks a name or an asset class.")
    if not metadata.environments or metadata.environments[0].name != PRODUCTION:
        raise PluginRejected(f"{where} should name the environment 'production' first.")
    if metadata.credential_of and metadata.credential_of not in ids:
        raise PluginRejected(f"{where} uses the credential of an exchange of another plugin.")
    for name, most in (("answer_limit", LARGEST_ANSWER_LIMIT), ("public_answer_limit", LARGEST_PUBLIC_ANSWER_LIMIT)):
        limit = getattr(metadata, name)
        if type(limit) is not int or not 1 <= limit <= most:
            raise PluginRejected(
                f"{where} has {name} {limit!r:.40}, which is not a whole number of bytes from 1 to {most}."
            )
    for environment in metadata.environments:
        for url in environment.urls.values():
            if not urlsplit(url).hostname:
                raise PluginRejected(f"{where} has an address without a host.")


async def refreshed_manifest(plugin: str, refresh: Callable[[], Awaitable[object]]) -> Manifest | None:
    """The newer manifest that `refresh` gives, validated; None, with a line in the log, if it fails or gives nothing.

    The plugin then serves on with the manifest that it has.
    """
    try:
        manifest = await refresh()
        return None if manifest is None else validate_manifest(manifest)
    except PluginRejected as rejection:
        log.warning("plugin.refresh_refused", plugin=plugin, reason=str(rejection))
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    # SystemExit would end the service if it left the task.
    except BaseException as error:
        log.warning("plugin.refresh_failed", plugin=plugin, error=type(error).__name__)
    return None
