"""What the log says of pushes: that they stand, break, are refused and miss a change; no account, and not too often."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from exchange_service.balances.push_log import PushLog
from exchange_service.errors import NotSupported, PluginFailed, VenueTimeout, VenueUnavailable
from exchange_service.observability.logs import CallMark, add_request_id, current_call
from tests.harness import OffsetClock, until


def lines(captured: Any) -> list[tuple[str, str, int]]:
    return [(line["event"], line["log_level"], line["accounts"]) for line in captured]


async def test_the_first_account_has_a_line_at_once_and_those_of_the_next_seconds_have_one_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, log = OffsetClock(monkeypatch), PushLog()
    with capture_logs() as captured:
        for _ in range(500):
            log.stands("lighter")
        log.stands("oanda")
        assert lines(captured) == [("push.stands", "info", 1), ("push.stands", "info", 1)]
        clock.advance(10.0)
        await until(lambda: len(captured) == 3)
        assert captured[-1] == {"event": "push.stands", "log_level": "info", "exchange": "lighter", "accounts": 499}
        clock.advance(10.0)
        await until(lambda: not log._unsaid)
        log.stands("lighter")
        assert lines(captured)[3:] == [("push.stands", "info", 1)]
    log.close()


async def test_each_reason_has_a_line_of_its_own_and_an_account_that_is_not_pushed_is_no_warning() -> None:
    log = PushLog()
    with capture_logs() as captured:
        log.ended("oanda", VenueUnavailable("It ended the connection of alice."), 1.6)
        log.ended("oanda", VenueTimeout("It is silent."), 4.0)
        log.ended("oanda", NotSupported("It does not push the account of alice."), 600.0)
        log.differs("oanda", 2)
    log.close()
    assert [(line["event"], line["log_level"], line.get("reason")) for line in captured] == [
        ("push.broken", "warning", "VENUE_UNAVAILABLE"),
        ("push.broken", "warning", "VENUE_TIMEOUT"),
        ("push.refused", "info", "NOT_SUPPORTED"),
        ("push.difference", "warning", None),
    ]
    assert captured[0]["again_in"] == 2
    assert captured[3]["in_a_row"] == 2
    assert "alice" not in str(captured)


async def test_what_is_wrong_with_a_plugin_is_in_the_line_about_its_pushes() -> None:
    log = PushLog()
    with capture_logs() as captured:
        log.ended("acme", PluginFailed("The plugin for Acme failed with TypeError at its messages."), 1.0)
    log.close()
    assert captured[0]["problem"] == "The plugin for Acme failed with TypeError at its messages."


async def test_a_line_about_many_accounts_has_the_request_id_of_no_call() -> None:
    ids: list[Any] = []
    mark = current_call.set(CallMark("a-call"))
    try:
        with capture_logs(processors=[add_request_id]) as captured:
            log = PushLog()
            log.stands("oanda")
            ids = [line.get("request_id") for line in captured]
    finally:
        current_call.reset(mark)
    log.close()
    assert ids == [None]
