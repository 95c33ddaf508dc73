"""What runs in a process of a plugin's own.

    python -m exchange_service.plugin_host.main NAME DISTRIBUTION (SOCKET | --introduce | --refresh)

With a socket it listens there, says so by a line on standard output, and serves until it is ended. With `--introduce`
it writes the plugin's manifest there, or "!" and a sentence why there is none; with `--refresh` a newer one, or
nothing. Its token comes by standard input.
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
from exchange_service.observability.redaction import redacted
from exchange_service.plugin_host.launch import INTRODUCE, REFRESH, REFRESHES
from exchange_service.plugin_host.protocol import MAX_MESSAGE, write_manifest
from exchange_service.venues.registry import ENTRY_POINT_GROUP, LoadedPlugin, Unfit, load_entry_point, newer_manifest

READY = b"ready\n"
# Lines of the plugin's own printing that are passed on in a second, and characters of a line.
_MOST_LINES = 20
_LONGEST_LINE = 1000
# Of a line without an end: what is longer is lost.
_MOST_BEGUN = 8000

log = structlog.get_logger("exchange_service.plugin_host")


class _Printed(io.TextIOBase):
    """What the plugin prints, as log lines: standard output is nobody's here."""

    def __init__(self) -> None:
        self._begun = ""
        self._second = 0
        self._lines = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, begun = (self._begun + text).split("\n")
        self._begun = begun[:_MOST_BEGUN]
        for line in lines:
            self._pass_on(line)
        return len(text)

    def _pass_on(self, line: str) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if line.strip() and self._lines <= _MOST_LINES:
            # Without its secrets before it is cut: half of one would not be known for what it is.
            log.info("plugin.output", line=redacted(line)[:_LONGEST_LINE])


def _take_streams() -> tuple[str, int, TextIO]:
    """The token, where the answer goes, and where log lines go; the plugin gets neither, whatever it prints."""
    token = os.read(0, 4096).decode().strip()
    answer = os.dup(1)
    lines = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    configure_logging("info", "json", lines)
    sys.stdout = sys.stderr = _Printed()
    # A crash of the interpreter itself shows where it was.
    faulthandler.enable(lines)
    return token, answer, lines


def _load(name: str, distribution: str) -> LoadedPlugin:
    """The plugin of this name and distribution; Unfit where it cannot serve."""
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        if (point.dist.name if point.dist else "") == distribution:
            return load_entry_point(point)
    raise Unfit("It is not installed any more.")


async def _introduce(name: str, distribution: str, answer: int, *, newer: bool) -> None:
    try:
        plugin = _load(name, distribution)
        manifest = await newer_manifest(plugin) if newer else plugin.manifest
        data = write_manifest(manifest) if manifest is not None else b""
        if plugin.hook.refresh_manifest.get_hookimpls() and not newer:
            data = REFRESHES + data
    except Unfit as unfit:
        data = b"!" + str(unfit).encode()
    except ValueError:
        data = b"!Its manifest holds something else than the plugin page says."
    with os.fdopen(answer, "wb") as out:
        out.write(data)


async def _serve(name: str, distribution: str, socket: str, token: str, answer: int) -> None:
    # Late: who introduces a plugin needs no server.
    import grpc

    from exchange_service.plugin_host.server import Host

    # Markets are millions of objects that stay: by Python's own settings the collector goes over all of them again and
    # again, for half of the time that loading takes.
    set_thresholds()
    host = Host(partial(_load, name, distribution), token)
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)]
    )
    server.add_generic_rpc_handlers((host.handlers(),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ended.set)
    os.write(answer, READY)
    os.close(answer)
    await ended.wait()
    await server.stop(0)
    await host.close()


def main() -> None:
    """See the module."""
    name, distribution, wanted = sys.argv[1:]
    token, answer, _ = _take_streams()
    if wanted in (INTRODUCE, REFRESH):
        _run(_introduce(name, distribution, answer, newer=wanted == REFRESH))
    else:
        _run(_serve(name, distribution, wanted, token, answer))


def _run(work: Coroutine[Any, Any, None]) -> NoReturn:
    """Do the work and end the process: whatever a plugin has left running must not keep it, also where one of its tasks
    ends the event loop by SystemExit."""
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
