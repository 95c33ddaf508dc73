"""The loopback venue as the rig sees it: its addresses, its modes and its answers. It serves from its own process.

So its times are true also while the loop of the clients is late, and times of `time.monotonic()` can be compared.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.chaos.certificates import AUTHORITY
from tests.chaos.history import VenueAnswer, read
from tests.chaos.line_process import LineProcess

# Seconds. A loaded machine takes long to start a process.
_PATIENCE = 60.0


class Venue:
    """OANDA, its sandbox with TLS, and Binance, on free ports of loopback. `answers` is all that they have answered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "venue"
        self._answers: list[VenueAnswer] = []
        self._offset = 0
        self._process = LineProcess("tests.chaos.venue_server", str(self._folder))
        self._told: Mapping[str, Any] = {}
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        await self._process.start()
        await self._tell({})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._process.kill()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def addresses(self) -> Mapping[str, str]:
        """The addresses by exchange id, for the setting `venue_urls`."""
        addresses: Mapping[str, str] = self._told["addresses"]
        return addresses

    @property
    def address(self) -> str:
        """OANDA's."""
        return self.addresses["oanda"]

    @property
    def authority(self) -> Path:
        """What a replica has to trust (SSL_CERT_FILE) to reach the venue with TLS."""
        return self._folder / AUTHORITY

    @property
    def answers(self) -> list[VenueAnswer]:
        """All answers until now."""
        records, self._offset = read(self._folder / "answers", self._offset)
        self._answers += [record for record in records if isinstance(record, VenueAnswer)]
        return self._answers

    def count(self, kind: str) -> int:
        """How many answers were of this kind: "ok", or the name of a mode."""
        return sum(answer.kind == kind for answer in self.answers)

    async def set_mode(self, name: str, **options: Any) -> None:
        """Answer so from now on; "well" is the truth. `users`: for these numbers alone. `venue`: for this one alone."""
        await self._tell({"mode": name, "options": options})

    async def met(self, name: str) -> int:
        """How many requests this mode has answered; "astray": how many came to the host of its redirects."""
        await self._tell({})
        return int(self._told["met"].get(name, 0))

    async def _tell(self, command: Mapping[str, Any]) -> None:
        """Send a command and wait for its answer."""
        async with self._lock:
            self._process.tell(json.dumps(command))
            line = await self._process.line(_PATIENCE)
        told = json.loads(line or b'{"error": "the process of the venue has ended"}')
        if "error" in told:
            raise RuntimeError(told["error"])
        self._told = told
