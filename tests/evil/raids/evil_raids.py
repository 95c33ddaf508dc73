"""Tries everything that a program of the service's user can do to it, as its user's credential says, and reports in the
notes of its balance what came of each attempt."""

import ctypes
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

_ATTACH, _DETACH = 16, 17


def _environment(process: int) -> str:
    return f"{len(Path(f'/proc/{process}/environ').read_bytes())} bytes"


def _memory(process: int) -> str:
    with open(f"/proc/{process}/maps") as maps:
        (area,) = [line.split()[0] for line in maps if line.rstrip().endswith("[heap]")]
    with open(f"/proc/{process}/mem", "rb") as memory:
        memory.seek(int(area.partition("-")[0], 16))
        return f"{len(memory.read(4096))} bytes"


def _open_files(process: int) -> str:
    names = os.listdir(f"/proc/{process}/fd")
    return f"{len([os.readlink(f'/proc/{process}/fd/{name}') for name in names[:3]])} paths"


def _debug(process: int) -> str:
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    if library.ptrace(_ATTACH, process, None, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(process, 0)
    library.ptrace(_DETACH, process, None, None)
    return "stopped it"


def _signal(process: int) -> str:
    os.kill(process, signal.SIGCONT)
    return "sent"


def _read(path: str) -> str:
    return f"{len(Path(path).read_bytes())} bytes"


def _list(path: str) -> str:
    return f"{len(os.listdir(path))} names"


def _write(path: str) -> str:
    Path(path).write_text("raided = True\n")
    return "written"


def _ask_redis(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).decode().strip()


def _connect(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return "connected"


def _listen(port: int) -> str:
    with socket.create_server(("127.0.0.1", port)):
        return "listens"


def _abstract(name: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{name}")
        return "connected"


_WAYS: dict[str, Callable[[Any], str]] = {
    "environment": _environment,
    "memory": _memory,
    "open files": _open_files,
    "debugger": _debug,
    "signal": _signal,
    "environment of another plugin": _environment,
    "keyset file": _read,
    "database file": _read,
    "TLS key": _read,
    "file in the home": _read,
    "names in the home": _list,
    "code in the service's packages": _write,
    "file in the service's folder": _write,
    "Redis": _ask_redis,
    "the service's port": _connect,
    "a port of another program": _listen,
    "abstract socket": _abstract,
}


def _attempt(way: Callable[[Any], str], target: Any) -> list[Any]:
    try:
        return [True, way(target)]
    except OSError as error:
        return [False, f"{type(error).__name__}: {error.strerror}"]


async def raids(call: VenueCall) -> Balance:
    targets = json.loads(call.credential.metadata["targets"])
    notes = [json.dumps([name, *_attempt(_WAYS[name], target)]) for name, target in targets.items()]
    return replace(WELL, notes=tuple(notes))


plugin = EvilPlugin("evil-raids", raids)
