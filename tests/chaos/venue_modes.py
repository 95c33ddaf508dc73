"""How the loopback venue misbehaves: each mode by its name. The modes know no wire form beside JSON and amounts."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from aiohttp import web

from tests.chaos.accounts import amount_of, user_name
from tests.chaos.history import VenueAnswer
from tests.chaos.venue_forms import SEVERAL, Form, Handler, body_of, renamed

_PAGE = b"<!DOCTYPE html><html><body><h1>We'll be back soon: maintenance</h1></body></html>"
_MEGABYTE = b'"' + b"0" * (1024 * 1024 - 3) + b'",'
# Far above the `seq` of usual answers.
_HIGH = 900_000_000
# Seconds: longer than any request waits.
_FOR_EVER = 60.0
# Both venues' own words in one body, each beside the other's.
_REFUSED = (
    b'{"errorMessage":"Insufficient authorization to perform request.",'
    b'"code":-2015,"msg":"Invalid API-key, IP, or permissions for action."}'
)
_LIMITED = b'{"errorMessage":"Too many requests.","code":-1003,"msg":"Too many requests."}'


@dataclass(slots=True)
class Ledger:
    """What the venue has answered: `record` writes it where the rig reads, `last` holds the latest `seq` of each."""

    record: Callable[[VenueAnswer], None]
    last: dict[tuple[str, int], int] = field(default_factory=dict)
    # How many requests each mode has answered.
    met: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Ask:
    """A request of a user, and the venue's true answer to it."""

    form: Form
    user: int
    request: web.Request
    handler: Handler
    ledger: Ledger
    options: Mapping[str, Any]
    # Where requests are sent that a redirect leads astray.
    elsewhere: str = ""
    begin: float = field(default_factory=time.monotonic)
    kind: str = "ok"
    _seq: int = 0
    _made: float = 0.0
    _recorded: bool = False

    @property
    def reads_figures(self) -> bool:
        """Whether the true answer holds amounts."""
        return self.form.reads_figures(self.request)

    async def truth(self, seq: int = 0) -> web.StreamResponse:
        """The true answer: the next one of the user, or this one."""
        if self.reads_figures:
            self._make(seq)
        try:
            return await self.handler(self.request)
        except web.HTTPException as refusal:
            self.kind = f"http-{refusal.status}"
            return refusal

    def _make(self, seq: int) -> None:
        key = (self.form.name, self.user)
        if not seq:
            seq = self.ledger.last[key] = self.ledger.last.get(key, 0) + 1
        self._seq = seq
        self._made = time.monotonic()
        self.form.set_amount(self.user, self.request, amount_of(self.user, self._seq))

    def untrue(self, kind: str) -> None:
        """Say that what is sent is not the truth, though it holds its amounts."""
        self.kind = kind

    def record(self, *, whole: bool) -> None:
        """Write what was answered into the history, once: what never ends is written when it begins."""
        if self._recorded:
            return
        self._recorded = True
        made, sent = self._made or self.begin, time.monotonic() if whole else 0.0
        # An answer without figures, such as a list of accounts, is not an answer of the history.
        if self.kind == "ok" and not self._seq:
            return
        seq = self._seq if self.kind == "ok" else 0
        self.ledger.record(VenueAnswer(user_name(self.user), self.form.name, seq, self.begin, made, sent, self.kind))


Mode = Callable[[Ask], Awaitable[web.StreamResponse]]
MODES: dict[str, Mode] = {}


def mode(name: str, *, figures: bool = False) -> Callable[[Mode], Mode]:
    """Enter a mode under its name. `figures`: requests without amounts get the true answer."""

    def enter(act: Mode) -> Mode:
        async def marked(ask: Ask) -> web.StreamResponse:
            if figures and not ask.reads_figures:
                return await ask.truth()
            ask.ledger.met[name] += 1
            ask.untrue(name)
            return await act(ask)

        MODES[name] = marked
        return act

    return enter


def _status(name: str, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
    sent = {"Content-Type": kind, **{name.replace("_", "-"): text for name, text in headers.items()}}

    @mode(name)
    async def answer(ask: Ask) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=sent)


_status("unauthorized", 401, _REFUSED)
_status("forbidden", 403, _REFUSED)
_status("limited", 429, _LIMITED, Retry_After="3")
_status("limited-bare", 429, _LIMITED)
_status("banned", 418, _LIMITED, Retry_After="2")
_status("broken", 500, b'{"errorMessage":"Internal error."}')
_status("gateway", 502, b"<html><head><title>502 Bad Gateway</title></head></html>", "text/html")
_status("maintenance", 503, _PAGE, "text/html")
_status("page", 200, _PAGE, "text/html")
_status("empty", 200, b"")
_status("list", 200, b"[]")


async def well(ask: Ask) -> web.StreamResponse:
    """The true answer."""
    return await ask.truth()


MODES["well"] = well


@mode("silence")
async def _silence(ask: Ask) -> web.StreamResponse:
    ask.record(whole=False)
    await asyncio.sleep(_FOR_EVER)
    return web.Response()


@mode("slow-loris")
async def _slow_loris(ask: Ask) -> web.StreamResponse:
    ask.record(whole=False)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(ask.request)
    with suppress(ConnectionError):
        for _ in range(int(_FOR_EVER)):
            await response.write(b" ")
            await asyncio.sleep(1.0)
    return response


@mode("slow", figures=True)
async def _slow(ask: Ask) -> web.StreamResponse:
    """The truth, made and sent late."""
    ask.kind = "ok"
    await asyncio.sleep(float(ask.options.get("seconds", 1.5)))
    return await ask.truth()


@mode("held", figures=True)
async def _held(ask: Ask) -> web.StreamResponse:
    """The truth, made at once and sent late."""
    ask.kind = "ok"
    response = await ask.truth()
    await asyncio.sleep(float(ask.options.get("seconds", 1.5)))
    return response


@mode("flapping", figures=True)
async def _flapping(ask: Ask) -> web.StreamResponse:
    """Every second request that reads figures fails."""
    if ask.ledger.met["flapping"] % 2:
        return web.Response(status=500, body=b"{}")
    ask.kind = "ok"
    return await ask.truth()


@mode("back", figures=True)
async def _back(ask: Ask) -> web.StreamResponse:
    """The truth, which is less each time, and was never the same: it begins far above all that was there."""
    ask.kind = "ok"
    return await ask.truth(_HIGH - ask.ledger.met["back"])


def _edited(name: str, edit: Callable[[Ask, bytes], web.Response]) -> None:
    @mode(name, figures=True)
    async def answer(ask: Ask) -> web.StreamResponse:
        return edit(ask, body_of(await ask.truth()))


def _json(body: bytes, **headers: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": "application/json", **headers})


def _amount(ask: Ask) -> bytes:
    """The amount of the answer as it stands in the body, quotes included."""
    return b'"%d"' % int(amount_of(ask.user, ask._seq))


_edited("truncated", lambda ask, body: _json(body[: len(body) * 2 // 3]))
_edited("nan", lambda ask, body: _json(body.replace(_amount(ask), b"NaN")))
_edited("huge-number", lambda ask, body: _json(body.replace(_amount(ask), b"1e400")))
_edited("null", lambda ask, body: _json(body.replace(_amount(ask), b"null")))
# The same object twice under the same names, with other figures the second time.
_edited("duplicate", lambda ask, body: _json(body[:-1] + b", " + body[1:].replace(_amount(ask), b'"0"')))


@mode("plain-text", figures=True)
async def _plain_text(ask: Ask) -> web.StreamResponse:
    """The truth with a wrong content type: it may be read, or refused."""
    ask.kind = "ok"
    return web.Response(body=body_of(await ask.truth()), headers={"Content-Type": "text/plain"})


@mode("foreign", figures=True)
async def _foreign(ask: Ask) -> web.StreamResponse:
    """The figures of the user beside, under the number of that user's account."""
    other = ask.user + 1
    await ask.truth()
    ask.form.set_amount(ask.user, ask.request, amount_of(other, 1))
    return renamed(ask.form, await ask.handler(ask.request), other)


@mode("partial", figures=True)
async def _partial(ask: Ask) -> web.StreamResponse:
    """The second account of a user is refused, and users with one account have the truth."""
    if ask.user >= SEVERAL and "-002/" in ask.request.path:
        ask.ledger.met["refused part"] += 1
        body = b'{"errorMessage":"The provided request was forbidden."}'
        return web.Response(status=403, body=body, headers={"Content-Type": "application/json"})
    ask.kind = "ok"
    return await ask.truth()


@mode("redirect")
async def _redirect(ask: Ask) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": ask.elsewhere + ask.request.path_qs})


@mode("reset", figures=True)
async def _reset(ask: Ask) -> web.StreamResponse:
    body = body_of(await ask.truth())
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(ask.request)
    await response.write(body[: len(body) // 2])
    if ask.request.transport is not None:
        ask.request.transport.abort()
    return response


@mode("huge-body")
async def _huge_body(ask: Ask) -> web.StreamResponse:
    """200 MB, as far as the client takes it."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(ask.request)
    with suppress(ConnectionError):
        await response.write(b"[")
        for _ in range(200):
            await response.write(_MEGABYTE)
    return response


@cache
def bomb() -> bytes:
    """150 MB of JSON, compressed. It takes a second, so it is made before it is needed."""
    pressed = zlib.compressobj(1, wbits=31)
    parts = [pressed.compress(b'{"padding":"'), *(pressed.compress(b"0" * 1_000_000) for _ in range(150))]
    return b"".join([*parts, pressed.compress(b'"}'), pressed.flush()])


@mode("bomb")
async def _send_bomb(ask: Ask) -> web.StreamResponse:
    return _json(bomb(), **{"Content-Encoding": "gzip"})
