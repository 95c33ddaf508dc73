"""Alpaca's pushes: a socket of one key, on which each change of an order is a hint to read the account again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from exchange_service.plugin_api import (
    Changed,
    CredentialRejected,
    PushLanguage,
    Socket,
    VenueCall,
    as_list,
    as_object,
    parse_json,
    subscribed,
    text,
)
from exchange_service_alpaca.client import AlpacaClient

ORDERS = "trade_updates"
# Prices, deposits and fees move the figures without a message, so the account is read at least so often, in seconds.
READ_EVERY = 60.0


async def watch_orders(call: VenueCall) -> AsyncGenerator[Changed, None]:
    """A hint when the subscription stands, at each change of an order, and once a minute.

    Raises a VenueError when the push ends.
    """
    client = AlpacaClient(call)
    # The login holds key and secret, so no two users share a connection.
    language = AlpacaLanguage(call.url("push"), login=_login(client))
    async with subscribed(call, language, [ORDERS]) as subscription:
        yield Changed()
        async for _ in _at_least_every(READ_EVERY, aiter(subscription)):
            yield Changed()


def _login(client: AlpacaClient) -> str:
    return json.dumps({"action": "authenticate", "data": {"key_id": client.key_id, "secret_key": client.secret}})


async def _at_least_every(seconds: float, turns: AsyncIterator[Any]) -> AsyncGenerator[None, None]:
    """An item at each turn, and one where no turn has come for so many seconds. Ends as `turns` does."""
    coming = asyncio.ensure_future(anext(turns))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=seconds)
            if done:
                coming.result()
                coming = asyncio.ensure_future(anext(turns))
            yield
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await coming


class AlpacaLanguage(PushLanguage):
    """The language of one connection. Its messages are JSON, of the paper environment in binary frames.

    The messages are those of https://docs.alpaca.markets/docs/websocket-streaming.
    """

    # Nothing comes while no order changes. Each `listen` is answered, so it shows that the venue is there.
    keep_alive_every = 20.0

    async def open(self, socket: Socket) -> None:
        """Log in. Raises CredentialRejected if the venue refuses the key."""
        await socket.send(self.login)
        answer = as_object(parse_json(await socket.receive()), "the answer to the login")
        _check_authorized(as_object(answer.get("data"), "the answer to the login"))

    def keep_alive(self) -> str:
        """The subscription again, which the venue acknowledges."""
        return _listen([ORDERS])

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """The list of streams. It always is the whole list, and there is one stream."""
        return [_listen(topics)]

    def unsubscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """An empty list of streams, which ends all of them."""
        return [_listen([])]

    def read(self, message: Any) -> Iterator[tuple[str, Any]]:
        """An acknowledgement for each stream that is listened to, or a change of an order."""
        found = as_object(message, "the message")
        stream, data = text(found, "stream", "the message"), as_object(found.get("data"), "the message")
        if stream == "authorization":
            _check_authorized(data)
        elif stream == "listening":
            for name in as_list(data.get("streams"), "streams"):
                if name == ORDERS:
                    yield ORDERS, None
        elif stream == ORDERS:
            text(data, "event", ORDERS)
            yield ORDERS, data


def _listen(streams: Sequence[str]) -> str:
    return json.dumps({"action": "listen", "data": {"streams": list(streams)}})


def _check_authorized(data: Any) -> None:
    if data.get("status") != "authorized":
        raise CredentialRejected("Alpaca refuses the key for its pushes.")
