"""The members of an answer in which venues say what is wrong: their codes and their messages.

Only these are read. The names and figures of other members say nothing about a refusal: a `timestamp` is in most good
answers, and a list of a key's rights has a member `ip`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Members with a code: a number or a short word, such as -2015, "50110" or "IP_FORBIDDEN".
_CODES = re.compile(
    r"(s|ret|err|error|response|status)?[_-]?code\Z|label\Z|mc\Z|rc\Z|name\Z|reason\Z|status\Z|id\Z|result\Z|error_?id\Z|error\Z"
    r"|msg\Z|message\Z|text\Z",
    re.IGNORECASE,
)
# Members with a sentence, or a word that says as much.
_MESSAGES = re.compile(
    r"msg|message|error\Z|errors\Z|err\Z|reason|desc|detail|label\Z|name\Z|text\Z|title\Z|cause|debug|\A(mc|key|id)\Z",
    re.IGNORECASE,
)
# Members that hold the error, or a list of errors, or texts of errors by field.
_HOLDERS = re.compile(r"err|data\Z|result\Z|reason\Z|response\Z|details?\Z|message\Z|msg\Z|__all__\Z", re.IGNORECASE)
_DEEPEST = 4
# Venues send few errors in one answer; an answer with more is a list of something else.
_MOST = 50


@dataclass(frozen=True, slots=True)
class ErrorMembers:
    """The codes and the messages of an answer, in the order in which they stand in it."""

    codes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All messages as one text."""
        return " | ".join(self.messages)


def error_members(value: Any) -> ErrorMembers:
    """What the answer `value` says of an error, wherever its venue writes it."""
    codes: list[str] = []
    messages: list[str] = []
    _collect(value, codes, messages, _DEEPEST)
    return ErrorMembers(tuple(codes[:_MOST]), tuple(messages[:_MOST]))


def _collect(value: Any, codes: list[str], messages: list[str], depth: int) -> None:
    if depth == 0:
        return
    if isinstance(value, list):
        # Such as Kraken's errors, Bitfinex's ["error", 10114, "nonce: small"], and orders with an error each.
        for entry in value[:_MOST]:
            if isinstance(entry, str | int) and not isinstance(entry, bool):
                codes.append(str(entry))
                messages.append(str(entry))
            else:
                _collect(entry, codes, messages, depth - 1)
    elif isinstance(value, dict):
        for name, content in value.items():
            _collect_member(name, content, codes, messages, depth)


def _collect_member(name: str, content: Any, codes: list[str], messages: list[str], depth: int) -> None:
    if isinstance(content, dict | list):
        if _HOLDERS.search(name):
            _collect(content, codes, messages, depth - 1)
    elif isinstance(content, str | int) and not isinstance(content, bool):
        text = str(content)
        if _CODES.match(name):
            codes.append(text)
        if isinstance(content, str) and _MESSAGES.search(name):
            messages.append(text)
            for inner in _within(text):
                _collect(inner, codes, messages, depth - 1)


def _within(text: str) -> Iterator[Any]:
    """The JSON value that a text holds: some venues put a whole answer of another server into their message."""
    if text.startswith("{"):
        try:
            yield json.loads(text, parse_float=str)
        except (ValueError, RecursionError):
            return
