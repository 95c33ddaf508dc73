"""What a plugin prints is noticed, with the place in its code: the sentence for the log and for the contract suite."""

from __future__ import annotations

import sys

# Modules of Python that write for somebody else: a logger, a warning, a traceback.
_NOT_PRINTING = frozenset({"logging", "warnings", "traceback", "faulthandler"})
PRINTS = (
    "it prints: write `logging.getLogger(__name__).info(...)` in place of print, which the service logs with the level "
    "and the call"
)


def printed_at() -> str:
    """Where the code is that writes to the stream whose `write` calls this, such as "acme.parse, line 12"; empty if it
    is a logger's."""
    frame = sys._getframe(2)
    name = str(frame.f_globals.get("__name__", ""))[:100]
    return "" if name.partition(".")[0] in _NOT_PRINTING else f"{name}, line {frame.f_lineno}"
