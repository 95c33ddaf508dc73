"""`python -m tests.chaos.serve serve`: the service as it is, but for the pauses of a venue's circuit breaker.

They are half a minute and more, for which every run would have to wait. CHAOS_PATCH names a function, module:name, that
is called before: it may switch a mechanism off, so that an invariant can be seen to fail.
"""

from __future__ import annotations

import importlib
import os

from exchange_service.cli import main
from exchange_service.venue_gate import breaker

PATCH = "CHAOS_PATCH"
# Seconds.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 4.0


def prepare() -> None:
    """Shorten the pauses, and apply the patch if there is one."""
    breaker.FIRST_PAUSE, breaker.LONGEST_PAUSE = FIRST_PAUSE, LONGEST_PAUSE
    if patch := os.environ.get(PATCH):
        module, _, name = patch.partition(":")
        getattr(importlib.import_module(module), name)()


if __name__ == "__main__":
    prepare()
    main()
