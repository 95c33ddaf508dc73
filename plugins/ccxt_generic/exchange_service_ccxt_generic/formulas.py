"""Formulas of the members of a row, such as "locked+staked" or "availEq|availBal", and their values in a row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from typing import Any

from exchange_service.plugin_api import parse_amount
from exchange_service_ccxt_generic.paths import at

# Amounts have up to 100 digits before or after the point, so that a sum of them is exact.
EXACT = Context(prec=300)
_SIGNS = re.compile(r"([+-])")
_ROW = "."


@dataclass(frozen=True, slots=True)
class Term:
    """One member of a row: its dotted path, and whether it counts negatively."""

    path: str
    negative: bool = False

    def value(self, row: Any) -> Any:
        """What the row has there; None for an empty text too."""
        if self.path == _ROW:
            return row
        value = row.get(self.path) if type(row) is dict and "." not in self.path else at(row, self.path)
        return None if value == "" else value


@cache
def alternatives(formula: str) -> tuple[tuple[Term, ...], ...]:
    """The sums in a formula, of which the first that a row has counts."""
    return tuple(_terms(alternative) for alternative in formula.split("|")) if formula else ()


@cache
def members(formula: str) -> tuple[str, ...]:
    """The paths of every member that a formula names; "." is the row itself."""
    return tuple(term.path for terms in alternatives(formula) for term in terms)


def evaluate(formula: str, row: Any) -> Any:
    """The value of a formula in a row: as the row has it if it is one member, else the sum.

    Of a sum the first member must be present. None if no alternative is. Raises VenueMalformed if one of several
    members is not an amount.
    """
    for terms in alternatives(formula):
        value = terms[0].value(row) if len(terms) == 1 else _sum(terms, row)
        if value is not None:
            return value
    return None


def evaluate_debt(formula: str, row: Any) -> Any:
    """What is owed, which some venues state as a negative amount. Of alternatives the first that is not zero counts."""
    found = None
    for terms in alternatives(formula):
        amounts = [amount for term in terms if (amount := parse_amount(term.value(row), "a row")) is not None]
        if amounts:
            total = abs(amounts[0]) if len(amounts) == 1 else normal(_add([abs(amount) for amount in amounts]))
            if total:
                return total
            found = total if found is None else found
    return found


def normal(amount: Decimal) -> Decimal:
    """The amount without zeros at the end, as CCXT writes its sums."""
    return Decimal(format(EXACT.normalize(amount), "f")) if amount else Decimal(0)


def _sum(terms: tuple[Term, ...], row: Any) -> Any:
    present = [(term, value) for term in terms if (value := term.value(row)) is not None]
    if not present or present[0][0] is not terms[0]:
        return None
    if len(present) == 1:
        return present[0][1]
    amounts = [(term, parse_amount(value, "a row")) for term, value in present]
    return normal(_add([-amount if term.negative else amount for term, amount in amounts if amount is not None]))


def _add(amounts: list[Decimal]) -> Decimal:
    total = amounts[0]
    for amount in amounts[1:]:
        total = EXACT.add(total, amount)
    return total


def _terms(alternative: str) -> tuple[Term, ...]:
    first, *others = _SIGNS.split(alternative)
    signed = zip(others[::2], others[1::2], strict=True)
    return (Term(first), *(Term(path, sign == "-") for sign, path in signed))
