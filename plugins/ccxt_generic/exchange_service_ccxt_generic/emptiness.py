"""Whether an answer without rows is an empty account, and whether CCXT's result has all rows of an answer.

CCXT reads a maintenance page, `[]`, `{}` and an unknown error alike as a balance without rows, and silently leaves out
a row that it cannot read. So the raw answer is compared with its shape in the table of `answer_shapes`: each row that
holds something must be in CCXT's result, and an answer without rows is an empty account only if the table says why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from exchange_service_ccxt_generic.answer_shapes import Rows
from exchange_service_ccxt_generic.exact import PLAIN_NUMBER
from exchange_service_ccxt_generic.matching import Named, any_of, match, says_nothing
from exchange_service_ccxt_generic.paths import at, figure


def proves_empty(exchange_id: str, account_type: str, raw: Any) -> bool:
    """Whether this exchange sends the raw answer for an account of this type without assets."""
    shape, rows = match(exchange_id, account_type, [raw])
    if shape is None or not shape.empty:
        return False
    # A row of another kind of account, which does not tell of the requested one, is not counted here.
    own = [(name, row) for name, row in rows if shape.taken is None or shape.taken(row) is True]
    if not all(says_nothing(shape, name, row) for name, row in own):
        return False
    if _problem_of_rows(shape, rows):
        return False
    return any(_holds(raw, expected) for expected in shape.beside)


def find_problem(
    shape: Rows | None,
    rows: Sequence[Named],
    answers: Sequence[Any],
    venue_codes: Mapping[str, Collection[str]],
    shown: Collection[str],
) -> str:
    """What is wrong with an answer of which CCXT would drop, overwrite or invent a row; empty if nothing is.

    `shape` and `rows` are those of `match`, `answers` the call's raw answers, `venue_codes` the venue's codes by CCXT's
    code, and `shown` the codes in CCXT's result.
    """
    if shape is None:
        return "no list of assets"
    if not shape.has_rows:
        return ""
    if shape.last_page is not None and not _holds(answers[-1], shape.last_page):
        return "an incomplete list"
    return (
        _find_missing_figure(shape, answers)
        or _problem_of_rows(shape, rows)
        or _find_repeated(shape, rows)
        or _find_left_out(shape, rows, venue_codes, shown)
    )


def _is_taken(shape: Rows, row: Any) -> bool:
    return shape.taken is None or bool(shape.taken(row))


def _problem_of_rows(shape: Rows, rows: Sequence[Named]) -> str:
    """What is wrong with the first faulty row; empty if there is no such row."""
    for name, row in rows:
        if (problem := _problem_of_row(shape, name, row)) and not says_nothing(shape, name, row):
            return problem
    return ""


def _problem_of_row(shape: Rows, name: Any, row: Any) -> str:
    """What is wrong with one row; empty if nothing is."""
    if shape.by_field and not shape.apart and type(row) is dict and type(name) is str and name:
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
    if shape.apart and at(row, shape.apart) not in shape.apart_known and figure(any_of(row, shape.amounts[0])):
        return f"a part of an asset of an unknown {shape.apart}"
    for amount in shape.amounts:
        if figure(any_of(row, amount)) is None:
            return "a row without its amounts"
    return ""


def _find_missing_figure(shape: Rows, answers: Sequence[Any]) -> str:
    if any(figure(at(answers[-1], path)) is None for path in shape.beside_rows):
        return "a list of assets without the figures beside it"
    if shape.before and (len(answers) < 2 or any(not at(answers[-2], path) for path in shape.before)):
        return "an account without its cash"
    return ""


def _find_repeated(shape: Rows, rows: Sequence[Named]) -> str:
    if shape.several and not shape.identity:
        return ""
    # Without regard to case, as CCXT's codes of assets.
    taken = []
    for name, row in rows:
        kind = True if shape.taken is None else shape.taken(row)
        if name and kind:
            differs = shape.apart or shape.identity
            taken.append((name.casefold(), kind, str(at(row, differs)) if differs else ""))
    return "two rows for one asset" if len(set(taken)) != len(taken) else ""


def _find_left_out(
    shape: Rows, rows: Sequence[Named], venue_codes: Mapping[str, Collection[str]], shown: Collection[str]
) -> str:
    """What is wrong if a row holds something but is not in CCXT's result; empty if every row is there."""
    if not shape.named or shape.beyond or shape.literal:
        return ""
    seen = {name.casefold() for code, names in venue_codes.items() if code in shown for name in names}
    for name, row in rows:
        if (shape.taken is not None and shape.taken(row) is not True) or name.casefold() in seen:
            continue
        if any(figure(any_of(row, amount)) for amount in shape.amounts):
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
