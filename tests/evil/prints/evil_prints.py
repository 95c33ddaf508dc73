"""Prints megabytes, also at import, and prints its user's secret in every way it can."""

import os
import sys
import threading

import structlog
from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

MEBIBYTE = 1024 * 1024


def _print_much(text: str = "") -> None:
    for stream in (sys.stdout, sys.stderr):
        print(text, "x" * MEBIBYTE, file=stream)
        for number in range(10_000):
            print(number, text, file=stream)
    for descriptor in (1, 2):
        os.write(descriptor, f"{text}\n".encode() + b"x" * MEBIBYTE)
    if sys.__stdout__ is not None:
        print(text, file=sys.__stdout__, flush=True)


async def prints(call: VenueCall) -> Balance:
    _print_much(call.credential.api_key.reveal())
    return WELL


def _pipes() -> list[int]:
    """The pipes of its log lines: they are open in its process, so they can be found."""
    return [structlog.get_config()["logger_factory"]._file.fileno()]


async def breaks_its_log(call: VenueCall) -> Balance:
    """Write lines that are hard to parse, and then a valid one."""
    names = ("self", "event", "method_name", "exc_info", "stack_info", "level", "plugin")
    lines = [
        *(f'{{"event":"hard","level":"info","{name}":["x"]}}'.encode() for name in names),
        *(b"[1]", b"{}", b"[" * 7000, b"\xff\x00", b"1" * 7000, b'{"event":{},"level":[]}', b"x" * 300_000),
    ]
    for pipe in _pipes():
        for line in lines:
            os.write(pipe, line + b"\n")
        # Later, because most of many lines in one second are dropped.
        good = b'{"event":"taken nevertheless","level":"info"}\n'
        threading.Timer(1.5, os.write, (pipe, good)).start()
    return WELL


async def floods_the_pipe(call: VenueCall) -> Balance:
    """Write empty lines as fast as the pipe takes them, in a thread."""

    def flood(pipe: int) -> None:
        while True:
            os.write(pipe, b"\n" * 65536)

    for pipe in _pipes():
        threading.Thread(target=flood, args=(pipe,), daemon=True).start()
    return WELL


async def writes_lines_of_many_fields(call: VenueCall) -> Balance:
    """Write long lines that look like a log's, each of many fields."""
    fields = ",".join(f'"{number}":"a b"' for number in range(4000))
    line = f'{{"event":"much","level":"info",{fields}}}\n'.encode()

    def write(pipe: int) -> None:
        while True:
            os.write(pipe, line)

    for pipe in _pipes():
        threading.Thread(target=write, args=(pipe,), daemon=True).start()
    return WELL


_print_much()
plugin = EvilPlugin("evil-prints", prints, breaks_its_log, floods_the_pipe, writes_lines_of_many_fields)
