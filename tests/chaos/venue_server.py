"""The process of the loopback venue: `python -m tests.chaos.venue_server FOLDER`.

It takes commands as lines of JSON on its standard input, answers each with a line, and ends with its input. What it has
answered it appends to `FOLDER/answers`, so that nobody has to read for it to go on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from exchange_service.testing import LoopbackVenue
from tests.chaos.certificates import KINDS, server_contexts
from tests.chaos.history import VenueAnswer, as_line
from tests.chaos.venue_forms import BinanceForm, Form, Handler, OandaForm
from tests.chaos.venue_modes import MODES, Ask, Ledger, bomb

# The venue with TLS is OANDA's other environment.
SECURE = "oanda.sandbox"


class Elsewhere(LoopbackVenue):
    """The host to which a redirect leads; nobody should come."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        return web.json_response({})


class Venues:
    """The venues, and the mode that they are in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = os.open(folder / "answers", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._ledger = Ledger(self._record)
        self._mode, self._options = "well", dict[str, Any]()
        self._contexts = server_contexts(folder)
        self._elsewhere = Elsewhere()
        self._venues: dict[str, LoopbackVenue] = {
            "oanda": OandaForm(self._answer),
            SECURE: OandaForm(self._answer, SECURE),
            "binance": BinanceForm(self._answer),
        }
        self._ports: dict[str, int] = {}
        self._closed: set[str] = set()

    async def start(self) -> None:
        """Listen."""
        await self._elsewhere.start()
        for name in self._venues:
            await self._open(name)

    async def _open(self, name: str, certificate: str = "good") -> None:
        tls = self._contexts[certificate] if name == SECURE else None
        url = await self._venues[name].start(self._ports.get(name, 0), tls=tls)
        self._ports[name] = int(url.rpartition(":")[2])

    def addresses(self) -> Mapping[str, str]:
        """The setting `venue_urls`."""
        return {name: venue.url for name, venue in self._venues.items()}

    def state(self) -> Mapping[str, Any]:
        """The addresses, what each mode has answered, and what has come to the host of the redirects."""
        met = {**self._ledger.met, "astray": len(self._elsewhere.requests)}
        return {"addresses": self.addresses(), "met": met}

    async def set_mode(self, name: str, options: Mapping[str, Any]) -> None:
        """Answer in this mode from now on. "refuse" and the kinds of certificates change how the venues listen."""
        if name not in MODES and name != "refuse" and name not in KINDS:
            raise ValueError(f"there is no mode {name}")
        if name == "bomb":
            await asyncio.to_thread(bomb)
        self._options = dict(options)
        self._mode = name if name in MODES else "well"
        await self._listen(name)

    async def _listen(self, name: str) -> None:
        """Open what a mode before has closed, and change what this one needs."""
        for closed in sorted(self._closed):
            await self._venues[closed].stop()
            await self._open(closed)
        self._closed = set()
        if name == "refuse":
            self._closed = set(self._venues)
            for venue in self._venues.values():
                await venue.stop()
        elif name in KINDS and name != "good":
            self._closed = {SECURE}
            await self._venues[SECURE].stop()
            await self._open(SECURE, name)

    async def _answer(self, form: Form, user: int, request: web.Request, handler: Handler) -> web.StreamResponse:
        ask = Ask(form, user, request, handler, self._ledger, self._options, self._elsewhere.url)
        mode = MODES[self._mode if self._concerns(form, user) else "well"]
        answered = False
        try:
            response = await mode(ask)
            # Written here, to know when it was whole. The client may have gone.
            with suppress(ConnectionError):
                await response.prepare(request)
                await response.write_eof()
                answered = True
            return response
        finally:
            ask.record(whole=answered)

    def _concerns(self, form: Form, user: int) -> bool:
        """Whether the mode is meant for this venue and this user; without options it is for all."""
        users, venue = self._options.get("users"), self._options.get("venue")
        return (users is None or user in users) and venue in (None, form.name)

    def _record(self, answer: VenueAnswer) -> None:
        os.write(self._file, f"{as_line(answer)}\n".encode())


async def _command(venues: Venues, command: Mapping[str, Any]) -> Mapping[str, Any]:
    """Carry out a command. Returns what to answer."""
    if "mode" in command:
        await venues.set_mode(command["mode"], command["options"])
    return venues.state()


async def _lines(act: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]) -> None:
    """Carry out each line of the standard input."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            answer = await act(json.loads(line))
        except Exception as error:
            answer = {"error": repr(error)}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


async def serve(folder: Path) -> None:
    """Serve until the standard input ends."""
    venues = Venues(folder)
    await venues.start()
    await _lines(lambda command: _command(venues, command))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
