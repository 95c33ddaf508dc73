"""Compares the names that plugins may use with a record of them, by griffe: no release breaks a plugin unawares.

    python -m scripts.plugin_api_record            fails with a sentence for each break (`make check`)
    python -m scripts.plugin_api_record --record   writes the present names (`make api`)

The record in scripts/plugin_api is the source of each public module without its code: what a plugin can import, call
and override. Names that are added are no break. Record them before a release.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import griffe

from scripts.public_api import MODULES, exported, is_method, members, parameters

RECORD = Path(__file__).parent / "plugin_api"
_HOW = (
    "A plugin that was written for the page as it was would fail. Keep the old form working beside the new one, or, if "
    "it is meant and docs/plugin-reference.md#versions allows it, record it with `make api`."
)


def recorded_path(module: str) -> Path:
    """Where a public module is recorded. It is Python with another ending: no tool takes it for the project's code."""
    return RECORD / f"{module}.txt"


def present() -> dict[str, str]:
    """Each public module as it is recorded: by its name, its text."""
    return {module: "\n\n".join(_declarations(module)) + "\n" for module in MODULES}


def _declarations(module: str) -> Iterator[str]:
    for name, item in exported(module).items():
        if item.is_class:
            yield "\n".join(_class(name, item))
        elif item.is_function:
            yield _function(name, item, "")
        else:
            # A constant: its value may change.
            yield f"{name}: {item.annotation or 'Any'}"


# The host, or the simulator's base class, makes these: plugins read them, so how they are made may change.
_MADE_FOR_PLUGINS = frozenset(
    {"VenueCall", "VenueReports", "Subscription", "RecordedRequest", "RecordedAnswer", "PushClient"}
)


def _class(name: str, item: Any) -> Iterator[str]:
    for decorator in item.decorators:
        yield f"@{decorator.value}"
    bases = ", ".join(str(base) for base in item.bases)
    yield f"class {name}({bases}):" if bases else f"class {name}:"
    body = [_member(member) for member in members(item) if not member.name.startswith("test_")]
    # That of a dataclass is made by griffe from its fields.
    constructor = item.members.get("__init__")
    if constructor is not None and not constructor.is_alias and name not in _MADE_FOR_PLUGINS:
        body.insert(0, _function("__init__", constructor, "    "))
    yield from body or ["    ..."]


def _member(member: Any) -> str:
    if not is_method(member):
        return f"    {member.name}: {member.annotation or 'Any'}"
    if member.is_attribute:
        return f"    @property\n    def {member.name}(self) -> {member.annotation}: ..."
    marks = "".join(f"    @{mark}\n" for mark in ("staticmethod", "classmethod") if mark in member.labels)
    return marks + _function(member.name, member, "    ")


def _function(name: str, item: Any, indent: str) -> str:
    begin = "async def" if "async" in item.labels else "def"
    first = [item.parameters[0].name] if _is_bound(item) else []
    returns = "" if item.returns is None else f" -> {' '.join(str(item.returns).split())}"
    return f"{indent}{begin} {name}({', '.join([*first, *parameters(item)])}){returns}: ..."


def _is_bound(item: Any) -> bool:
    return bool(item.parent.is_class and len(item.parameters) and item.parameters[0].name in ("self", "cls"))


def recorded() -> dict[str, str]:
    """The record: by the module's name, its text."""
    return {module: recorded_path(module).read_text() for module in MODULES if recorded_path(module).exists()}


def breaks(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each thing of the old modules that is not there in the new ones, or is another."""
    for module, text in old.items():
        if module not in new:
            yield f"exchange_service.{module} is gone."
            continue
        before, after = _read(module, text), _read(module, new[module])
        for breakage in griffe.find_breaking_changes(before, after):
            yield _sentence(module, breakage)
        yield from _changed_types(module, before, after)


def _read(module: str, text: str) -> Any:
    return griffe.visit(module, filepath=recorded_path(module), code=text)


def _sentence(module: str, breakage: Any) -> str:
    where = str(breakage.obj.path).removeprefix(f"{module}.")
    parts = [part for part in (breakage.old_value, breakage.new_value) if isinstance(part, griffe.Parameter)]
    changed = ""
    if parts:
        where += f"({parts[0].name})"
    if len(parts) == 2:
        changed = f", from `{_declared(parts[0])}` to `{_declared(parts[1])}`"
    return f"exchange_service.{module}: {where}: {breakage.kind.value}{changed}."


def _declared(part: griffe.Parameter) -> str:
    default = "" if part.default is None else f" = {part.default}"
    return f"{part.name}: {part.annotation}{default}"


def _changed_types(module: str, before: Any, after: Any) -> Iterator[str]:
    """Parameters and fields whose type is written in another way, and classes that lack a base: griffe does not compare
    them."""
    present_types = dict(_types(after))
    for path, was in _types(before):
        now = present_types.get(path)
        if now is not None and now != was:
            yield f"exchange_service.{module}: {path}: its type was {was} and is {now}."
    for name, item in before.members.items():
        now = after.members.get(name)
        if item.is_class and now is not None and now.is_class:
            lost = [str(base) for base in item.bases if str(base) not in map(str, now.bases)]
            yield from (f"exchange_service.{module}: {name}: it is no {base} any more." for base in lost)


def _types(item: Any, within: str = "") -> Iterator[tuple[str, str]]:
    for name, member in item.members.items():
        where = f"{within}{name}"
        if member.is_class:
            yield from _types(member, f"{where}.")
        elif member.is_function:
            yield from (
                (f"{where}({part.name})", str(part.annotation)) for part in member.parameters if part.annotation
            )
            yield where, str(member.returns)
        else:
            yield where, str(member.annotation)


def main() -> int:
    """See the module's docstring."""
    if "--record" in sys.argv[1:]:
        RECORD.mkdir(exist_ok=True)
        for module, text in present().items():
            recorded_path(module).write_text(text)
        return 0
    found = list(breaks(recorded(), present()))
    if found:
        print("The plugin API breaks:", *found, _HOW, sep="\n")  # noqa: T201 - the output of a command
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
