"""The log lines of a plugin's process become lines of the service's log, whatever the process writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from exchange_service.plugin_host.log_relay import relay_log


async def relay(*chunks: bytes) -> list[Any]:
    """The lines that the service logs for what a process writes before its pipe closes."""
    stream = asyncio.StreamReader()
    for chunk in chunks:
        stream.feed_data(chunk)
    stream.feed_eof()
    with capture_logs() as lines:
        await relay_log(stream, "guest")
    return lines


async def test_a_line_has_its_event_level_and_fields_and_names_the_plugin() -> None:
    (line,) = await relay(b'{"event":"asked","level":"info","timestamp":"now","plugin":"another","cost":5}\n')
    assert line == {"event": "asked", "log_level": "info", "plugin": "guest", "cost": 5}


async def test_a_line_in_two_pieces_and_one_without_an_end_are_whole() -> None:
    lines = await relay(b'{"event":"one","le', b'vel":"info"}\n\n{"event":"two","level":"debug"}')
    assert [(line["event"], line["log_level"]) for line in lines] == [("one", "info"), ("two", "debug")]


@pytest.mark.parametrize(
    "text",
    [b"Segmentation fault", b"[1]", b"{}", b"\xff\x00", b'{"event":"x","level":"info","self":1}', b"1" * 7000],
)
async def test_text_that_is_not_a_log_line_is_logged_as_the_plugins_output(text: bytes) -> None:
    (line,) = await relay(text + b"\n")
    assert (line["event"], line["log_level"], line["plugin"]) == ("plugin.output", "warning", "guest")
    assert len(line["line"]) <= 1000


async def test_of_many_lines_at_once_fifty_are_logged() -> None:
    lines = await relay(b'{"event":"much","level":"info"}\n' * 500)
    assert len(lines) == 50
