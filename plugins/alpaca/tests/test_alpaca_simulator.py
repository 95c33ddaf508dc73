"""The simulator speaks as Alpaca's documents do: its names are theirs, and so is the type of each value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from exchange_service_alpaca.simulator import AlpacaSimulator

from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"


def documented(name: str) -> Any:
    return json.loads(read_payload(PAYLOADS / f"{name}.json"))


async def ask(venue: AlpacaSimulator, path: str, row: Any) -> tuple[int, Any]:
    headers = {"APCA-API-KEY-ID": row["api_key"], "APCA-API-SECRET-KEY": row["api_secret"]}
    async with aiohttp.ClientSession() as session, session.get(venue.url + path, headers=headers) as response:
        return response.status, await response.json()


def assert_written_as(simulated: dict[str, Any], true: dict[str, Any]) -> None:
    assert simulated.keys() <= true.keys()
    assert {name: type(value) for name, value in simulated.items()} == {name: type(true[name]) for name in simulated}


async def test_an_account_is_written_as_the_documented_one() -> None:
    async with AlpacaSimulator() as venue:
        status, answer = await ask(venue, "/v2/account", venue.demo_credential("moving"))
    assert status == 200
    assert_written_as(answer, documented("account"))


async def test_a_position_is_written_as_the_documented_one() -> None:
    async with AlpacaSimulator() as venue:
        _, answer = await ask(venue, "/v2/positions", venue.demo_credential("moving"))
    for position in answer:
        assert_written_as(position, documented("positions")[0])


async def test_a_short_position_is_negative_in_number_and_worth() -> None:
    async with AlpacaSimulator() as venue:
        _, (position,) = await ask(venue, "/v2/positions", venue.other_credential())
    short = documented("position_short")
    assert position["side"] == short["side"]
    for name in ("qty", "market_value"):
        assert position[name].startswith("-")
        assert short[name].startswith("-")


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        ("wrong key", (403, {"message": "forbidden."})),
        ("wrong environment", (401, {"code": 40110000, "message": "request is not authorized"})),
        ("rate limit", (429, {"code": 42910000, "message": "rate limit exceeded"})),
    ],
)
async def test_a_refusal_is_alpacas_own(trouble: str, expected: tuple[int, Any]) -> None:
    async with AlpacaSimulator() as venue:
        assert await ask(venue, "/v2/account", venue.troubled_credential(trouble)) == expected


async def test_the_socket_says_what_the_documents_say_in_binary_frames() -> None:
    messages = documented("pushed_messages")
    login = {"action": "authenticate", "data": {"key_id": "unknown", "secret_key": "unknown"}}
    listen = {"action": "listen", "data": {"streams": ["trade_updates"]}}
    async with AlpacaSimulator() as venue, aiohttp.ClientSession() as session:
        row = venue.demo_credential("moving")
        assert row is not None
        async with session.ws_connect(venue.url + "/stream") as socket:
            for message, expected in (
                (listen, messages["not_yet_authorized"]),
                (login, messages["unauthorized"]),
                (login | {"data": {"key_id": row["api_key"], "secret_key": row["api_secret"]}}, messages["authorized"]),
                (listen, messages["listening"]),
            ):
                await socket.send_json(message)
                assert json.loads(await socket.receive_bytes()) == expected
            for _ in range(venue.moves_to_a_push):
                venue.move()
            pushed = json.loads(await socket.receive_bytes())
    assert pushed["stream"] == messages["fill"]["stream"]
    assert pushed["data"].keys() <= messages["fill"]["data"].keys()
