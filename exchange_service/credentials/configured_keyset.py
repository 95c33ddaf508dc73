"""The keyset that the settings name, and the manager that opens it if it is wrapped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from exchange_service.credentials.keysets import Keyset, KeysetInvalid, read_keyset_text
from exchange_service.credentials.wrapped_keysets import KeysetAway, open_keyset
from exchange_service.settings import Settings

if TYPE_CHECKING:
    from exchange_service.credentials.vault import TransitKey

log = structlog.get_logger(__name__)

# Seconds between two attempts to open the keyset at the start.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0


def configured_wrapping(settings: Settings) -> TransitKey | None:
    """The manager's key that the settings name, or None."""
    if settings.keyset_key is None:
        return None
    # Late: a service without a manager does without it.
    from exchange_service.credentials.vault import TransitKey, read_access

    return TransitKey(settings.keyset_key, read_access(settings.keyset_login))


def configured_keyset(settings: Settings) -> Keyset | None:
    """The keyset that the settings name, read now, or None. A wrapped one that was opened in this process already is
    not asked for again; else this waits for the network. Raises KeysetInvalid or KeysetAway."""
    text = configured_keyset_text(settings)
    return None if text is None else open_keyset(text, configured_wrapping(settings))


def configured_keyset_text(settings: Settings) -> str | None:
    """The keyset as it is written, plain or wrapped, or None. Raises KeysetInvalid for a file that cannot be read."""
    if settings.keyset_file is not None:
        return read_keyset_text(settings.keyset_file)[0]
    return None if settings.keyset is None else settings.keyset.get_secret_value()


async def wait_for_keyset(settings: Settings) -> None:
    """Open a wrapped keyset before anything needs it, and wait for up to `keyset_wait` seconds while its manager does
    not answer. Raises KeysetInvalid, and KeysetAway when that time is over."""
    if settings.keyset_key is None:
        return
    loop = asyncio.get_running_loop()
    end, pause, told = loop.time() + settings.keyset_wait, _FIRST_PAUSE, ""
    while True:
        try:
            await asyncio.to_thread(configured_keyset, settings)
        except KeysetAway as away:
            if loop.time() + pause > end:
                raise
            if str(away) != told:
                log.warning("keyset.waiting", problem=str(away), seconds=round(end - loop.time()))
            told = str(away)
        else:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def keep_token(key: TransitKey) -> None:
    """Renew the manager's token for as long as it can be renewed, at half of its time each time. The log says when it
    cannot be: the keys in use stay, and the next rotation needs another token."""
    left = 0.0
    while True:
        try:
            state = await asyncio.to_thread(key.renew_token)
        except KeysetAway as away:
            log.warning("keyset.token_not_renewed", problem=str(away))
            await asyncio.sleep(min(_LONGEST_PAUSE, max(1.0, left / 8)))
            continue
        except KeysetInvalid as invalid:
            log.error("keyset.token_refused", problem=str(invalid))
            return
        if state.seconds is None:
            return
        if not state.renewable or state.seconds <= left / 2:
            log.warning("keyset.token_ends", seconds=round(state.seconds))
            if not state.renewable:
                return
        left = state.seconds
        await asyncio.sleep(max(1.0, left / 2))
