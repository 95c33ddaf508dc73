"""What CCXT's sockets push, as hints: an account may have changed, and the host reads it.

CCXT's balance of a socket may hold only what has changed, or be old, so nothing of it is ever shown.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, NoReturn

import aiohttp

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    SANDBOX,
    Changed,
    NotSupported,
    VenueCall,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service_ccxt_generic.account_types import UNIFIED, true_type, wallets
from exchange_service_ccxt_generic.credentials import StoredCredential
from exchange_service_ccxt_generic.instances import Instances
from exchange_service_ccxt_generic.pushed import PUSHED, WITHOUT_SANDBOX, why_not_pushed
from exchange_service_ccxt_generic.recording import Recorder
from exchange_service_ccxt_generic.sockets import Failure, Signals

# Seconds without a message of ours after which everything is sent that is needed to listen.
_QUIET = 1.0
# Seconds for opening, signing in and subscribing.
_OPENING_LIMIT = 20.0
# Seconds after which a watch begins again, and the part of them that chance may add or take. Keys for listening live an
# hour, and connections a day.
_LONGEST_WATCH = 1500.0
_SPREAD = 0.2
# Of the connections that a venue allows in a minute, the part that is used: other programs share the address.
_USED_PART = 0.9


async def watch(call: VenueCall) -> AsyncGenerator[Changed, None]:
    """Yield when the account may have changed, and once whenever a subscription stands. Raises NotSupported for an
    account that is not pushed, and a VenueError when a connection breaks."""
    _require_push(call)
    while True:
        listener = Listener(call)
        try:
            await listener.open()
            while await listener.has_changed():
                yield Changed()
        finally:
            await listener.close()


def _require_push(call: VenueCall) -> None:
    """Raise NotSupported if no account of this exchange and environment is pushed."""
    exchange = call.exchange
    if reason := why_not_pushed(exchange.id):
        raise NotSupported(f"{exchange.name} is not pushed: {reason}.")
    if call.environment.name == SANDBOX and exchange.id in WITHOUT_SANDBOX:
        raise NotSupported(f"{exchange.name} is not pushed in its test environment.")


def _chance() -> float:
    """A factor around one, so that watches that began together do not end together."""
    return 1 + random.uniform(-_SPREAD, _SPREAD)  # noqa: S311


def _watched(call: VenueCall, stored: StoredCredential, options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """CCXT's parameters for each wallet of the account. Raises NotSupported if one of them is not pushed."""
    exchange, pushed = call.exchange, PUSHED[call.exchange.id]
    types = _types(call, stored, options)
    if missing := [name for name in types if name not in pushed]:
        raise NotSupported(f"{exchange.name} pushes {' and '.join(pushed)} here, and not {' or '.join(missing)}.")
    return [pushed[name] for name in types]


def _types(call: VenueCall, stored: StoredCredential, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The account types of the wallets that are read; `options` as in `is_unified`."""
    exchange, requested = call.exchange, call.account.account_type
    if requested == ALL_ACCOUNT_TYPES:
        return wallets(exchange.id, exchange.account_types, options)
    wish = stored.wish_for(requested) if requested else stored.wish
    if wish.named and wish.account_type != UNIFIED:
        return (wish.account_type,)
    return (true_type(exchange.id, wish.account_type, options, exchange.account_types),)


class ConnectionTurns:
    """Lets the connections to one venue begin one after the other: it bans an address that begins too many, and making
    CCXT's instance keeps the event loop busy for milliseconds."""

    def __init__(self, connects: int) -> None:
        self._every = 60.0 / (connects * _USED_PART)
        # When the next one may begin, in the event loop's time.
        self._free_at = 0.0

    async def wait(self) -> None:
        """Return when the next connection may begin."""
        now = asyncio.get_running_loop().time()
        begins = max(now, self._free_at)
        self._free_at = begins + self._every
        await asyncio.sleep(begins - now)


class Listener:
    """One connection of one account, with its subscriptions."""

    def __init__(self, call: VenueCall) -> None:
        self._call = call
        self._recorder = Recorder(call.exchange.id, call.exchange.name)
        self._instances = Instances(call, self._recorder)
        self._signals = Signals()
        # What it listens with, and CCXT's module, once it is open.
        self._instance: Any = None
        self._ccxt: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        # When it is time to begin again, in the event loop's time.
        self._ends = 0.0

    async def open(self) -> None:
        """Begin to connect, in turn. Raises a VenueError for an account that is not pushed."""
        turns = await self._call.plugin_state.get(f"turns {self._call.exchange.id} {self._call.way}", self._make_turns)
        await turns.wait()
        self._ends = asyncio.get_running_loop().time() + _LONGEST_WATCH * _chance()
        opened = await self._instances.open_listening(self._signals)
        self._instance, self._ccxt = opened.instance, opened.ccxt
        for parameters in _watched(self._call, opened.stored, opened.instance.options):
            self._start(self._pump(parameters))
        self._start(self._settle())

    async def _make_turns(self) -> ConnectionTurns:
        return ConnectionTurns(self._call.exchange.push.connects or 1)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _pump(self, parameters: Mapping[str, Any]) -> None:
        """Keep CCXT waiting for the account's balance."""
        try:
            with self._recorder.record(self._ccxt):
                while True:
                    await self._instance.watch_balance(dict(parameters))
                    self._signals.hint()
        except Exception as error:
            self._signals.fail(error)

    async def _settle(self) -> None:
        """Hint as soon as the subscriptions stand. CCXT does not tell when, so it is believed when each socket is open,
        the last message is answered, and nothing more is sent for a moment."""
        try:
            async with asyncio.timeout(_OPENING_LIMIT):
                await self._signals.quiet(_QUIET)
                while not self._is_settled():
                    await self._signals.quiet(_QUIET)
        except TimeoutError:
            self._signals.fail(VenueTimeout(f"{self._call.exchange.name} did not answer in time."))
        else:
            self._signals.stands = True
            self._signals.hint()

    def _is_settled(self) -> bool:
        sockets = self._instance.sockets()
        return bool(sockets) and all(socket.is_settled() for socket in sockets)

    async def has_changed(self) -> bool:
        """Wait for a hint; false when it is time to begin again. Raises a VenueError for what broke."""
        try:
            async with asyncio.timeout_at(self._ends):
                await self._signals.hint_or_failure()
        except TimeoutError:
            return False
        if self._signals.failure is not None:
            self._raise(self._signals.failure)
        return True

    def _raise(self, failure: Failure) -> NoReturn:
        """Raise the service's error for what broke."""
        try:
            with self._recorder.record(self._ccxt) as record:
                record.answers.append(failure.answer)
                raise failure.error
        except (OSError, RuntimeError, aiohttp.ClientError):
            # CCXT passes on what the connection raises when a ping or a message cannot be written any more.
            raise VenueUnavailable(f"{self._call.exchange.name} ended the connection.") from None

    async def close(self) -> None:
        """Close the connection, and end all that goes on."""
        for task in self._tasks:
            task.cancel()
        if self._instance is not None:
            await self._instance.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
