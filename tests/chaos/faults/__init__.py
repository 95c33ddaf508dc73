"""The faults by name. Each is an async context manager over the rig: it lasts while the block does.

    @fault("redis-freeze")
    @asynccontextmanager
    async def freeze(rig: Rig) -> AsyncIterator[None]:
        rig.redis.freeze()
        try:
            yield
        finally:
            rig.redis.thaw()

What each is, and what is expected while it lasts, stands in `scripts/faults.toml`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

Put = Callable[["Rig"], AbstractAsyncContextManager[Any]]
# The modules with the faults, in the order of the table.
GROUPS = ("control", "redis", "postgres", "venues", "processes")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `own_rig`: it has a rig of its own, which no other fault uses afterwards. `settings` are those
    of such a rig's replicas that differ. Where `least` is more than the seconds of the run, the fault lasts longer."""

    name: str
    group: str
    put: Put
    own_rig: bool = False
    settings: tuple[tuple[str, str], ...] = ()
    least: float = 0.0


_FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, own_rig: bool = False, least: float = 0.0, settings: dict[str, str] | None = None
) -> Callable[[Put], Put]:
    """Register a fault by its name. Raises ValueError if the name is taken."""

    def register(put: Put) -> Put:
        if name in _FAULTS:
            raise ValueError(f"two faults are named {name}")
        group = put.__module__.rpartition(".")[2]
        changed = tuple((settings or {}).items())
        _FAULTS[name] = Fault(name, group, put, own_rig or bool(changed), changed, least)
        return put

    return register


def all_faults() -> dict[str, Fault]:
    """Every fault by its name, in the order of the table."""
    for group in GROUPS:
        importlib.import_module(f"{__name__}.{group}")
    order = {group: place for place, group in enumerate(GROUPS)}
    return dict(sorted(_FAULTS.items(), key=lambda item: order[item[1].group]))
