"""quality.toml: the report in a plugin's folder, to be committed, with the author's statements."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exchange_service.authoring.quality import Finding, Report, Statement

NAME = "quality.toml"
_HEAD = """\
# Written by `exchange-service plugins check`, which keeps what you write here as `comment` and `source`, and a status
# "exempt". Where the venue cannot have what a rule asks for, write into its table:
#     status = "exempt"
#     comment = "the reason, which names what is missing"
#     source = "vendor: https://a.page.that.says.so"
"""


class QualityFileBroken(Exception):
    """quality.toml is not what it should be; the text is a sentence for the plugin's author."""


def read_statements(path: Path) -> dict[str, Statement]:
    """The author's statements by the names of rules; none if there is no such file. Raises QualityFileBroken."""
    if not path.is_file():
        return {}
    content = read_quality(path)
    rules = content.get("rules", {})
    if not isinstance(rules, Mapping):
        raise QualityFileBroken(f"{NAME}: `rules` should be tables, such as [rules.sandbox].")
    return {name: _read_statement(name, table) for name, table in rules.items()}


def read_not_passed(path: Path) -> list[str]:
    """The tests of the contract that did not pass when the file was written; none if there is no such file."""
    return [str(text) for text in read_quality(path).get("not_passed", [])] if path.is_file() else []


def read_quality(path: Path) -> dict[str, Any]:
    """The content of the file. Raises QualityFileBroken if it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QualityFileBroken(f"{NAME} cannot be read as TOML: {error}. Mend it, or delete it.") from None


def _read_statement(name: str, table: object) -> Statement:
    if not isinstance(table, Mapping):
        raise QualityFileBroken(f"{NAME}: write [rules.{name}] as a table with status, comment and source.")
    texts = {key: table.get(key, "") for key in ("status", "comment", "source")}
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    if wrong:
        raise QualityFileBroken(f"{NAME}: {wrong[0]} of [rules.{name}] should be a text.")
    return Statement(**texts)


def quality_text(report: Report) -> str:
    """The file: the same for the same plugin, on every machine and at every time."""
    head = [f"tier = {_text(report.tier)}", f"unproven_facts = {report.unproven}"]
    head.append(f"seen_live = {_text(report.seen_live)}")
    lines = "".join(f"    {_text(test)},\n" for test in report.not_passed)
    head.append(f"not_passed = [\n{lines}]" if lines else "not_passed = []")
    tables = ["\n".join(_table(found)) for found in report.findings]
    return "\n\n".join([_HEAD + "\n" + "\n".join(head), *tables]) + "\n"


def _table(found: Finding) -> Iterator[str]:
    yield f"[rules.{found.rule.name}]"
    yield f"tier = {_text(found.rule.tier)}"
    # A statement that does not count stays as its author wrote it, and `problem` says why.
    yield f"status = {_text(found.statement.status if _is_refused(found) else found.status)}"
    yield f"evidence = {_text(found.evidence)}"
    if _is_refused(found):
        yield f"problem = {_text(found.advice)}"
    if found.statement.comment:
        yield f"comment = {_text(found.statement.comment)}"
    if found.statement.source:
        yield f"source = {_text(found.statement.source)}"


def _is_refused(found: Finding) -> bool:
    return found.statement.status == "exempt" and found.status == "todo"


def _text(value: str) -> str:
    # A text of JSON is one of TOML, but for DEL, which no evidence has.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
