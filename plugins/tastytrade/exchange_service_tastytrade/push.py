"""tastytrade's account streamer: a WebSocket for each login, which sends an account's whole figures at each change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from exchange_service.plugin_api import (
    Balance,
    Changed,
    NotSupported,
    PushLanguage,
    Socket,
    Subscription,
    VenueCall,
    VenueUnavailable,
    parse_json,
    subscribed,
)
from exchange_service_tastytrade import parse
from exchange_service_tastytrade.balance import LoginAccounts, PushedAccount, login_accounts, requested_numbers
from exchange_service_tastytrade.client import HEADERS, TastytradeClient

# The least and the most seconds between two heartbeats.
# witness: vendor: https://developer.tastytrade.com/docs/guides/stream-account-updates/
_BETWEEN_HEARTBEATS = (2.0, 60.0)
# Seconds between two hints while positions are open: prices move an account's worth without a message.
_PRICES = 10.0


class StreamerLanguage(PushLanguage):
    """A topic is an account number. `connect` names all of them, so opening the connection subscribes to them."""

    keep_alive_every = _BETWEEN_HEARTBEATS[1] / 4
    # The venue answers each heartbeat.
    silence = _BETWEEN_HEARTBEATS[1]
    acknowledges = False
    # A connection is one login's: nobody else could use it.
    linger = 0.0

    def __init__(self, call: VenueCall, client: TastytradeClient, known: LoginAccounts, numbers: Sequence[str]) -> None:
        super().__init__(call.url("push"), login=" ".join((call.account.account_type, *numbers)))
        self._client = client
        self._known = known
        self._numbers = frozenset(numbers)
        self._sent = 0

    def headers(self) -> Mapping[str, str]:
        return HEADERS

    async def open(self, socket: Socket) -> None:
        await socket.send(await self._message("connect", value=sorted(self._numbers)))
        while not self._connects(parse_json(await socket.receive())):
            pass

    def _connects(self, payload: Any) -> bool:
        """Whether it is the answer to `connect`. Raises what refuses it."""
        for message in parse.pushed_messages(payload):
            self._raise_if_refused(message)
            if message.get("action") == "connect":
                connected = parse.connected_accounts(message)
                if connected is not None and not self._numbers.issubset(connected):
                    raise NotSupported("tastytrade does not push every account of this login.")
                return True
        return False

    async def keep_alive(self) -> str:
        if self._known.read and {account.id for account in self._known.read if account.id} != self._numbers:
            raise VenueUnavailable("The open accounts of this tastytrade login have changed: it is connected again.")
        return await self._message("heartbeat")

    async def _message(self, action: str, **more: Any) -> str:
        """A message with the access token that is valid now: it is renewed before it ends, for reads as well."""
        token = await self._client.token()
        self._sent += 1
        content = {"action": action, **more, "auth-token": f"Bearer {token.secret.reveal()}", "request-id": self._sent}
        return json.dumps(content)

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return ()

    def read(self, message: Any) -> Iterable[tuple[str, Any]]:
        for one in parse.pushed_messages(message):
            self._raise_if_refused(one)
            # Orders, positions and what the venue may add say nothing of a balance.
            if one.get("type") == "AccountBalance":
                yield parse.pushed_number(one), one

    def state(self, topic: Any, before: PushedAccount | None, part: Any) -> PushedAccount | None:
        last = before or self._known.pushed.get(topic)
        order = parse.pushed_at(part)
        if last is not None and order < last.order:
            return before
        return PushedAccount(parse.pushed_account(part, topic), order, asyncio.get_running_loop().time())

    def _raise_if_refused(self, message: Mapping[str, Any]) -> None:
        if not parse.refuses(message):
            return
        if message.get("action") == "connect" and self._client.has_new_token:
            raise NotSupported("tastytrade refuses to push the accounts of this login, with a new access token too.")
        # The venue does not say whether it is the token's fault; a new one costs one request.
        self._client.forget_token()
        raise VenueUnavailable("tastytrade refuses to push this login's accounts, or to go on with it.")


async def watch(call: VenueCall) -> AsyncGenerator[Balance | Changed, None]:
    """`Changed` when the accounts are connected, because nothing is sent then; later each change as a whole balance.

    `Changed` again where a push does not say all: before the first read since then, of an account that the read did not
    list or that has other currencies too, while an account could not be read, and every ten seconds while positions are
    open.
    """
    known = await login_accounts(call)
    client = TastytradeClient(call)
    numbers = await requested_numbers(call, client)
    if not numbers:
        raise NotSupported("This tastytrade login has no open account of the requested type to push.")
    language = StreamerLanguage(call, client, known, numbers)
    async with subscribed(call, language, numbers, state=call.account_state) as subscription:
        loop = asyncio.get_running_loop()
        since, prices_due = loop.time(), loop.time() + _PRICES
        yield Changed()
        while True:
            states = await _next_states(subscription, prices_due if known.has_positions() else None)
            if states is None:
                prices_due = loop.time() + _PRICES
                yield Changed()
                continue
            known.pushed.update((str(number), state) for number, state in states.items())
            yield known.balance() if known.is_complete(since) else Changed()


async def _next_states(subscription: Subscription, until: float | None) -> Mapping[Any, Any] | None:
    """What is known of each account when something has come; None if nothing comes until then, in the loop's time."""
    try:
        async with asyncio.timeout_at(until):
            return await anext(subscription)
    except TimeoutError:
        return None
