"""Answers that no venue means as a balance: whole bodies, and true answers with one figure replaced."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from exchange_service.testing.venue import Fault

_HTML = b"<!DOCTYPE html><html><body><h1>We'll be back soon</h1></body></html>"

# Answers with status 200 that no venue means as a balance. If one of them is a true answer of your venue, for example
# an empty list for an empty wallet, set `nonsense` in your suite to the others.
NONSENSE: Mapping[str, Fault] = {
    "a page for people": Fault(body=_HTML, content_type="text/html"),
    "a page called JSON": Fault(body=_HTML),
    "an empty body": Fault(body=b""),
    "blanks": Fault(body=b" \r\n "),
    "a word": Fault(body=b"OK", content_type="text/plain"),
    "XML": Fault(body=b"<?xml version='1.0'?><balances><total>1</total></balances>", content_type="application/xml"),
    "null": Fault(body=b"null"),
    "true": Fault(body=b"true"),
    "a number": Fault(body=b"12.5"),
    "a text": Fault(body=b'"ok"'),
    "an empty list": Fault(body=b"[]"),
    "an empty object": Fault(body=b"{}"),
    "a list of nulls": Fault(body=b"[null, null]"),
    "a list of lists": Fault(body=b"[[], []]"),
    "an unknown object": Fault(body=b'{"status": "ok", "time": 1764000000123}'),
    "an empty envelope": Fault(body=b'{"data": null, "result": null}'),
    "a truncated object": Fault(body=b'{"accounts": [{"id": "1", "balance": "10.'),
    "two values": Fault(body=b"{}{}"),
    "NaN": Fault(body=b"NaN"),
    "NaN within": Fault(body=b'{"balance": NaN}'),
    "Infinity within": Fault(body=b'{"balance": Infinity}'),
    "minus Infinity within": Fault(body=b'{"balance": -Infinity}'),
    "a field twice": Fault(body=b'{"balance": "1", "balance": "2"}'),
    "an endless integer": Fault(body=b'{"balance": ' + b"9" * 5000 + b"}"),
    "a bottomless list": Fault(body=b"[" * 100_000),
    "bytes of no text": Fault(body=b"\xff\xfe\x00\x80{}"),
    "a broken compression": Fault(body=b"not gzip at all", headers={"Content-Encoding": "gzip"}),
}

# These replace a figure. Not one of them is an amount.
_POISONS: tuple[Any, ...] = ("NaN", "Infinity", "1e999", "1,5", "about 12", True, {}, [])
_NUMERIC = re.compile(r"[+-]?\d+(\.\d+)?\Z")
_RAW = "\x00"


def poison_figures(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Copies of the JSON body with one figure replaced, each with what was replaced; of a list, in one element."""
    try:
        value = json.loads(body, parse_float=_mark, parse_int=_mark)
    except ValueError:
        return
    seen: set[str] = set()
    for path in _numeric_leaves(value):
        where = ".".join("[]" if isinstance(key, int) else key for key in path)
        if where in seen:
            continue
        seen.add(where)
        for poison in _POISONS:
            changed = copy.deepcopy(value)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = poison
            yield f"{where} = {poison!r}", _unmark(json.dumps(changed))


def _mark(number: str) -> str:
    """A bare number as a text that `_unmark` turns back, so that no digit is lost."""
    return _RAW + number


def _unmark(text: str) -> bytes:
    return re.sub(r'"\\u0000([^"]*)"', r"\1", text).encode()


def _numeric_leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, str):
        if path and _NUMERIC.match(value.removeprefix(_RAW)):
            yield path
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _numeric_leaves(item, (*path, key))
