"""Tradier's account events: orders are hints to read again. Tradier allows a user one session of them at a time."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from exchange_service.plugin_api import (
    Changed,
    NotSupported,
    PushLanguage,
    Socket,
    Subscription,
    VenueCall,
    VenueError,
    VenueUnavailable,
    subscribed,
)
from exchange_service_tradier import parse
from exchange_service_tradier.client import TradierClient

# The one topic of a session. An event names its account, but the vendor's example names it by its first characters
# only, so each event is a hint for all who follow the token.
_ORDERS = "orders"
# Seconds between two hints while there are positions: equity moves with prices, of which no event tells.
_PRICES = 10.0
# Seconds before the next session after one that ended: at first, and at most. Another program of the user's may have
# taken it, and the next one would take it back. The pause doubles until a session has lasted for an hour.
_FIRST_PAUSE, _LONGEST_PAUSE = 300.0, 3600.0
_LASTING = 3600.0


class OrderEvents(PushLanguage):
    """The socket of one token's session."""

    # Tradier does not say how often heartbeats come. Pings notice a connection that is broken much sooner.
    silence = 300.0
    # What nobody follows here, another replica may follow next, with a session of its own.
    linger = 0.0
    # Nothing answers a subscription.
    acknowledges = False

    def __init__(self, url: str, token: str, new_session: Callable[[], Awaitable[str]]) -> None:
        super().__init__(url, login=token)
        self._new_session = new_session

    async def open(self, socket: Socket) -> None:
        session = await self._new_session()
        await socket.send(json.dumps({"events": ["order"], "sessionid": session, "excludeAccounts": []}))

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        # The greeting has subscribed to everything.
        return ()

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        # An event has no state: each is another object, and so another turn.
        return [(_ORDERS, object())] if parse.is_order_event(message) else []


class Sessions:
    """When the next session of a token may be asked for."""

    def __init__(self) -> None:
        self._open = False
        self._begun = 0.0
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE

    def check(self, now: float) -> None:
        """Raise VenueUnavailable with the remaining wait, if the last session ended not long ago."""
        if not self._open and now < self._not_before:
            raise VenueUnavailable(
                "Tradier's session for order events ended, and the next one is not asked for yet: Tradier allows a "
                "user one at a time, and another program may have it.",
                retry_after=self._not_before - now,
            )

    def begin(self, now: float) -> None:
        """A session is made, or refused because there is another one."""
        self._open, self._begun = True, now

    def end(self, now: float) -> float:
        """The session has ended. Returns the seconds before the next one; all who shared it may call this."""
        if self._open:
            self._open = False
            if now - self._begun >= _LASTING:
                self._pause = _FIRST_PAUSE
            self._not_before = now + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return max(0.0, self._not_before - now)


async def watch_orders(
    call: VenueCall, language: type[OrderEvents] = OrderEvents, prices: float = _PRICES
) -> AsyncGenerator[Changed, None]:
    """A hint when the session stands, after each event of an order, and every `prices` seconds while there are
    positions. Raises VenueUnavailable with a delay of minutes when the session ends."""
    if call.exchange.credential_of:
        raise NotSupported("Tradier allows a user one session for order events, and the listing tradier has it.")
    client = TradierClient(call)
    sessions = await call.plugin_state.get(f"sessions {_digest(client.token)}", _new_sessions)
    sessions.check(asyncio.get_running_loop().time())
    positions = await client.positions()
    async with _session(call, client, sessions, language) as subscription:
        yield Changed()
        while True:
            if await _is_told(subscription, prices) or positions.may_be_held:
                yield Changed()


@asynccontextmanager
async def _session(
    call: VenueCall, client: TradierClient, sessions: Sessions, language: type[OrderEvents]
) -> AsyncIterator[Subscription]:
    """The subscription to the events of the token's session, which is made if there is none."""
    loop = asyncio.get_running_loop()

    async def new_session() -> str:
        session = await client.event_session()
        sessions.begin(loop.time())
        if session is None:
            raise _ended(sessions.end(loop.time()))
        return session

    spoken = language(f"{call.url('push')}/accounts/events", client.token, new_session)
    async with subscribed(call, spoken, [_ORDERS]) as subscription:
        try:
            yield subscription
        except VenueError as error:
            delay = sessions.end(loop.time())
            if isinstance(error, VenueUnavailable):
                raise _ended(delay) from None
            raise


async def _is_told(subscription: Subscription, seconds: float) -> bool:
    """Whether an event came within these seconds. Raises what ended the session."""
    try:
        async with asyncio.timeout(seconds):
            await anext(subscription)
    except TimeoutError:
        return False
    return True


def _ended(delay: float) -> VenueUnavailable:
    return VenueUnavailable(
        "Tradier ended the session for order events. It allows a user one at a time, and another program may have it.",
        retry_after=delay,
    )


async def _new_sessions() -> Sessions:
    return Sessions()


def _digest(token: str) -> str:
    """What a token is named by, where the name may be shown."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]
