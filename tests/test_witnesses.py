"""Every fact about a venue names where it is known from, and what is only a guess says so."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import ccxt.async_support as ccxt
import pytest
from exchange_service_ccxt_generic.answer_shapes import _SHAPES, Rows, shapes
from exchange_service_ccxt_generic.formulas import members

from exchange_service.pytest_plugin import WITNESSES
from exchange_service.testing.witnesses import (
    Witness,
    ccxt_text,
    fault_of_witness,
    parse_witness,
    payload_witness,
    read_payload,
    stray_witnesses,
    table_rows,
)
from tests.witnessed import BEYOND_CCXT, OWN_WORDS, ROOT, TABLES, payload_files

cached_text = cache(ccxt_text)


@pytest.mark.parametrize("path", sorted(TABLES))
def test_every_row_of_a_table_has_a_witness(path: str, record_property: Callable[[str, object], None]) -> None:
    rows = [(table, row) for table in TABLES[path] for row in table_rows(ROOT / path, table)]
    assert [f"{table}, line {row.line}: {row.text}" for table, row in rows if row.witness is None] == []
    witnesses = [row.witness for _, row in rows if row.witness is not None]
    record_property(WITNESSES, [sum(one.proven for one in witnesses), sum(not one.proven for one in witnesses)])


@pytest.mark.parametrize("path", sorted(TABLES))
def test_what_cites_ccxt_is_in_the_installed_ccxt(path: str) -> None:
    missing = [
        f"{table}, line {row.line}: {word!r} is not in {row.witness.source}"
        for table in TABLES[path]
        for row in table_rows(ROOT / path, table)
        if row.witness is not None and row.witness.kind == "CCXT"
        for word, text in _cited(path, row.words, cached_text(row.witness.source))
        if word not in text
    ]
    assert missing == []


def _cited(path: str, words: tuple[str, ...], text: str) -> Iterator[tuple[str, str]]:
    """The words of a row that CCXT's text must have, each with the text."""
    return ((word, text) for word in words if path not in OWN_WORDS)


def test_every_member_of_a_row_is_in_ccxts_class(record_property: Callable[[str, object], None]) -> None:
    """An update of CCXT that reads another member fails here."""
    missing = []
    for key in _SHAPES:
        exchange_id, _, account_type = key.partition(" ")
        words, known = _words_of_class(exchange_id), BEYOND_CCXT.get(exchange_id, {})
        missing += [
            f"{key}: {member}"
            for shape in shapes(exchange_id, account_type)
            for member in _members(shape)
            if member not in known and not _is_mentioned(member, words)
        ]
    beyond = [parse_witness(source) for known in BEYOND_CCXT.values() for source in known.values()]
    record_property(WITNESSES, [sum(one.proven for one in beyond), sum(not one.proven for one in beyond)])
    assert missing == []


@cache
def _words_of_class(exchange_id: str) -> frozenset[str]:
    """The words of the source of CCXT's class, and of the classes of other exchanges that it extends."""
    kinds = (kind for kind in getattr(ccxt, exchange_id).__mro__ if kind.__module__.startswith("ccxt.async_support."))
    files = [inspect.getfile(kind) for kind in kinds if ".base" not in kind.__module__]
    return frozenset(word for file in files for word in re.findall(r"[\w-]+", Path(file).read_text(encoding="utf-8")))


def _is_mentioned(member: str, words: frozenset[str]) -> bool:
    """Whether a source has the name of a member, or the part of a name that is joined with an asset's."""
    if member.startswith("_") or member.endswith("_"):
        return any(member in word for word in words)
    return member in words


def _members(shape: Rows) -> set[str]:
    """The names of fields that a shape reads: of where its rows are, of the asset, its amounts and its figures."""
    paths = [
        shape.path,
        *shape.amounts,
        *shape.parts,
        shape.apart,
        *shape.apart_known,
        *shape.beside_rows,
        *shape.before,
    ]
    if not shape.literal:
        paths.append(shape.asset)
    for figures in filter(None, (shape.figures, shape.fields)):
        paths += [path for formula in figures.formulas() for path in members(formula)]
    names = {name.strip("{}") for path in paths for name in re.split(r"[.|]", path)}
    return {name for name in names if name and name not in ("*", "only") and not name.isdigit()}


def test_every_table_that_names_witnesses_is_checked() -> None:
    stray = {
        str(path.relative_to(ROOT)): lines
        for folder in ("exchange_service", "plugins")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != ROOT / "exchange_service" / "testing" / "witnesses.py"
        if (lines := stray_witnesses(path.read_text(), TABLES.get(path.relative_to(ROOT).as_posix(), ())))
    }
    assert stray == {}


def test_every_payload_file_has_a_witness(record_property: Callable[[str, object], None]) -> None:
    witnesses = [payload_witness(path) for path in payload_files()]
    assert witnesses
    record_property(WITNESSES, [sum(one.proven for one in witnesses), sum(not one.proven for one in witnesses)])


class TestReading:
    """How witnesses are read, from a table that is written for the test."""

    def rows(self, folder: Path, source: str) -> Iterator[tuple[str, Witness | None]]:
        path = folder / "table.py"
        path.write_text(source)
        return ((row.text, row.witness) for row in table_rows(path, "TABLE"))

    def test_a_comment_at_the_end_is_for_its_row_and_one_alone_for_the_rows_below(self, tmp_path: Path) -> None:
        source = """# witness: unproven
TABLE: dict = {
    "a": 1,
    # witness: vendor: https://acme.example
    "b": 2,
    "c": 3,  # witness: CCXT: okx.exceptions
    "d": 4,
}
"""
        kinds = {text: witness and witness.kind for text, witness in self.rows(tmp_path, source)}
        assert kinds == {'"a"': "unproven", '"b"': "vendor", '"c"': "CCXT", '"d"': "vendor"}

    def test_a_row_without_a_witness_has_none(self, tmp_path: Path) -> None:
        assert dict(self.rows(tmp_path, "TABLE = frozenset({'a'})\n")) == {"'a'": None}

    @pytest.mark.parametrize("text", ["somebody said so", "vendor:", ""])
    def test_an_unknown_kind_and_a_missing_source_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="a witness"):
            parse_witness(text)

    def test_an_answer_keeps_every_digit(self, tmp_path: Path) -> None:
        path = tmp_path / "one.json"
        path.write_text('{"witness": "unproven", "answer": {"a": 1.10, "answer": {}}}\n')
        assert read_payload(path) == b'{"a": 1.10, "answer": {}}'

    def test_a_payload_without_a_witness_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "one.json"
        path.write_text('{"answer": 1}')
        with pytest.raises(ValueError, match="no member `witness`"):
            read_payload(path)


class TestWhatCannotBeRead:
    @pytest.mark.parametrize(
        ("source", "fault"),
        [
            ("okx.exceptions", ""),
            ("okx.exceptions with its codes", ""),
            ("binance", ""),
            ("`okx.exceptions`", "is not written as an id and a member of CCXT, such as CCXT: okx.exceptions"),
            ("okx.no_such_member", "the installed CCXT has no okx.no_such_member"),
            ("nowhere", "the installed CCXT has no nowhere"),
        ],
    )
    def test_a_witness_of_ccxt_is_looked_up(self, source: str, fault: str) -> None:
        found = fault_of_witness(Witness("CCXT", source))
        assert bool(found) is bool(fault)
        assert fault in found

    def test_what_a_page_says_is_not_looked_up(self) -> None:
        assert fault_of_witness(Witness("vendor", "`okx`")) == ""

    def test_a_comment_that_belongs_to_no_table_is_stray(self) -> None:
        source = """# witness: unproven
FIRST = {"a": 1}
SECOND = {
    # witness: unproven
    "b": 2,
}

class Venue:
    # witness: unproven
    limits = (1, 2)

def read():
    # witness: unproven
    return 3  # witness: unproven
"""
        assert stray_witnesses(source) == [13, 14]
        assert stray_witnesses(source, ["SECOND"]) == [1, 9, 13, 14]
