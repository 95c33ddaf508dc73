"""What the evil plugins share: each serves one exchange, and does a deed for the user that has the deed's name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    CredentialField,
    Environment,
    ExchangeMetadata,
    Manifest,
    VenueAccount,
    VenueCall,
    hookimpl,
)

WELL = Balance((VenueAccount(id="1", type="spot", assets=(AssetBalance("BTC", total=Decimal("1.50")),)),))


def listing(exchange_id: str, **changes: Any) -> ExchangeMetadata:
    plain: dict[str, Any] = {
        "id": exchange_id,
        "name": exchange_id.title(),
        "asset_class": "Crypto",
        "asset_types": "Crypto Spot",
        "market_hours": "24/7 Trading",
        "environments": (Environment("production", {"api": "https://api.evil.example"}),),
        "credential_fields": (CredentialField("api_key", "Key"),),
    }
    return ExchangeMetadata(**(plain | changes))


class EvilPlugin:
    """Serves the exchange `exchange_id`: does each deed for the user of its name, and gives others a plain balance."""

    def __init__(self, exchange_id: str, *deeds: Callable[[VenueCall], Awaitable[Any]]) -> None:
        self._exchange_id = exchange_id
        self._deeds = {deed.__name__: deed for deed in deeds}

    @hookimpl
    def exchange_manifest(self) -> Manifest:
        return Manifest(1, (listing(self._exchange_id),))

    @hookimpl
    async def fetch_balance(self, call: VenueCall) -> Any:
        deed = self._deeds.get(call.account.user_id)
        return WELL if deed is None else await deed(call)
