"""Starts processes that sleep for ever: at import, in a call, as orphans, in sessions of their own."""

import os
import subprocess
import sys

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

_PROGRAM = """import signal, time
for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(name, signal.SIG_IGN)
while True:
    time.sleep(3600)
"""
# Tests find them by the last argument, which is all that some of them share with the process that started them.
SLEEPER = [sys.executable, "-I", "-S", "-c", _PROGRAM, f"evil sleeper of {os.getcwd()}"]


def _fork() -> None:
    if not os.fork():
        os.execv(SLEEPER[0], SLEEPER)


def _fork_twice() -> None:
    """Start an orphan in a session whose leader has ended."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execv(SLEEPER[0], SLEEPER)


async def forks(call: VenueCall) -> Balance:
    _fork()
    _fork_twice()
    subprocess.Popen(SLEEPER, env={}, cwd="/", start_new_session=True)  # noqa: ASYNC220
    return WELL


_fork()
plugin = EvilPlugin("evil-forks", forks)
