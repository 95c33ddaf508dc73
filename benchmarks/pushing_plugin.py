"""A plugin for a venue that pushes whole balances, or hints, on one socket for all accounts; see `pushing_venue`.

It is one file that imports the plugin's page alone: it can be installed in a serving process.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    Capabilities,
    Changed,
    CredentialRejected,
    Environment,
    ExchangeMetadata,
    Manifest,
    NotSupported,
    PushLanguage,
    PushLimits,
    VenueAccount,
    VenueCall,
    hookimpl,
    subscribed,
)

# "pushing" takes any number of accounts, "pushing_few" ten at once, "pushing_hints" sends hints alone.
EXCHANGE, FEW, HINTS = "pushing", "pushing_few", "pushing_hints"
MOST = 10
SILENCE = float(os.environ.get("BENCHMARK_PUSH_SILENCE", "10"))


def _listing(exchange_id: str, limits: PushLimits) -> ExchangeMetadata:
    return ExchangeMetadata(
        id=exchange_id,
        name=exchange_id.replace("_", " ").title(),
        asset_class="Crypto",
        asset_types="Crypto Spot",
        market_hours="24/7 Trading",
        environments=(Environment("production", {"api": "https://venue.example"}),),
        capabilities=Capabilities(sandbox=False, push=True),
        push=limits,
    )


class Language(PushLanguage):
    """A message names its account and has a number, which rises with every change of the account."""

    silence = SILENCE

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """See PushLanguage."""
        return [json.dumps({"subscribe": topic}) for topic in topics]

    def unsubscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """See PushLanguage."""
        return [json.dumps({"unsubscribe": topic}) for topic in topics]

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        """See PushLanguage."""
        if not isinstance(message, dict):
            return []
        if "refused" in message:
            return [(message["refused"], CredentialRejected("The venue does not know this key."))]
        if isinstance(message.get("account"), str) and isinstance(message.get("number"), int):
            return [(message["account"], (message["number"], str(message.get("amount"))))]
        return []

    def state(self, topic: Any, before: Any, part: Any) -> Any:
        """See PushLanguage."""
        return before if before is not None and part[0] <= before[0] else part


def _balance(amount: str) -> Balance:
    return Balance((VenueAccount(id="1", type="spot", assets=(AssetBalance("BTC", total=Decimal(amount)),)),))


@hookimpl
def exchange_manifest() -> Manifest:
    """See plugin_api."""
    few = PushLimits(accounts=MOST)
    return Manifest(1, (_listing(EXCHANGE, PushLimits()), _listing(FEW, few), _listing(HINTS, PushLimits())))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    """See plugin_api."""
    reply = await call.http.get(f"{call.url()}/balances/{call.credential.api_key.reveal()}")
    if reply.status == 401:
        raise CredentialRejected("The venue does not know this key.")
    return _balance(reply.json()["amount"])


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncGenerator[Balance | Changed, None]:
    """See plugin_api."""
    key = call.credential.api_key.reveal()
    if call.credential.metadata.get("push") == "never":
        raise NotSupported("The venue does not push this account.")
    async with subscribed(call, Language(f"{call.url()}/socket"), [key]) as subscription:
        async for states in subscription:
            yield Changed() if call.exchange.id == HINTS else _balance(states[key][1])
