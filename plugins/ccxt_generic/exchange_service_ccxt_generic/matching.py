"""The rows of a raw answer, found by the table of `answer_shapes`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from exchange_service_ccxt_generic.answer_shapes import Rows, is_field, shapes
from exchange_service_ccxt_generic.paths import at

# A row with the venue's name of its asset, which is not a text if the row names none.
Named = tuple[Any, Any]
_ABSENT = object()


def match(exchange_id: str, account_type: str, answers: Sequence[Any]) -> tuple[Rows | None, list[Named]]:
    """The first shape that fits the last answer, and the rows, of all pages if the list has several."""
    shape, rows = _match_one(exchange_id, account_type, answers[-1])
    if shape is not None and shape.last_page is not None:
        rows = [row for answer in answers for row in _match_one(exchange_id, account_type, answer)[1]]
    return shape, rows


def any_of(row: Any, names: str) -> Any:
    """The value at the first of the joined names that is present and not empty."""
    for path, single in _joined(names):
        value = row.get(path) if single and type(row) is dict else at(row, path)
        if value is not None and value != "":
            return value
    return None


def says_nothing(shape: Rows, name: Any, row: Any) -> bool:
    """Whether a row names its asset, and has an empty text for each amount that it has. Null is no such text."""
    if not isinstance(row, dict) or not isinstance(name, str) or not name:
        return False
    values = [value for path in shape.amount_paths if (value := _value(row, path)) is not _ABSENT]
    return "" in values and all(value is None or value == "" for value in values)


def _value(row: dict[str, Any], path: str) -> Any:
    *above, last = path.split(".")
    holder = at(row, ".".join(above)) if above else row
    return holder.get(last, _ABSENT) if isinstance(holder, dict) else _ABSENT


@cache
def _joined(names: str) -> tuple[tuple[str, bool], ...]:
    """The joined paths, each with whether it is the name of a single field."""
    return tuple((path, is_field(path)) for path in names.split("|"))


def _match_one(exchange_id: str, account_type: str, raw: Any) -> tuple[Rows | None, list[Named]]:
    for shape in shapes(exchange_id, account_type):
        if not shape.has_rows:
            return shape, []
        rows = _rows(shape, raw)
        if rows is not None:
            return shape, rows
    return None, []


def _rows(shape: Rows, raw: Any) -> list[Named] | None:
    """The rows of an answer with the venue's names of their assets; None if it has another shape."""
    before, star, after = shape.path.partition("*")
    if star:
        wallets = at(raw, before.removesuffix("."))
        if not isinstance(wallets, list) or (shape.wallet_needed and not wallets):
            return None
        holders = [at(wallet, after.removeprefix(".")) for wallet in wallets]
    else:
        holders = [at(raw, shape.path)]
    if shape.kind == "list":
        if not all(isinstance(holder, list) for holder in holders):
            return None
        rows = [row for holder in holders for row in holder]
        if shape.parts:
            rows = [at(row, part) for row in rows for part in shape.parts]
        return [(_name(shape, row), row) for row in rows]
    if not all(isinstance(holder, dict) for holder in holders):
        return None
    if shape.kind == "one":
        return [(_name(shape, row), row) for row in holders]
    return [item for holder in holders for item in holder.items() if item[0] not in shape.others]


def _name(shape: Rows, row: Any) -> Any:
    if shape.by_field and type(row) is dict and type(field := row.get(shape.asset)) is str and field:
        return shape.spelled(field) if shape.spelled else field
    if shape.literal:
        return shape.literal
    name = any_of(row, shape.asset) if shape.asset else ""
    name = str(name) if type(name) is int else name
    return shape.spelled(name) if shape.spelled and isinstance(name, str) else name
