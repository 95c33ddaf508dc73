"""What the last read has found of an account: the ground on which pushes build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from exchange_service.plugin_api import VenueCall
from exchange_service_hyperliquid import parse


@dataclass(frozen=True, slots=True)
class LastRead:
    """What a read has found of the wallet, its notes besides the wallet's own, and when it began, in the event loop's
    seconds: what was pushed after that is newer."""

    answers: parse.WalletAnswers
    notes: tuple[str, ...]
    began: float


class LastReads:
    """Where the reads of one account leave what they find. One watch may be told of it."""

    def __init__(self) -> None:
        self.last: LastRead | None = None
        self._on_read: Callable[[LastRead], None] | None = None

    def leave(self, read: LastRead) -> None:
        """Keep what a read has found, unless one that began later has ended before it."""
        if self.last is not None and read.began < self.last.began:
            return
        self.last = read
        if self._on_read is not None:
            self._on_read(read)

    @contextmanager
    def told_to(self, on_read: Callable[[LastRead], None]) -> Iterator[None]:
        """Call `on_read` with each read that ends meanwhile."""
        self._on_read = on_read
        try:
            yield
        finally:
            self._on_read = None


async def last_reads(call: VenueCall) -> LastReads:
    """The reads of the call's account, which its watch and its reads share."""

    async def make() -> LastReads:
        return LastReads()

    return await call.account_state.get(f"last reads {call.account.account_type}", make)
