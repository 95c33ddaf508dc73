"""Passes the log lines of a plugin's process on as lines of the service's log."""

from __future__ import annotations

import asyncio
import json

import structlog

from exchange_service.observability.logs import current_call
from exchange_service.observability.tracing import use_span

# How much of a process's log is passed on, at most, and seconds between two reads of one that writes more.
_LINES_A_SECOND = 50
_BYTES_A_SECOND = 32 * 1024
_LONGEST_LINE = 8 * 1024
_CHUNK = 64 * 1024
_PAUSE = 0.02

log = structlog.get_logger("exchange_service.plugin_host")


async def relay_log(stream: asyncio.StreamReader, plugin: str) -> None:
    """Log the lines until the stream ends, at most as many a second as a person can read.

    The rest is lost, and read slowly: a process that writes without an end must not keep the service busy.
    """
    # The lines belong to many calls; each has the request id of its call.
    current_call.set(None)
    use_span(None)
    loop = asyncio.get_running_loop()
    begun, second, lines, size = b"", 0, 0, 0
    while chunk := await stream.read(_CHUNK):
        now = int(loop.time())
        if now != second:
            second, lines, size = now, 0, 0
        whole, _, begun = (begun + chunk).rpartition(b"\n")
        begun = begun[:_LONGEST_LINE]
        left = _LINES_A_SECOND - lines
        for line in whole.split(b"\n", left)[:left]:
            if size < _BYTES_A_SECOND:
                lines, size = lines + 1, size + min(len(line), _LONGEST_LINE)
                log_line(line[:_LONGEST_LINE], plugin)
        if lines >= _LINES_A_SECOND or size >= _BYTES_A_SECOND:
            await asyncio.sleep(_PAUSE)
    log_line(begun, plugin)


def log_line(line: bytes, plugin: str) -> None:
    """Log a JSON line of the process's log with its own fields, and any other text, such as a crash's, as it is."""
    if not line.strip():
        return
    try:
        fields = json.loads(line)
        event, level = str(fields.pop("event")), str(fields.pop("level"))
        fields.pop("timestamp", None)
        write = {"debug": log.debug, "info": log.info, "error": log.error}.get(level, log.warning)
        write(event, **{str(name): value for name, value in fields.items() if name != "plugin"}, plugin=plugin)
    # Any exception: a field may have the name of one of the logger's own arguments, and no line may end the reading.
    except Exception:
        log.warning("plugin.output", plugin=plugin, line=line.decode(errors="replace").rstrip()[:1000])
