"""The rows of a balance with the venue's own figures, read from the raw answer by the table of `answer_shapes`.

CCXT reads some figures of a row, drops others, computes what it has not read, and gives different assets of a venue one
code. So what the venue states is taken from its answer, and CCXT's result only where the table says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

from exchange_service.plugin_api import AssetBalance, VenueMalformed, parse_amount
from exchange_service_ccxt_generic.answer_shapes import Figures, Rows
from exchange_service_ccxt_generic.formulas import EXACT, evaluate, evaluate_debt, normal
from exchange_service_ccxt_generic.matching import Named
from exchange_service_ccxt_generic.paths import at

_UNREADABLE = "a row without its amounts"
_NOTHING = (None, None, None, None)
# Most rows are the same as in the call before, and many are zero for every user.
_ROWS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Codes:
    """CCXT's code of an asset by the venue's name, and the name by the code."""

    # What CCXT has named in the call: the venue's names by its code.
    recorded: Mapping[str, Sequence[str]]
    # CCXT's instance, for a name that CCXT has not read.
    instance: Any

    def by_name(self, shape: Rows, names: Iterable[str]) -> dict[str, str]:
        """The code for each name. Raises VenueMalformed for a name without one."""
        known = {name.casefold(): code for code, recorded in self.recorded.items() for name in recorded}
        return {name: known.get(name.casefold()) or self._look_up(shape, name) for name in names}

    def name_of(self, code: str) -> str:
        """The venue's name of the asset."""
        recorded = self.recorded.get(code)
        listed = (self.instance.currencies or {}).get(code) or {}
        return recorded[0] if recorded else str(listed.get("id") or code)

    def listed(self, code: str) -> str:
        """The name in the venue's list of assets; empty if it has none."""
        return str(((self.instance.currencies or {}).get(code) or {}).get("id") or "")

    def _look_up(self, shape: Rows, name: str) -> str:
        if shape.literal:
            return name
        if shape.numbered:
            listed = (self.instance.options.get(shape.numbered) or {}).get(name) or {}
            return str(listed.get("code") or name)
        code = self.instance.safe_currency_code(name)
        if not isinstance(code, str) or not code:
            raise VenueMalformed("a row with an unknown asset")
        return code


def read_rows(shape: Rows, rows: Sequence[Named], codes: Codes) -> dict[str, tuple[AssetBalance, ...]]:
    """The rows that the account holds, by the kind of account that the venue names for them; "" is the requested one.

    Raises VenueMalformed for a figure that is not an amount.
    """
    assert shape.figures is not None
    kinds: dict[str, list[Named]] = {"": []}
    for name, row in rows:
        taken = True if shape.taken is None else shape.taken(row)
        if taken is False:
            continue
        kinds.setdefault("" if taken is True else str(taken), []).append((name, row))
    return {kind: _read(shape, shape.figures, found, codes) for kind, found in kinds.items()}


def overlay(
    shape: Rows, answer: Any, rows: Sequence[Named], shown: Iterable[AssetBalance], codes: Codes
) -> tuple[AssetBalance, ...]:
    """CCXT's rows with the figures that an answer has among its fields, whose names hold the asset's."""
    assert shape.fields is not None
    found = []
    spelled = {name.casefold(): name for name, _ in rows}
    for row in shown:
        name = dict(shape.aliases).get(row.asset) or codes.name_of(row.asset)
        name = spelled.get(name.casefold(), name)
        figures = shape.fields.of(name.upper() if shape.upper else name)
        figured = _row(figures, row.asset, row.venue_asset, answer)
        if figured is not None:
            found.append(figured)
    return tuple(found)


def _read(shape: Rows, figures: Figures, rows: Sequence[Named], codes: Codes) -> tuple[AssetBalance, ...]:
    if shape.apart:
        rows = _joined(shape, rows)
    by_name = codes.by_name(shape, [name for name, _ in rows])
    shown = _tell_apart(by_name, codes)
    found = []
    for name, row in rows:
        figured = _row(figures, *shown[name], row)
        if figured is not None:
            found.append(figured)
    return _added(found) if shape.several else tuple(found)


def _row(figures: Figures, asset: str, own_name: str, row: Any) -> AssetBalance | None:
    """The row with its figures; None if it has none. Raises VenueMalformed for what is not an amount."""
    try:
        return _figured(figures, asset, own_name, *_raw(figures, row))
    except (TypeError, VenueMalformed):
        # A list or an object, which the cache cannot hold, is no amount either.
        raise VenueMalformed(_UNREADABLE) from None


def _raw(figures: Figures, row: Any) -> tuple[Any, Any, Any, Any]:
    """Total, free, used and debt as the row has them, or as the sum of several members."""
    debt = evaluate_debt(figures.debt, row) if figures.debt else None
    if figures.plain and type(row) is dict:
        return row.get(figures.total), row.get(figures.free), row.get(figures.used), debt
    return evaluate(figures.total, row), evaluate(figures.free, row), evaluate(figures.used, row), debt


@lru_cache(maxsize=_ROWS_KEPT, typed=True)
def _figured(
    figures: Figures, asset: str, own_name: str, total: Any, free: Any, used: Any, debt: Any
) -> AssetBalance | None:
    """The row with these figures, and the third one if it follows from two; None if there are none."""
    amounts = (parse_amount(total, "a row"), _part(free), _part(used))
    if figures.adds_up:
        amounts = _third(*amounts)
    if (*amounts, debt) == _NOTHING:
        return None
    return AssetBalance(asset, *amounts, debt, venue_asset=own_name)


def _part(value: Any) -> Decimal | None:
    """A part of the total: as the venue states it, or as a sum of several members unless that is negative."""
    amount = parse_amount(value, "a row")
    return _unless_negative(amount) if isinstance(value, Decimal) else amount


def _third(
    total: Decimal | None, free: Decimal | None, used: Decimal | None
) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
    """The three figures, the third as the sum or difference of the others; None if it would be a negative part."""
    if total is None:
        if free is not None and used is not None:
            total = normal(EXACT.add(free, used))
    elif free is None:
        if used is not None:
            free = _unless_negative(normal(EXACT.subtract(total, used)))
    elif used is None:
        used = _unless_negative(normal(EXACT.subtract(total, free)))
    return total, free, used


def _unless_negative(amount: Decimal | None) -> Decimal | None:
    return None if amount is None or amount < 0 else amount


def _tell_apart(by_name: Mapping[str, str], codes: Codes) -> dict[str, tuple[str, str]]:
    """The asset's code to show for each name, and the venue's name if it differs.

    Of several assets that have one code for CCXT, one is shown under it, and each other one under the venue's name.
    """
    names: dict[str, list[str]] = {}
    for name, code in by_name.items():
        names.setdefault(code, []).append(name)
    shown = {}
    for code, alike in names.items():
        first = alike[0] if len(alike) == 1 else min(alike, key=lambda name: _rank(name, code, codes))
        for name in alike:
            same = name.upper() == code.upper()
            asset = code if name == first or name in names or name.upper() == first.upper() else name
            shown[name] = (asset, "" if same or asset == name else name)
    return shown


def _rank(name: str, code: str, codes: Codes) -> tuple[bool, bool, int, str]:
    """The order in which names of one code may have it: its own name, the one in the venue's list, the shortest."""
    return name.upper() != code.upper(), name != codes.listed(code), len(name), name


def _joined(shape: Rows, rows: Sequence[Named]) -> list[Named]:
    """One row for each asset, of those that hold its parts; the parts by the field in which they differ."""
    joined: dict[str, dict[str, Any]] = {}
    for name, row in rows:
        parts = joined.setdefault(name, {})
        part, value = str(at(row, shape.apart)), at(row, shape.amounts[0])
        if part in parts:
            value = normal(EXACT.add(parse_amount(parts[part], "a row") or 0, parse_amount(value, "a row") or 0))
        parts[part] = value
    return list(joined.items())


def _added(rows: Sequence[AssetBalance]) -> tuple[AssetBalance, ...]:
    """The sum of the rows for each asset. A figure that one of them lacks is unknown."""
    added: dict[tuple[str, str], AssetBalance] = {}
    for row in rows:
        key = (row.asset, row.venue_asset)
        before = added.get(key)
        added[key] = row if before is None else _sum(before, row)
    return tuple(added.values())


def _sum(one: AssetBalance, other: AssetBalance) -> AssetBalance:
    debts = [debt for debt in (one.debt, other.debt) if debt is not None]
    return replace(
        one,
        total=_plus(one.total, other.total),
        free=_plus(one.free, other.free),
        used=_plus(one.used, other.used),
        debt=_plus(*debts) if len(debts) == 2 else next(iter(debts), None),
    )


def _plus(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else normal(EXACT.add(one, other))
