"""Invented texts of the same shape as the true ones: the same for the same text within one recording."""

from __future__ import annotations

import hashlib
import hmac
import random
import re
import string
from collections.abc import Iterator

_HEX = re.compile(r"(?:0x)?(?=[0-9A-Fa-f-]*[0-9])(?:[0-9a-f-]{8,}|[0-9A-F-]{8,})\Z|0x[0-9A-Fa-f]{8,}\Z")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+\Z")
_IP = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}\Z")
_NUMBER = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)((?:[eE][+-]?\d+)?)\Z", re.ASCII)
_TRIES = 50


class Inventor:
    """Makes them from a key that is thrown away with it: nothing leads back to the true text."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._made: dict[str, str] = {}
        self._taken: set[str] = set()

    def __repr__(self) -> str:
        return f"Inventor({len(self._made)} invented)"

    def name(self, text: str) -> str:
        """An invented id, name, address or secret. Two different texts get two different ones, but for very short
        texts, and case makes no difference to which digits and letters it has."""
        if text not in self._made:
            made = next((made for made in self._attempts(text) if self._is_free(text, made)), None)
            self._made[text] = made if made is not None else next(self._attempts(text))
            self._taken.add(self._made[text])
        return self._made[text]

    def _is_free(self, text: str, made: str) -> bool:
        return made not in self._taken and made.casefold() != text.casefold() and made not in self._made

    def _attempts(self, text: str) -> Iterator[str]:
        for attempt in range(_TRIES):
            yield _same_shape(text, self._chance(f"name {attempt} {text.casefold()}"))

    def amount(self, text: str) -> str:
        """Another number with the same sign, the same number of digits and the same scale; zero stays zero."""
        match = _NUMBER.match(text)
        if match is None or not set(match[2]) & set("123456789"):
            return text
        sign, digits, exponent = match.groups()
        for attempt in range(_TRIES):
            made = _other_digits(digits, self._chance(f"amount {attempt} {digits}"))
            if made != digits:
                return f"{sign}{made}{exponent}"
        return text

    def _chance(self, text: str) -> random.Random:
        # Its seed is a keyed hash of a key that nobody has.
        seed = hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
        return random.Random(seed)  # noqa: S311


def is_number(text: str) -> bool:
    """Whether a text is a decimal number."""
    return _NUMBER.match(text) is not None


def _same_shape(text: str, chance: random.Random) -> str:
    if _EMAIL.match(text):
        return f"{_same_shape(text.partition('@')[0], chance)}@example.com"
    if _IP.match(text):
        # Of a network that is for examples.
        return f"192.0.2.{chance.randrange(1, 255)}"
    letters = "abcdef" if _HEX.match(text) else string.ascii_lowercase
    kept = 2 if _HEX.match(text) and text[:2] == "0x" else 0
    made, first = [text[:kept]], True
    for letter in text[kept:]:
        if letter.isdigit():
            # A leading zero stays one, and no other digit becomes one.
            made.append("0" if first and letter == "0" else chance.choice("123456789" if first else string.digits))
            first = first and letter == "0"
            continue
        if letter.isalpha():
            new = chance.choice(letters)
            made.append(new.upper() if letter.isupper() else new)
            first = False
        else:
            made.append(letter)
    return "".join(made)


def _other_digits(digits: str, chance: random.Random) -> str:
    made, leading = [], True
    for digit in digits:
        if digit == "." or (leading and digit == "0"):
            made.append(digit)
            continue
        made.append(chance.choice("123456789" if leading else string.digits))
        leading = False
    return "".join(made)
