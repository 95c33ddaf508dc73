"""Generates docs/security.md: every threat, its mitigation, and the tests that show it; run by `make docs`.

The threats are in threats.toml. A test names its threat with `pytest.mark.threat("T6")`, on a function or a class, with
`attack=True` if it first succeeds as the attacker.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
THREATS = Path(__file__).parent / "threats.toml"


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark that says that a test, or all tests of a class, show the mitigation of a threat."""

    threat: str
    node: str
    attack: bool


@dataclass(frozen=True, slots=True)
class Threat:
    """A row of the table. `open` says what is not prevented, and why; empty if there is no such risk."""

    id: str
    threat: str
    mitigation: str
    open: str
    marks: tuple[Mark, ...]

    @property
    def attacked(self) -> bool:
        """Whether a test first succeeds as the attacker."""
        return any(mark.attack for mark in self.marks)


def test_files() -> list[Path]:
    """Every file with tests, of the service and of its plugins."""
    return sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "plugins").glob("*/tests/test_*.py")])


def threats() -> list[Threat]:
    """Every threat with its tests. Raises ValueError for a mark of an unknown threat, or a missing test."""
    rows = tomllib.loads(THREATS.read_text())
    marks, nodes = [], set()
    for path in test_files():
        name = path.relative_to(ROOT).as_posix()
        nodes.add(name)
        for node, named in _nodes(ast.parse(path.read_text()), name):
            nodes.add(node)
            marks += [Mark(threat, node, attack) for threat, attack in named]
    unknown = sorted({mark.threat for mark in marks} - set(rows))
    if unknown:
        raise ValueError(f"tests are marked with {', '.join(unknown)}, which threats.toml does not have")
    return [_threat(name, row, marks, nodes) for name, row in rows.items()]


def outcome_lines(outcomes: Iterable[tuple[str, bool, bool]]) -> Iterator[str]:
    """A table of how attacks ended: of each test that ran, its threat, whether it attacks, and whether it passed.

    A test that attacks passes only if the attack succeeds with the mitigation switched off and fails with it.
    """
    by_threat: dict[str, list[tuple[bool, bool]]] = {}
    for threat, attack, passed in outcomes:
        by_threat.setdefault(threat, []).append((attack, passed))
    yield f"{'':4} {'mitigation off':16} {'mitigation on':16} {'attacks':>8} {'further tests':>14}  threat"
    for name, row in tomllib.loads(THREATS.read_text()).items():
        ran = by_threat.get(name, [])
        attacks = [passed for attack, passed in ran if attack]
        if not all(passed for _, passed in ran):
            ends = ("a test failed", "a test failed")
        elif attacks:
            ends = ("attack succeeds", "attack fails")
        else:
            ends = ("not tried", "holds" if ran else "not tried")
        yield f"{name:4} {ends[0]:16} {ends[1]:16} {len(attacks):8} {len(ran) - len(attacks):14}  {row['threat']}"


def _threat(name: str, row: dict[str, object], marks: list[Mark], nodes: set[str]) -> Threat:
    also = [str(node) for node in _list(row.get("also"))]
    missing = [node for node in also if node not in nodes]
    if missing:
        raise ValueError(f"threats.toml names for {name} tests that do not exist: {', '.join(missing)}")
    own = [mark for mark in marks if mark.threat == name]
    own += [Mark(name, node, attack=False) for node in also]
    # Tests that first succeed as the attacker come first.
    own.sort(key=lambda mark: not mark.attack)
    return Threat(name, str(row["threat"]), str(row["mitigation"]), str(row.get("open", "")), tuple(own))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _nodes(tree: ast.Module, file: str) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Each test function and class of a file by its node id, with its marks."""
    for item in tree.body:
        if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield f"{file}::{item.name}", list(_marks(item))
        if isinstance(item, ast.ClassDef):
            for method in item.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{file}::{item.name}::{method.name}", list(_marks(method))


def _marks(item: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterator[tuple[str, bool]]:
    for decorator in item.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.threat":
            options = {word.arg: ast.literal_eval(word.value) for word in decorator.keywords}
            yield ast.literal_eval(decorator.args[0]), bool(options.get("attack", False))


_HEAD = """# Security

This page lists the threats to the service, what prevents each, and the tests that show it. `make docs` generates it
from `scripts/threats.toml` and the marks of the tests. [operations.md](operations.md) says how to run the service
safely.

A test in **bold** first succeeds as the attacker, with the mitigation switched off, and then fails with it. The list
below the table says what is not prevented.

| | threat | mitigation | shown by |
|---|---|---|---|"""
_OPEN = """## What is not prevented

If you operate the service, you should know these risks."""


def security_page() -> str:
    """docs/security.md."""
    rows = threats()
    lines = [_HEAD]
    for row in rows:
        shown = "<br>".join(f"**`{mark.node}`**" if mark.attack else f"`{mark.node}`" for mark in row.marks)
        lines.append(f"| {row.id} | {row.threat} | {row.mitigation} | {shown or 'see below'} |")
    lines += ["", _OPEN, ""]
    lines += [f"- **{row.id}**: {row.open}" for row in rows if row.open]
    return "\n".join(lines) + "\n"
