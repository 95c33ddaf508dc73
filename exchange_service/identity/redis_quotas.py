"""The quotas' counters in Redis, so that all replicas count together."""

from __future__ import annotations

import struct

from exchange_service.cache.redis_link import NoAnswer
from exchange_service.cache.sealed_redis import Replacement, SealedRedis
from exchange_service.cache.sealing import Opened
from exchange_service.identity.quotas import Action

# When the window ends by Redis's clock, in seconds since the epoch, and the permits that were taken in it.
_WINDOW = struct.Struct(">dQ")


class RedisQuotas:
    """The QuotaStore in Redis. A window begins with its first permit."""

    def __init__(self, sealed: SealedRedis) -> None:
        self._sealed = sealed

    async def take(self, key: str, action: Action, limit: int, count: int) -> bool | None:
        """See QuotaStore."""

        def decide(present: Opened | None, now: float) -> Replacement:
            ends, used = _WINDOW.unpack(present.payload) if present is not None else (0.0, 0)
            if not now < ends <= now + action.window:
                ends, used = now + action.window, 0
            if used + count > limit:
                return None
            return _WINDOW.pack(ends, used + count), ends - now

        try:
            return bool(await self._sealed.update(f"quota:{action.name}:{limit}:{key}", decide))
        except NoAnswer:
            return None
