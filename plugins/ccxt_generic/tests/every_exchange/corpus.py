"""Answers with status 200 (and redirects) that no exchange means as a balance."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping

from exchange_service.testing import Fault
from exchange_service.testing.contract import NONSENSE

_MIB = 1024 * 1024
# What an account's answer may hold before it is refused, and where the bodies are measured against.
_LIMIT = 8 * _MIB


def _padded(size: int) -> bytes:
    """A JSON object of `size` bytes."""
    return b'{"padding":"' + b"x" * (size - 14) + b'"}'


def _gzipped(body: bytes) -> Fault:
    return Fault(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})


_MORE: Mapping[str, Fault] = {
    "a redirect to another host": Fault.redirect("https://example.org/"),
    "a redirect to itself": Fault(status=307, headers={"Location": "/"}, body=b"[]"),
    "a body of the size limit": _gzipped(_padded(_LIMIT)),
    "a body one byte beyond the limit": _gzipped(_padded(_LIMIT + 1)),
    "an endless body, uncompressed": Fault(body=_padded(_LIMIT + 1)),
    "a gzip bomb": Fault.gzip_bomb(64 * _MIB),
    "a bomb of empty lists": _gzipped(b"[" + b"[]," * (4 * _MIB) + b"[]]"),
    "an object called HTML": Fault(body=b"{}", content_type="text/html"),
    "an object called an image": Fault(body=b"{}", content_type="image/png"),
    "a broken deflation": Fault(body=b"{}", headers={"Content-Encoding": "deflate"}),
    "a deflated page": Fault(body=zlib.compress(b"<html></html>"), headers={"Content-Encoding": "deflate"}),
    "an unknown compression": Fault(body=b"{}", headers={"Content-Encoding": "zstd, br"}),
    "a list behind a byte order mark": Fault(body=b"\xef\xbb\xbf[]"),
    "an object in UTF-16": Fault(body="{}".encode("utf-16")),
    "a list with a comma too many": Fault(body=b"[1,]"),
    "an object in single quotes": Fault(body=b"{'balances': []}"),
    "lines of objects": Fault(body=b'{"asset":"BTC"}\n{"asset":"ETH"}'),
    "a callback": Fault(body=b"callback([])", content_type="application/javascript"),
    "events": Fault(body=b"data: {}\n\n", content_type="text/event-stream"),
    "an exponent too large": Fault(body=b'{"balance": 1e999}'),
    "an exponent too large, as text": Fault(body=b'[{"asset": "BTC", "free": "1e999999999", "locked": "0"}]'),
    "NaN in a row": Fault(body=b'{"balances":[{"asset":"BTC","free":NaN}],"data":[{"ccy":"BTC","bal":NaN}]}'),
    "null and an object": Fault(body=b"[null, {}]"),
    "a list of unknown objects": Fault(body=b'[{"x": 0}]'),
    "false": Fault(body=b"false"),
    "zero": Fault(body=b"0"),
    "an empty text": Fault(body=b'""'),
    "an error in an unknown shape": Fault(body=b'{"status": "error", "foo": {"bar": 1}}'),
    "maintenance as a success": Fault(
        body=b'{"code": 0, "result": {"data": null}, "data": null, "message": "maintenance"}'
    ),
    "a success with nothing": Fault(body=b'{"code": "0", "success": true, "status": "ok", "msg": ""}'),
    "an envelope of empty objects": Fault(body=b'{"data": {}, "result": {}, "balances": {}, "accounts": {}}'),
    "an envelope of texts": Fault(body=b'{"data": "[]", "result": "{}", "balances": "0", "accounts": ""}'),
    "rows that are not objects": Fault(body=b'{"data": [null, 1, "x"], "result": [null], "balances": [[]]}'),
    "the error of a gateway": Fault(body=b'{"message": "no healthy upstream", "request_id": "7"}'),
    "GraphQL": Fault(body=b'{"data": {"viewer": null}, "errors": [{"message": "internal"}]}'),
}

CORPUS: Mapping[str, Fault] = {**NONSENSE, **_MORE}
# Those that name an error, so that an exchange may be said to have refused the request.
NAMES_AN_ERROR = frozenset({"maintenance as a success", "the error of a gateway", "GraphQL"})

# Where an empty list in answer to the last request says of the account that it holds what the others tell, and no more.
TOLD_BEFORE: Mapping[str, str] = {"alpaca": "positions are one answer, and the cash, which is there always, another"}

# Exchanges whose true answer for an empty account is one of these bodies: nothing can tell the two apart. CCXT's code
# reads each entry of the list as one asset, so that a list without entries is an account without assets.
TRUE_EMPTY: Mapping[str, Mapping[str, str]] = {
    "an empty list": dict.fromkeys(
        (
            "bequant",
            "bitfinex",
            "bitflyer",
            "bithumb",
            "bitstamp",
            "bitvavo",
            "btcmarkets",
            "coinbaseexchange",
            "fmfwio",
            "gate",
            "gateeu",
            "gemini",
            "hitbtc",
            "independentreserve",
            "latoken",
            "ndax",
            "revolutx",
            "upbit",
        ),
        "the whole answer is the list of assets, or of wallets",
    )
}

# The same for the other types of account.
TRUE_EMPTY_TYPES: Mapping[str, Mapping[str, str]] = {
    exchange_id: dict.fromkeys(types, "the whole answer is the list of assets, or of wallets")
    for exchange_id, types in {
        "bequant": ("funding",),
        "binance": ("funding", "papi"),
        "bitfinex": ("margin", "funding", "derivatives"),
        "fmfwio": ("funding",),
        "gate": ("margin", "funding"),
        "gateeu": ("funding",),
        "hashkey": ("swap",),
        "hitbtc": ("funding", "swap"),
        "latoken": ("funding",),
        "toobit": ("swap",),
        "weex": ("swap",),
    }.items()
}

# Those that are JSON, or nearly, and not large: they get as far as the reading of an account of any type.
JSON_BODIES = tuple(
    name
    for name, fault in CORPUS.items()
    if fault.body[:1] in b'[{"ntf0' and len(fault.body) < 1000 and not fault.headers
)
