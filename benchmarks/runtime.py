"""What a ceiling has in common with the service that it is compared with: the event loop's kind, the garbage
collector's setting and the server's options.

Loop and collector are read from the serving process (by the benchmarks' venue, which is a plugin in it), so a ceiling
has whatever `serve` sets. BENCHMARK_RUNTIME, a JSON object with any of `loop`,
`thresholds` and `frozen`, overrides them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# The service's own; a change there is a change of the ceiling too.
from exchange_service.grpc_server.engines.grpcio import OPTIONS


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the ceiling is started with: `thresholds` as gc.set_threshold takes them."""

    loop: str
    thresholds: tuple[int, ...]
    frozen: bool
    options: tuple[tuple[str, int], ...] = field(default=tuple(OPTIONS))

    def as_argument(self) -> str:
        """As `ceilings/no_op.py` reads it."""
        return json.dumps(asdict(self))

    def describe(self) -> str:
        """A description for the line above the table."""
        frozen = ", frozen after the start" if self.frozen else ""
        return f"{self.loop}, collector at {self.thresholds}{frozen}"


def runtime_of(process: Mapping[str, Any]) -> Runtime:
    """The runtime of a serving process, as its probe describes it."""
    runtime = {**process, **json.loads(os.environ.get("BENCHMARK_RUNTIME", "{}"))}
    return Runtime(str(runtime["loop"]), tuple(runtime["thresholds"]), bool(runtime["frozen"]))
