"""A bounded memory of what is asked for again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from cachetools import Cache, TLRUCache

K = TypeVar("K")
V = TypeVar("V")


class RecentlyUsed(Cache[K, V]):
    """A cache that lets go of what was asked for least lately by `get`. Every warm call asks several of them, and a
    LRUCache takes three times as long."""

    def __init__(self, maxsize: float, getsizeof: Callable[[V], float] | None = None) -> None:
        super().__init__(maxsize, getsizeof)
        # The same values, the one used last at the end.
        self._by_use: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, default: V | None = None, /) -> V | None:  # type: ignore[override]
        """The value, which is now the one used last; `default` if there is none."""
        by_use = self._by_use
        try:
            by_use.move_to_end(key)
        except KeyError:
            return default
        return by_use[key]

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self._by_use[key] = value
        self._by_use.move_to_end(key)

    def __delitem__(self, key: K) -> None:
        super().__delitem__(key)
        del self._by_use[key]

    def popitem(self) -> tuple[K, V]:
        """Remove the one used least lately. Raises KeyError if there is none."""
        for key in self._by_use:
            return key, self.pop(key)
        raise KeyError("nothing is kept")

    def clear(self) -> None:
        """Remove all."""
        super().clear()
        self._by_use.clear()


class SeldomKnown(TLRUCache[K, V]):
    """A TLRUCache that holds what seldom happens: every fetch asks several of them, and nearly always in vain."""

    def get(self, key: K, default: V | None = None, /) -> V | None:  # type: ignore[override]
        """The value, which is now the one used last; `default` if there is none, or none any more."""
        return super().get(key, default) if key in self else default

    def pop(self, key: K, default: V | None = None, /) -> V | None:  # type: ignore[override]
        """The value, which is removed; `default` as in `get`."""
        return super().pop(key, default) if key in self else default
