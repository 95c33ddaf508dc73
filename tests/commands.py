"""Commands of ours, each run to its end in a process of its own that has not to load the code: that takes a second.

The processes are forked from one that has loaded it. What is read while code is loaded, such as the width of the
terminal, can therefore not be given to a command; see `run_command`.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

# What most commands load.
_LOADED = [
    "tests.commands",
    "exchange_service.cli",
    "exchange_service.cli.credential_check_command",
    "exchange_service.cli.health",
    "exchange_service.cli.keys",
    "exchange_service.cli.operate",
    "exchange_service.cli.plugins",
    "exchange_service.cli.tokens",
    "exchange_service.cli.watch",
    "exchange_service.credentials.sql",
    "exchange_service.credentials.vault",
    "exchange_service.plugin_host.discovery",
    "exchange_service.startup_checks",
    "hvac",
    "sqlalchemy.dialects.sqlite.aiosqlite",
]
# Variables that are read when a command runs.
_READ_LATE = ("EXCHANGE_SERVICE_", "VAULT_", "HOME", "PATH", "LANG")
# Seconds.
_LONGEST = 60.0
# Tests run commands in threads too.
_STARTING = threading.Lock()


def run_command(
    arguments: tuple[str, ...], environment: Mapping[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `exchange-service` with these arguments to its end, in this environment and no other. No line of what it
    prints may end in blanks."""
    done = _run_to_its_end(arguments, environment, stdin)
    blank = [line for line in (done.stdout + done.stderr).splitlines() if line.endswith(" ")]
    assert not blank, f"{arguments} ends lines in blanks: {blank[:3]}"
    return done


def _run_to_its_end(
    arguments: tuple[str, ...], environment: Mapping[str, str], stdin: str
) -> subprocess.CompletedProcess[str]:
    if not all(name.startswith(_READ_LATE) for name in environment):
        program = [sys.executable, "-m", "exchange_service", *arguments]
        return subprocess.run(
            program, input=stdin, env=environment, capture_output=True, text=True, timeout=_LONGEST, check=False
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "0").write_text(stdin)
        process = _processes().Process(target=_run, args=(arguments, dict(environment), name))
        process.start()
        process.join(_LONGEST)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, _LONGEST)
        code = process.exitcode
        process.close()
        return subprocess.CompletedProcess(arguments, code, *((folder / file).read_text() for file in "12"))


def _processes() -> Any:
    """Where processes are forked."""
    context = multiprocessing.get_context("forkserver")
    with _STARTING:
        context.set_forkserver_preload(_LOADED)
        plain = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "GRPC_ENABLE_FORK_SUPPORT": "0"}
        with mock.patch.dict(os.environ, plain, clear=True):
            forkserver.ensure_running()
    return context


def _run(arguments: tuple[str, ...], environment: dict[str, str], folder: str) -> None:
    from exchange_service.cli import main

    os.environ.clear()
    os.environ.update(environment)
    for number in range(3):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(f"{folder}/{number}", flags), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.argv = ["exchange-service", *arguments]
    main()
