"""docs/log-events.md has a row for each event that the code logs, and no other, with its level and its fields."""

from __future__ import annotations

import ast
from collections import defaultdict

from scripts.log_events_page import DescribedEvent, described_events
from tests.logged_events import LoggedEvent, events_of, logged_events

WRITE = "write its row in scripts/log_events.toml, and run `make docs`"


def described() -> dict[str, DescribedEvent]:
    return {event.name: event for events in described_events().values() for event in events}


def by_name() -> dict[str, list[LoggedEvent]]:
    found: dict[str, list[LoggedEvent]] = defaultdict(list)
    for logged in logged_events():
        assert logged.event is not None, f"{logged.path}:{logged.line} logs an event whose name is not in the source"
        found[logged.event].append(logged)
    return found


def test_every_event_of_the_code_has_a_row_and_every_row_is_logged() -> None:
    rows, logged = set(described()), by_name()
    assert {name: logged[name][0].path for name in logged.keys() - rows} == {}, WRITE
    assert rows - logged.keys() == set(), "nothing logs these: remove their rows"


def test_a_row_has_the_levels_and_the_fields_of_its_lines() -> None:
    rows = described()
    for name, lines in by_name().items():
        if (row := rows.get(name)) is None:
            # The test above says so.
            continue
        fields = {field for line in lines for field in line.fields}
        assert set(row.levels) == {line.level for line in lines}, f"{name}: {WRITE}"
        assert fields - row.fields.keys() == set(), f"{name}: {WRITE}"
        if not any(line.open_ended for line in lines):
            assert row.fields.keys() - fields == set(), f"{name}: {WRITE}"
        assert row.means.endswith("."), name
        assert row.do == "" or row.do.endswith("."), name


def test_a_line_is_found_however_its_event_is_written() -> None:
    code = """
log.info("one.event", name=1, **({"more": 2} if x else {}))
self._log(log.error, "two.event", held, "why")
log.warning("three.event" if x else "four.event", **rest)
log.debug(name)
math.log.info  # no call
self._logger.exception("five.event")
"""
    found = events_of(ast.parse(code), "x.py")
    assert [(line.event, line.level, sorted(line.fields), line.open_ended) for line in found] == [
        ("one.event", "info", ["more", "name"], False),
        ("two.event", "error", [], True),
        ("three.event", "warning", [], True),
        ("four.event", "warning", [], True),
        (None, "debug", [], False),
        ("five.event", "exception", [], False),
    ]
