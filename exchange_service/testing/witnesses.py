"""Witnesses: where a fact about a venue is known from, so that tests do not only agree with their own writer.

A witness is a text such as "vendor: https://docs.acme.example/errors". Its first words are one of KINDS.

- A payload file is a JSON object whose members are `witness` and, last, `answer`.
- A row of a table in Python has the comment `# witness: ...`; PLACES says where it stands and what it counts for.

`unproven` is the honest word for a guess, with what was looked for: docs/venues.md lists every fact that has it.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

KINDS = {
    "vendor": "the venue's own page, specification or library, by its address",
    "CCXT": "CCXT's class and one of its members, such as okx.exceptions, in the installed version",
    "test data": "a captured answer in another project's tests, by repository and path",
    "report": "a public report, by repository and number or by its address",
    "standard": "a published standard, such as an RFC or an EIP",
    "recorded": "the venue itself, by `plugins try --live --record`: its host, the environment and the day",
    "unproven": "a guess",
}
# Where the comment of a witness may stand, and what it counts for.
PLACES = {
    "directly above the assignment of a table": "every row of that one table",
    "on a line of its own between rows": "every row below it, up to the next such line",
    "at the end of a row's line, or within a row": "that row alone",
}
_COMMENT = "# witness:"
# What a witness of CCXT names: an exchange's id, perhaps one of its members, and perhaps words behind them.
_CCXT_SOURCE = re.compile(r"(\w+)(?:\.(\w+))?(?: .*)?\Z")


@dataclass(frozen=True, slots=True)
class Witness:
    """`kind` is one of KINDS, `source` says where; it is empty only for a guess."""

    kind: str
    source: str

    @property
    def proven(self) -> bool:
        """Whether the fact is known from somebody else."""
        return self.kind != "unproven"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table: its source text without comments, its line, and its witness, None if it has none."""

    text: str
    line: int
    witness: Witness | None
    # The texts of the row's key, or of the row itself where it is a plain text.
    words: tuple[str, ...] = ()


def parse_witness(text: str) -> Witness:
    """The witness that `text` names. Raises ValueError for an unknown kind, or one without a source."""
    kind, _, source = (part.strip() for part in text.partition(":"))
    if kind not in KINDS:
        raise ValueError(f"a witness begins with one of {', '.join(KINDS)}, not {kind[:40]!r}")
    if not source and kind != "unproven":
        raise ValueError(f"a witness of the kind {kind!r} says where: {KINDS[kind]}")
    return Witness(kind, source)


def ccxt_text(source: str) -> str:
    """The text of CCXT's member that a witness names, such as okx.exceptions: of its description or its code. What the
    class does not have may be in the one for sockets.

    Raises LookupError, with a sentence, if it names nothing that can be read, and ImportError without CCXT.
    """
    match = _CCXT_SOURCE.match(source)
    if match is None:
        raise LookupError(f"{source[:60]!r} is not written as an id and a member of CCXT, such as CCXT: okx.exceptions")
    exchange_id, member = match[1], match[2] or ""
    for module in ("ccxt.async_support", "ccxt.pro"):
        kind = getattr(import_module(module), exchange_id, None)
        if kind is None:
            continue
        if not member:
            return inspect.getsource(kind)
        described = kind().describe()
        if member in described:
            return str(described[member])
        if hasattr(kind, member):
            return inspect.getsource(getattr(kind, member))
    raise LookupError(f"the installed CCXT has no {exchange_id}{member and '.'}{member}")


@cache
def fault_of_witness(witness: Witness) -> str:
    """Why what a witness names cannot be read, a sentence; empty if it can, or if this cannot be seen here: of all
    kinds only CCXT's source is at hand, if it is installed."""
    if witness.kind != "CCXT":
        return ""
    try:
        ccxt_text(witness.source)
    except LookupError as error:
        return str(error.args[0])
    except ImportError:
        return ""
    return ""


def payload_witness(path: Path) -> Witness:
    """The witness of a payload file. Raises ValueError if it has none."""
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("witness"), str):
        raise ValueError(f"{path.name} has no member `witness`")
    return parse_witness(content["witness"])


def read_payload(path: Path) -> bytes:
    """The answer in a payload file, every digit as it stands there. Raises ValueError if the file has no witness."""
    payload_witness(path)
    text = path.read_text(encoding="utf-8").rstrip()
    answer = text.partition('"answer":')[2].removesuffix("}").strip()
    if json.loads(answer) != json.loads(text)["answer"]:
        raise ValueError(f"`answer` is not the last member of {path.name}")
    return answer.encode()


def table_rows(path: Path, table: str) -> tuple[TableRow, ...]:
    """The rows of the table with this name in a Python file, each with its witness.

    A row is an entry of the outermost literal: of a dict, list, tuple or set, also within a call. Raises LookupError if
    the file assigns no such name.
    """
    source = path.read_text(encoding="utf-8")
    comments = dict(_comments(source))
    for name, value, line in _assignments(source):
        if name == table:
            return tuple(_rows(source, value, comments, _above(comments, line)))
    raise LookupError(f"{path.name} has no table {table}")


def stray_witnesses(source: str, tables: Collection[str] | None = None) -> list[int]:
    """The lines of a Python source with a witness that belongs to none of these tables, so that nothing reads it.

    Without `tables` every assignment outside of functions is one.
    """
    comments = dict(_comments(source))
    held: set[int] = set()
    for name, value, line in _assignments(source, inside_functions=tables is not None):
        if tables is None or name in tables:
            while line - 1 in comments and comments[line - 1][0]:
                line -= 1
            held.update(range(line, (value.end_lineno or line) + 1))
    return [line for line, (_, text) in comments.items() if text.startswith(_COMMENT) and line not in held]


def witness_lines(source: str) -> Iterator[tuple[int, str]]:
    """Every comment of a Python source that names a witness: its line, and the text of the witness."""
    for line, (_, text) in _comments(source):
        if text.startswith(_COMMENT):
            yield line, text.removeprefix(_COMMENT)


def _assignments(source: str, *, inside_functions: bool = True) -> Iterator[tuple[str, ast.expr, int]]:
    """Every name that is assigned, with the value and the line where that begins."""
    tree = ast.parse(source)
    for statement in ast.walk(tree) if inside_functions else _outside_of_functions(tree):
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                if isinstance(target, ast.Name):
                    yield target.id, statement.value, statement.lineno


def _outside_of_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _outside_of_functions(child)


def _comments(source: str) -> Iterator[tuple[int, tuple[bool, str]]]:
    """Every comment by its line: whether it stands alone on it, and its text."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], (not token.line[: token.start[1]].strip(), token.string)


def _above(comments: dict[int, tuple[bool, str]], line: int) -> Witness | None:
    """The witness in the comments that stand directly above a line."""
    while (line := line - 1) in comments and comments[line][0]:
        if comments[line][1].startswith(_COMMENT):
            return parse_witness(comments[line][1].removeprefix(_COMMENT))
    return None


def _rows(
    source: str, value: ast.expr, comments: dict[int, tuple[bool, str]], witness: Witness | None
) -> Iterator[TableRow]:
    lines = source.encode().split(b"\n")
    container = _outermost(value)
    if container is None:
        yield TableRow(_segment(lines, value), value.lineno, witness)
        return
    done = container.lineno - 1
    for first, last in _entries(container):
        own, end = None, last.end_lineno or last.lineno
        for line in range(done + 1, end + 1):
            alone, text = comments.get(line, (False, ""))
            if text.startswith(_COMMENT):
                found = parse_witness(text.removeprefix(_COMMENT))
                witness, own = (found, own) if alone and line < first.lineno else (witness, found)
        done = end
        yield TableRow(_segment(lines, first), first.lineno, own or witness, tuple(_texts(first)))


def _segment(lines: list[bytes], node: ast.expr) -> str:
    """The source of a node. `ast.get_source_segment` splits the whole source for each one."""
    end, last = node.end_lineno or node.lineno, node.end_col_offset
    if end == node.lineno:
        return lines[end - 1][node.col_offset : last].decode()
    first, *middle = lines[node.lineno - 1 : end - 1]
    return b"\n".join((first[node.col_offset :], *middle, lines[end - 1][:last])).decode()


def _outermost(value: ast.expr) -> ast.expr | None:
    """The literal container that holds the rows; None if there is none."""
    if isinstance(value, (ast.Dict, ast.List, ast.Tuple, ast.Set)):
        return value
    if isinstance(value, ast.Call):
        return next((found for argument in value.args if (found := _outermost(argument)) is not None), None)
    return None


def _entries(container: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """The first and the last expression of each row, which are the key and the value in a dict."""
    if isinstance(container, ast.Dict):
        return [(key or value, value) for key, value in zip(container.keys, container.values, strict=True)]
    return [(entry, entry) for entry in getattr(container, "elts", [])]


def _texts(node: ast.expr) -> Iterator[str]:
    for found in ast.walk(node):
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield found.value
