"""GetBalance for callers: counts forced reads, prefers a balance that this process has, and measures where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from exchange_service.balances.service import BalanceResult, Balances
from exchange_service.identity import Caller
from exchange_service.model import Account
from exchange_service.observability.metrics import Metrics
from exchange_service.venues.registry import Listing
from exchange_service.wire.replies import Source

# Seconds. A smaller `max_age` reaches the venue in nearly every call, so it counts as forced.
_FORCED_BELOW = 1.0
_SOURCE_NAMES = {source: source.name.lower().replace("_", "-") for source in Source}


@dataclass(frozen=True, slots=True)
class BalanceQuery:
    """A balance that a caller asks for: `max_age` in seconds, None for the operator's setting."""

    account: Account
    listing: Listing
    max_age: float | None

    @property
    def forced(self) -> bool:
        """Whether the query nearly always reaches the venue."""
        return self.max_age is not None and self.max_age < _FORCED_BELOW


class BalanceReader:
    """Reads balances for callers. `call_timeout` is in seconds, for a call without a deadline."""

    def __init__(
        self,
        balances: Balances,
        count_refresh: Callable[[Caller], Awaitable[None]],
        metrics: Metrics,
        *,
        call_timeout: float,
    ) -> None:
        self._balances = balances
        self._count_refresh = count_refresh
        self._metrics = metrics
        self._call_timeout = call_timeout

    async def get(
        self, query: BalanceQuery, caller: Caller, time_remaining: Callable[[], float | None]
    ) -> BalanceResult:
        """The balance. `time_remaining` gives the seconds until the caller's deadline, None if there is no deadline.

        A balance that this process has is returned without suspending. Raises CallerRateLimited for too many forced
        reads, and otherwise as `Balances.get` does.
        """
        if query.forced:
            await self._count_refresh(caller)
            result = None
        else:
            result = self._balances.get_local(query.account, query.max_age)
        if result is not None:
            self._metrics.cache_read("process")
        else:
            deadline = self._deadline(time_remaining())
            result = await self._balances.get(query.account, query.listing, max_age=query.max_age, deadline=deadline)
            self._metrics.cache_read("shared" if result.source is Source.CACHE else "nowhere")
        self._metrics.balance_read(_SOURCE_NAMES[result.source])
        return result

    def _deadline(self, remaining: float | None) -> float:
        """The caller's deadline in the event loop's time; fixed once, because grpc counts by the wall clock."""
        return asyncio.get_running_loop().time() + (self._call_timeout if remaining is None else remaining)
