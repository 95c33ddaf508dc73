"""Attacks on the operator's terminal by texts of venues, users and plugins: each first succeeds with the mitigation
switched off, and then fails."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from rich.text import Text

from exchange_service.cli import outcome, tables
from exchange_service.cli.outcome import json_text, plain
from exchange_service.observability import logs
from exchange_service.observability.logs import configure_logging
from exchange_service.printable import printable
from exchange_service.v1 import balance_pb2

# Clears the screen, sets the title, the same by a C1 character; text that runs backwards; a line of one's own.
ESCAPES = {
    "escape": "\x1b[2J",
    "title": "\x1b]0;mine\x07",
    "C1": "\x9b2J",
    "delete": "\x7f",
    "carriage return": "\r",
    "bidi override": "\N{RIGHT-TO-LEFT OVERRIDE}",
    "bidi isolate": "\N{RIGHT-TO-LEFT ISOLATE}",
    "bidi mark": "\N{ARABIC LETTER MARK}",
    "line separator": "\N{LINE SEPARATOR}",
    "next line": "\x85",
    "tag": "\N{TAG LATIN SMALL LETTER A}",
}


def hostile_balance(escape: str) -> balance_pb2.Balance:
    text = f"1{escape}2"
    row = balance_pb2.AssetBalance(asset=f"BTC{escape}", total=text, free=text, used=text)
    summary = balance_pb2.Summary(currency=f"USD{escape}", equity=text, available=text)
    account = balance_pb2.VenueAccount(id=f"id{escape}", type=f"spot{escape}", assets=[row], summary=summary)
    return balance_pb2.Balance(exchange_id=f"oanda{escape}", venue_accounts=[account], summary=summary)


def shown(*renderables: Any) -> str:
    console = outcome._make_console()
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    return captured.get()


def as_tables(escape: str) -> str:
    message = hostile_balance(escape)
    return shown(tables.balance(message), tables.balances([message]), tables.summary(message))


def as_text_that_nobody_looked_at(escape: str) -> str:
    return shown(Text(f"a venue's text{escape}"), f"another {escape}")


def as_json(escape: str) -> str:
    return json_text(tables.as_dict(hostile_balance(escape)), indent=2)


@pytest.mark.threat("T59", attack=True)
@pytest.mark.parametrize("escape", ESCAPES.values(), ids=list(ESCAPES))
@pytest.mark.parametrize("show", [as_tables, as_text_that_nobody_looked_at, as_json])
def test_a_venues_amounts_and_ids_reach_the_terminal_unless_they_are_escaped(
    show: Callable[[str], str], escape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as off:
        off.setattr(outcome, "printable", lambda text, keep="": text)
        off.setattr(tables, "plain", lambda text: text)
        without = show(escape)
    # JSON escapes the first control characters by itself, and rich drops a few.
    if not (show is as_json and ord(escape[0]) < 32) and escape not in ("\r", "\x7f"):
        assert any(letter in without for letter in escape if not letter.isprintable())
    text = show(escape)
    assert text.replace("\n", "").isprintable(), ascii(text)
    if show is as_json:
        assert json.loads(text) == tables.as_dict(hostile_balance(escape))


@pytest.mark.threat("T59")
def test_markup_in_a_foreign_text_is_text() -> None:
    message = hostile_balance("[red]")
    assert "1[red]2" in shown(tables.balance(message), tables.summary(message))


@pytest.mark.threat("T59", attack=True)
@pytest.mark.parametrize("escape", [*ESCAPES.values(), "\n2026-11-29 [info] a line of one's own"])
@pytest.mark.parametrize("mitigated", [False, True])
def test_a_text_in_a_log_line_reaches_the_operators_terminal_unless_it_is_escaped(
    escape: str, mitigated: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mitigated:
        monkeypatch.setattr(logs, "printable", lambda text, keep="": text)
    configure_logging("debug", "console")
    try:
        structlog.get_logger().warning(f"a text{escape}", line=f"another{escape}")
        ours = capsys.readouterr().err
        logging.getLogger("venue-sdk").warning("a text%s", escape)
        theirs = capsys.readouterr().err
    finally:
        structlog.reset_defaults()
    letter = next(letter for letter in escape if not letter.isprintable())
    # The console itself colours its lines, and ends them.
    ours = re.sub(r"\x1b\[\d*m", "", ours).removesuffix("\n")
    assert (letter in ours) != mitigated
    if letter != "\n":
        assert (letter in theirs) != mitigated


def test_letters_of_every_language_stay_as_they_are() -> None:
    for text in ("Größe", "数字货币", "عملة", "an emoji \N{BANKNOTE WITH DOLLAR SIGN}", ""):
        assert printable(text) == plain(text) == text
        assert json.loads(json_text({"a": text})) == {"a": text}
        assert text in json_text({"a": text})
    assert printable("a\n\tb\x00", keep="\n") == "a\n\\tb\\u0000"
