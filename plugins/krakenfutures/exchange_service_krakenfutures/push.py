"""Kraken Futures's pushes: a socket of one key, on which each message about its account is a hint to read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from exchange_service.plugin_api import (
    Changed,
    CredentialRejected,
    PushLanguage,
    Socket,
    Subscription,
    VenueCall,
    VenueUnavailable,
    as_object,
    parse_json,
    require_same_accounts,
    subscribed,
    text,
)
from exchange_service_krakenfutures.balance import Exposure
from exchange_service_krakenfutures.client import NAME, KrakenfuturesClient, login_of
from exchange_service_krakenfutures.signing import sign

BALANCES = "balances"
# Both feeds of the topic: the whole state at first, and then what has changed.
# witness: vendor: https://docs.kraken.com/api/docs/futures-api/websocket/balances
_FEEDS = ("balances_snapshot", "balances")
# Nobody says that a moving price is pushed, so an account with open positions is read at least so often, in seconds.
READ_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Heard:
    """The account that the messages of a connection name, and how many there were."""

    account: str
    messages: int = 1


async def watch(call: VenueCall) -> AsyncGenerator[Changed, None]:
    """A hint when the subscription stands, at each message, and now and then while positions are open.

    Raises a VenueError when the push ends.
    """
    client = KrakenfuturesClient(call)
    exposure = await call.account_state.get(f"exposure {call.account.account_type}", Exposure.new)
    language = KrakenfuturesLanguage(call.url("push"), client)
    async with subscribed(call, language, [BALANCES]) as subscription:
        yield Changed()
        async with aclosing(_turns(subscription)) as turns:
            async for heard in turns:
                if heard is not None:
                    await require_same_accounts(call.account_state, [heard.account], NAME, kind="pushed")
                if heard is not None or exposure.open:
                    yield Changed()


async def _turns(subscription: Subscription) -> AsyncGenerator[Heard | None, None]:
    """What each turn of the subscription tells, and None where none came for a while. Ends as the subscription does."""
    turns = aiter(subscription)
    coming = asyncio.ensure_future(anext(turns))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=READ_EVERY)
            if not done:
                yield None
                continue
            heard = coming.result().get(BALANCES)
            coming = asyncio.ensure_future(anext(turns))
            yield heard
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await coming


class KrakenfuturesLanguage(PushLanguage):
    """The language of one connection, which one key has signed a challenge for.

    Its messages are those of https://docs.kraken.com/api/docs/guides/futures-websockets.
    """

    def __init__(self, url: str, client: KrakenfuturesClient) -> None:
        # The login holds key and secret, so no two users share a connection unless they share both.
        super().__init__(url, login_of(client))
        self._client = client
        self._signed: dict[str, str] = {}

    async def open(self, socket: Socket) -> None:
        """Ask for a challenge and sign it. Raises CredentialRejected if the venue has none for the key."""
        await socket.send(json.dumps({"event": "challenge", "api_key": self._client.key}))
        # A greeting of the venue may come before.
        while (message := as_object(parse_json(await socket.receive()), "a message")).get("event") != "challenge":
            if message.get("event") in ("error", "alert"):
                raise CredentialRejected("Kraken Futures has no challenge for the key of its pushes.")
        challenge = text(message, "message", "the challenge")
        self._signed = {
            "api_key": self._client.key,
            "original_challenge": challenge,
            "signed_challenge": sign(self._client.secret, challenge),
        }

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """The balances; and the venue's heartbeat, which shows that it is there while nothing changes."""
        return [json.dumps({"event": "subscribe", "feed": "heartbeat"}), self._balances("subscribe")]

    def unsubscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """The end of the balances."""
        return [self._balances("unsubscribe")]

    def read(self, message: Any) -> Iterator[tuple[str, Any]]:
        """An acknowledgement, a refusal, or the account whose balances have changed."""
        found = as_object(message, "the message")
        event = text(found, "event", "the message", required=False)
        feed = text(found, "feed", "the message", required=False)
        if event == "alert" or (event == "subscribed_failed" and feed == BALANCES):
            yield BALANCES, CredentialRejected("Kraken Futures refuses the key for its pushes.")
        elif event == "error":
            yield BALANCES, VenueUnavailable("Kraken Futures does not take our subscription.")
        elif event == "subscribed" and feed == BALANCES:
            yield BALANCES, None
        elif not event and feed in _FEEDS:
            yield BALANCES, text(found, "account", "the message")

    def state(self, topic: Any, before: Heard | None, part: str) -> Heard:
        """Another message about the same account. One about another account is not for this connection."""
        if before is None:
            return Heard(part)
        return Heard(part, before.messages + 1) if part == before.account else before

    def _balances(self, event: str) -> str:
        return json.dumps({"event": event, "feed": BALANCES, **self._signed})
