"""What Redis returns. Sealed values are read as they are, and as values that were sealed with our key."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from exchange_service.balances.cached import CachedBalances
from exchange_service.cache.memory import MemoryCache
from exchange_service.cache.sealing import CacheSeal
from exchange_service.errors import PermissionMissing, VenueRateLimited
from exchange_service.model import Account, AssetBalance, Balance, Summary, VenueAccount
from exchange_service.wire.balances import fetched_balance
from exchange_service.wire.stored import (
    StoredBalance,
    StoredBounds,
    decode_error,
    decode_stored,
    encode_error,
    store_balance,
    with_known_rows,
)
from tests.fuzz.targets import target

NOW = 1_800_000_000.0
NAME = "balance:1"
ACCOUNT = Account("alice", "fakex")
SEAL = CacheSeal(b"a hash key of at least 32 characters")
BOUNDS = StoredBounds(60.0, lambda: NOW)

BALANCE = Balance(
    (
        VenueAccount(
            id="1",
            type="spot",
            assets=(
                AssetBalance("BTC", total=Decimal("1.50"), free=Decimal(1), used=Decimal("0.5")),
                AssetBalance("ETH", total=Decimal(0), venue_asset="XETH", kind="holding"),
            ),
            summary=Summary("USD", total=Decimal(7), unrealised_pnl=Decimal("-0.000001")),
        ),
        VenueAccount(id="2", type="margin", error=PermissionMissing("No.", advice="Ask.")),
        VenueAccount(id="3", error=VenueRateLimited("Later.", retry_after=3.5)),
    ),
    notes=("A note.",),
)


def stored() -> bytes:
    """A balance as the cache keeps it."""
    kept = store_balance(ACCOUNT, fetched_balance(BALANCE), NOW - 5, None)
    return replace(kept, pause=2.0).encode()


STORED = stored()


@target("cache-sealed", [SEAL.seal(NAME, STORED, NOW, 30.0), SEAL.seal(NAME, b"", NOW, 0.5)])
def open_sealed(data: bytes) -> object:
    opened = SEAL.open(NAME, data, NOW)
    assert opened is None or opened.left >= 0
    return opened


def _use(balance: StoredBalance) -> None:
    """Everything that is read from a stored balance."""
    assert balance.account == ACCOUNT
    assert balance.compact
    assert len(balance.digest) == 32
    sent, known = with_known_rows(balance, {})
    with_known_rows(replace(balance, data=sent), known)
    again = decode_stored(ACCOUNT, balance.encode(), BOUNDS)
    assert again == balance


@target("cache-balance", [STORED])
def read_balance(data: bytes) -> object:
    opened = SEAL.open(NAME, SEAL.seal(NAME, data, NOW, 30.0), NOW)
    assert opened is not None
    assert opened.payload == data
    balance = decode_stored(ACCOUNT, opened.payload, BOUNDS)
    if balance is not None:
        _use(balance)
    return balance


@target(
    "cache-error",
    [encode_error(PermissionMissing("No.")), encode_error(VenueRateLimited("Later.", retry_after=3.5))],
)
def read_error(data: bytes) -> object:
    error = decode_error(data, "Fakex")
    if error is not None:
        assert error.retry_after is None or 0 <= error.retry_after <= 3600
        assert decode_error(encode_error(error), "Fakex") is not None
    return error


@target("cache-message", [b"b" + NAME.encode(), b"c" + bytes(32)])
def read_message(data: bytes) -> object:
    """An invalidation: a balance or a credential has changed."""
    cache = MemoryCache()
    listeners: list[object] = []
    cache.add_listener = listeners.append  # type: ignore[method-assign]
    balances = CachedBalances(cache, 30.0, longest_pause=60.0)
    balances.on_credential = lambda _: None
    for listener in listeners:
        listener(data)  # type: ignore[operator]
    return balances
