"""What stands before the methods and the pages: which names, pages, methods, types and sizes are served.

A refusal is a Connect error with a sentence, so that every client can show it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog

from exchange_service.addresses import host_of, is_ip_address, is_loopback_host
from exchange_service.grpc_server.direct import DirectCalls
from exchange_service.http_server.connect import LARGEST_REQUEST, METADATA, TIMEOUT_KEY
from exchange_service.observability.tracebacks import raised_at

log = structlog.get_logger(__name__)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
_Headers: TypeAlias = list[tuple[bytes, bytes]]

# Seconds in which a request's body has to come.
BODY_LIMIT = 10.0
# What a request's head may have: its number of headers, and their bytes.
_MOST_HEADERS, _LARGEST_HEAD = 100, 16 * 1024
# Paths that begin so are the API's, and the console has none of them.
_API = "/exchange_service."
_JSON, _FORM = b"application/json", b"application/x-www-form-urlencoded"
_UNARY_TYPES = (_JSON, b"application/proto")
_STREAM_TYPES = (b"application/connect+json", b"application/connect+proto")
# The headers that the Connect protocol and the methods read; others are not passed on.
_READ = frozenset(
    name.encode()
    for name in (
        *("host", "content-type", "content-encoding", "connect-content-encoding", "connect-protocol-version"),
        *METADATA,
    )
)
_ALLOWED_HEADERS = (
    b"authorization, connect-protocol-version, connect-timeout-ms, content-type, traceparent, tracestate, x-act-as, "
    b"x-request-id"
)
_EXPOSED_HEADERS = b"retry-after, x-request-id"
_PREFLIGHT_SECONDS = b"7200"
_ALWAYS: _Headers = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


@dataclass(frozen=True, slots=True)
class WebOptions:
    """Who may call over HTTP: `hosts` are the names in the Host header beside loopback ones and addresses, `origins`
    the pages of other origins."""

    hosts: Collection[str] = ()
    origins: Collection[str] = ()


class Refused(Exception):
    """A request that is not served; `status` is HTTP's and `code` Connect's."""

    def __init__(self, status: int, code: str, sentence: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(sentence)
        self.status, self.code, self.headers = status, code, list(headers)


@dataclass(slots=True)
class _Request:
    """What the guards look at."""

    scope: MutableMapping[str, Any]
    headers: _Headers = field(init=False)

    def __post_init__(self) -> None:
        self.headers = list(self.scope["headers"])

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    def get(self, name: bytes) -> bytes | None:
        """The header's value; None without it. Raises Refused if it came twice."""
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise Refused(400, "invalid_argument", f"The header {name.decode()} was sent more than once.")
        return values[0] if values else None


class Guards:
    """The ASGI application: `methods` at the paths of `calls`, and `pages` at all other paths if there are any."""

    def __init__(self, calls: DirectCalls, methods: ASGIApp, options: WebOptions, pages: ASGIApp | None = None) -> None:
        self._calls = calls
        self._methods = methods
        self._pages = pages
        self._hosts = frozenset(name.lower().rstrip(".") for name in options.hosts)
        self._origins = frozenset(origin.encode() for origin in options.origins)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        response = _Response(send)
        try:
            await self._serve(_Request(scope), receive, response)
        except Refused as refused:
            await response.refuse(refused)
        except Exception as error:
            log.error("http.failed", error=type(error).__name__, at=raised_at(error))
            if response.started:
                # The server closes the connection, so that the response does not pass for a whole one.
                raise
            await response.refuse(Refused(500, "internal", "The service failed; its log has the place."))

    async def _serve(self, request: _Request, receive: Receive, response: _Response) -> None:
        _check_head(request)
        self._check_host(request)
        if not request.path.startswith(_API):
            if self._pages is None:
                raise Refused(404, "unimplemented", "There is no such page here.")
            await self._pages(request.scope, await _whole_body(request, receive), response.send)
            return
        response.headers += _ALWAYS
        self._check_origin(request, response)
        method = self._calls.methods.get(request.path)
        if method is None:
            raise Refused(404, "unimplemented", "There is no such method; the .proto files have all of them.")
        if request.method == "OPTIONS":
            await response.empty(_preflight())
            return
        if request.method != "POST":
            raise Refused(405, "unimplemented", "Methods are called by POST.", (b"allow", b"POST, OPTIONS"))
        kind = _content_type(request, streams=method.server_streaming)
        scope = {**request.scope, "headers": _read_headers(request, kind)}
        await self._methods(scope, await _whole_body(request, receive), response.send)

    def _check_host(self, request: _Request) -> None:
        """Raise Refused if the Host header is no name of this server.

        Somebody's page could have its own name lead here, and then read what this server answers. It cannot do so with
        an address.
        """
        header = (request.get(b"host") or b"").decode("latin-1")
        name = host_of(header).lower().rstrip(".")
        if not (name in self._hosts or is_loopback_host(name) or is_ip_address(name)):
            raise Refused(421, "invalid_argument", "This server has another name; see the setting http_hosts.", _CLOSE)

    def _check_origin(self, request: _Request, response: _Response) -> None:
        """Raise Refused for a page that may not call; let the browser show the answer to one that may."""
        origin, site = request.get(b"origin"), request.get(b"sec-fetch-site")
        response.headers.append((b"vary", b"Origin"))
        if origin in self._origins and origin is not None:
            response.headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _EXPOSED_HEADERS),
            ]
            return
        own = f"{request.scope['scheme']}://".encode() + (request.get(b"host") or b"")
        if (origin is not None and origin != own) or site not in (None, b"same-origin", b"none"):
            raise Refused(
                403, "permission_denied", "Pages of this origin may not call; see the setting http_origins.", _CLOSE
            )


_CLOSE = (b"connection", b"close")


def _check_head(request: _Request) -> None:
    """Raise Refused for a head that is too large, or from which two servers would read bodies of different lengths."""
    size = sum(len(name) + len(value) for name, value in request.headers)
    if len(request.headers) > _MOST_HEADERS or size > _LARGEST_HEAD:
        raise Refused(431, "resource_exhausted", "The request has too many headers, or too long ones.", _CLOSE)
    if request.get(b"transfer-encoding") is not None and request.get(b"content-length") is not None:
        raise Refused(400, "invalid_argument", "The request has two lengths.", _CLOSE)


def _content_type(request: _Request, *, streams: bool) -> bytes:
    """The type of the body. Raises Refused for one that the method does not take."""
    sent = request.get(b"content-type") or b""
    kind = sent.partition(b";")[0].strip().lower()
    # As curl sends a body by itself. A page's form has this type too, and a browser then says where it comes from.
    if kind == _FORM and request.get(b"origin") is None and request.get(b"sec-fetch-site") is None:
        kind = _JSON
    types = _STREAM_TYPES if streams else _UNARY_TYPES
    if kind not in types:
        names = b" or ".join(types)
        sentence = f"The body should be of the type {names.decode()}."
        raise Refused(415, "invalid_argument", sentence, (b"accept-post", b", ".join(types)))
    return kind


def _read_headers(request: _Request, kind: bytes) -> _Headers:
    """The headers that are passed on. Raises Refused for a value that is not plain text."""
    read = [(name, value) for name, value in request.headers if name in _READ and name != b"content-type"]
    for name, value in read:
        if not (value.isascii() and value.decode("ascii").isprintable()):
            raise Refused(400, "invalid_argument", f"The header {name.decode()} has characters that are not ASCII.")
    return [*read, (b"content-type", kind), *_timeout(request)]


def _timeout(request: _Request) -> _Headers:
    """The deadline as it is passed on. Raises Refused for what is not a number of milliseconds."""
    value = request.get(b"connect-timeout-ms")
    if value is None:
        return []
    # The protocol's own limit.
    if not value.isdigit() or len(value) > 10:
        raise Refused(400, "invalid_argument", "Connect-Timeout-Ms should be a whole number of at most ten digits.")
    return [(TIMEOUT_KEY.encode(), value)]


def _preflight() -> _Headers:
    return [
        (b"access-control-allow-methods", b"POST"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
        (b"allow", b"POST, OPTIONS"),
    ]


async def _whole_body(request: _Request, receive: Receive) -> Receive:
    """What hands the request's body over in one piece, which has come here in time. Raises Refused if it is too large
    or too slow."""
    too_large = Refused(413, "resource_exhausted", f"A request has at most {LARGEST_REQUEST // 1024} KiB.", _CLOSE)
    length = request.get(b"content-length") or b""
    if length.isdigit() and int(length) > LARGEST_REQUEST:
        raise too_large
    body, more = b"", True
    try:
        async with asyncio.timeout(BODY_LIMIT):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                body, more = body + message.get("body", b""), message.get("more_body", False)
                if len(body) > LARGEST_REQUEST:
                    raise too_large
    except TimeoutError:
        raise Refused(408, "deadline_exceeded", "The request's body did not come in time.", _CLOSE) from None
    waiting = [] if more else [{"type": "http.request", "body": body, "more_body": False}]

    async def hand_over() -> Message:
        return waiting.pop() if waiting else await receive()

    return hand_over


class _Response:
    """Sends the response, with the headers that the guards add."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.headers: _Headers = []
        self.started = False

    async def send(self, message: Message) -> None:
        """Pass a part of the response on."""
        if message["type"] == "http.response.start":
            self.started = True
            kept = [item for item in message.get("headers", ()) if item != (b"content-encoding", b"identity")]
            message = {**message, "headers": [*kept, *self.headers]}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Send a refusal."""
        body = json.dumps({"code": refused.code, "message": str(refused)}).encode()
        kind, length = (b"content-type", _JSON), (b"content-length", str(len(body)).encode())
        await self.send(
            {"type": "http.response.start", "status": refused.status, "headers": [kind, length, *refused.headers]}
        )
        await self.send({"type": "http.response.body", "body": body})

    async def empty(self, headers: _Headers) -> None:
        """Send a response without a body."""
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})
