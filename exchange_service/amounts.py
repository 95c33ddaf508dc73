"""Exact sums and differences of amounts, and the text of one. Decimal's own context would round at 28 digits."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal

# Far above what two amounts within the bounds of `model` can need.
_EXACT = Context(prec=250)


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum to the last digit; zero if there are no amounts."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


def exact_difference(amount: Decimal, less: Decimal) -> Decimal:
    """`amount` minus `less`, to the last digit.

    Use it for a figure that the venue defines as this difference. Free margin, for example, is usually not one.
    """
    return _EXACT.subtract(amount, less)


def format_amount(number: Decimal) -> str:
    """An amount as the wire writes it: optional minus, digits, optional point and digits; never an exponent.

    Raises TypeError if `number` is not a Decimal.
    """
    if not isinstance(number, Decimal):
        # A float could be formatted too, but it has already lost digits.
        raise TypeError(f"an amount is a Decimal, not {type(number).__name__}")
    return format(number, "f")
