"""Alpaca's pushes: what is sent, and what each message becomes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from exchange_service_alpaca import ALPACA, push, watch_balance
from exchange_service_alpaca.push import ORDERS, AlpacaLanguage, watch_orders
from exchange_service_alpaca.simulator import AlpacaSimulator, SimulatedAccount

from exchange_service.plugin_api import Changed, CredentialRejected, NotSupported, VenueMalformed, parse_json
from exchange_service.testing import venue_call
from exchange_service.testing.witnesses import read_payload

MESSAGES = parse_json(read_payload(Path(__file__).parents[1] / "payloads" / "pushed_messages.json"))
KEY = "PKFORTESTS"


def row_of(venue: AlpacaSimulator) -> Mapping[str, Any]:
    return venue.add_key(KEY, SimulatedAccount("an-id", "PA3TESTS0001", moving=True))


@asynccontextmanager
async def watching(venue: AlpacaSimulator, row: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[Changed]]:
    """The hints that a watch brings."""
    async with venue_call(ALPACA, override=venue.url, **row) as call, aclosing(watch_orders(call)) as hints:
        yield hints


async def test_an_account_is_not_followed_unless_the_operator_says_so() -> None:
    async with AlpacaSimulator() as venue:
        async with venue_call(ALPACA, override=venue.url, settings={"follow_orders": False}, **row_of(venue)) as call:
            with pytest.raises(NotSupported, match="follow_orders"):
                await anext(aiter(watch_balance(call)))
        assert venue.requests == []


async def test_the_watch_begins_with_a_hint_and_an_order_is_another() -> None:
    async with AlpacaSimulator() as venue, watching(venue, row_of(venue)) as hints:
        assert isinstance(await anext(hints), Changed)
        for _ in range(venue.moves_to_a_push):
            venue.move()
        assert isinstance(await anext(hints), Changed)


async def test_what_moves_without_a_message_is_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "READ_EVERY", 0.05)
    async with AlpacaSimulator() as venue, watching(venue, row_of(venue)) as hints:
        for _ in range(3):
            assert isinstance(await anext(hints), Changed)


async def test_a_refused_key_is_a_refused_credential() -> None:
    async with AlpacaSimulator() as venue, watching(venue, {**row_of(venue), "api_secret": "another"}) as hints:
        with pytest.raises(CredentialRejected):
            await anext(hints)


async def test_two_keys_share_no_connection() -> None:
    async with AlpacaSimulator() as venue:
        other = venue.other_credential()
        async with watching(venue, row_of(venue)) as hints, watching(venue, other) as others:
            await anext(hints)
            await anext(others)
            assert {client.account for client in venue.push.clients} == {KEY, other["api_key"]}


class TestMessages:
    """The words of the socket."""

    language = AlpacaLanguage("wss://api.alpaca.markets/stream")

    def test_the_venue_takes_our_words(self) -> None:
        listen = {"action": "listen", "data": {"streams": ["trade_updates"]}}
        assert list(map(json.loads, self.language.subscribe([ORDERS]))) == [listen]
        assert json.loads(self.language.keep_alive()) == listen
        (leave,) = map(json.loads, self.language.unsubscribe([ORDERS]))
        assert leave == {"action": "listen", "data": {"streams": []}}

    def test_an_acknowledgement_and_an_order_are_of_the_stream_that_they_name(self) -> None:
        assert list(self.language.read(MESSAGES["listening"])) == [(ORDERS, None)]
        ((stream, part),) = self.language.read(MESSAGES["fill"])
        assert (stream, part["event"]) == (ORDERS, "fill")

    def test_a_venue_that_forgets_the_login_ends_the_connection(self) -> None:
        assert list(self.language.read(MESSAGES["authorized"])) == []
        for name in ("unauthorized", "not_yet_authorized"):
            with pytest.raises(CredentialRejected):
                list(self.language.read(MESSAGES[name]))

    @pytest.mark.parametrize(
        "message", [{"stream": "listening", "data": {"streams": []}}, {"stream": "new in 2030", "data": {}}]
    )
    def test_anything_else_is_passed_over(self, message: dict[str, Any]) -> None:
        assert list(self.language.read(message)) == []

    @pytest.mark.parametrize(
        "message", [None, [], {}, {"stream": 7}, {"stream": ORDERS}, {"stream": ORDERS, "data": {}}]
    )
    def test_a_message_without_its_stream_or_event_is_malformed(self, message: Any) -> None:
        with pytest.raises(VenueMalformed):
            list(self.language.read(message))
