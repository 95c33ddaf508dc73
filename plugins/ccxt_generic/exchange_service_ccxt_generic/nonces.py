"""Nonces that rise for each key, whichever of its instances signs."""

from __future__ import annotations


class Nonces:
    """One key's sequence. CCXT keeps the last nonce in each instance, and two users may have connected one key."""

    def __init__(self) -> None:
        self._last = 0

    def after(self, now: int) -> int:
        """A nonce above all earlier ones: the clock's, in the exchange's own unit, or the next after the last one."""
        self._last = max(self._last + 1, now)
        return self._last
