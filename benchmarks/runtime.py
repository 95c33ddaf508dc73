"""The one place that says what a ceiling has in common with the service beside it: the event loop's kind, the garbage
collector's setting and the server's options.

Loop and collector are not written down here: the serving process is asked for them (by the benchmarks' venue, which is
a plugin in it), so that a ceiling follows whatever `serve` sets. BENCHMARK_RUNTIME, a JSON object with any of `loop`,
`thresholds` and `frozen`, overrides what was found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# The service's own; a change there is a change of the ceiling too.
from exchange_service.grpc_server.server import _OPTIONS


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the ceiling is started with: `thresholds` as gc.set_threshold takes them."""

    loop: str
    thresholds: tuple[int, ...]
    frozen: bool
    options: tuple[tuple[str, int], ...] = field(default=tuple(_OPTIONS))

    def as_argument(self) -> str:
        """As `ceilings/no_op.py` reads it."""
        return json.dumps(asdict(self))

    def describe(self) -> str:
        """In words, for the line above the table."""
        frozen = ", frozen after the start" if self.frozen else ""
        return f"{self.loop}, collector at {self.thresholds}{frozen}"


def runtime_of(process: Mapping[str, Any]) -> Runtime:
    """The runtime of a serving process, as its probe describes it."""
    found = {**process, **json.loads(os.environ.get("BENCHMARK_RUNTIME", "{}"))}
    return Runtime(str(found["loop"]), tuple(found["thresholds"]), bool(found["frozen"]))
