"""No fault: what a run of the clients costs by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.chaos.faults import fault

if TYPE_CHECKING:
    from tests.chaos.rig import Rig


@fault("nothing")
@asynccontextmanager
async def nothing(rig: Rig) -> AsyncIterator[None]:
    yield
