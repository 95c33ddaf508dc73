"""docs/plugin-reference.md has every public name of plugins and tests, and each of their fields says what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exchange_service import plugin_api, testing
from exchange_service.testing.venue import SITUATIONS, TROUBLES
from scripts.plugin_reference import reference_page
from scripts.public_api import MODULES, documentation, exported, fields, is_method, meaning, members

PAGE = Path(__file__).parent.parent / "docs" / "plugin-reference.md"
# What the meaning of a number says: what it counts, or in what it is measured.
_UNIT = re.compile(
    r"[Ss]econds|minute|[Bb]ytes|units|requests|[Aa]ccounts|[Cc]onnections|[Tt]opics|[Ss]ubscriptions|[Mm]essages|status|"
    r"version|moves|monotonic|time|how (often|many)"
)
_NUMBER = re.compile(r"\b(int|float|Decimal)\b")


def classes() -> list[tuple[str, Any]]:
    return [
        (f"{module}.{name}", item) for module in MODULES for name, item in exported(module).items() if item.is_class
    ]


def public_fields() -> list[tuple[str, Any]]:
    """The fields of every public class; those of errors are the classes' own names and delays."""
    return [
        (f"{name}.{field.name}", field)
        for name, item in classes()
        for field in fields(item)
        if field.name not in ("reason", "transient", "default_retry_after")
    ]


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == reference_page(), "run `make docs`"


@pytest.mark.parametrize("name", [*plugin_api.__all__, *testing.__all__])
def test_every_name_that_can_be_imported_has_its_place(name: str) -> None:
    page = PAGE.read_text()
    assert f"\n### {name}\n" in page or f"\n| `{name}` |" in page


def test_no_name_is_left_without_a_section() -> None:
    assert "\n## More\n" not in PAGE.read_text(), "name it in _SECTIONS of scripts/plugin_reference.py"


@pytest.mark.parametrize(("name", "field"), public_fields(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_field_says_what_it_is_and_in_what_unit(name: str, field: Any) -> None:
    told = meaning(field)
    assert told, f"{name}: write a comment in the line above it"
    if field.annotation is not None and _NUMBER.search(str(field.annotation)):
        assert _UNIT.search(told), f"{name}: say in what unit it is, in the comment above it: {told}"


@pytest.mark.parametrize(("name", "item"), classes(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_method_says_what_it_does(name: str, item: Any) -> None:
    untold = [
        member.name
        for member in members(item)
        if is_method(member) and not member.name.startswith(("test_", "__")) and not documentation(member)
    ]
    assert untold == []


SHARED = [
    (message, field.name)
    for message in ("Summary", "VenueAccount", "AssetBalance")
    for field in fields(exported("plugin_api")[message])
    # The row of an account, and what the wire has in another form.
    if field.name not in ("kind", "error")
]


def proto_comments(message: str) -> dict[str, str]:
    """The comment of each field of a message in balance.proto, without the marks of texts and names."""
    text = (PAGE.parent.parent / "protos" / "exchange_service" / "v1" / "balance.proto").read_text()
    body = text.partition(f"\nmessage {message} {{\n")[2].partition("\n}")[0]
    found = re.findall(r"((?:  //[^\n]*\n)+)  [\w. ]*?(\w+) = \d+;", body)
    return {name: plain(comment.replace("//", " ")) for comment, name in found}


def plain(text: str) -> str:
    return " ".join(text.replace('"', "").replace("`", "").split())


@pytest.mark.parametrize(("message", "name"), SHARED)
def test_what_callers_and_authors_are_told_of_a_field_is_the_same(message: str, name: str) -> None:
    field = exported("plugin_api")[message].members[name]
    # Either may say more than this one sentence.
    sentence = plain(meaning(field)).partition(". ")[0].rstrip(".")
    assert re.split(r"[,;] in the same units", sentence)[0] in proto_comments(message)[name]


def test_every_trouble_and_situation_says_what_it_becomes() -> None:
    rows = dict(re.findall(r"^\| ([a-z ]+) \| [^|]+ \| ([^|]+) \|$", reference_page(), re.MULTILINE))
    assert set(SITUATIONS) | set(TROUBLES) <= rows.keys()
    assert rows["unknown account"] == "`AccountUnknown`"
    assert rows["limited"] == "`VenueRateLimited`"


def test_a_field_without_a_comment_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    field = next(field for field in fields(exported("plugin_api")["AssetBalance"]) if field.name == "free")
    assert meaning(field)
    monkeypatch.setattr("scripts.public_api._source", lambda path: [""] * 10_000)
    assert not meaning(field)
