"""What a field of a venue's answer is, by its name and its form: an id, an amount, or something that may stay."""

from __future__ import annotations

import re
from enum import StrEnum

from exchange_service.authoring.inventing import is_number
from exchange_service.authoring.masking import is_secret_value
from exchange_service.observability.redaction import HIDDEN, redact_text


class Kind(StrEnum):
    """What is done with a field's value: all but the last are replaced."""

    SECRET = "secret"  # noqa: S105
    ID = "id"
    AMOUNT = "amount"
    KEPT = "kept"


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# The last word of a name that tells an account, a person or a place.
_ID = re.compile(
    r"(?:^|_)(?:(?:account|acct|acc)_(?:index|idx|key|code)|ids?|uid|uuid|guid|no|nr|number|account|accounts|sub_?account|acct|accts|portfolio"
    r"|session|sid|client|customer|member|address(?:es)?|wallet"
    r"|iban|bic|hash|txid|ref|reference|ip|referral|agent|vault|group)$"
)
_PERSON = re.compile(
    r"(?:^|_)(?:user|user_?name|login|owner|holder|e?_?mail|phone|mobile|(?:first|last|full|sur|family|given|middle)?_?name"
    r"|alias|label|nick|nick_?name|title|street|city|zip|postcode|postal_code|birth(?:day|_?date)?|dob|ssn|tax_?id"
    r"|passport|employer|note|notes|comment|description|memo)$"
)
# A part of a person's name; a number of such a name is a price.
_NAME_PART = re.compile(r"(?:first|last|middle|given|family|initials)\Z")
# A whole number of few digits under such a name has no unit, so it is no amount. A guess by the names that venues use:
# what is kept is printed.
_PLAIN_NUMBER = re.compile(
    r"(?:^|_)(?:multiplier|factor|ratio|lots?|lot_size|shards?|trade_count|daytrade_count|day_trades|day_trade_count"
    r"|open_trade_count|open_position_count|pending_order_count|trades_left|tries|retries|revision|priority|rank|tick"
    r"|ticks|stars|days|hours|months)$"
)
# What belongs to an asset and not to a person.
_ASSET = re.compile(
    r"(?:^|_)(?:symbol|instrument|pair|market|coins?|asset|assets|currency|currencies|ticker|product|isin|cusip|figi|contract"
    r"|base|quote|underlying|universe|tokens?|network|chain|exchange|ccy)(?:_(?:id|name|code|symbol))?$"
)
_TIME = re.compile(
    r"(?:^|_)(?:time|times|timestamp|date|datetime|ts|at|on|since|until|updated|created|expires|expiry|expiration|opened|closed"
    r"|millis|ms|seconds|duration|ttl|nonce|window|expires_in)$"
)
_ENUM = re.compile(
    r"(?:^|_)(?:type|types|status|state|mode|side|kind|category|class|level|tier|code|version|precision|decimals|digits|scale"
    r"|index|idx|count|limit|leverage|sign|page|pages|flags?|interval|order|position_side|weight|channel|seq|sequence"
    r"|per_page|size_decimals|offset|env|environment|locale|language|country|timezone|enabled|method|reason|message|error"
    r"|msg|event|action)$"
)
_TIME_TEXT = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?\Z|\d\d:\d\d(?::\d\d)?\Z"
)
_CODE = re.compile(r"[A-Z][A-Z_]{1,9}\Z")
_WORD = re.compile(r"[a-z_]{2,20}\Z")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+\Z")
_IP = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}\Z")
# The form of many venues' account numbers, such as U1234567 and 001-004-1234567-001.
_ACCOUNT = re.compile(r"[A-Za-z]{0,4}[-_]?\d[\d-]*\Z")
# A number of milliseconds, microseconds or nanoseconds since 1970 in this half of the century.
_INSTANT = re.compile(r"1[4-9]\d{11}(?:\d{3}|\d{6})?\Z|20\d{11}(?:\d{3}|\d{6})?\Z")
# A shorter id names nobody.
SHORTEST_ID = 3
_MANY_DIGITS = 6
# A whole number of more digits is no level, count or index that may stay.
_MOST_ENUM_DIGITS = 4


def plain_name(name: str) -> str:
    """A field's name in lower case with underscores: `account_id` for "accountID"."""
    return _CAMEL.sub("_", name).replace("-", "_").replace(".", "_").replace(" ", "_").lower()


def kind_of_text(name: str, parent: str, text: str) -> Kind:
    """What a text is whose field has this name, within a field of the name `parent`."""
    plain, outer = plain_name(name), plain_name(parent)
    if not text.strip():
        return Kind.KEPT
    if is_secret_value(name, text):
        return Kind.SECRET
    if _EMAIL.match(text) or _UUID.match(text) or _ADDRESS.match(text) or (_IP.match(text) and not is_number(text)):
        return Kind.ID
    if _TIME_TEXT.match(text) or (
        _TIME.search(plain) and len(text) < 40 and (not is_number(text) or _is_time(plain, text))
    ):
        return Kind.KEPT
    if _NAME_PART.match(plain) and not is_number(text):
        return Kind.ID
    if _PERSON.search(plain):
        return Kind.KEPT if _ASSET.search(outer) and not is_number(text) else Kind.ID
    if _ASSET.search(plain) and not is_number(text):
        return Kind.KEPT
    if _ID.search(plain):
        harmless = _CODE.match(text) or _WORD.match(text) or len(text) < SHORTEST_ID
        return Kind.KEPT if harmless else Kind.ID
    if is_number(text):
        return kind_of_number(name, parent, text)
    if _ENUM.search(plain):
        return Kind.ID if is_account_number(text) else Kind.KEPT
    opaque = HIDDEN in redact_text(text, held=False) and HIDDEN not in text
    return Kind.ID if opaque or sum(letter.isdigit() for letter in text) >= _MANY_DIGITS else Kind.KEPT


def kind_of_number(name: str, parent: str, text: str) -> Kind:
    """What a number is whose field has this name, within a field of the name `parent`."""
    plain = plain_name(name)
    if _INSTANT.match(text) or (_TIME.search(plain) and _is_time(plain, text)):
        return Kind.KEPT
    if _ID.search(plain) or _PERSON.search(plain):
        return Kind.ID if text.lstrip("-").isdigit() and len(text) >= SHORTEST_ID else Kind.KEPT
    if is_secret_value(name, text):
        return Kind.SECRET
    # An amount has a point, or many digits: a withdrawal limit is one.
    few = len(text.lstrip("-")) <= _MOST_ENUM_DIGITS and text.lstrip("-").isdigit()
    named = any(pattern.search(plain) for pattern in (_ENUM, _PLAIN_NUMBER, _ASSET))
    return Kind.KEPT if few and (named or _ENUM.search(plain_name(parent))) else Kind.AMOUNT


def _is_time(plain: str, text: str) -> bool:
    """Whether a number of such a name is one: seconds since 1970, or a span; "on" and "at" may end other names."""
    return bool(re.search(r"time|ts$|date|since|until|nonce|window|expires|created|updated", plain)) or len(text) <= 6


def is_account_number(text: str) -> bool:
    """Whether a text that is no number and no time has the form of an account's number."""
    if not _ACCOUNT.match(text) or text.isdigit() or _TIME_TEXT.match(text):
        return False
    return sum(letter.isdigit() for letter in text) > _MOST_ENUM_DIGITS


def kind_of_key(key: str) -> Kind:
    """What the name of a field is: an id if the venue keys an object by accounts."""
    long_number = key.isdigit() and len(key) >= _MANY_DIGITS
    is_id = long_number or is_account_number(key) or _EMAIL.match(key) or _UUID.match(key) or _ADDRESS.match(key)
    return Kind.ID if is_id else Kind.KEPT
