"""The reads of a feed as traces: one for each, because a stream lasts for hours."""

from __future__ import annotations

from exchange_service.balances.service import BalanceResult
from exchange_service.model import Account
from exchange_service.observability.tracing import Tracing, Within, annotate, origin_span
from exchange_service.streams.feed import ReadBalance
from exchange_service.wire.stored import StoredBalance


def traced_reads(tracing: Tracing, account: Account, read: ReadBalance) -> ReadBalance:
    """The same reads, each a trace of its own with a link to the call that has opened the feed."""
    opened_by = origin_span()
    attributes = {
        "exchange_service.exchange": account.exchange_id,
        "exchange_service.environment": account.environment,
        "exchange_service.account_type": account.account_type,
    }

    async def traced(current: StoredBalance | None, ask_venue: bool, known_version: int) -> BalanceResult:
        span = tracing.begin_root("feed.read", {**attributes, "exchange_service.asks_venue": ask_venue}, opened_by)
        if span is None:
            return await read(current, ask_venue, known_version)
        with Within(span):
            result = await read(current, ask_venue, known_version)
            annotate(
                source=result.source.name.lower(), changed=current is None or result.stored.version != current.version
            )
            return result

    return traced
