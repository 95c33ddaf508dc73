"""When a stream that has ended is opened again, and after which delay."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from exchange_service.client.failures import ServiceUnreachable
from exchange_service.client.position import StreamPosition
from exchange_service.errors import (
    CallerUnknown,
    ServiceError,
    ServiceOverloaded,
    ShuttingDown,
    StoreUnavailable,
    StreamLifetimeReached,
)
from exchange_service.v1.exchange_service_pb2 import StreamBalancesRequest, StreamBalancesResponse

_RESUMABLE = (ShuttingDown, StreamLifetimeReached, StoreUnavailable, ServiceOverloaded, ServiceUnreachable)
# In seconds.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The stream has ended with `error`, and is opened again after `delay` seconds. Until the next event nothing is
    known of changes. `attempt` counts from 1 since the last event of the service."""

    error: ServiceError
    attempt: int
    delay: float


class Resumption:
    """One stream of a caller, over the streams of the service that it takes.

    `renews` is whether each stream has a newly made token. `reached` says whether the service has ever answered.
    """

    def __init__(self, position: StreamPosition, *, resume: bool, renews: bool, reached: Callable[[], bool]) -> None:
        self._position = position
        self._resume = resume
        self._renews = renews
        self._reached = reached
        self._pause = 0.0
        self._attempt = 0
        # Whether the present stream has brought an event.
        self._received = False

    def request(self) -> StreamBalancesRequest:
        """The request of the next stream."""
        self._received = False
        return self._position.request()

    def advance(self, event: StreamBalancesResponse) -> None:
        """Take over what an event says."""
        self._position.advance(event)
        self._received = True
        self._pause = 0.0
        self._attempt = 0

    def after(self, error: ServiceError) -> Reconnecting:
        """What to do after the stream ended with this error; raises it if the caller should choose."""
        if not self._resume or not self._may_resume(error):
            raise error
        self._attempt += 1
        self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        # Not all clients of a service that was away at the same moment. Randomness without secrets.
        jittered = self._pause * random.uniform(0.5, 1.0)  # noqa: S311
        return Reconnecting(error, self._attempt, max(error.retry_after or 0.0, jittered))

    def _may_resume(self, error: ServiceError) -> bool:
        if isinstance(error, CallerUnknown):
            # A token that was never accepted does not become valid by asking again.
            return self._renews and self._received
        if isinstance(error, ServiceUnreachable):
            # An address that was never right does not become so by waiting.
            return self._reached()
        if isinstance(error, ServiceOverloaded):
            # A service that is full may stay so. A stream that it had taken comes back, as all do after a restart.
            return self._position.began
        return isinstance(error, _RESUMABLE)
