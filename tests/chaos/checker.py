"""What must hold in every history: each invariant is a function from a history to the places where it is broken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.chaos.allowances import AGE_TOLERANCE, END_TOLERANCE, asks_allowed, machine_was_late
from tests.chaos.history import Event, Footprint, History, Reply, VenueAnswer

# By how much a replica may have grown: files, bytes, threads, and open calls and streams of clients who come and go.
FILES, MEMORY, THREADS, OPEN = 24, 24_000_000, 8, 30
# Seconds between two venue calls that are one call too many only if they come again and again.
_SLACK_CALLS = 3
# Seconds before the end of the grace, in which a last good balance may be too old already.
_NEAR_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a fault may cost, see `scripts/faults.toml`. Times are in seconds."""

    # Reasons with which calls may fail: any call, one for a new account, and one that asks for a new answer.
    allowed: frozenset[str] = frozenset()
    allowed_new: frozenset[str] = frozenset()
    allowed_forced: frozenset[str] = frozenset()
    # gRPC codes that may come without a reason, because nobody was there to give one.
    bare: frozenset[str] = frozenset()
    # How often the venue may be asked for one account in an interval.
    asks: float = 1.0
    # Until everything is fresh again after the heal.
    recovery: float = 2.0
    # The replicas' settings: until a balance is not fresh any more, what a fetch takes, until it is not shown at all,
    # and between two polls.
    ttl: float = 2.0
    fetch: float = 0.5
    grace: float = 12.0
    interval: float = 1.0


@dataclass(frozen=True, slots=True)
class Violation:
    """One place in a history that should not be."""

    invariant: str
    time: float
    text: str


@dataclass(slots=True)
class Index:
    """A history's answers by account and `seq`, and what versions stand for."""

    answers: dict[tuple[str, str, int], VenueAnswer] = field(default_factory=dict)
    by_version: dict[tuple[str, str, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, history: History) -> Index:
        """The index of a history."""
        made = cls()
        for answer in history.answers:
            # The same figure may be sent twice; its age counts from the last time.
            if answer.seq:
                made.answers[answer.user, answer.account, answer.seq] = answer
        for value in values(history):
            made.by_version[value.user, value.account, value.version] = value.seq
        return made

    def answer(self, value: Reply | Event) -> VenueAnswer | None:
        """The venue's answer that a value is."""
        seq = value.seq or self.by_version.get((value.user, value.account, value.version), 0)
        return self.answers.get((value.user, value.account, seq))


Invariant = Callable[[History, Expectation], list[Violation]]
INVARIANTS: dict[str, Invariant] = {}


def invariant(check: Invariant) -> Invariant:
    """Register an invariant by its name."""
    INVARIANTS[check.__name__] = check
    return check


def check(history: History, expectation: Expectation) -> list[Violation]:
    """Every violation of every invariant, in the order of time."""
    found = [one for holds in INVARIANTS.values() for one in holds(history, expectation)]
    return sorted(found, key=lambda one: one.time)


def values(history: History) -> Iterator[Reply | Event]:
    """Whatever gave a client a balance."""
    yield from (reply for reply in history.replies if reply.ok)
    yield from (event for event in history.events if event.kind == "balance")


def moment(value: Reply | Event) -> float:
    """When the client had it."""
    return value.end if isinstance(value, Reply) else value.time


def who(value: Reply | Event) -> str:
    """The client, for a text."""
    name = value.caller if isinstance(value, Reply) else f"{value.subscriber}.{value.attempt}"
    return f"{name} at replica {value.replica} for {value.user}"


@invariant
def own_user(history: History, _: Expectation) -> list[Violation]:
    """A value is of the user who was asked for."""
    return [
        Violation("own_user", moment(value), f"{who(value)} got a value of {value.value_user or 'nobody'}")
        for value in values(history)
        if value.value_user != value.user
    ]


@invariant
def really_emitted(history: History, _: Expectation) -> list[Violation]:
    """The venue has given that value, for that user and account."""
    index = Index.of(history)
    return [
        Violation("really_emitted", moment(value), f"{who(value)} got answer {value.seq}, which the venue never gave")
        for value in values(history)
        if index.answer(value) is None
    ]


@invariant
def true_age(history: History, _: Expectation) -> list[Violation]:
    """An age is within half a second of the truth at the hand-over, and what the machine was late by. A read that takes
    several requests is as old as the first answer, after which the last request begins."""
    index, found = Index.of(history), []
    for value in [*values(history), *(one for one in history.events if one.kind == "heartbeat")]:
        answer = index.answer(value)
        if answer is None or value.age is None or (isinstance(value, Event) and value.slow):
            continue
        at = moment(value)
        slack = AGE_TOLERANCE + history.lag(at, at)
        least, most = at - max(answer.sent, answer.made), at - min(answer.begin, answer.made)
        if not least - slack <= value.age <= most + slack:
            text = f"{who(value)}: age {value.age:.2f}, true is {least:.2f}"
            found.append(Violation("true_age", at, text))
    return found


@invariant
def staleness_told(history: History, expectation: Expectation) -> list[Violation]:
    """Nothing older than the ttl and a fetch comes without a mark, and nothing older than the grace at all."""
    index, found = Index.of(history), []
    for value in values(history):
        answer = index.answer(value)
        if answer is None or (isinstance(value, Event) and value.slow):
            continue
        at = moment(value)
        age = at - max(answer.sent, answer.made)
        slack = expectation.fetch + AGE_TOLERANCE + history.lag(at, at)
        limit = expectation.ttl
        if isinstance(value, Reply) and value.max_age is not None:
            limit = value.max_age
            # A forced call shares the answer to a request that is in progress already.
            age -= value.end - value.begin if value.max_age == 0 else 0
        if age > limit + slack and not value.stale:
            text = f"{who(value)}: {age:.2f} s old without a mark, allowed is {limit:g} and {slack:.2f}"
            found.append(Violation("staleness_told", at, text))
        elif age > expectation.grace + slack:
            found.append(Violation("staleness_told", at, f"{who(value)}: {age:.2f} s old, more than the grace"))
    return found


@invariant
def versions_rise(history: History, _: Expectation) -> list[Violation]:
    """Versions do not go back: for a client who names the newest one, wherever it asks; for others at one replica.

    A subscriber names its newest versions whenever its stream goes on elsewhere, so all of its attempts count as one.
    """
    seen: dict[tuple[object, ...], int] = defaultdict(int)
    found = []
    for value in _versioned(history):
        version = value.version
        if not version:
            continue
        keys: list[tuple[object, ...]] = []
        if isinstance(value, Event):
            keys.append(("stream", value.subscriber, value.user, value.account))
        elif value.known_version:
            keys.append(("named", value.user, value.account, value.caller))
            seen[keys[-1]] = max(seen[keys[-1]], value.known_version)
        else:
            # Two calls of one caller follow each other, so their order is certain.
            keys.append(("replica", value.caller, value.replica, value.user, value.account))
        for key in keys:
            if version < seen[key]:
                kind = value.kind if isinstance(value, Event) else "reply"
                text = f"{who(value)}: {kind} with version {version} after {seen[key]} ({key[0]})"
                found.append(Violation("versions_rise", moment(value), text))
            seen[key] = max(seen[key], version)
    return found


def _versioned(history: History) -> list[Reply | Event]:
    replies = [reply for reply in history.replies if reply.ok]
    events = [event for event in history.events if event.kind in ("balance", "heartbeat")]
    return sorted([*replies, *events], key=moment)


@invariant
def asked_once(history: History, expectation: Expectation) -> list[Violation]:
    """The venue is asked once for an account and interval, beside the calls that ask for a new answer."""
    asked: dict[tuple[str, str], list[float]] = defaultdict(list)
    forced: dict[tuple[str, str], int] = defaultdict(int)
    warm = history.at("warm") or 0.0
    asks = asks_allowed(expectation.asks, history, warm)
    for answer in history.answers:
        if answer.begin < warm:
            continue
        asked[answer.user, answer.account].append(answer.begin)
    for reply in history.replies:
        named = reply.known_version > 0 or reply.max_age is not None
        forced[reply.user, reply.account] += named
    new = {(reply.user, reply.account) for reply in history.replies if reply.new}
    found = []
    for account, times in asked.items():
        if account in new and len(times) > asks:
            text = f"{account[0]}, a new account, was asked for {len(times)} times"
            found.append(Violation("asked_once", times[-1], text))
        allowed = asks * ((times[-1] - times[0]) / expectation.interval + 1) + forced[account]
        if len(times) > allowed + _SLACK_CALLS:
            seconds = times[-1] - times[0]
            text = f"{account[0]} was asked for {len(times)} times in {seconds:.1f} s, allowed {allowed:.0f}"
            found.append(Violation("asked_once", times[-1], text))
    return found


@invariant
def ends_in_time(history: History, _: Expectation) -> list[Violation]:
    """Every call ends before its deadline and a quarter of a second, and what the machine was late by."""
    found = []
    for reply in history.replies:
        limit = reply.deadline + END_TOLERANCE + history.lag(reply.begin, reply.end)
        if reply.end - reply.begin > limit:
            text = f"{who(reply)}: ended after {reply.end - reply.begin:.2f} s of {reply.deadline:g}"
            found.append(Violation("ends_in_time", reply.end, text))
    return found


@invariant
def reasons_given(history: History, expectation: Expectation) -> list[Violation]:
    """Every failed call and every ended stream carries a reason."""
    found = [
        Violation("reasons_given", reply.end, f"{who(reply)}: a bare {reply.code} ({reply.message[:80]})")
        for reply in history.replies
        if _is_bare(reply, expectation) and not machine_was_late(history, reply)
    ]
    found += [
        Violation("reasons_given", event.time, f"{who(event)}: the stream ended with a bare {event.code}")
        for event in history.events
        if event.kind == "end" and not event.reason and event.code not in expectation.bare
    ]
    return found


@invariant
def no_call_lost(history: History, expectation: Expectation) -> list[Violation]:
    """Calls fail only with the reasons that the table allows, and before the fault not at all."""
    begin, well = history.at("begin"), history.at("well")
    found = []
    for reply in lost(history):
        if machine_was_late(history, reply):
            continue
        during = begin is not None and reply.end >= begin and (well is None or reply.begin <= well)
        if not during or reply.reason not in allowed_for(reply, expectation):
            when = "" if during else " before the fault or after it"
            text = f"{who(reply)}: {reply.reason or reply.code}{when} ({reply.message[:100]})"
            found.append(Violation("no_call_lost", reply.end, text))
    return found


def _is_bare(reply: Reply, expectation: Expectation) -> bool:
    return not reply.ok and not reply.reason and reply.code not in expectation.bare


def lost(history: History) -> list[Reply]:
    """The calls that failed, but for those without a reason, which are another violation."""
    return [reply for reply in history.replies if not reply.ok and reply.reason]


def allowed_for(reply: Reply, expectation: Expectation) -> frozenset[str]:
    """The reasons with which this call may fail."""
    allowed = expectation.allowed
    if reply.new:
        allowed |= expectation.allowed_new
    if reply.max_age is not None or reply.known_version:
        allowed |= expectation.allowed_forced
    return allowed


@invariant
def last_good_kept(history: History, expectation: Expectation) -> list[Violation]:
    """A venue's failure reaches no call that could have had the last good balance, allowed or not. An older one than
    the caller names is no such balance."""
    index = Index.of(history)
    known: dict[tuple[int, str, str], float] = {}
    versions: dict[tuple[int, str, str], int] = {}
    found = []
    for reply in sorted(history.replies, key=lambda reply: reply.begin):
        account = (reply.replica, reply.user, reply.account)
        answer = index.answer(reply) if reply.ok else None
        if answer is not None:
            known[account] = max(known.get(account, 0.0), answer.made)
            versions[account] = max(versions.get(account, 0), reply.version)
        age = reply.end - known.get(account, 0.0)
        might_have_had_it = reply.max_age != 0 and age < expectation.grace - _NEAR_GRACE
        might_have_had_it &= reply.known_version <= versions.get(account, 0)
        if reply.reason.startswith("VENUE_") and might_have_had_it and not machine_was_late(history, reply):
            text = f"{who(reply)}: {reply.reason}, though it had a balance of {age:.1f} s ago"
            found.append(Violation("last_good_kept", reply.end, text))
    return found


@invariant
def well_after_balance(history: History, _: Expectation) -> list[Violation]:
    """After an account's error no heartbeat says that it is well before a balance has come."""
    failed: set[tuple[str, int, str, str]] = set()
    found = []
    for event in history.events:
        key = (event.subscriber, event.attempt, event.user, event.account)
        if event.kind == "error":
            failed.add(key)
        elif event.kind == "balance":
            failed.discard(key)
        elif event.kind == "heartbeat" and not event.reason and key in failed:
            found.append(Violation("well_after_balance", event.time, f"{who(event)}: well, and no balance came"))
            failed.discard(key)
    return found


@invariant
def secrets_kept(history: History, _: Expectation) -> list[Violation]:
    """The canary in the credentials is seen nowhere."""
    return [Violation("secrets_kept", 0.0, f"a secret in {one.place}: {one.text}") for one in history.sightings]


@invariant
def recovers(history: History, expectation: Expectation) -> list[Violation]:
    """After the heal every call is answered with what is fresh within the time that the table gives."""
    seconds = recovery(history)
    heal = history.at("heal")
    if heal is None or seconds is None:
        return [] if heal is None else [Violation("recovers", heal, "nothing was well again while it was watched")]
    limit = expectation.recovery + history.lag(heal, heal + seconds)
    if seconds <= limit:
        return []
    return [Violation("recovers", heal + seconds, f"well again {seconds:.1f} s after the heal, allowed {limit:.1f}")]


def recovery(history: History) -> float | None:
    """Seconds from the heal until the last call that failed or got a stale balance; None if the calls end with one.

    A call counts from its beginning: what began before the heal may end badly after it.
    """
    heal = history.at("heal")
    if heal is None:
        return None
    bad = [reply for reply in history.replies if reply.end > heal and is_bad(reply)]
    if not bad:
        return 0.0
    last = max(bad, key=lambda reply: reply.end)
    if not any(reply.ok and reply.begin > last.end for reply in history.replies):
        return None
    return last.end - heal


def is_bad(reply: Reply) -> bool:
    """Whether a call of a regular client got anything but a fresh balance. The caller's quota is the caller's own."""
    return (not reply.ok and reply.reason != "CALLER_RATE_LIMITED") or bool(reply.stale)


@invariant
def nothing_left(history: History, _: Expectation) -> list[Violation]:
    """Under the same clients a replica holds afterwards about what it held before."""
    by_replica: dict[tuple[int, int], dict[str, Footprint]] = defaultdict(dict)
    for one in history.footprints:
        by_replica[one.replica, one.generation][one.when] = one
    found = []
    for (replica, _generation), pair in by_replica.items():
        if {"before", "after"} <= pair.keys():
            for text in _grown(pair["before"], pair["after"]):
                found.append(Violation("nothing_left", pair["after"].time, f"replica {replica}: {text}"))
    return found


def _grown(before: Footprint, after: Footprint) -> Iterator[str]:
    measures = (("files", FILES), ("memory", MEMORY), ("threads", THREADS), ("open", OPEN))
    for name, margin in measures:
        first, last = getattr(before, name), getattr(after, name)
        if last > first + margin:
            yield f"{name} {first} before and {last} after"
