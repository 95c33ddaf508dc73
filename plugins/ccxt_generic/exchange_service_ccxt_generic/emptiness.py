"""Whether an answer without rows is an empty account, and whether CCXT's result has all rows of an answer.

CCXT reads a maintenance page, `[]`, `{}` and an unknown error alike as a balance without rows, and silently leaves out
a row that it cannot read. So the raw answer is compared with its shape in the table of `answer_shapes`: each row that
holds something must be in CCXT's result, and an answer without rows is an empty account only if the table says why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from exchange_service_ccxt_generic.answer_shapes import Rows, is_field, shapes
from exchange_service_ccxt_generic.exact import PLAIN_NUMBER
from exchange_service_ccxt_generic.paths import at, figure


def proves_empty(exchange_id: str, account_type: str, raw: Any) -> bool:
    """Whether this exchange sends the raw answer for an account of this type without assets."""
    shape, rows = _match_shape(exchange_id, account_type, raw)
    if shape is None or not shape.empty or any(shape.taken is None or shape.taken(row) for _, row in rows):
        return False
    if _problem_of_rows(shape, rows):
        return False
    return any(_holds(raw, expected) for expected in shape.beside)


def find_problem(
    exchange_id: str,
    account_type: str,
    answers: Sequence[Any],
    venue_codes: Mapping[str, Collection[str]],
    shown: Collection[str],
) -> str:
    """What is wrong with an answer of which CCXT would drop, overwrite or invent a row; empty if nothing is.

    `answers` are the call's raw answers, `venue_codes` the venue's codes by CCXT's code, and `shown` the codes in
    CCXT's result.
    """
    if not shapes(exchange_id, account_type):
        return ""
    last = answers[-1]
    shape, rows = _match_shape(exchange_id, account_type, last)
    if shape is None:
        return "no list of assets"
    if not shape.has_rows:
        return ""
    if shape.last_page is not None:
        if not _holds(last, shape.last_page):
            return "an incomplete list"
        rows = [row for answer in answers for row in _match_shape(exchange_id, account_type, answer)[1]]
    return (
        _find_missing_figure(shape, answers)
        or _problem_of_rows(shape, rows)
        or _find_repeated(shape, rows)
        or _find_left_out(shape, rows, venue_codes, shown)
    )


@cache
def _alternatives(names: str) -> tuple[tuple[str, bool], ...]:
    """The joined paths, each with whether it is the name of a single field."""
    return tuple((path, is_field(path)) for path in names.split("|"))


def _any_of(row: Any, names: str) -> Any:
    """The value at the first of the joined names that is present and not empty."""
    for path, single in _alternatives(names):
        value = row.get(path) if single and type(row) is dict else at(row, path)
        if value is not None and value != "":
            return value
    return None


def _match_shape(exchange_id: str, account_type: str, raw: Any) -> tuple[Rows | None, list[tuple[Any, Any]]]:
    """The first shape that fits the answer, and the rows, each with the venue's name of its asset."""
    for shape in shapes(exchange_id, account_type):
        if not shape.has_rows:
            return shape, []
        rows = _rows(shape, raw)
        if rows is not None:
            return shape, rows
    return None, []


def _rows(shape: Rows, raw: Any) -> list[tuple[Any, Any]] | None:
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
        fits = all(isinstance(holder, list) for holder in holders)
        return [(_name(shape, row), row) for holder in holders for row in holder] if fits else None
    if not all(isinstance(holder, dict) for holder in holders):
        return None
    if shape.kind == "one":
        return [(_name(shape, row), row) for row in holders]
    return [item for holder in holders for item in holder.items() if item[0] not in shape.others]


def _name(shape: Rows, row: Any) -> Any:
    if shape.by_field and type(row) is dict and type(field := row.get(shape.asset)) is str and field:
        return field
    name = _any_of(row, shape.asset) if shape.asset else ""
    return str(name) if type(name) is int else name


def _is_taken(shape: Rows, row: Any) -> bool:
    return shape.taken is None or shape.taken(row)


def _problem_of_rows(shape: Rows, rows: Sequence[tuple[Any, Any]]) -> str:
    """What is wrong with the first faulty row; empty if there is no such row."""
    for name, row in rows:
        if problem := _problem_of_row(shape, name, row):
            return problem
    return ""


def _problem_of_row(shape: Rows, name: Any, row: Any) -> str:
    """What is wrong with one row; empty if nothing is."""
    if shape.by_field and type(row) is dict and type(name) is str and name:
        # Nearly every row. The rest of this function would have the same result.
        for amount in shape.amounts:
            value = row.get(amount)
            if type(value) is not str or not PLAIN_NUMBER.match(value):
                break
        else:
            return ""
    plain = shape.kind == "object" and shape.amounts == ("",)
    if not plain and not isinstance(row, (dict, list)):
        return "an entry that is not a row"
    if not _is_taken(shape, row):
        return ""
    if not isinstance(name, str) or (not name and (shape.asset or shape.kind == "object")):
        return "a row without an asset"
    if plain and not shape.path and name != name.upper():
        return "a field among its assets that is not an asset"
    for amount in shape.amounts:
        if figure(_any_of(row, amount)) is None:
            return "a row without its amounts"
    return ""


def _find_missing_figure(shape: Rows, answers: Sequence[Any]) -> str:
    if any(figure(at(answers[-1], path)) is None for path in shape.figures):
        return "a list of assets without the figures beside it"
    if shape.before and (len(answers) < 2 or any(not at(answers[-2], path) for path in shape.before)):
        return "an account without its cash"
    return ""


def _find_repeated(shape: Rows, rows: Sequence[tuple[Any, Any]]) -> str:
    if shape.several:
        return ""
    # Without regard to case, as CCXT's codes of assets.
    taken = [(name.casefold(), row) for name, row in rows if name and (shape.taken is None or shape.taken(row))]
    names = {(name, str(at(row, shape.apart)) if shape.apart else "") for name, row in taken}
    return "two rows for one asset" if len(names) != len(taken) else ""


def _find_left_out(
    shape: Rows, rows: Sequence[tuple[Any, Any]], venue_codes: Mapping[str, Collection[str]], shown: Collection[str]
) -> str:
    """What is wrong if a row holds something but is not in CCXT's result; empty if every row is there."""
    if not shape.named:
        return ""
    seen = {name.casefold() for code, names in venue_codes.items() if code in shown for name in names}
    for name, row in rows:
        if not _is_taken(shape, row) or name.casefold() in seen:
            continue
        if any(figure(_any_of(row, amount)) for amount in shape.amounts):
            return "a row that CCXT leaves out"
    return ""


def _holds(raw: Any, expected: Mapping[str, Any]) -> bool:
    """Whether each field has its value. "0" equals 0, because venues mix them; true does not equal 1."""
    return all(
        name in raw
        and type(raw[name]) in ((type(value),) if isinstance(value, (bool, list)) else (str, int))
        and str(raw[name]) == str(value)
        for name, value in expected.items()
    )
