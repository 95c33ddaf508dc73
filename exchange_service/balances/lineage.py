"""Which version of a credential a plugin has made of which, by replacing a token that rotates.

A version changes with any value of its row. The lineage tells a plugin's own write from a user's: what was opened with
an ancestor, such as an access token, stays in use.
"""

from __future__ import annotations

import json
from contextlib import suppress

from exchange_service.cache import Cache
from exchange_service.recently_used import RecentlyUsed

# The versions before one that are remembered: a replica looks at an account in use every thirty seconds.
_MOST_ANCESTORS = 8
# Seconds for which replicas find it in the cache that they share.
_TTL = 3600.0
_MOST_VERSIONS = 20_000


class Lineage:
    """Remembers the ancestors of versions, here and for the other replicas on the same cache."""

    def __init__(self, cache: Cache | None = None) -> None:
        self._cache = cache
        self._known: RecentlyUsed[str, tuple[str, ...]] = RecentlyUsed(_MOST_VERSIONS)

    async def record(self, version: str, before: str) -> None:
        """Note that the plugin makes `version` of `before`. Called ahead of the write, so that no replica sees the new
        row without it."""
        ancestors = (before, *await self.of(before))[:_MOST_ANCESTORS]
        self._known[version] = ancestors
        if self._cache is not None:
            await self._cache.set(f"lineage:{version}", json.dumps(ancestors).encode(), _TTL)

    async def of(self, version: str) -> tuple[str, ...]:
        """The ancestors of a version, the latest first; empty if a user has stored it, as far as is known."""
        known = self._known.get(version)
        if known is None:
            raw = None if self._cache is None else await self._cache.get(f"lineage:{version}")
            known = self._known[version] = _read(raw)
        return known


def _read(raw: bytes | None) -> tuple[str, ...]:
    with suppress(ValueError):
        ancestors = json.loads(raw or b"[]")
        if isinstance(ancestors, list) and all(isinstance(item, str) for item in ancestors):
            return tuple(ancestors[:_MOST_ANCESTORS])
    return ()
