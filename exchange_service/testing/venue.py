"""A venue on loopback: real HTTP, the venue's own payloads, and the faults that venues have shown.

A simulator subclasses `LoopbackVenue`, or `DemoVenue` to be part of the demo too. It defines the routes and says which
account a request belongs to. A fault applies before the handler of the route.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from aiohttp import ClientSession, web
from yarl import URL

from exchange_service.testing.push import PushSide


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request that the venue received. `account` is what `account_of` says of it, `target` the path and the query
    as they came on the wire."""

    # In capitals, such as GET.
    method: str
    # Without the query.
    path: str
    # The query's values by name, decoded.
    query: Mapping[str, str]
    # The headers; names are found in any case.
    headers: Mapping[str, str]
    # The body as it came.
    body: bytes
    account: str
    target: str = ""
    # The route that the request belongs to, such as "/v3/accounts/{id}/summary".
    route: str = ""


@dataclass(slots=True)
class Fault:
    """How a venue misbehaves, for the next `times` requests (None: all). With `account` or `path`, only for these."""

    # The HTTP status that is sent.
    status: int = 200
    # What is sent in place of the true answer.
    body: bytes = b""
    # The type of the content that is sent.
    content_type: str = "application/json"
    # More headers to send.
    headers: Mapping[str, str] = field(default_factory=dict)
    # `delay`: seconds before the answer. `silent`: no answer. `reset`: the connection ends. `drip`: a byte a second.
    delay: float = 0.0
    silent: bool = False
    reset: bool = False
    drip: bool = False
    # After the delay send the true answer instead of `body`.
    pass_on: bool = False
    # After the delay send what the last request of this account on the same route is answered with, as a venue that
    # mixes up its users. If there was no such request, the true answer is sent.
    as_account: str | None = None
    # For how many requests; None: for all.
    times: int | None = None
    # Only for requests of this account; None: for all.
    account: str | None = None
    # Only for requests of this path; None: for all.
    path: str | None = None

    @staticmethod
    def html(status: int = 200) -> Fault:
        """An HTML page, as gateways send it in maintenance."""
        page = b"<!DOCTYPE html><html><body><h1>We'll be back soon</h1></body></html>"
        return Fault(status=status, body=page, content_type="text/html")

    @staticmethod
    def redirect(location: str) -> Fault:
        """A 302 to this address."""
        return Fault(status=302, headers={"Location": location})

    @staticmethod
    def rate_limited(retry_after: str = "7") -> Fault:
        """A 429, with a Retry-After header unless it is empty."""
        return Fault(status=429, body=b"{}", headers={"Retry-After": retry_after} if retry_after else {})

    @staticmethod
    def gzip_bomb(size: int) -> Fault:
        """A small compressed body that expands to `size` bytes of JSON."""
        body = gzip.compress(b'{"padding":"' + b"0" * size + b'"}')
        return Fault(body=body, headers={"Content-Encoding": "gzip"})


# Headers of a request that belong to its connection, and not to what is asked.
_OF_THE_CONNECTION = frozenset({"Host", "Content-Length", "Transfer-Encoding", "Connection", "Accept-Encoding"})


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else request.path


class LoopbackVenue:
    """An HTTP server on 127.0.0.1 that plays a venue."""

    def __init__(self) -> None:
        # What has come so far, the last one at the end.
        self.requests: list[RecordedRequest] = []
        # How it misbehaves now; of several that fit a request the last one counts.
        self.faults: list[Fault] = []
        # Open sockets and streams, for a venue that pushes.
        self.push = PushSide()
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._scheme = "http"
        self._stopping = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """The venue's endpoints."""
        raise NotImplementedError

    def account_of(self, request: web.Request, body: bytes) -> str:
        """The account that a request belongs to, for `Fault.account` and the record; empty if it has none."""
        return ""

    @property
    def url(self) -> str:
        """Where the venue listens, for example "http://127.0.0.1:40321"."""
        return f"{self._scheme}://127.0.0.1:{self._port}"

    async def start(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> str:
        """Listen on `port`, or on a free port if it is 0, with TLS if a context is given. Returns the URL."""
        self._scheme = "https" if tls else "http"
        self._stopping.clear()
        app = web.Application(middlewares=[self._middleware], client_max_size=1024 * 1024)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self.url

    async def stop(self) -> None:
        """Stop listening, and end every request that is still being answered."""
        self._stopping.set()
        self.push.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def fail(self, fault: Fault) -> Fault:
        """Misbehave in this way from now on, and return the fault. Of several that fit a request the newest applies."""
        self.faults.append(fault)
        return fault

    def recover(self, fault: Fault | None = None) -> None:
        """End this fault, or all faults if none is given."""
        if fault is None:
            self.faults.clear()
        elif fault in self.faults:
            self.faults.remove(fault)

    def _fault_for(self, account: str, path: str) -> Fault | None:
        for fault in reversed(self.faults):
            if fault.account not in (None, account) or fault.path not in (None, path):
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
            return fault
        return None

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        account = self.account_of(request, body)
        self.requests.append(
            RecordedRequest(
                request.method,
                request.path,
                dict(request.query),
                request.headers,
                body,
                account,
                request.raw_path,
                _route(request),
            )
        )
        fault = self._fault_for(account, request.path)
        if fault is None:
            response: web.StreamResponse = await handler(request)
            return response
        return await self._misbehave(fault, request, handler)

    async def _misbehave(self, fault: Fault, request: web.Request, handler: Any) -> web.StreamResponse:
        if fault.silent:
            await self._stopping.wait()
        if fault.delay:
            await self._pause(fault.delay)
        other = self._last_request(fault.as_account, request) if fault.as_account else None
        if other is not None:
            return await self._answer_again(other)
        if fault.pass_on or fault.as_account:
            answer: web.StreamResponse = await handler(request)
            return answer
        if fault.reset:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault.drip:
            return await self._drip(fault, request)
        headers = {"Content-Type": fault.content_type, **fault.headers}
        return web.Response(status=fault.status, body=fault.body, headers=headers)

    def _last_request(self, account: str, like: web.Request) -> RecordedRequest | None:
        """The last request of this account on the route of another request."""
        wanted = (account, like.method, _route(like))
        return next(
            (one for one in reversed(self.requests) if (one.account, one.method, one.route) == wanted),
            None,
        )

    async def _answer_again(self, recorded: RecordedRequest) -> web.Response:
        """What this request is answered with now. It is sent again, and so recorded again too."""
        headers = {name: value for name, value in recorded.headers.items() if name not in _OF_THE_CONNECTION}
        url = URL(self.url + recorded.target, encoded=True)
        async with (
            ClientSession() as session,
            session.request(recorded.method, url, data=recorded.body, headers=headers) as answer,
        ):
            body, kind = await answer.read(), answer.headers.get("Content-Type", "application/json")
            return web.Response(status=answer.status, body=body, headers={"Content-Type": kind})

    async def _drip(self, fault: Fault, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=fault.status, headers={"Content-Type": fault.content_type})
        await response.prepare(request)
        # The client may have gone.
        with suppress(ConnectionResetError):
            for byte in fault.body or b" " * 600:
                await response.write(bytes([byte]))
                await self._pause(1.0)
        return response

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


# The situations that the demo shows, each by a user of its own: "moving" (`move` changes the figures), "empty"
# (nothing is held), "refused" (the venue refuses the key), "limited", "slow", "stale" (an outage after one good
# balance), "partly" (several accounts, of which at least one fails and at least one is read). `show_situation` plays
# "limited", "slow" and "stale".
SITUATIONS = ("moving", "empty", "refused", "limited", "slow", "stale", "partly")

# What goes wrong at venues, and which error the contract suite accepts for each: "wrong key" becomes
# CredentialRejected; "missing right" PermissionMissing, AddressNotAllowed, AccountUnknown or FeatureNotEnabled; "wrong
# environment", a key of the sandbox at the live venue, CredentialRejected or AccountUnknown; "unknown account"
# AccountUnknown; "rate limit" VenueRateLimited; "outage" VenueUnavailable, VenueMaintenance or VenueTimeout.
# `show_situation` plays the last two.
TROUBLES = ("wrong key", "missing right", "wrong environment", "unknown account", "rate limit", "outage")


class DemoVenue(LoopbackVenue):
    """A simulator that is also part of the demo."""

    # The id of the listing that it simulates, for example "oanda".
    exchange_id = ""
    # The requests that reading a balance may send, such as "GET /v3/accounts/{id}/summary". Empty: not checked.
    allowed_requests: ClassVar[Sequence[str]] = ()
    # By each of TROUBLES that it shows: where it is known from that the venue answers so; see `testing.witnesses`.
    trouble_witnesses: ClassVar[Mapping[str, str]] = {}

    # After so many moves at the latest one is pushed, if the venue pushes: some push orders, and not prices.
    moves_to_a_push: ClassVar[int] = 1

    # Values for the plugin's settings, by name; a secret is a text too. The demo and the contract suite use them in
    # place of the operator's. A plugin with a required setting needs them.
    settings: ClassVar[Mapping[str, Any]] = {}

    # Where an answer names the account that it is of, such as "`account.id`"; empty if it names none.
    named_by: ClassVar[str] = ""

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        """Set up an account in this situation, one of SITUATIONS, and return the row to store for it: any of
        `api_key`, `api_secret`, `passphrase`, `extra_metadata`. None if this venue does not have the situation."""
        raise NotImplementedError

    def revoke_demo_key(self) -> bool:
        """Refuse the key of the situation "moving" from now on, as a key that its owner has deleted, until
        `demo_credential("moving")` is called again. Returns whether there is such a key: some venues need none."""
        return False

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        """Set up an account with this trouble, one of TROUBLES, and return the row to store for it. The venue answers
        as the real one does. None if this venue has no such case, for example because it needs no key."""
        return None

    def other_credential(self) -> Mapping[str, Any] | None:
        """Set up an account of another user, whose name and figures differ from those of the situation "moving", and
        return the row to store for it. The contract suite answers with its figures in place of the true ones. None if
        `named_by` is empty."""
        return None

    def lift_limits(self) -> None:
        """Stop counting requests against the venue's own limits: the contract suite sends more than any user."""

    def move(self) -> None:
        """Change the figures of moving accounts a little, as a market does. The demo calls it every two seconds."""
