"""What the log says of pushes: a line for the first account at once, and one for those that follow within seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog

from exchange_service.errors import NotSupported, PluginFailed, ServiceError

# Seconds between two lines of one kind about one exchange.
_EVERY = 10.0

log = structlog.get_logger(__name__)

# Writes a line: of the exchange, the number of its accounts, and what else there is to say.
_Write: TypeAlias = Callable[[str, int, Mapping[str, Any]], None]
_Kind: TypeAlias = tuple[_Write, str, str]


def _write_stands(exchange: str, accounts: int, about: Mapping[str, Any]) -> None:
    log.info("push.stands", exchange=exchange, accounts=accounts, **about)


def _write_broken(exchange: str, accounts: int, about: Mapping[str, Any]) -> None:
    log.warning("push.broken", exchange=exchange, accounts=accounts, **about)


def _write_refused(exchange: str, accounts: int, about: Mapping[str, Any]) -> None:
    log.info("push.refused", exchange=exchange, accounts=accounts, effect="these accounts are polled", **about)


def _write_difference(exchange: str, accounts: int, about: Mapping[str, Any]) -> None:
    log.warning("push.difference", exchange=exchange, accounts=accounts, effect="what was read counts", **about)


@dataclass(slots=True)
class _Unsaid:
    """What a line has not said yet, and the timer at which the next one says it."""

    timer: asyncio.TimerHandle
    accounts: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


class PushLog:
    """Lines about the pushes of this replica. They name exchanges and reasons, and never an account."""

    def __init__(self) -> None:
        self._unsaid: dict[_Kind, _Unsaid] = {}

    def stands(self, exchange: str) -> None:
        """An account is pushed from now on."""
        self._note((_write_stands, exchange, ""), {})

    def ended(self, exchange: str, error: ServiceError, pause: float) -> None:
        """A push has broken, or the venue does not push the account; it is tried again in `pause` seconds."""
        write = _write_refused if isinstance(error, NotSupported) else _write_broken
        about = {"reason": error.reason, "again_in": round(pause)}
        if isinstance(error, PluginFailed):
            # Nobody else is told what a bug of the plugin is: the account is polled meanwhile.
            about["problem"] = error.message
        self._note((write, exchange, error.reason), about)

    def differs(self, exchange: str, in_a_row: int) -> None:
        """A reconciling read found what the push has not brought, `in_a_row` times by now."""
        self._note((_write_difference, exchange, ""), {"in_a_row": in_a_row})

    def close(self) -> None:
        """Say nothing more."""
        for unsaid in self._unsaid.values():
            unsaid.timer.cancel()
        self._unsaid.clear()

    def _note(self, kind: _Kind, about: Mapping[str, Any]) -> None:
        unsaid = self._unsaid.get(kind)
        if unsaid is None:
            self._write(kind, 1, about)
        else:
            unsaid.accounts, unsaid.about = unsaid.accounts + 1, about

    def _write(self, kind: _Kind, accounts: int, about: Mapping[str, Any]) -> None:
        write, exchange, _ = kind
        # In a context of its own: the line belongs to no call.
        Context().run(write, exchange, accounts, about)
        loop = asyncio.get_running_loop()
        self._unsaid[kind] = _Unsaid(loop.call_later(_EVERY, self._write_rest, kind, context=Context()))

    def _write_rest(self, kind: _Kind) -> None:
        unsaid = self._unsaid.pop(kind)
        if unsaid.accounts:
            self._write(kind, unsaid.accounts, unsaid.about)
