"""A bounded memory of what is asked for again and again."""

from __future__ import annotations

from typing import TypeVar

from cachetools import LRUCache, TLRUCache

K = TypeVar("K")
V = TypeVar("V")


class RecentlyUsed(LRUCache[K, V]):
    """An LRUCache whose `get` hashes a key half as often where it is known. Every warm call asks several of them."""

    def get(self, key: K, default: V | None = None, /) -> V | None:  # type: ignore[override]
        """The value, which is now the one used last; `default` if there is none."""
        try:
            return self[key]
        except KeyError:
            return default


class SeldomKnown(TLRUCache[K, V]):
    """A TLRUCache that holds what seldom happens: every fetch asks several of them, and nearly always in vain."""

    def get(self, key: K, default: V | None = None, /) -> V | None:  # type: ignore[override]
        """The value, which is now the one used last; `default` if there is none, or none any more."""
        return super().get(key, default) if key in self else default

    def pop(self, key: K, default: V | None = None, /) -> V | None:  # type: ignore[override]
        """The value, which is removed; `default` as in `get`."""
        return super().pop(key, default) if key in self else default
