"""Sums and differences of venue amounts that keep every digit; Decimal's own context would round at 28."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal

# Far above what two amounts within the bounds of `model` can need.
_EXACT = Context(prec=250)


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum, to the last digit; zero of none."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


def exact_difference(amount: Decimal, less: Decimal) -> Decimal:
    """`amount` less `less`, to the last digit. For figures that a venue defines so; a margin venue's are not."""
    return _EXACT.subtract(amount, less)
