"""The main program of a plugin's process.

    python -m exchange_service.plugin_host.main NAME DISTRIBUTION (SOCKET | --manifest | --refresh)

With a socket it listens there, writes a line to standard output when it does, and serves until it is ended. With
`--manifest` it writes the plugin's manifest to standard output, or "!" and the reason why the plugin is rejected; with
`--refresh` a newer manifest, or nothing. It reads its token from standard input.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import os
import signal
import sys
import time
from collections.abc import Coroutine
from functools import partial
from importlib.metadata import entry_points
from typing import Any, NoReturn, TextIO

import structlog

from exchange_service.gc_tuning import set_thresholds
from exchange_service.observability.logs import configure_logging
from exchange_service.observability.redaction import redact
from exchange_service.plugin_host.arguments import REFRESH_MANIFEST, REFRESHES, REJECTED, WRITE_MANIFEST
from exchange_service.process_secrecy import hide_process
from exchange_service.venues.loading import PLUGIN_GROUP, LoadedPlugin, is_recorded, load_entry_point, plugin_info
from exchange_service.venues.manifests import PluginRejected, write_manifest
from exchange_service.venues.printing import PRINTS, printed_at

READY = b"ready\n"
# Lines that the plugin prints and that are logged in a second, and characters of a line.
_MOST_LINES = 20
_LONGEST_LINE = 1000
# Characters of a line without an end: the rest is lost.
_MOST_BEGUN = 8000

log = structlog.get_logger("exchange_service.plugin_host")


class _LogWriter(io.TextIOBase):
    """Logs what the plugin prints: standard output carries the answer to the service."""

    def __init__(self) -> None:
        self._begun = ""
        self._second = 0
        self._lines = 0
        # Where the plugin has printed.
        self._places: set[str] = set()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._note(printed_at())
        *lines, begun = (self._begun + text).split("\n")
        self._begun = begun[:_MOST_BEGUN]
        for line in lines:
            self._log(line)
        return len(text)

    def _note(self, place: str) -> None:
        """Log once for each place that the plugin prints there."""
        if place and place not in self._places and len(self._places) < _MOST_LINES:
            self._places.add(place)
            log.warning("plugin.prints", problem=PRINTS, at=place)

    def _log(self, line: str) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if line.strip() and self._lines <= _MOST_LINES:
            # Redacted before it is cut: half of a secret would not be recognized.
            log.info("plugin.output", line=redact(line)[:_LONGEST_LINE])


def _take_streams() -> tuple[str, int, TextIO]:
    """The token, the descriptor for the answer and the stream for log lines; the plugin gets none of them."""
    token = os.read(0, 4096).decode().strip()
    answer = os.dup(1)
    lines = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    configure_logging("info", "json", lines)
    sys.stdout = sys.stderr = _LogWriter()
    # A crash of the interpreter itself shows where it was.
    faulthandler.enable(lines)
    return token, answer, lines


def _load(name: str, distribution: str) -> LoadedPlugin:
    """The plugin of this name and distribution; PluginRejected if it cannot serve."""
    for point in entry_points(group=PLUGIN_GROUP, name=name):
        if plugin_info(point).distribution == distribution and is_recorded(point):
            return load_entry_point(point)
    raise PluginRejected("It is not installed any more.")


async def _answer_manifest(name: str, distribution: str, answer: int, *, newer: bool) -> None:
    try:
        plugin = _load(name, distribution)
        manifest = await plugin.refreshed_manifest() if newer else plugin.manifest
        data = write_manifest(manifest) if manifest is not None else b""
        if plugin.refreshes and not newer:
            data = REFRESHES + data
    except PluginRejected as rejection:
        data = REJECTED + str(rejection).encode()
    except ValueError:
        data = REJECTED + b"Its manifest cannot be written as JSON."
    with os.fdopen(answer, "wb") as out:
        out.write(data)


async def _serve(name: str, distribution: str, socket: str, token: str, answer: int) -> None:
    # Late: to write a manifest, none of it is needed.
    from exchange_service.plugin_host.answering import Listener
    from exchange_service.plugin_host.server import PluginServer

    # Markets are millions of objects that stay. With Python's own thresholds the collector goes over all of them many
    # times, which takes half of the time of loading.
    set_thresholds()
    plugin_server = PluginServer(partial(_load, name, distribution), token)
    listener = Listener(plugin_server, token)
    await listener.open(socket)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ended.set)
    os.write(answer, READY)
    os.close(answer)
    await ended.wait()
    listener.close()
    await plugin_server.close()


def main() -> None:
    """See the module's docstring."""
    hide_process()
    name, distribution, target = sys.argv[1:]
    token, answer, _ = _take_streams()
    if target in (WRITE_MANIFEST, REFRESH_MANIFEST):
        _run(_answer_manifest(name, distribution, answer, newer=target == REFRESH_MANIFEST))
    else:
        _run(_serve(name, distribution, target, token, answer))


def _run(work: Coroutine[Any, Any, None]) -> NoReturn:
    """Do the work and end the process, whatever tasks and threads of the plugin still run.

    One of its tasks may also end the event loop, by SystemExit.
    """
    status = 1
    try:
        asyncio.new_event_loop().run_until_complete(work)
        status = 0
    except BaseException as error:
        log.error("plugin_host.ended", error=type(error).__name__)
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
