"""Answers that no venue means as a balance: whole bodies, true answers with a figure replaced, and gateways' pages."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
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

# What gateways send in a venue's place: each says nothing about a key, a right or an account.
# witness: vendor: https://developers.cloudflare.com/changelog/post/2026-03-11-json-rfc9457-responses-for-1xxx-errors/
_CLOUDFLARE_JSON = (
    b'{"type": "https://developers.cloudflare.com/1020/", "title": "Error 1020: Access denied", "status": 403, '
    b'"error_code": 1020, "error_name": "access_denied", "cloudflare_error": true, "retryable": false}'
)
GATEWAY_PAGES: Mapping[str, Fault] = {
    "Cloudflare's block": Fault(
        body=b"<!DOCTYPE html>\n<html class='no-js' lang='en-US'><head><title>Attention Required! | Cloudflare</title>"
        b"</head><body><h1>Sorry, you have been blocked</h1><p>You are unable to access this site. Your IP: 203.0.113.9"
        b"</p></body></html>",
        content_type="text/html; charset=UTF-8",
        headers={"Server": "cloudflare"},
    ),
    "Cloudflare's challenge": Fault(
        body=b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Enable JavaScript and cookies to "
        b"continue</body></html>",
        content_type="text/html; charset=UTF-8",
        headers={"Server": "cloudflare"},
    ),
    "Cloudflare's number": Fault(body=b"error code: 1020", content_type="text/plain; charset=UTF-8"),
    "Akamai": Fault(
        body=b"<HTML><HEAD>\n<TITLE>Access Denied</TITLE>\n</HEAD><BODY>\n<H1>Access Denied</H1>\nYou don't have "
        b"permission to access this on this server.<P>\nReference&#32;&#35;18&#46;5e\n</BODY>\n</HTML>\n",
        content_type="text/html",
        headers={"Server": "AkamaiGHost"},
    ),
    "nginx": Fault(
        body=b"<html>\r\n<head><title>403 Forbidden</title></head>\r\n<body>\r\n<center><h1>403 Forbidden</h1></center>"
        b"\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n",
        content_type="text/html",
        headers={"Server": "nginx"},
    ),
    "a captive portal": Fault(
        body=b"<html><body><form action='/login'>Sign in to use this network. Password, API key or token: <input>"
        b"</form></body></html>",
        content_type="text/html",
    ),
}
# Cloudflare answers so if JSON is asked for, and only with a status of 400 or more.
GATEWAY_JSON: Mapping[str, Fault] = {"Cloudflare's JSON": Fault(body=_CLOUDFLARE_JSON)}
GATEWAY_STATUSES = (200, 401, 403, 404, 429, 503)


def gateway_answers() -> Iterator[tuple[str, Fault]]:
    """Each gateway's answer with each status that it may have, named."""
    for name, page in {**GATEWAY_PAGES, **GATEWAY_JSON}.items():
        for status in GATEWAY_STATUSES:
            plain = page.content_type.startswith("text/plain") and status in (401, 404)
            if not plain and (status >= 400 or name in GATEWAY_PAGES):
                # In a plain text with 401 or 404, venues themselves say what is wrong.
                yield f"{name}, HTTP {status}", replace(page, status=status)


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
