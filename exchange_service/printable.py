"""Foreign texts in a form that is safe to show: nothing in them moves a terminal's cursor, or turns its text around."""

from __future__ import annotations

import json


def printable(text: str, *, keep: str = "") -> str:
    """The text with every character that is not printable as JSON writes it, such as \\u001b; those in `keep` stay.

    So are the control characters of both sets (C0, C1), and the marks that change the direction of text.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
