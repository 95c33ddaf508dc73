"""The exchanges that CCXT had once and has no more, from a dated list beside the snapshot.

The command that renews the snapshot renews the list with it. While a newer CCXT is installed than that of the snapshot,
what it lacks is retired too, without a day.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from exchange_service.plugin_api import RetiredExchange

# What the renewal writes of a reason that nobody has looked up yet.
UNKNOWN_REASON = "unproven: nobody has looked up why"


@dataclass(frozen=True, slots=True)
class Retired:
    """One exchange of the list.

    `since` is the first day without it, of CCXT or of our snapshot, or None; `had` is the last version of CCXT that is
    known to have it, and `lacks` the first one known without it. `what` and `advice` are sentences for users, or empty,
    and `witness` says where the reason is known from.
    """

    id: str
    name: str
    since: str | None
    had: str
    lacks: str
    what: str = ""
    advice: str = ""
    witness: str = UNKNOWN_REASON

    def exchange(self) -> RetiredExchange:
        """The entry of a manifest. Raises ValueError for a day that does not exist."""
        dropped = f"CCXT {self.lacks} does not have it any more; {self.had} had."
        since = None if self.since is None else date.fromisoformat(self.since)
        return RetiredExchange(self.id, self.name, f"{self.what} {dropped}".lstrip(), since, self.advice)


def shipped_retired() -> tuple[Retired, ...]:
    """The list in this package."""
    return read_retired(_shipped_file().read_bytes())


def read_retired(text: str | bytes) -> tuple[Retired, ...]:
    """The list that `write_retired` wrote. Raises ValueError or TypeError for anything else."""
    return tuple(Retired(**entry) for entry in json.loads(text))


def write_retired(entries: Iterable[Retired]) -> str:
    """The list as JSON, with one exchange in each line."""
    lines = ",\n".join(json.dumps(asdict(entry), ensure_ascii=False) for entry in entries)
    return f"[\n{lines}\n]\n"


def _shipped_file() -> Traversable:
    return resources.files(__package__).joinpath("retired.json")


def renewed(
    entries: Sequence[Retired],
    before: Sequence[Mapping[str, Any]],
    now: Sequence[Mapping[str, Any]],
    versions: tuple[str, str],
    day: date | None,
) -> tuple[Retired, ...]:
    """The list after the listings `before` were replaced by those of `now`, sorted by id.

    What is gone is added, with the day. What is listed again is left out. `versions` are those of CCXT, before and now.
    """
    listed = {entry["id"] for entry in now}
    known = {entry.id: entry for entry in entries if entry.id not in listed}
    for gone in _gone(before, listed | known.keys()):
        since = None if day is None else day.isoformat()
        known[gone["id"]] = Retired(gone["id"], gone["name"], since, *versions)
    return tuple(known[exchange_id] for exchange_id in sorted(known))


def _gone(before: Iterable[Mapping[str, Any]], there: set[str]) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in before if entry["id"] not in there)


def is_newer(version: str, other: str) -> bool:
    """Whether one version of CCXT is newer than the other; False if one of them is not made of numbers."""
    try:
        return _numbers(version) > _numbers(other)
    except ValueError:
        return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
