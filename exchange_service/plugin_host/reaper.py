"""Starts the main program of a plugin's process, and ends all that it has started when it or the service ends.

Before the main program begins, the kernel is told what it may reach (Landlock): see sandbox.py, which makes the list.

It is a process between the two because it must outlive both: the service may be killed, and the plugin may do anything
to its own process. It runs no plugin's code, imports nothing of this project, and waits.

It reads one line of JSON from standard input, and then waits for the input's end, which means that the service has
ended. The main program inherits standard output and standard error, and reads its token from a standard input of its
own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import stat
import struct
import sys
import time
from typing import Any

# Seconds that the main program has to end by itself, and that everything else then has to be gone.
_GRACE = 1.0
_SWEEP = 3.0
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The signal at which the main program ends by itself; it ignores the others as the reaper does.
_END = signal.SIGUSR1
_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36
_SET_NO_NEW_PRIVILEGES = 38
# The main program's exit status if the kernel does not restrict what it may reach: then it is not begun.
_NOT_CONFINED = 126

# Landlock's system calls, which have the same numbers on every processor.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_BELOW_PATH, _TO_PORT = 1, 2


def _process_control(option: int, value: int) -> None:
    """Linux's prctl; does nothing on other systems."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _confine(reach: dict[str, list[Any]]) -> None:
    """Let this process, and all that it starts, reach nothing else from now on. OSError if the kernel refuses.

    `reach`: the rights that are restricted, and the paths and ports with the rights that they have all the same.
    """
    attributes = struct.pack(f"={len(reach['restricted'])}Q", *reach["restricted"])
    ruleset = _landlock(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path, of_folder, of_file in reach["paths"]:
        _allow_path(ruleset, path, of_folder, of_file)
    for port, rights in reach["ports"]:
        _landlock(_ADD_RULE, ruleset, _TO_PORT, struct.pack("=QQ", rights, port), 0)
    _landlock(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow_path(ruleset: int, path: str, of_folder: int, of_file: int) -> None:
    """Give a file these rights, or all that is below a folder; nothing if there is no such path."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rights = of_folder if stat.S_ISDIR(os.fstat(place).st_mode) else of_file
    if rights:
        _landlock(_ADD_RULE, ruleset, _BELOW_PATH, struct.pack("=Qi", rights, place), 0)
    if path.startswith("/proc/"):
        # A rule holds for a node, and the kernel may forget those of /proc and make others, except for an open one.
        os.set_inheritable(place, True)
    else:
        os.close(place)


def _landlock(call: int, *arguments: Any) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(call, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock")
    return result


def _limit(limits: dict[str, int]) -> None:
    """Set resource limits by their names in `resource`, never above the present hard limit."""
    for name, limit in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _start(config: dict[str, Any]) -> int:
    """Start the main program in a process group of its own; returns its process id."""
    read, write = os.pipe()
    reaper = os.getpid()
    pid = os.fork()
    if pid:
        os.close(read)
        os.write(write, config["token"].encode() + b"\n")
        os.close(write)
        return pid
    try:
        os.setpgid(0, 0)
        # If the reaper is killed, the system ends the main program.
        _process_control(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != reaper:
            os._exit(1)
        os.nice(config["nice"])
        os.dup2(read, 0)
        os.closerange(3, 256)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # No program that it starts has more rights than it, such as the rights of the program's owner.
        _process_control(_SET_NO_NEW_PRIVILEGES, 1)
        if config["reach"] is not None:
            try:
                _confine(config["reach"])
            except OSError:
                os._exit(_NOT_CONFINED)
        os.execv(config["command"][0], config["command"])  # noqa: S606 - ours, and no shell
    finally:
        os._exit(127)


def _wait(program: int, wake: int) -> int | None:
    """Wait for the end of the main program or the service; the program's status, or None if it still runs."""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return 0
                if pid == program:
                    return status
                if not pid:
                    break
        if 0 in ready and not os.read(0, 4096):
            return None


def _ask_to_end(program: int) -> int | None:
    """Ask the main program to end; its status, or None if it does not end in time."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(program, _END)
    limit = time.monotonic() + _GRACE
    while time.monotonic() < limit:
        pid, status = os.waitpid(program, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.01)
    return None


def _children() -> list[int]:
    """The processes whose parent is this one, with the main program's orphans, which the system gives to the reaper."""
    children, own_id = [], str(os.getpid())
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                # The second field is a name in brackets, which may hold anything.
                if file.read().rpartition(")")[2].split()[1] == own_id:
                    children.append(int(name))
    return children


def _end_all(group: int) -> None:
    """Kill the main program's group and all other processes that were started, until nothing is left."""
    limit = time.monotonic() + _SWEEP
    while time.monotonic() < limit:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(0, 65536)
        if not more:
            sys.exit(1)
        line += more
    return line


def main() -> int:
    """Returns the main program's exit status, or 128 plus the number of the signal that ended it."""
    config = json.loads(_first_line())
    # Signals that a terminal or a process manager sends to all processes are ignored: the reaper ends with the service,
    # which may still have calls to answer.
    os.setsid()
    for name in _IGNORED_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    _process_control(_SET_CHILD_SUBREAPER, 1)
    _limit(config["limits"])
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    program = _start(config)
    # Otherwise the service would see the end of these only when the reaper ends.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    status = _wait(program, wake_read)
    if status is None:
        status = _ask_to_end(program)
    _end_all(program)
    # The service does so too, unless it was killed.
    shutil.rmtree(config["folder"], ignore_errors=True)
    if status is None:
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
