"""What CCXT's source says of every code that an exchange may answer with, and answers that hold such a code."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from exchange_service_ccxt_generic.answers import Answer


@dataclass(frozen=True, slots=True)
class Coded:
    """One entry of a class's `exceptions` or `httpExceptions`: where it stands, its code, CCXT's class, its comment."""

    place: tuple[str, ...]
    code: str
    class_name: str
    comment: str

    @property
    def sentence(self) -> str:
        """What the source says of the code: the message in the comment, or the comment, after a code made of words."""
        quoted = re.search(
            r"""["'](?:msg|message|error_message|errorMessage|ret_?[mM]sg|err_msg|error)["']\s*:\s*["']+([^"]*)""",
            self.comment,
        )
        words = "" if re.fullmatch(r"-?\d+", self.code) else self.code
        return f"{words} {quoted[1] if quoted else self.comment}"


@cache
def coded(ccxt_class: type) -> tuple[Coded, ...]:
    """Every code of the class and of those that it is derived from, without CCXT's base class."""
    rows: dict[tuple[tuple[str, ...], str], Coded] = {}
    for base in reversed(ccxt_class.__mro__):
        if "describe" in base.__dict__ and not base.__module__.endswith("base.exchange"):
            rows.update({(row.place, row.code): row for row in _rows(base)})
    return tuple(rows.values())


def _rows(ccxt_class: type) -> Iterator[Coded]:
    source = textwrap.dedent(inspect.getsource(ccxt_class.describe))  # type: ignore[attr-defined]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ("exceptions", "httpExceptions"):
                    yield from _entries(value, (key.value,), comments)


def _entries(node: ast.expr, place: tuple[str, ...], comments: dict[int, str]) -> Iterator[Coded]:
    if not isinstance(node, ast.Dict):
        return
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant):
            continue
        if isinstance(value, ast.Dict):
            yield from _entries(value, (*place, str(key.value)), comments)
        elif isinstance(value, ast.Name):
            yield Coded(place, str(key.value), value.id, comments.get(value.end_lineno or 0, ""))
        elif isinstance(value, ast.List) and isinstance(value.elts[0], ast.Name):
            # Digifinex has the class and its meaning.
            yield Coded(place, str(key.value), value.elts[0].id, ast.unparse(value.elts[1]))


# Words in the source for what a code is about. A code about several is rightly told as any of them.
_ABOUT: dict[str, re.Pattern[str]] = {
    reason: re.compile(pattern, re.IGNORECASE)
    for reason, pattern in {
        "ADDRESS_NOT_ALLOWED": r"(?<![a-z])ip(?![a-z])",
        "REGION_RESTRICTED": r"region|countr|jurisdiction|your location|restricted location",
        "VENUE_MAINTENANCE": r"maintenance|maintained|upgrad",
        "CLOCK_SKEW": r"timestamp|nonce|recv_?window|request.?expired|request.?time\b|time is ahead|outdated message",
        "CREDENTIAL_REJECTED": r"signature|\bsign\b|api[- _]?key|access[- _]?key|passphrase|session key|public key"
        r"|credential",
        "PERMISSION_MISSING": r"permission|privilege|not authorized|scope|\brole\b|forbidden|access denied"
        r"|insufficient.?perms",
        "VENUE_RATE_LIMITED": r"rate.?limit|too many (new )?(req|visit)|too frequent|frequently|request frequency",
    }.items()
}
# What such words mean by the class, where the source says no more.
_BY_CLASS = {
    "AuthenticationError": "CREDENTIAL_REJECTED",
    "PermissionDenied": "PERMISSION_MISSING",
    "AccountSuspended": "PERMISSION_MISSING",
    "InvalidNonce": "CLOCK_SKEW",
    "RestrictedLocation": "REGION_RESTRICTED",
    "OnMaintenance": "VENUE_MAINTENANCE",
    "RateLimitExceeded": "VENUE_RATE_LIMITED",
    "DDoSProtection": "VENUE_RATE_LIMITED",
    "AccountNotEnabled": "FEATURE_NOT_ENABLED",
}
# Of orders, markets, payments and the making of keys, with which no balance has to do: the class alone counts.
_ELSEWHERE = re.compile(
    "|".join(
        (
            *("withdraw", "deposit", "transfer", r"\border", "symbol", "trading pair", "leverag", "position", "borrow"),
            *("listen", "chain", "bank", "voucher", "subscri", "margin", "goodtill", "instrument", "asset", r"token\b"),
            *("auction", "rfq", r"ws\b", r"kol\b", "copying", "broker", "product not", "transaction count"),
            # The making of keys, and the list of a key's addresses.
            *("already on the white", "IPs are allowed", "bound IP format", "bound to an IP", "bind up to", "remark"),
            *("APIKeys can", "Note name", "key creation", "session keys per", "already registered", "expiry"),
            *("permission does not exist", "groups of", "should not be changed", "cannot be duplicate"),
            *("corresponding to the account", "contracts trading", "high frequency"),
            # What a request lacks.
            *("(?<!timestamp )(?<!header or )param(?!eter .nonce)", "argument", "must be sent", "cannot be null"),
            *("can not be empty", "cannot be blank", "not provided", "ending timestamp"),
        )
    ),
    re.IGNORECASE,
)


def told_in_words(row: Coded) -> set[str]:
    """The reasons that the words of the source name for a code."""
    if row.class_name == "InvalidOrder" or _ELSEWHERE.search(row.sentence):
        return set()
    return {reason for reason, pattern in _ABOUT.items() if pattern.search(row.sentence)}


def right_reasons(row: Coded) -> frozenset[str]:
    """The reasons that are right for a code by CCXT's source; empty if it says nothing about the key or the venue."""
    by_class, about = _BY_CLASS.get(row.class_name, ""), told_in_words(row)
    if about >= {"ADDRESS_NOT_ALLOWED", "CREDENTIAL_REJECTED", "PERMISSION_MISSING"}:
        # The key, the address and its rights in one code: a key of another environment is the most frequent cause.
        return frozenset({"CREDENTIAL_REJECTED"})
    if by_class == "VENUE_RATE_LIMITED":
        return frozenset({by_class})
    for first in ("REGION_RESTRICTED", "ADDRESS_NOT_ALLOWED", "VENUE_MAINTENANCE"):
        if first in about:
            return frozenset({first})
    if about == {"CLOCK_SKEW"}:
        return frozenset(about)
    # The key and its rights are not told apart everywhere.
    return frozenset({by_class, *about} - {""})


def answers(row: Coded) -> Iterator[tuple[int, Any]]:
    """Answers with the code, as venues write theirs, with nothing else that says what it means."""
    code: Any = row.code
    number: Any = int(code) if re.fullmatch(r"-?[1-9]\d*", code) else code
    shapes: tuple[Any, ...] = (
        {"code": number, "msg": "x"},
        {"code": code, "message": "x", "success": False},
        {"retCode": number, "retMsg": "x"},
        {"error": {"code": number, "message": "x"}},
        {"status": "ERROR", "error": {"code": number, "message": "x"}},
        {"success": 0, "data": {"code": number}},
        {"success": False, "error": {"code": code, "message": "x"}},
        {"errorCode": number, "error": "x", "success": False},
        {"errorCode": number, "message": "x", "status": "failed"},
        {"label": code, "message": "x"},
        {"error": [code]},
        {"errors": [{"id": code, "message": "x"}]},
        {"errors": [{"message": code}], "result": "error"},
        {"errors": [{"code": code, "text": "x"}], "success": False},
        {"error": {"name": code, "message": "x"}},
        {"error": {"name": "x", "message": code}},
        {"status": "error", "err-code": code, "err-msg": "x"},
        {"status": "error", "err_code": number, "err_msg": "x"},
        {"status": "error", "err-code": "x", "err-msg": code},
        {"result": False, "error_code": number},
        {"result": False, "code": number},
        {"result": "error", "reason": code, "message": "x"},
        {"status": "failure", "error_code": number, "error": "x"},
        {"error_code": code, "error": "x"},
        {"error_id": code, "error": "x", "code": 400},
        {"rc": 1, "mc": code},
        {"status": number, "error_message": "x"},
        {"statusCode": number, "statusDescription": "x"},
        {"error": code},
        {"error": code, "success": False},
        {"errorMessage": code},
        {"errormsg": code},
        {"message": code},
        {"msg": code, "code": 1},
        {"code": 0, "message": code},
        {"code": -1, "message": code, "success": False},
        {"status": "error", "reason": code},
        {"result": "error", "reason": "x", "message": code},
        {"status": number, "message": "x"},
        {"status": "400", "errors": {}, "message": code},
        {"result": {"code": number}},
        ["error", number, code],
        ["error", 10001, code],
    )
    for shape in shapes:
        for status in (400, 200, 500):
            yield status, shape
    if row.code.isdecimal() and len(row.code) == 3:
        yield int(row.code), {"message": "x"}
        yield int(row.code), {"code": 1, "message": "x"}


def answer_of(status: int, value: Any) -> Answer:
    """The answer as the plugin records it."""
    return Answer(status=status, body=json.dumps(value), is_json=True)
