"""The ways in which a venue's pushes fail, and what subscribers notice of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.push_subscribers import Subscriber, key_of
from benchmarks.pushing_venue import PushingVenue
from exchange_service.testing.push import PushFault

# Seconds in which pushes are to be back after a fault: the longest pauses of a connection and of an account, twice.
_BACK_LIMIT = 240.0
# Seconds behind the venue with which an account counts as pushed again.
_CLOSE = 1.0


@dataclass(frozen=True, slots=True)
class Failing:
    """A fault, and how many seconds pass between two ends of every connection; 0: they are not ended."""

    fault: PushFault
    drop_every: float = 0.0


@dataclass(frozen=True, slots=True)
class Endured:
    """What came of a fault: the most seconds that a subscriber was behind, and those until all were pushed again."""

    behind: float
    back_after: float
    false: int
    went_back: int
    ended: int


_UNKNOWN = tuple(
    json.dumps(message)
    for message in (
        {"type": "novelty", "account": "nobody", "amount": "5"},
        {"account": 7, "number": "x"},
        {"account": "nobody", "number": 99, "amount": "5"},
    )
)
FAULTS: Mapping[str, Failing] = {
    "silence": Failing(PushFault(silent=True)),
    "half-open": Failing(PushFault(half_open=True)),
    "drop": Failing(PushFault(), 5.0),
    "refused": Failing(PushFault(refused=503), 1.0),
    "nonsense": Failing(PushFault.nonsense()),
    "oversized": Failing(PushFault.oversized()),
    "replay": Failing(PushFault(replay=True)),
    "shuffled": Failing(PushFault(shuffled=7)),
    "another user's": Failing(PushFault(to_everybody=True, replay=True, shuffled=5)),
    "unknown types": Failing(PushFault(before=_UNKNOWN)),
    "storm of resubscriptions": Failing(PushFault(), 0.2),
}


async def endure(
    venue: PushingVenue, subscribers: Sequence[Subscriber], failing: Failing, seconds: float, rate: float = 1.0
) -> Endured:
    """Let the venue fail for so many seconds while each account changes `rate` times a second, and recover."""
    before = _counts(subscribers)
    venue.push.fail(failing.fault)
    if failing.fault.refused:
        venue.push.drop_all()
    began = dropped_at = time.monotonic()
    done, behind = 0, 0.0
    while (passed := time.monotonic() - began) < seconds:
        done = _change(subscribers, done, passed * rate)
        if failing.drop_every and time.monotonic() - dropped_at >= failing.drop_every:
            dropped_at = time.monotonic()
            venue.push.drop_all()
        behind = max(behind, max(one.behind for one in subscribers))
        await asyncio.sleep(0.02)
    venue.push.recover()
    back_after = await _until_back(venue, subscribers, rate)
    false, went_back, ended = (now - then for now, then in zip(_counts(subscribers), before, strict=True))
    return Endured(behind, back_after, false, went_back, ended)


def _change(subscribers: Sequence[Subscriber], done: int, rounds: float) -> int:
    """Change accounts in turn until each was changed in so many rounds."""
    while done < rounds * len(subscribers):
        subscribers[done % len(subscribers)].change()
        done += 1
    return done


async def _until_back(venue: PushingVenue, subscribers: Sequence[Subscriber], rate: float) -> float:
    """Go on with the changes until all accounts are pushed again. Returns the seconds."""
    began, done = time.monotonic(), 0
    keys = {key_of(one.user) for one in subscribers}
    async with asyncio.timeout(_BACK_LIMIT):
        while True:
            done = _change(subscribers, done, (time.monotonic() - began) * rate)
            if venue.followed().keys() >= keys and all(one.pushed and one.behind < _CLOSE for one in subscribers):
                return time.monotonic() - began
            await asyncio.sleep(0.02)


def _counts(subscribers: Sequence[Subscriber]) -> tuple[int, int, int]:
    return (
        sum(one.false for one in subscribers),
        sum(one.went_back + one.versions_back for one in subscribers),
        sum(one.ended for one in subscribers),
    )
