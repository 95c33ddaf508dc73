"""Every error says once what to do next: in its advice, or by the status table, and not in its message too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from exchange_service import errors
from exchange_service.grpc_server.status import TABLE

ROOT = Path(__file__).parent.parent
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
STEPS = {leaf.reason: row.next_step for leaf, row in TABLE.items()}
# A text with its place: the page and line, or the file and line.
Placed = tuple[str, str]


def sources() -> list[Path]:
    paths = [*(ROOT / "exchange_service").rglob("*.py"), *(ROOT / "plugins").glob("*/exchange_service_*/**/*.py")]
    return [path for path in paths if "_pb2" not in path.name]


def texts_in(node: ast.expr) -> Iterator[str]:
    """The literals of an expression; of an f-string those between the values."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def parts_of(node: ast.AST) -> tuple[list[ast.expr], list[ast.expr]]:
    """Message and advice, if the node makes an error of ours, or is a table's row of class, message and advice."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in KINDS:
        return node.args, [keyword.value for keyword in node.keywords if keyword.arg == "advice"]
    if isinstance(node, ast.Tuple) and len(node.elts) > 1 and getattr(node.elts[0], "id", "") in KINDS:
        rest = node.elts[1].elts if isinstance(node.elts[1], ast.Tuple) else node.elts[1:]
        return rest[:1], rest[1:2]
    return [], []


@cache
def raised() -> tuple[list[Placed], list[Placed]]:
    """The literals of messages and of advice wherever an error of ours is made."""
    messages: list[Placed] = []
    advice: list[Placed] = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            message, step = parts_of(node)
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            messages += [(place, text) for part in message for text in texts_in(part)]
            # An f-string is one text: its first literal begins it.
            advice += [(place, text) for part in step for text in [next(texts_in(part), "")] if text]
    return messages, advice


@cache
def advising() -> re.Pattern[str]:
    """The verbs with which advice begins, at the beginning of a sentence, or of a clause after a semicolon or colon."""
    steps = [*STEPS.values(), *(text for _, text in raised()[1])]
    verbs = sorted({step.split()[0] for step in steps})
    clauses = "|".join(verb.lower() for verb in verbs)
    return re.compile(rf"\b(?:{'|'.join(verbs)})\b|[;:] (?:{clauses})\b")


def advising_texts(texts: list[Placed]) -> list[str]:
    return [f"{place}: {text}" for place, text in texts if advising().search(text)]


def test_no_message_of_an_error_holds_advice() -> None:
    messages, advice = raised()
    assert len(messages) > 200
    assert len(advice) > 40
    assert advising_texts(messages) == []


def venue_rows() -> list[tuple[str, str]]:
    page = (ROOT / "docs" / "venues.md").read_text()
    return re.findall(r"^\| .* \| `(\w+)` \| (.*) \|$", page, re.MULTILINE)


def test_no_line_of_the_page_on_venues_advises_twice() -> None:
    rows = venue_rows()
    assert len(rows) > 30
    # Where the table's step was added, the rest must not advise; elsewhere the error's own advice stands alone.
    with_step = [(reason, text) for reason, text in rows if text.endswith(STEPS[reason])]
    assert advising_texts([(reason, text.removesuffix(STEPS[reason])) for reason, text in with_step]) == []
    assert 0 < len(with_step) < len(rows)
    for reason, text in rows:
        assert text.count(STEPS[reason]) <= 1


@pytest.mark.parametrize("reason", sorted(STEPS))
def test_the_page_on_errors_advises_once_for_each_reason(reason: str) -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    section = re.search(rf"^## {reason}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section
    meaning, _, facts = section[1].partition("\n- code:")
    assert facts.count("- what to do: ") == 1
    assert STEPS[reason] in facts
    assert advising_texts([(reason, meaning)]) == []


@pytest.mark.parametrize(
    "text",
    [
        "It is refused. Check the key.",
        "It is refused; call again.",
        "api_key is missing: store it.",
    ],
)
def test_advice_in_a_message_is_noticed(text: str) -> None:
    assert advising_texts([("a.py:1", text)])
