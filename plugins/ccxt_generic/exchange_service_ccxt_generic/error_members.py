"""The members of an answer in which venues say what is wrong: their codes and their messages.

Only these are read. The names and figures of other members say nothing about a refusal: a `timestamp` is in most good
answers, and a list of a key's rights has a member `ip`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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
_HOLDERS = re.compile(
    r"err|data\Z|result\Z|reason\Z|response\Z|details?\Z|context\Z|message\Z|msg\Z|__all__\Z", re.IGNORECASE
)
# A code made of words says as much as a sentence, such as "ip_not_whitelisted_for_api_key".
_WORDS = re.compile(r"[A-Za-z]+(?:[-_][A-Za-z]+)+\Z")
# Members with the address from which the venue was asked.
_SENDERS = re.compile(r"(client|request|remote|your|current)?_?ip(_?addr(ess)?)?\Z", re.IGNORECASE)
# Members with an error's texts by the name of a field.
_BY_FIELD = re.compile(r"errors\Z", re.IGNORECASE)
_DEEPEST = 4
# Venues send few errors in one answer; an answer with more is a list of something else.
_MOST = 50
# Characters of a message that are read, and of all messages: searching a longer text for words takes minutes.
_LONGEST_MESSAGE = 500
_LONGEST_TEXT = 1500


@dataclass(frozen=True, slots=True)
class ErrorMembers:
    """The codes and the messages of an answer, in the order in which they stand in it, and the address it tells of."""

    codes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All messages as one text."""
        return " | ".join(self.messages)[:_LONGEST_TEXT]


def error_members(value: Any) -> ErrorMembers:
    """What the answer `value` says of an error, wherever its venue writes it."""
    found = _Found()
    found.collect(value, _DEEPEST)
    texts = (found.codes, found.messages, found.addresses)
    return ErrorMembers(*(tuple(text[:_LONGEST_MESSAGE] for text in some[:_MOST]) for some in texts))


@dataclass(slots=True)
class _Found:
    codes: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def collect(self, value: Any, depth: int) -> None:
        if depth == 0:
            return
        if isinstance(value, list):
            # Such as Kraken's errors, Bitfinex's ["error", 10114, "nonce: small"], and orders with an error each.
            for entry in value[:_MOST]:
                if isinstance(entry, str | int) and not isinstance(entry, bool):
                    self.codes.append(str(entry))
                    self.messages.append(str(entry))
                else:
                    self.collect(entry, depth - 1)
        elif isinstance(value, dict):
            for name, content in value.items():
                self._collect_member(name, content, depth)

    def _collect_member(self, name: str, content: Any, depth: int) -> None:
        if isinstance(content, dict | list):
            if _HOLDERS.search(name):
                self.collect(content, depth - 1)
            if isinstance(content, dict) and _BY_FIELD.search(name):
                self._collect_by_field(content)
        elif isinstance(content, str | int) and not isinstance(content, bool):
            self._collect_text(name, content, depth)

    def _collect_text(self, name: str, content: str | int, depth: int) -> None:
        text = str(content)
        is_code = _CODES.match(name) is not None
        if is_code:
            self.codes.append(text)
        if isinstance(content, str) and _SENDERS.match(name):
            self.addresses.append(text)
        if isinstance(content, str) and (_MESSAGES.search(name) or (is_code and _WORDS.match(text))):
            self.messages.append(text)
            for inner in _within(text):
                self.collect(inner, depth - 1)

    def _collect_by_field(self, errors: dict[str, Any]) -> None:
        """The texts of errors by the name of a field, such as {"nonce": ["too small"]}."""
        for name, texts in errors.items():
            for text in texts if isinstance(texts, list) else [texts]:
                if isinstance(text, str):
                    self.messages.append(f"{name}: {text}")


def _within(text: str) -> Iterator[Any]:
    """The JSON value that a text holds: some venues put a whole answer of another server into their message."""
    if text.startswith("{"):
        try:
            yield json.loads(text, parse_float=str)
        except (ValueError, RecursionError):
            return
