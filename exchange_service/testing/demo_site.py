"""The site of the demo's venues: it lists keys to type, deletes a key, and lets a venue fail and recover.

It plays the venue's own web site, where users make and delete their keys, and whatever breaks venues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from exchange_service.testing.push import PushFault
from exchange_service.testing.venue import DemoVenue, Fault

# A venue in maintenance. A request of any account gets it.
_OUTAGE = 503


class DemoSite:
    """An HTTP server on 127.0.0.1.

    `GET /` lists the keys of each venue. `POST /oanda/revoke` deletes OANDA's first key, `/oanda/fail` lets OANDA
    answer each request with status 503, and `/oanda/mend` ends both.
    """

    def __init__(self, venues: Mapping[str, DemoVenue]) -> None:
        self._venues = venues
        self._keys = {name: _make_keys(venue) for name, venue in venues.items()}
        self._outages: dict[str, Fault] = {}
        # By exchange its first key, while it is revoked.
        self._revoked: dict[str, Mapping[str, str]] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    @property
    def keys(self) -> Mapping[str, Sequence[Mapping[str, str]]]:
        """By exchange the keys that its venue takes at the moment: the values by the names of the listing's credential
        fields. The first opens a moving account, unless it was revoked."""
        return self._keys

    async def start(self, port: int = 0) -> str:
        """Listen on `port`, or on a free port if it is 0 or taken. Returns the URL."""
        app = web.Application(middlewares=[_for_this_machine_only])
        app.add_routes([web.get("/", self._list), web.post("/{exchange}/{action}", self._act)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", port).start()
        except OSError:
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({name: {"keys": keys} for name, keys in self._keys.items()})

    async def _act(self, request: web.Request) -> web.Response:
        name, action = request.match_info["exchange"], request.match_info["action"]
        actions: Mapping[str, Callable[[str], str]] = {"revoke": self.revoke, "fail": self.fail, "mend": self.mend}
        if name not in self._venues or action not in actions:
            known = f"venues: {', '.join(self._venues)}; actions: {', '.join(actions)}"
            raise web.HTTPNotFound(text=f"There is no {name}/{action} here ({known}).\n")
        return web.Response(text=f"{actions[action](name)}\n")

    def revoke(self, exchange_id: str) -> str:
        """Delete the first key, as its owner would. Returns what happened, as a sentence."""
        venue = self._venues[exchange_id]
        if not venue.revoke_demo_key():
            return f"{exchange_id} needs no key, so there is nothing to delete."
        if exchange_id not in self._revoked:
            self._revoked[exchange_id] = self._keys[exchange_id].pop(0)
        # A venue ends the pushes of a key with it. The others connect again.
        venue.push.drop_all()
        return f"{exchange_id} refuses its first key from now on."

    def fail(self, exchange_id: str) -> str:
        """Let the venue be down. Returns what happened, as a sentence."""
        venue = self._venues[exchange_id]
        if exchange_id not in self._outages:
            self._outages[exchange_id] = venue.fail(Fault.html(_OUTAGE))
            venue.push.fail(PushFault(refused=_OUTAGE))
            venue.push.drop_all()
        return f"{exchange_id} is down from now on."

    def mend(self, exchange_id: str) -> str:
        """Let the venue answer again, and take its first key. Returns what happened, as a sentence."""
        venue = self._venues[exchange_id]
        if outage := self._outages.pop(exchange_id, None):
            venue.recover(outage)
            venue.push.recover()
        if key := self._revoked.pop(exchange_id, None):
            self._keys[exchange_id].insert(0, key)
            venue.demo_credential("moving")
        return f"{exchange_id} answers, and takes its first key."


def _make_keys(venue: DemoVenue) -> list[Mapping[str, str]]:
    rows = (venue.demo_credential("moving"), venue.other_credential())
    return [_typed_fields(row) for row in rows if row is not None]


def _typed_fields(row: Mapping[str, Any]) -> Mapping[str, str]:
    """What a user types for this row of the credential store."""
    plain = {name: value for name, value in row.items() if name != "extra_metadata"}
    return {name: str(value) for name, value in (plain | dict(row.get("extra_metadata") or {})).items()}


@web.middleware
async def _for_this_machine_only(request: web.Request, handler: Any) -> web.StreamResponse:
    """No web page that somebody has open may act here: a browser says where a request comes from."""
    if urlsplit(f"//{request.host}").hostname not in ("127.0.0.1", "localhost") or "Origin" in request.headers:
        raise web.HTTPForbidden(text="Only programs on this machine may ask here, and no web page.\n")
    answer: web.StreamResponse = await handler(request)
    return answer
