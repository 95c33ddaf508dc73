"""A balance on its way to the subscribers of one account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exchange_service.errors import ServiceError
from exchange_service.wire.delivery import Delivery
from exchange_service.wire.events import balance_event
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance

# Seconds for which serialised bytes that contain an age are handed out unchanged.
AGE_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class ErrorUpdate:
    """An account's error to hand out, and the serialised event that tells it."""

    error: ServiceError
    event: bytes


class Update:
    """A balance to hand out. Everybody who reads it within AGE_TOLERANCE shares one event; a later reader gets an event
    with the age at that time."""

    __slots__ = (
        "_data",
        "_delivery",
        "_event",
        "_event_time",
        "_on_event_age",
        "_source",
        "fetch_time",
        "replaces",
        "stale",
        "version",
    )

    def __init__(
        self,
        stored: StoredBalance,
        data: bytes,
        source: Source,
        stale: ServiceError | None,
        on_event_age: Callable[[float], None],
        replaces: tuple[int, float] | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        """`data` is the serialised Balance of `stored`. `on_event_age` is called with the age of the balance, in
        seconds, for each event that is serialised. `replaces` is the version before this one, if there was
        one, and when it was fetched last, in seconds since the epoch."""
        self.version = stored.version
        self.stale = stale
        self._on_event_age = on_event_age
        self._data = data
        self.fetch_time = stored.fetch_time
        self.replaces = replaces
        self._source = source
        self._delivery = delivery
        self._event = b""
        self._event_time = 0.0

    def event(self, wall: float) -> bytes:
        """A serialised StreamBalancesResponse; `wall` is the time now, in seconds since the epoch."""
        if not self._event or not 0.0 <= wall - self._event_time < AGE_TOLERANCE:
            age = max(0.0, wall - self.fetch_time)
            self._event = balance_event(self._data, self._source, age, self.stale, self._delivery)
            self._event_time = wall
            self._on_event_age(age)
        return self._event
