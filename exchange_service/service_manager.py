"""What a service manager such as systemd is told, over the socket that it names in NOTIFY_SOCKET (sd_notify)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

import structlog

log = structlog.get_logger(__name__)
# Seconds that a message may wait for a manager that does not read: the event loop waits with it.
_LONGEST_WAIT = 0.1


class ServiceManager:
    """Tells the manager that the service is ready, lives and ends. Without a manager every method does nothing.

    `address`: a Unix datagram socket's path, or its abstract name behind an @; empty without a manager.
    `watchdog`: seconds after which the manager ends a process that has not said that it lives; 0 for never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = address
        self.watchdog = watchdog if address else 0.0
        self._reached = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServiceManager:
        """The manager that started this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        # A parent that passed its environment on may be the process that is meant.
        asked = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "") if asked else ""
        return cls(address, int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0)

    def ready(self, status: str) -> None:
        """The service serves. `status` is a sentence for the operator."""
        self._tell("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """The service has begun to end."""
        self._tell("STOPPING=1", f"STATUS={status}")

    async def keep_alive(self) -> None:
        """Say twice in each period of the watchdog that the event loop turns, until cancelled."""
        while self.watchdog:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 2)

    def _tell(self, *lines: str) -> None:
        """Send one message. A manager that cannot be reached is no reason to end: it decides by itself what follows."""
        if not self._address:
            return
        name = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_LONGEST_WAIT)
                sender.sendto("\n".join(lines).encode(), name)
            self._reached = True
        except OSError as error:
            # The watchdog's messages would repeat it for as long as the service runs.
            if self._reached:
                log.warning("service_manager.not_told", message=lines[0], problem=error.strerror or str(error))
            self._reached = False
