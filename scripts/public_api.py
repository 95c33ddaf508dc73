"""What plugins may use of this package, as griffe reads it from the source: each public module and its names.

`make docs` writes docs/plugin-reference.md from it, and `make api` records it, so that a break is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parent.parent
PACKAGE = "exchange_service"
# The public modules for plugins, their tests and simulators.
MODULES = ("plugin_api", "testing", "testing.contract", "testing.push")
_FIELD_MARK = re.compile(r"`(\w+)`")


@cache
def package() -> Any:
    """The whole package; nothing of it is imported."""
    return griffe.load(PACKAGE, search_paths=[ROOT], resolve_aliases=True, allow_inspection=False)


@cache
def exported(module: str) -> Mapping[str, Any]:
    """The objects that a public module offers, by name: those of its `__all__`, or else what it defines itself, and the
    declarations of hooks."""
    here = package()[module]
    own = [name for name, item in here.members.items() if not item.is_alias and not name.startswith("_")]
    names = sorted({*(here.exports or own), *(name for name in own if is_hook(here.members[name]))})
    return {str(name): _target(here.members[str(name)]) for name in names if not _is_type_variable(here, str(name))}


def _target(item: Any) -> Any:
    return item.final_target if item.is_alias else item


def _is_type_variable(module: Any, name: str) -> bool:
    item = _target(module.members[name])
    value = str(getattr(item, "value", "") or "")
    return item.is_attribute and (value.startswith(("TypeVar(", "ParamSpec(")) or name == "log")


def is_hook(item: Any) -> bool:
    """Whether the function declares a hook."""
    return item.is_function and any("hookspec" in str(decorator.value) for decorator in item.decorators)


def members(item: Any) -> Iterator[Any]:
    """The public members of a class, in the order of its source, with the special methods that its users write as
    `with`, `for` and calls. What it inherits is left out."""
    special = ("__aenter__", "__aexit__", "__aiter__", "__anext__", "__call__", "__iter__", "__len__")
    for name, member in item.members.items():
        if not member.is_alias and (not name.startswith("_") or name in special):
            yield member


def fields(item: Any) -> Iterator[Any]:
    """The attributes of a class that are no properties."""
    yield from (member for member in members(item) if member.is_attribute and "property" not in member.labels)


def is_method(member: Any) -> bool:
    """Whether a member of a class is called, or is a property."""
    return bool(member.is_function or "property" in member.labels)


def documentation(item: Any) -> str:
    """The docstring; for a constant the comment above it."""
    if item.docstring is not None:
        return str(item.docstring.value)
    return " ".join(comment_above(item)) if item.is_attribute else ""


def meaning(field: Any) -> str:
    """What a field is: its docstring, the comment above it, or the sentences about it in a comment or the docstring of
    its class. Empty if nothing says it."""
    if field.docstring is not None:
        return " ".join(field.docstring.value.split())
    comment = " ".join(comment_above(field))
    names = {member.name for member in fields(field.parent)}
    if comment and not names.intersection(_FIELD_MARK.findall(comment)):
        return comment
    blocks = [" ".join(block) for block in _comments(field.parent)]
    if field.parent.docstring is not None:
        blocks.append(" ".join(field.parent.docstring.value.split()))
    about = [
        sentence
        for block in (comment, *blocks)
        for sentence in re.split(r"(?<=[.]) (?=[A-Z`])", block)
        if f"`{field.name}`" in sentence
    ]
    return " ".join(dict.fromkeys(about)) or comment


def comment_above(item: Any) -> list[str]:
    """The lines of the comment directly above an object, without their marks."""
    lines = _source(item.filepath)
    found: list[str] = []
    for number in range(item.lineno - 2, -1, -1):
        line = lines[number].strip()
        if not line.startswith("# "):
            break
        found.insert(0, line.removeprefix("# "))
    return found


def _comments(item: Any) -> Iterator[list[str]]:
    """The blocks of comments in the body of a class."""
    block: list[str] = []
    for line in _source(item.filepath)[item.lineno : item.endlineno]:
        if line.strip().startswith("# "):
            block.append(line.strip().removeprefix("# "))
        elif block:
            yield block
            block = []


@cache
def _source(path: Path) -> list[str]:
    return path.read_text().splitlines()


def signature(item: Any, *, own_name: str = "") -> str:
    """A function or a method as it is declared, without the first argument of a method; a property as `name: type`."""
    name = own_name or item.name
    if item.is_attribute:
        return f"{name}: {item.annotation}"
    begin = "async def" if "async" in item.labels else "def"
    returns = "" if item.returns is None else f" -> {_plain(item.returns)}"
    return f"{begin} {name}({', '.join(parameters(item))}){returns}"


def parameters(item: Any) -> Iterator[str]:
    """The parameters of a function as they are declared; `self` and `cls` are left out."""
    keyword_only = False
    for parameter in item.parameters:
        kind = str(getattr(parameter.kind, "value", ""))
        if parameter.name in ("self", "cls") and item.parent is not None and item.parent.is_class:
            continue
        if kind == "keyword-only" and not keyword_only:
            keyword_only = True
            yield "*"
        keyword_only = keyword_only or kind == "variadic positional"
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        annotation = "" if parameter.annotation is None else f": {_plain(parameter.annotation)}"
        default = "" if parameter.default is None or stars else f" = {parameter.default}"
        yield f"{stars}{parameter.name}{annotation}{default}"


def _plain(annotation: Any) -> str:
    return re.sub(r"\s+", " ", str(annotation))
