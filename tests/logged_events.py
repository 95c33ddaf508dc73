"""Every log line of our code, found in its source: the event, the level and the names of the fields."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One call of a logger. `event` is None if it is not a text in the source, and `open_ended` says that fields may
    come whose names are not."""

    path: str
    line: int
    level: str
    event: str | None
    fields: frozenset[str]
    open_ended: bool


def source_files() -> Iterator[Path]:
    """The code of the service and of this project's plugins that runs in service."""
    yield from sorted((ROOT / "exchange_service").rglob("*.py"))
    yield from sorted((ROOT / "plugins").glob("*/exchange_service_*/**/*.py"))


@cache
def logged_events() -> list[LoggedEvent]:
    """All of them, in the order of the files and of their lines."""
    return [
        event
        for path in source_files()
        for event in events_of(ast.parse(path.read_text()), path.relative_to(ROOT).as_posix())
    ]


def events_of(module: ast.Module, path: str) -> list[LoggedEvent]:
    """Those of one module."""
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    return [event for call in sorted(calls, key=lambda call: call.lineno) for event in _events_of(call, path)]


def _events_of(call: ast.Call, path: str) -> Iterator[LoggedEvent]:
    """What a call logs: `log.info("an.event", ...)`, or by the logger's method that it passes on, as in
    `write(log.info, "an.event")`, whose fields are not known here."""
    if level := _level_of(call.func):
        fields, open_ended = _fields_of(call)
        for name in _names_in(call.args[0] if call.args else None):
            yield LoggedEvent(path, call.lineno, level, name, fields, open_ended)
    for method, event in itertools.pairwise(call.args):
        if level := _level_of(method):
            for name in _names_in(event):
                yield LoggedEvent(path, call.lineno, level, name, frozenset(), True)


def _level_of(node: ast.expr) -> str:
    """The level of a logger's method; empty for anything else."""
    if not isinstance(node, ast.Attribute) or node.attr not in LEVELS:
        return ""
    owner = ast.unparse(node.value).rpartition(".")[2].lstrip("_")
    return node.attr if owner in ("log", "logger") else ""


def _names_in(event: ast.expr | None) -> Iterator[str | None]:
    if isinstance(event, ast.IfExp):
        yield from (*_names_in(event.body), *_names_in(event.orelse))
    else:
        yield event.value if isinstance(event, ast.Constant) and isinstance(event.value, str) else None


def _fields_of(call: ast.Call) -> tuple[frozenset[str], bool]:
    """The names of the fields, and whether there may be others."""
    named, open_ended = set(), False
    for keyword in call.keywords:
        if keyword.arg is not None:
            named.add(keyword.arg)
            continue
        dicts = [part for part in ast.walk(keyword.value) if isinstance(part, ast.Dict)]
        named |= {str(key.value) for part in dicts for key in part.keys if isinstance(key, ast.Constant)}
        open_ended = open_ended or not dicts
    return frozenset(named), open_ended
