"""Hyperliquid's pushes: the language of its socket, and the balance that a wallet's pushed states make.

The venue pushes whole states: `spotState`, and `clearinghouseState` for each dex. That is the same payload as the read
of one dex gives, and names the dex, so a stored dex that holds nothing cannot be mistaken for one that was left out, as
in a list of all dexs. Everything else, such as the mode, the collateral of a dex and the wallet behind an API wallet,
comes from the last read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from exchange_service.plugin_api import (
    Balance,
    Changed,
    NotSupported,
    PushLanguage,
    RequestRefused,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueUnavailable,
    as_object,
    milliseconds,
    parse_json,
    subscribed,
    text,
)
from exchange_service_hyperliquid import parse
from exchange_service_hyperliquid.balance import make_balance
from exchange_service_hyperliquid.client import HyperliquidClient
from exchange_service_hyperliquid.last_read import LastRead, last_reads

# A kind of state, the address in lower case, and the dex: "" for the main dex and for spot.
Topic: TypeAlias = tuple[str, str, str]

_SPOT = "spotState"
_PERPS = "clearinghouseState"
# The name under which a subscription's states hold the last read: it is one more thing that may be news.
_READ = "last read"
# Seconds that the venue waits before an address or a subscription too many may be tried again.
_FULL = 60.0
# What the beginning of an error of the venue means. The numbers that follow have changed before.
_ERRORS = {
    # witness: report: nktkas/hyperliquid#78
    "Cannot track more than": "full",
    "Cannot subscribe to more than": "full",
    "Cannot send more than": "flood",
    # witness: report: https://github.com/nktkas/hyperliquid/blob/main/src/transport/websocket/_dispatcher.ts
    "Already subscribed": "subscribed",
    "Already unsubscribed": "unsubscribed",
    "Invalid subscription": "invalid",
}


@dataclass(frozen=True, slots=True)
class Pushed:
    """A pushed state, not read yet, and when it came, in the event loop's seconds."""

    payload: Any
    arrived: float


def topics(address: str, dexs: Sequence[str]) -> tuple[Topic, ...]:
    """What is followed of a wallet."""
    return ((_SPOT, address, ""), *((_PERPS, address, dex) for dex in ("", *dexs)))


class HyperliquidLanguage(PushLanguage):
    """The language of one connection. Every message names the address that it is of, and its dex."""

    # The venue answers each keep-alive, so it is never silent for longer.
    keep_alive_every = 5.0
    silence = 15.0

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # What the venue has not answered yet, in the order of our messages: some of its errors name no subscription.
        self._unanswered: dict[Topic, None] = {}

    def keep_alive(self) -> str:
        """The venue's own ping."""
        return json.dumps({"method": "ping"})

    def subscribe(self, topics: Sequence[Topic]) -> Iterator[str]:  # type: ignore[override]
        """A message for each topic."""
        for topic in topics:
            self._unanswered[topic] = None
            yield _request("subscribe", topic)

    def unsubscribe(self, topics: Sequence[Topic]) -> Iterator[str]:  # type: ignore[override]
        """A message for each topic."""
        for topic in topics:
            self._unanswered.pop(topic, None)
            yield _request("unsubscribe", topic)

    def read(self, message: Any) -> Iterator[tuple[Topic, Any]]:
        """The state that a message brings, or the answer to a subscription."""
        found = as_object(message, "the message")
        channel = text(found, "channel", "the message")
        if channel in (_SPOT, _PERPS):
            data = as_object(found.get("data"), "data")
            yield _topic(channel, data), _state_in(data, channel)
        elif channel == "subscriptionResponse":
            yield from self._answer(as_object(found.get("data"), "data"))
        elif channel == "error":
            yield from self._error(text(found, "data", "the message"))

    def state(self, topic: Topic, before: Pushed | None, part: Any) -> Pushed:  # type: ignore[override]
        """The newer of two states. Those of spot name no time, so there the later one to come counts."""
        if before is not None and _is_older(part, before.payload):
            return before
        return Pushed(part, asyncio.get_running_loop().time())

    def _answer(self, data: Mapping[str, Any]) -> Iterator[tuple[Topic, Any]]:
        subscription = as_object(data.get("subscription"), "data.subscription")
        if data.get("method") == "subscribe" and subscription.get("type") in (_SPOT, _PERPS):
            topic = _topic(subscription["type"], subscription)
            self._unanswered.pop(topic, None)
            yield topic, None

    def _error(self, told: str) -> Iterator[tuple[Topic, Any]]:
        meaning = next((meaning for beginning, meaning in _ERRORS.items() if told.startswith(beginning)), "")
        if meaning == "flood":
            raise VenueRateLimited("Hyperliquid says that we send too many messages.", retry_after=_FULL)
        topic = _topic_named_in(told) or next(iter(self._unanswered), None)
        if topic is not None and meaning != "unsubscribed":
            self._unanswered.pop(topic, None)
            yield topic, _refusal(meaning)


async def watch_wallet(call: VenueCall) -> AsyncGenerator[Balance | Changed, None]:
    """The wallet's balance at each change, once a read has left what pushes lack; until then that it has changed.

    Raises NotSupported for an account with parts that the venue does not push.
    """
    client = HyperliquidClient(call)
    if client.unpushed is not None:
        raise NotSupported(client.unpushed)
    reads = await last_reads(call)
    while True:
        _require_whole(reads.last)
        followed = topics(_address(client, reads.last), client.dexs)
        async with subscribed(call, HyperliquidLanguage(call.url("push")), followed) as subscription:
            with reads.told_to(partial(subscription.put, _READ)):
                # What came before this moment is older than the read that follows.
                turns = _Turns(client, followed, subscription.states)
                yield Changed()
                async for states in subscription:
                    _require_whole(reads.last)
                    if _address(client, reads.last) != followed[0][1]:
                        # The stored address is an API wallet's, and the read has found its main wallet.
                        break
                    news = await turns.take(states, reads.last)
                    if news is not None:
                        yield news


class _Turns:
    """Makes news of the states of one subscription."""

    def __init__(self, client: HyperliquidClient, followed: Sequence[Topic], states: Mapping[Any, Any]) -> None:
        self._client = client
        self._followed = followed
        self._seen = dict(states)
        self._stood_at = asyncio.get_running_loop().time()

    async def take(self, states: Mapping[Any, Any], last: LastRead | None) -> Balance | Changed | None:
        """What this turn tells of the wallet; None if all of it is in the last read."""
        pushed = {topic: states[topic] for topic in self._followed if topic in states}
        is_new = any(state is not self._seen.get(topic) for topic, state in pushed.items())
        self._seen = dict(states)
        if last is None or not self._knows_all(pushed, last):
            return Changed() if is_new else None
        newer = {topic: state for topic, state in pushed.items() if state.arrived > last.began}
        return await _pushed_balance(self._client, last, newer) if newer else None

    def _knows_all(self, pushed: Mapping[Topic, Pushed], last: LastRead) -> bool:
        """Whether each part is known since the subscription stands. What an older read has found may have changed
        before that, and nobody was told."""
        return last.began >= self._stood_at or len(pushed) == len(self._followed)


async def _pushed_balance(
    client: HyperliquidClient, last: LastRead, newer: Mapping[Topic, Pushed]
) -> Balance | Changed:
    """The balance with the newer states; or that it has changed, if only a read can say what they mean."""
    answers = await client.compute(_with_pushed, last.answers, newer)
    wallet, before = await client.compute(answers.wallet), last.answers.wallet()
    if answers.is_contradictory != last.answers.is_contradictory or (wallet.is_empty and not before.is_empty):
        # The mode is another now, or the venue may not know the address any more.
        return Changed()
    return await make_balance(client, [wallet], last.notes)


def _with_pushed(answers: parse.WalletAnswers, newer: Mapping[Topic, Pushed]) -> parse.WalletAnswers:
    spot = newer.get((_SPOT, answers.address, ""))
    return replace(
        answers,
        spot=answers.spot if spot is None else parse.spot_state(spot.payload),
        perps=tuple(_newer_perps(perps, newer.get((_PERPS, answers.address, perps.dex))) for perps in answers.perps),
    )


def _newer_perps(perps: parse.PerpState, pushed: Pushed | None) -> parse.PerpState:
    if pushed is None:
        return perps
    found = parse.perp_state(pushed.payload, perps.dex, perps.collateral)
    older = found.venue_time is not None and perps.venue_time is not None and found.venue_time < perps.venue_time
    return perps if older else found


def _require_whole(last: LastRead | None) -> None:
    """Raise VenueUnavailable if a part could not be read: polling tries it again sooner than a push would."""
    if last is not None and not last.answers.is_whole:
        raise VenueUnavailable("A part of the account could not be read at Hyperliquid, so it is polled until it can.")


def _address(client: HyperliquidClient, last: LastRead | None) -> str:
    return client.address if last is None else last.answers.address


def _request(method: str, topic: Topic) -> str:
    kind, address, dex = topic
    subscription = {"type": kind, "user": address} | ({"dex": dex} if kind == _PERPS else {})
    return json.dumps({"method": method, "subscription": subscription})


def _topic(kind: str, named: Mapping[str, Any]) -> Topic:
    """The topic that a message or a subscription names. Without a dex it is the main one."""
    dex = named.get("dex") if kind == _PERPS else None
    if dex is not None and not isinstance(dex, str):
        raise VenueMalformed("Hyperliquid's dex should be a text.")
    return kind, text(named, "user", "data").lower(), dex or ""


def _topic_named_in(told: str) -> Topic | None:
    """The topic of the subscription that an error quotes as JSON."""
    quoted = told[told.index("{") : told.rindex("}") + 1] if "{" in told and "}" in told else ""
    try:
        found = parse_json(quoted.encode())
        named = found.get("subscription", found)
        return _topic(named["type"], named)
    except (VenueMalformed, AttributeError, KeyError, TypeError):
        return None


def _refusal(meaning: str) -> VenueError | None:
    """The error of a refused subscription; None for one that stands already."""
    if meaning == "subscribed":
        return None
    if meaning == "full":
        return VenueRateLimited("Hyperliquid pushes no further address or state to us.", retry_after=_FULL)
    return RequestRefused("Hyperliquid refuses to push this account.")


def _state_in(data: Mapping[str, Any], channel: str) -> Any:
    """The state in a message, or the error of one that lacks it: that concerns its own address alone."""
    if data.get(channel) is None:
        return VenueMalformed("Hyperliquid pushed a message without its state.")
    return data[channel]


def _is_older(payload: Any, before: Any) -> bool:
    """Whether the venue's own times say so; not if one is absent."""
    if not (isinstance(payload, dict) and isinstance(before, dict)):
        return False
    time, known = milliseconds(payload, "time", "data"), milliseconds(before, "time", "data")
    return time is not None and known is not None and time < known
