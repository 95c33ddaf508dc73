"""What was seen while a fault lasted: by the clients, by the venue and by the program that caused the fault.

All times are of `time.monotonic()`, which the processes of one machine share, but for those named wall times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

EventKind = Literal["balance", "error", "heartbeat", "end"]


@dataclass(frozen=True, slots=True)
class Reply:
    """One GetBalance. `reason` is empty for a balance, and for a failure without an ErrorInfo."""

    caller: str
    replica: int
    user: str
    account: str
    begin: float
    end: float
    # Seconds that the caller gave the call.
    deadline: float
    # The gRPC code's name; "OK" for a balance.
    code: str
    reason: str = ""
    # Of a balance: whose it is, as its amounts say, and which answer of the venue.
    version: int = 0
    value_user: str = ""
    seq: int = 0
    age: float = 0.0
    source: str = ""
    # Why the balance is stale; empty if it is not.
    stale: str = ""
    # Wall time.
    fetch_time: float = 0.0
    # Of the request. None: as the service is set.
    max_age: float | None = None
    known_version: int = 0
    # Whether nobody has asked for the account before.
    new: bool = False
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether a balance came."""
        return self.code == "OK"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; a heartbeat is an Event for each of its accounts. `attempt` counts the subscriber's
    streams: a stream that goes on elsewhere is the next one."""

    subscriber: str
    attempt: int
    # -1: not known, as the client library chose it.
    replica: int
    user: str
    account: str
    time: float
    kind: EventKind
    # Of a balance, and of a heartbeat.
    version: int = 0
    value_user: str = ""
    seq: int = 0
    age: float | None = None
    source: str = ""
    stale: str = ""
    fetch_time: float = 0.0
    # Of an error, of a heartbeat's account that has one, and of an end. Empty for an end without an ErrorInfo.
    reason: str = ""
    code: str = ""
    message: str = ""
    # Whether this subscriber reads late on purpose, so that events are old when it takes them.
    slow: bool = False


@dataclass(frozen=True, slots=True)
class VenueAnswer:
    """One answer of the venue. `seq` is 0 for a refusal, and `kind` then says which; "ok" for a balance."""

    user: str
    account: str
    seq: int
    # When the request came, when the figure was made, and when the answer was sent whole (0.0: it never was).
    begin: float
    made: float
    sent: float
    kind: str = "ok"


@dataclass(frozen=True, slots=True)
class Mark:
    """What the nemesis did: "warm" (clients are there), "begin", "heal", "well" (all is as before) or "over"."""

    name: str
    time: float
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Lag:
    """How many seconds late a loop that only sleeps was: of a process that measures, not of the service."""

    time: float
    seconds: float
    process: str = ""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a replica holds: before the fault and after it, under the same clients."""

    replica: int
    when: Literal["before", "after"]
    time: float
    files: int
    # Bytes.
    memory: int
    threads: int
    # Calls, feeds, streams and fetches that are open, by the replica's own metrics.
    open: int
    # Counts processes, so that a restarted one is not compared with its predecessor.
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Sighting:
    """A secret where it must not be."""

    place: str
    text: str


Record = Reply | Event | VenueAnswer | Mark | Lag | Footprint | Sighting
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Reply, Event, VenueAnswer, Mark, Lag, Footprint, Sighting)}


@dataclass(slots=True)
class History:
    """All records of one fault, each kind in the order of its time."""

    replies: list[Reply] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answers: list[VenueAnswer] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    lags: list[Lag] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[Record]) -> History:
        """A history of these records."""
        made = cls()
        lists: dict[type, list[Any]] = {
            Reply: made.replies,
            Event: made.events,
            VenueAnswer: made.answers,
            Mark: made.marks,
            Lag: made.lags,
            Footprint: made.footprints,
            Sighting: made.sightings,
        }
        for record in records:
            lists[type(record)].append(record)
        made.replies.sort(key=lambda reply: reply.end)
        made.events.sort(key=lambda event: event.time)
        made.answers.sort(key=lambda answer: answer.made)
        return made

    def at(self, name: str) -> float | None:
        """When the mark of this name was set; None if it was not."""
        return next((mark.time for mark in self.marks if mark.name == name), None)

    def lag(self, begin: float, end: float) -> float:
        """The greatest lag between two times, and half a second around them: what the machine was too slow by."""
        return max((lag.seconds for lag in self.lags if begin - 0.5 <= lag.time <= end + 0.5), default=0.0)

    def records(self) -> Iterator[Record]:
        """All records."""
        lists: Sequence[Sequence[Record]] = (
            self.marks,
            self.answers,
            self.replies,
            self.events,
            self.lags,
            self.footprints,
            self.sightings,
        )
        for records in lists:
            yield from records

    def write(self, file: Path) -> None:
        """As JSON lines, for a look by hand."""
        file.write_text("".join(f"{as_line(record)}\n" for record in self.records()))


def as_line(record: Record) -> str:
    """The record as one line of JSON."""
    return json.dumps({"kind_of_record": type(record).__name__, **asdict(record)})


def from_line(line: str) -> Record:
    """The record of a line that `as_line` made."""
    fields = json.loads(line)
    record: Record = _KINDS[fields.pop("kind_of_record")](**fields)
    return record


def read(file: Path, offset: int = 0) -> tuple[list[Record], int]:
    """The records of a file from `offset` on, and where the next ones begin; a line that is not whole is left."""
    with file.open("rb") as lines:
        lines.seek(offset)
        data = lines.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [from_line(line) for line in whole.decode().splitlines()], offset + len(whole)
