"""The accounts of the clients: their users, their secrets, and amounts that say which answer they are of.

A user is a number. The venue knows the user by the secret, and every amount that it gives is `amount_of(number, seq)`:
a client that sees an amount knows for whom the venue has said it, and when.
"""

from __future__ import annotations

from decimal import Decimal

EXCHANGE = "oanda"
# The part of every secret that is searched for afterwards.
CANARY = "chaos-canary-7f3a9c"
# Users that all callers and subscribers share; the first is the hot one. The others are new: each is asked for once.
REGULAR = 12
_ANSWERS = 10**9


def user_name(number: int) -> str:
    """The user of this number."""
    return f"user-{number:05}"


def user_number(name: str) -> int:
    """The number of a user. Raises ValueError for another name."""
    return int(name.removeprefix("user-"))


def secret_of(number: int) -> str:
    """The secret, a bearer token or an API key, by which the venue knows the user."""
    return f"{CANARY}-{number:05}"


def number_of_secret(secret: str) -> int:
    """The user's number. Raises ValueError for another secret."""
    return int(secret.removeprefix(f"{CANARY}-"))


def amount_of(number: int, seq: int) -> Decimal:
    """The total of the venue's answer `seq`, from 1, for this user."""
    return Decimal((number + 1) * _ANSWERS + seq)


def read_amount(text: str) -> tuple[int, int]:
    """The user's number and the `seq` of an amount, in any spelling; (-1, 0) for one that the venue never made."""
    try:
        value = Decimal(text)
    except ArithmeticError:
        return -1, 0
    if not value.is_finite() or value != value.to_integral_value():
        return -1, 0
    number, seq = divmod(int(value), _ANSWERS)
    return (number - 1, seq) if number >= 1 and seq >= 1 else (-1, 0)
