"""What venues answer: bodies, amounts, times, statuses and headers; and what a plugin makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from exchange_service.amounts import format_amount
from exchange_service.errors import VenueError, VenueMalformed
from exchange_service.model import Account, AssetBalance, Balance, Credential, Summary, VenueAccount
from exchange_service.plugin_kit import payload
from exchange_service.venues.answers import _read_balance, shape_error
from exchange_service.venues.http import VenueResponse
from exchange_service.wire.balances import read_fetched
from tests.fuzz.fakex import LISTING, registry
from tests.fuzz.targets import target

BODY = b"""{"accounts": [{"id": "1", "type": "spot", "time": 1767225600000, "assets": [
 {"asset": "BTC", "total": "1.50", "free": 1.0, "used": 5e-1}, {"asset": "ETH", "total": "0", "free": null}]}],
 "summary": {"currency": "USD", "total": -12.000001}, "notes": ["A note."], "ok": true}"""


def values(value: Any) -> Iterator[Any]:
    """Every value in a JSON value."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        yield here
        waiting.extend(here.values() if isinstance(here, dict) else here if isinstance(here, list) else ())


@target("venue-json", [BODY, b'[{"a": 1e5}, -0.0, "text", null]', b"\xef\xbb\xbf{}"], (VenueMalformed,))
def read_json(data: bytes) -> object:
    body = VenueResponse("Fakex", 200, {}, data).json()
    for value in values(body):
        assert not isinstance(value, float)
        if isinstance(value, dict):
            _read_fields(value)
    return body


def _read_fields(source: dict[str, Any]) -> None:
    """Each field as everything that a plugin could take it for."""
    readers = (payload.amount, payload.required_amount, payload.text, payload.milliseconds)
    for name in list(source)[:20]:
        for reader in readers:
            try:
                reader(source, name, "body")
            except VenueMalformed:
                continue
        payload.milliseconds(source, name, "body")


@target(
    "venue-amount",
    [b"1.50", b"-0.000000000000000001", b"12e-5", b".5", b"+7.", b"123456789012345678901234567890.5"],
    (VenueMalformed,),
)
def read_amount(data: bytes) -> object:
    """An amount as a text, and as a bare number."""
    text = data.decode("utf-8", "replace")
    number = payload.parse_amount(text, "body.total")
    if number is not None:
        _check_amount(number)
        bare = payload.parse_amount(payload.parse_json(text), "body.total")
        assert bare == number
    return number


def _check_amount(number: Decimal) -> None:
    written = format_amount(number)
    assert number.is_finite()
    assert len(written) <= 250
    assert Decimal(written) == number


@target("venue-delay", [b"120", b"1.5", b"Wed, 21 Oct 2026 07:28:00 GMT", b"Wednesday, 21-Oct-26 07:28:00 GMT"], ())
def read_delay(data: bytes) -> object:
    seconds = payload.retry_after({"Retry-After": data.decode("utf-8", "replace")})
    assert seconds is None or 0 <= seconds <= 300
    return seconds


@target(
    "venue-status",
    [
        b"\x00\xc8\n{}",
        b"\x01\x93text/html\n<html>This country is not supported. error code: 1009</html>",
        b"\x01\xf4120\n{}",
        b'\x01\x93ForbiddenException\n{"message": "Forbidden"}',
        b'\x01\xad5\n{"cloudflare_error": true}',
        b"\x01\xf75\nmaintenance",
    ],
    (VenueError,),
)
def read_status(data: bytes) -> object:
    """Two bytes of a status, a header's value, and the body."""
    header, _, body = data[2:].partition(b"\n")
    value = header.decode("utf-8", "replace")
    headers = {"Retry-After": value, "x-amzn-errortype": value}
    VenueResponse("Fakex", int.from_bytes(data[:2]), headers, body).raise_for_status()
    return None


_LISTING = registry().listings["fakex"]
_ACCOUNT = Account("alice", "fakex")


class Called:
    """What is read of a VenueCall when its answer is."""

    account = _ACCOUNT
    exchange = LISTING
    environment = LISTING.environments[0]
    credential = Credential.from_texts({"api_key": "a-key-for-tests"})


def _row(value: Any) -> Any:
    if not isinstance(value, dict) or "asset" not in value:
        return value
    amounts = {name: value[name] for name in ("total", "free", "used", "debt") if name in value}
    return AssetBalance(value["asset"], **amounts, venue_asset=value.get("venue_asset", ""))


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _summary(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return Summary(value.get("currency", "USD"), value.get("total"), value.get("available"), value.get("equity"))


def _account(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    rows = value.get("assets", [])
    rows = tuple(map(_row, rows)) if isinstance(rows, list) else rows
    names = [value.get(name, "") for name in ("id", "type", "sub_account", "label")]
    return VenueAccount(*names, rows, _summary(value.get("summary")), value.get("error"), value.get("time"))


def made_of(body: Any) -> Any:
    """What a careless plugin makes of a body: each value as it is, whatever its type."""
    if not isinstance(body, dict):
        return body
    accounts = body.get("accounts")
    accounts = tuple(map(_account, accounts)) if isinstance(accounts, list) else accounts
    return Balance(accounts, _summary(body.get("summary")), body.get("time"), _listed(body.get("notes", ())))


@target(
    "plugin-answer", [BODY.replace(b'"1.50"', b"1.50").replace(b'"0"', b"0.0").replace(b'"time": 1767225600000, ', b"")]
)
def read_answer(data: bytes) -> object:
    try:
        answer = made_of(payload.parse_json(data))
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # The model refuses it in the plugin's own hands.
        raise VenueMalformed("The model refuses it.") from error
    fetched = _read_balance(answer, _LISTING, Called())  # type: ignore[arg-type]
    assert not shape_error(read_fetched(fetched), LISTING)
    return fetched
