"""What Kubernetes and load balancers ask over HTTP: whether the process lives, and whether it is ready for calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

# Seconds within which an event loop that is alive runs a callback.
_TURN_LIMIT = 2.0


class HealthPages:
    """/livez: the event loop turns. /readyz: it turns, and the service says SERVING. Safe in any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Replaced once there is a server.
        self.is_serving: Callable[[], bool] = lambda: False

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The HTTP status and the body for a path; None if it is no page of these."""
        if path not in ("/livez", "/readyz"):
            return None
        if not self._turns():
            return "503 Service Unavailable", b"the event loop does not turn\n"
        if path == "/readyz" and not self.is_serving():
            return "503 Service Unavailable", b"NOT_SERVING\n"
        return "200 OK", b"ok\n" if path == "/livez" else b"SERVING\n"

    def _turns(self) -> bool:
        turned = threading.Event()
        # RuntimeError: the loop has ended.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(turned.set)
            return turned.wait(_TURN_LIMIT)
        return False
