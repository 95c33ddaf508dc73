"""Two users on one socket: whatever comes, in every order, neither gets what is the other's.

The suite sends a hundred thousand messages; `make two-users` a million.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from exchange_service_hyperliquid.push import HyperliquidLanguage
from exchange_service_hyperliquid.push import topics as hyperliquid_topics
from exchange_service_lighter.push import LighterLanguage
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from exchange_service.errors import CredentialRejected, VenueError, VenueMalformed, VenueUnavailable
from exchange_service.model import PushLimits
from exchange_service.plugin_api import PushLanguage, State, subscribed
from exchange_service.pytest_plugin import SWEEP

MESSAGES = int(os.environ.get("EXCHANGE_SERVICE_PUSHED_MESSAGES", "100000"))
# Messages of one example, which shrinks with the kinds of them.
AN_EXAMPLE = 5000
# Each user's figures begin at another million, so a figure tells whose it is. Nobody follows the third one's.
USERS = {"alice": 1_000_000, "bob": 2_000_000, "carol": 3_000_000}


@dataclass(frozen=True)
class Dialect:
    """How a venue's messages are made and read, for a test that knows nothing else of the venue."""

    name: str
    language: Callable[[], PushLanguage]
    topics: Callable[[str], Sequence[Any]]
    # The messages that acknowledge a user's topics.
    acknowledgements: Callable[[str], list[Any]]
    # A message that gives a user this figure, and the figures of what a subscription holds.
    value: Callable[[str, int], Any]
    figures: Callable[[Mapping[Any, Any]], Iterable[int]]
    # One that says nothing of anybody.
    nothing: Any
    # One that refuses a user's topic.
    error: Callable[[str], Any]
    # What the venue says first on a connection.
    greeting: tuple[Any, ...] = ()


class Whole(PushLanguage):
    """Each message holds the whole state of those that it names."""

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"subscribe": topic}) for topic in topics]

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        if not isinstance(message, dict):
            raise VenueMalformed("This is no message of the venue.")
        if "refused" in message:
            yield message["refused"], CredentialRejected("The venue refuses the topic.")
        yield from message.get("users", {}).items()


class Folded(Whole):
    """Each message holds one of three parts, and nothing is whole without the first."""

    def state(self, topic: Any, before: Any, part: Any) -> Any:
        if part == -1:
            raise VenueMalformed("The value is malformed.")
        return {**(before or {}), part % 3: part}


DIALECTS = [
    Dialect(
        "wholes",
        lambda: Whole("wss://push.acme.example"),
        lambda user: [user],
        lambda user: [{"users": {user: None}}],
        lambda user, figure: {"users": {user: figure}},
        lambda states: states.values(),
        {},
        lambda user: {"refused": user},
    ),
    Dialect(
        "parts",
        lambda: Folded("wss://push.acme.example"),
        lambda user: [user],
        lambda user: [{"users": {user: None}}],
        lambda user, figure: {"users": {user: figure, "carol": USERS["carol"] + figure % 1000}},
        lambda states: [figure for state in states.values() for figure in state.values()],
        {},
        lambda user: {"users": {user: -1}},
    ),
]


ADDRESSES = {user: f"0x{number:040x}" for number, user in enumerate(USERS, 1)}


def hyperliquid_state(user: str, figure: int) -> Any:
    """A whole state of spot or of perpetuals."""
    if figure % 2:
        balances = [{"coin": "USDC", "token": 0, "total": str(figure), "hold": "0.0"}]
        return {"channel": "spotState", "data": {"user": ADDRESSES[user], "spotState": {"balances": balances}}}
    state = {"marginSummary": {"accountValue": str(figure)}, "withdrawable": str(figure), "assetPositions": []}
    return {
        "channel": "clearinghouseState",
        "data": {"dex": "", "user": ADDRESSES[user].upper().replace("X", "x"), "clearinghouseState": state},
    }


def hyperliquid_figures(states: Mapping[Any, Any]) -> Iterable[int]:
    for state in states.values():
        if "balances" in state.payload:
            yield from (int(row["total"]) for row in state.payload["balances"])
        else:
            yield int(state.payload["marginSummary"]["accountValue"])


def hyperliquid_answer(user: str, kind: str) -> Any:
    subscription = {"type": kind, "user": ADDRESSES[user]}
    return {"channel": "subscriptionResponse", "data": {"method": "subscribe", "subscription": subscription}}


INDEXES = {user: number for number, user in enumerate(USERS, 101)}


def lighter_wholes(user: str) -> list[Any]:
    """The first message of each channel."""
    index, first = INDEXES[user], str(USERS[user])
    stats = dict.fromkeys(("collateral", "portfolio_value", "available_balance"), first)
    assets = {"1": {"asset_id": 1, "symbol": "ETH", "balance": first}}
    return [
        {"type": "subscribed/user_stats", "channel": f"user_stats:{index}", "stats": stats},
        {"type": "subscribed/account_all", "channel": f"account_all:{index}", "account": index, "positions": {},
         "assets": assets, "shares": []},
    ]  # fmt: skip


def lighter_part(user: str, figure: int) -> Any:
    """A message of what has changed: one figure, or one asset."""
    index = INDEXES[user]
    if figure % 2:
        name = ("collateral", "portfolio_value", "available_balance")[figure % 3]
        return {"type": "update/user_stats", "channel": f"user_stats:{index}", "stats": {name: str(figure)}}
    number = figure % 3
    asset = {"asset_id": number, "symbol": f"A{number}", "balance": str(figure)}
    return {"type": "update/account_all", "channel": f"account_all:{index}", "assets": {str(number): asset}}


def lighter_figures(states: Mapping[Any, Any]) -> Iterable[int]:
    for state in states.values():
        amounts = state.amounts().values() if hasattr(state, "assets") else (state.collateral, state.equity)
        yield from map(int, amounts)
        yield from [] if hasattr(state, "assets") else [int(state.available)]


OF_VENUES = [
    Dialect(
        "hyperliquid",
        lambda: HyperliquidLanguage("wss://push.acme.example"),
        lambda user: hyperliquid_topics(ADDRESSES[user], ()),
        lambda user: [hyperliquid_answer(user, kind) for kind in ("spotState", "clearinghouseState")],
        hyperliquid_state,
        hyperliquid_figures,
        {"channel": "pong"},
        lambda user: {
            "channel": "error",
            "data": f'Invalid subscription {{"type":"spotState","user":"{ADDRESSES[user]}"}}',
        },
    ),
    Dialect(
        "lighter",
        lambda: LighterLanguage("wss://push.acme.example"),
        lambda user: [f"{channel}:{INDEXES[user]}" for channel in ("user_stats", "account_all")],
        lighter_wholes,
        lighter_part,
        lighter_figures,
        {"type": "pong"},
        lambda user: {"error": {"code": 30009, "message": "Too many"}, "channel": f"user_stats:{INDEXES[user]}"},
        ({"type": "connected"},),
    ),
]

DIALECTS += OF_VENUES


class Socket:
    """A socket that gives what it is fed, in this order."""

    def __init__(self, greeting: Sequence[Any]) -> None:
        self.greeting = [json.dumps(message) for message in greeting]
        self.waiting: list[str] = []
        self.fed = asyncio.Event()
        self.drained = asyncio.Event()
        self.opened = 0
        self.subscriptions = 0

    async def send(self, message: str) -> None:
        pass

    async def receive(self) -> str:
        while not self.waiting:
            self.drained.set()
            self.fed.clear()
            await self.fed.wait()
        return self.waiting.pop()

    async def feed(self, messages: Sequence[str]) -> None:
        """Give these messages, and return when they are read."""
        self.waiting.extend(reversed(messages))
        self.drained.clear()
        self.fed.set()
        await self.drained.wait()

    @asynccontextmanager
    async def websocket(self, *_: Any, **__: Any) -> AsyncIterator[Socket]:
        self.opened += 1
        self.waiting.extend(reversed(self.greeting))
        yield self


class Reader:
    """A user's side: follows, checks what comes, and follows again after an error."""

    def __init__(self, dialect: Dialect, user: str) -> None:
        self.dialect = dialect
        self.user = user
        self.turns = 0
        self.last: Mapping[Any, Any] = {}
        self.wrong: list[Any] = []

    async def read(self, call: Any) -> None:
        """Follow until the connection is closed."""
        while True:
            try:
                async with subscribed(call, self.dialect.language(), self.dialect.topics(self.user)) as subscription:
                    async for states in subscription:
                        self._check(states)
            except VenueUnavailable:
                return
            except VenueError:
                self.last = {}

    def _check(self, states: Mapping[Any, Any]) -> None:
        self.turns += 1
        self.last = states
        first = USERS[self.user]
        figures = list(self.dialect.figures(states))
        if not set(states) <= set(self.dialect.topics(self.user)):
            self.wrong.append(states)
        if not all(first <= figure < first + 1_000_000 for figure in figures):
            self.wrong.append(states)


KINDS = ["value", "value of the other", "value of a third", "replay", "nonsense", "nothing", "error", "late"]


def messages(dialect: Dialect, kinds: Sequence[str], order: random.Random) -> list[str]:
    """So many messages of these kinds, in an order by chance; nonsense never without a message behind it."""
    made: list[Any] = [*dialect.acknowledgements("alice"), *dialect.acknowledgements("bob")]
    made = [[json.dumps(message)] for message in made]
    for number in range(AN_EXAMPLE // len(kinds)):
        figure = number + order.randrange(1000)
        for kind in kinds:
            made.append(_made(dialect, kind, figure, made, order))
    order.shuffle(made)
    return [text for unit in made for text in unit]


def _made(dialect: Dialect, kind: str, figure: int, before: list[list[str]], order: random.Random) -> list[str]:
    user = {"value": "alice", "value of the other": "bob", "value of a third": "carol"}.get(kind)
    if user is not None:
        return [json.dumps(dialect.value(user, USERS[user] + figure))]
    if kind == "replay":
        return before[order.randrange(len(before))]
    if kind == "nonsense":
        return [order.choice(["<html>", "", "NaN", "null", "[[[["]), json.dumps(dialect.nothing)]
    if kind == "error" and order.random() < 0.02:
        return [json.dumps(dialect.error(order.choice(["alice", "bob"])))]
    return [json.dumps(dialect.nothing)]


async def follow_both(dialect: Dialect, kinds: Sequence[str], seed: int) -> tuple[list[Reader], Socket, int]:
    """Two users follow while the messages come; with "late" the second one begins in their midst."""
    order = random.Random(seed)
    socket = Socket(dialect.greeting)
    exchange = SimpleNamespace(id="acme", name="Acme", push=PushLimits())
    call = SimpleNamespace(exchange=exchange, http=socket, plugin_state=State(), way="")
    readers = [Reader(dialect, "alice"), Reader(dialect, "bob")]
    begun = [asyncio.create_task(readers[0].read(call))]
    texts = messages(dialect, kinds, order)
    half = order.randrange(len(texts)) if "late" in kinds else 0
    await socket.feed(texts[:half])
    begun.append(asyncio.create_task(readers[1].read(call)))
    await asyncio.sleep(0)
    await socket.feed(texts[half:])
    # The last word of each, so that what they hold in the end is known.
    ends = [dialect.value(reader.user, USERS[reader.user] + 999_999) for reader in readers]
    acknowledged = [one for reader in readers for one in dialect.acknowledgements(reader.user)]
    for _ in range(3):
        await socket.feed([json.dumps(message) for message in (*acknowledged, *ends)])
        await asyncio.sleep(0)
    await call.plugin_state.close()
    await asyncio.gather(*begun)
    return readers, socket, len(texts)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_neither_of_two_users_ever_gets_the_others_figures(
    dialect: Dialect, record_property: Callable[[str, object], None]
) -> None:
    seen, turns = 0, 0
    examples = max(1, MESSAGES // AN_EXAMPLE // len(DIALECTS))

    # Nothing is shrunk: that would send millions of messages more, and the kinds and the seed are short enough.
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), st.integers(0, 2**32))
    def hold(kinds: list[str], seed: int) -> None:
        nonlocal seen, turns
        readers, socket, count = asyncio.run(follow_both(dialect, kinds, seed))
        seen += count
        turns += sum(reader.turns for reader in readers)
        for reader in readers:
            assert reader.wrong == []
            assert USERS[reader.user] + 999_999 in dialect.figures(reader.last), f"{reader.user} has not the last word"
        assert socket.opened == 1

    hold()
    assert seen >= examples * AN_EXAMPLE * 0.9
    assert turns >= seen / 200, "most of the messages were not followed"
    record_property(SWEEP, ["messages of two users on one socket", [dialect.name], seen, 0, 0])


# What a venue's bug, or another version of it, may put in the place of any value.
WRONG: tuple[Any, ...] = (
    None,
    [],
    {},
    "",
    "x",
    True,
    -1,
    7,
    Decimal("1e-60"),
    "1e60",
    [[]],
    [None],
    {"": None},
    "9" * 40,
)


def altered(value: Any) -> Iterator[Any]:
    """The value with any one value in it replaced by a wrong one, or left out."""
    yield from WRONG
    if isinstance(value, dict):
        for name, inner in value.items():
            yield {other: kept for other, kept in value.items() if other != name}
            yield from ({**value, name: wrong} for wrong in altered(inner))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from ([*value[:place], wrong, *value[place + 1 :]] for wrong in altered(inner))


@pytest.mark.parametrize("dialect", OF_VENUES, ids=lambda dialect: dialect.name)
async def test_a_message_with_something_wrong_in_it_ends_one_topic_at_most(dialect: Dialect) -> None:
    language, tried = dialect.language(), 0
    messages = [
        *dialect.acknowledgements("alice"),
        *(dialect.value("alice", USERS["alice"] + figure) for figure in range(6)),
        dialect.error("alice"),
        dialect.nothing,
    ]
    for message in chain.from_iterable(map(altered, messages)):
        tried += 1
        try:
            parts = list(language.read(message))
            language.reply(message)
        except VenueMalformed:
            continue
        for topic, part in parts:
            hash(topic)
            if part is not None and not isinstance(part, VenueError):
                with suppress(VenueError):
                    language.state(topic, None, part)
    assert tried > 100
