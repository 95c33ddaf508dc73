"""The quotas' counters in Redis, so that all replicas count together."""

from __future__ import annotations

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.strategies import FixedWindowRateLimiter

from exchange_service.cache.redis_link import NoAnswer, RedisLink
from exchange_service.identity.quotas import Action


class RedisQuotas:
    """The QuotaStore in Redis."""

    def __init__(self, link: RedisLink, *, prefix: str) -> None:
        self._link = link
        self._limiter = FixedWindowRateLimiter(link.counters(f"{prefix}quota"))

    async def take(self, key: str, action: Action, limit: int, count: int) -> bool | None:
        """See QuotaStore."""
        try:
            return await self._link.call(lambda: self._limiter.hit(_item(action, limit), key, cost=count))
        except NoAnswer:
            return None


def _item(action: Action, limit: int) -> RateLimitItem:
    kind = RateLimitItemPerMinute if action is Action.REFRESH else RateLimitItemPerSecond
    # Named by the action, because two actions may have the same limit.
    return kind(limit, namespace=action.name)
