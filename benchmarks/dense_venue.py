"""Tradier's simulator behind a proxy that pads each JSON object to 1 MiB, with as many values as an answer may have.

    python -m benchmarks.dense_venue

prints one line of JSON, [address, credentials], and serves until its standard input ends. Then it prints how many
answers it has padded.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import entry_points
from typing import Any

import aiohttp
from aiohttp import web

from exchange_service.model import ANSWER_LIMIT

EXCHANGE = "tradier"
# Eight bytes for each comma, colon and opening bracket: answers with more of them are refused.
_VALUE = b"{},".ljust(17)
_PASSED_ON = ("accept", "content-type")
# Keys of one account: each has a limit of its own.
_KEYS = 5


def padded(body: bytes) -> bytes:
    """The same JSON object with one field more, as long as an answer may be."""
    head, tail = body.rstrip()[:-1] + b',"more":[', b"{}]}"
    room = ANSWER_LIMIT - len(head) - len(tail)
    return (head + _VALUE * (room // len(_VALUE)) + tail).ljust(ANSWER_LIMIT)


class Proxy:
    """Passes requests on to `venue`, all with this key."""

    def __init__(self, venue: str, key: str, session: aiohttp.ClientSession) -> None:
        self.count = 0
        self._venue = venue
        self._key = key
        self._session = session

    async def answer(self, request: web.Request) -> web.Response:
        """The venue's answer; a JSON object is padded."""
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["authorization"] = f"Bearer {self._key}"
        url, data = f"{self._venue}{request.path_qs}", await request.read()
        async with self._session.request(request.method, url, headers=headers, data=data or None) as found:
            body, status, kind = await found.read(), found.status, found.content_type
        if status == 200 and body.lstrip().startswith(b"{"):
            self.count += 1
            body = padded(body)
        return web.Response(body=body, status=status, content_type=kind)


async def _play() -> None:
    (point,) = entry_points(group="exchange_service.simulators", name=EXCHANGE)
    async with point.load()() as venue, aiohttp.ClientSession() as session:
        venue.lift_limits()
        row = venue.demo_credential("moving")
        proxy = Proxy(venue.url, row["api_key"], session)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proxy.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        _say([f"http://127.0.0.1:{port}", [{**row, "api_key": f"{row['api_key']}-{n}"} for n in range(_KEYS)]])
        await asyncio.to_thread(sys.stdin.read)
        _say(proxy.count)
        await runner.cleanup()


def _say(line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_play())
