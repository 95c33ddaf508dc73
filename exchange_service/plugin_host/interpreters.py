"""Plugins in environments of their own (the setting plugin_interpreters): what the environments say of themselves.

Each interpreter is asked once, when the service begins, by a process that imports no plugin and then ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from exchange_service import __version__
from exchange_service.model import PluginInfo
from exchange_service.plugin_host.child import run_in_thread
from exchange_service.plugin_host.describe_environment import LIBRARY
from exchange_service.plugin_host.launch import LaunchSpec, describe_exit, prepare_description, run_to_end
from exchange_service.plugin_host.protocol import PROTOCOL
from exchange_service.printable import printable
from exchange_service.venues.interpreters import Interpreter

# Seconds that an interpreter has to describe its environment.
_LIMIT = 10.0
_LONGEST_TEXT = 300


class InterpreterUnusable(Exception):
    """A plugin cannot run on its interpreter. The text is a sentence without paths, because callers read it; `detail`
    says what the operator should do, and names the interpreter."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class PluginElsewhere:
    """A plugin that is installed in an environment of its own. `recorded`: see `is_recorded` of venues.loading."""

    info: PluginInfo
    interpreter: Interpreter
    recorded: bool


def find_elsewhere(
    interpreters: Mapping[str, str], limit: float = _LIMIT
) -> dict[str, Sequence[PluginElsewhere] | InterpreterUnusable]:
    """By each plugin's name, the distributions that have it in the environment of its interpreter, or why it cannot be
    run there. Blocks until all interpreters have answered, or `limit` seconds."""
    if not interpreters:
        return {}

    async def ask_all() -> list[Sequence[PluginElsewhere] | InterpreterUnusable]:
        return await asyncio.gather(*(_find(name, command, limit) for name, command in interpreters.items()))

    # In a thread: the caller may run in an event loop, which cannot run another one.
    with ThreadPoolExecutor(1, thread_name_prefix="interpreters") as pool:
        return dict(zip(interpreters, pool.submit(asyncio.run, ask_all()).result(), strict=True))


async def _find(name: str, command: str, limit: float) -> Sequence[PluginElsewhere] | InterpreterUnusable:
    try:
        return read_description(name, command, await _describe(name, command, limit))
    except InterpreterUnusable as unusable:
        return unusable


async def _describe(name: str, command: str, limit: float) -> bytes:
    """What the interpreter writes about its environment. Raises InterpreterUnusable."""
    named = f"plugin_interpreters names {command} for {name}"
    try:
        data, status = await run_to_end(await run_in_thread(_prepare, command, name), limit)
    except TimeoutError:
        reason = f"Its interpreter did not describe its environment within {limit:g} seconds."
        raise InterpreterUnusable(reason, f"{named}: run it by hand to see what it waits for.") from None
    except OSError as error:
        reason = f"The process that asks its interpreter could not be started ({type(error).__name__})."
        raise InterpreterUnusable(reason, f"{named}.") from None
    if status != 0:
        reason = f"Its interpreter did not describe its environment ({describe_exit(status)})."
        raise InterpreterUnusable(reason, f"{named}: run `{shlex.quote(command)} -I -c 'import json, ssl'` to see why.")
    return data


def _prepare(command: str, name: str) -> LaunchSpec:
    """The process that describes an environment. Raises InterpreterUnusable if it cannot be begun."""
    named = f"plugin_interpreters names {command} for {name}"
    if not os.path.isfile(command):
        reason = "The interpreter that plugin_interpreters names for it does not exist."
        raise InterpreterUnusable(reason, f"{named}: make that environment, or name its bin/python.")
    if not os.access(command, os.X_OK):
        reason = "What plugin_interpreters names for it may not be executed by the service's user."
        raise InterpreterUnusable(reason, f"{named}: name its environment's bin/python.")
    return prepare_description(command, name)


def read_description(name: str, command: str, data: bytes) -> Sequence[PluginElsewhere]:
    """The distributions that have the plugin, from what describe_environment.py wrote. Raises InterpreterUnusable."""
    try:
        described = json.loads(data.strip().rpartition(b"\n")[2])
        python = _text(described["python"])
        if "library" not in described:
            raise InterpreterUnusable(
                f"Its environment has Python {python}, and {LIBRARY} needs 3.11 or newer.",
                f"Make the environment of {command} again with a newer Python.",
            )
        _require_library(command, described)
        interpreter = _read_interpreter(command, python, described)
        found = [_read_plugin(name, interpreter, plugin) for plugin in described["plugins"]]
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise InterpreterUnusable(
            "What plugin_interpreters names for it is not an interpreter of Python.",
            f"plugin_interpreters names {command} for {name}: name its environment's bin/python.",
        ) from None
    if not found:
        raise InterpreterUnusable(
            f"Its environment has no plugin with the name {name}.",
            f"Run `{shlex.quote(command)} -m pip install DISTRIBUTION` with the plugin's distribution.",
        )
    return found


def _require_library(command: str, described: Mapping[str, Any]) -> None:
    """Raise InterpreterUnusable if the environment has no exchange-service-plugin that this service can speak with."""
    install = f"Run `{shlex.quote(command)} -m pip install {LIBRARY}=={__version__}`, and restart the service."
    there = _text(described["library"])
    if not there:
        raise InterpreterUnusable(f"Its environment has no {LIBRARY}.", install)
    if described["failure"]:
        reason = f"{LIBRARY} {there} cannot be imported in its environment."
        raise InterpreterUnusable(reason, f"It fails with {_text(described['failure'])}. {install}")
    if described["protocol"] != PROTOCOL:
        raise InterpreterUnusable(
            f"Its environment has {LIBRARY} {there}, which speaks protocol {int(described['protocol'])}, and this "
            f"service, {__version__}, speaks {PROTOCOL}.",
            install,
        )


def _read_interpreter(command: str, python: str, described: Mapping[str, Any]) -> Interpreter:
    return Interpreter(
        command=command,
        python=python,
        libraries=(f"{LIBRARY} {_text(described['library'])}",),
        prefixes=_paths(described["prefixes"]),
        base_prefixes=_paths(described["base_prefixes"]),
        modules=_paths(described["modules"]),
        projects=_paths(described["projects"]),
        certificates=_paths(described["certificates"]),
    )


def _read_plugin(name: str, interpreter: Interpreter, plugin: Mapping[str, Any]) -> PluginElsewhere:
    info = PluginInfo(name, _text(plugin["version"]), _text(plugin["distribution"]))
    libraries = (*interpreter.libraries, *map(_text, plugin["needs"]))
    return PluginElsewhere(info, replace(interpreter, libraries=libraries), plugin["recorded"] is True)


def _text(value: object) -> str:
    """A text of the description, fit for a terminal; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError
    return printable(value)[:_LONGEST_TEXT]


def _paths(value: object) -> tuple[str, ...]:
    """Paths of the description as they are; ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise ValueError
    return tuple(value)
