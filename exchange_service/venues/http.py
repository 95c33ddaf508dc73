"""The guarded HTTP session that plugins receive.

It protects the service and its users against: a redirect that carries a key to another host, a body or a compressed
bomb that fills the memory, an answer of so many values that reading it holds up everybody else, cookies that one user's
answer sets and another's request sends, a proxy from the environment, a host that the manifest does not name, an
address inside our own network, and endless waiting.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from exchange_service.addresses import is_private_host
from exchange_service.errors import (
    AccountUnknown,
    CredentialRejected,
    PermissionMissing,
    PluginFailed,
    RegionRestricted,
    RequestRefused,
    ServiceError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import ExchangeMetadata, WrongType
from exchange_service.plugin_kit.gateways import gateway_error
from exchange_service.plugin_kit.payload import count_marks, parse_json, retry_after
from exchange_service.tasks import beside_the_loop
from exchange_service.venues.answer_times import noting_answers
from exchange_service.venues.egress import Way
from exchange_service.venues.files_left import raise_if_none_left
from exchange_service.venues.request_spans import request_traces, traced_response
from exchange_service.venues.sockets import (
    CLOSE_LIMIT,
    MESSAGE_LIMIT,
    OpenPushes,
    VenueSocket,
    read_lines,
)
from exchange_service.venues.tap import HttpTap
from exchange_service.venues.tunnels import ADVICE, open_tunnel

CONNECT_TIMEOUT = 3.0
# Bytes of an answer for each value in it (see `count_marks`), at least; the densest honest answers have nine.
_BYTES_FOR_A_MARK = 8
# The most values of one answer: four times those of the longest list of markets.
_MOST_MARKS = 4_000_000
# An answer with more, or of more bytes, is read in a thread. Reading this many takes a millisecond, and what a plugin
# makes of them three: several answers may come in one turn of the loop.
_LARGE = 4000
_LARGE_BODY = 64 * 1024
# What a request may hold as it is: all else cannot be sent, or would be cut off.
_SENDABLE = re.compile(r"[!-\"$-~]+\Z")
# A WebSocket begins as a request of HTTP, so its scheme is another name for HTTP's.
_SCHEMES = {"https": "https", "http": "http", "wss": "https", "ws": "http"}
# What the plugin's author should write in place of something that is not an HTTP address.
WHOLE_ADDRESS = 'Write call.url() + "/v1/..." in the plugin, with the slash behind the host.'
# From this status on an answer is not what was asked for.
_REFUSED = 300
_USER_AGENT = "exchange-service"
# Requests of one session at the same time.
_AT_ONCE = 100
# Bytes of a body that are read at once. They may come in as many pieces, so others are served in between.
_CHUNK = 16 * 1024
# Bytes that are taken of a connection at once while it has no response, so that a flood of interim ones ends after the
# first part. A venue sends one response, and one or two interim ones before.
_PART = 16 * 1024
_MOST_RESPONSES = 16
# Public by their numbers, but in the clouds of Azure and Oracle they lead to the cloud's own services; and ranges that
# older versions of Python do not call private.
_CLOUDS = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b:1::/48")))
# The network through which IPv6-only machines reach IPv4 addresses, which are its last four bytes.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Log lines about refused addresses of one venue: its name server may give another address each time.
_MOST_LOGGED = 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class VenueResponse:
    """A venue's answer, read in full; see `plugin_api.Response`.

    `repr` shows neither the URL, which may hold a signature, nor what the venue sent.
    """

    venue: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(default="", repr=False)
    # What `json` returns or raises, if the answer is large: it was read in a thread.
    _read: Any = field(default=None, repr=False, compare=False)

    def json(self) -> Any:
        """The body as JSON with exact numbers, or VenueMalformed."""
        if isinstance(self._read, VenueMalformed):
            raise VenueMalformed(self._read.message)
        return self._parse() if self._read is None else self._read

    def _parse(self) -> Any:
        try:
            return parse_json(self.body)
        except VenueMalformed as malformed:
            raise VenueMalformed(f"{self.venue}: {malformed.message}") from None

    def raise_for_status(self) -> None:
        """Raise what a status of 300 or more usually means; the table stands in `plugin_api.Response`."""
        status, venue = self.status, self.venue
        if status < 300:
            return
        if status < 400:
            raise VenueMalformed(f"{venue} answered with a redirect, which is not followed.")
        if error := gateway_error(self, venue):
            raise error
        if status == 401:
            raise CredentialRejected(f"{venue} refuses the key (HTTP 401).")
        if status == 403:
            raise PermissionMissing(f"{venue} forbids the request (HTTP 403).")
        if status == 404:
            raise AccountUnknown(f"{venue} knows no such account (HTTP 404).")
        if status in (408, 504):
            raise VenueTimeout(f"{venue} did not answer in time (HTTP {status}).")
        if status in (418, 429):
            raise VenueRateLimited(f"{venue} limits our requests.", retry_after=retry_after(self.headers))
        if status == 451:
            raise RegionRestricted(f"{venue} does not serve this region (HTTP 451).")
        if status < 500:
            raise RequestRefused(f"{venue} calls our request wrong (HTTP {status}).")
        if status == 503 and b"maintenance" in self.body[:4096].lower():
            raise VenueMaintenance(f"{venue} is in maintenance.", retry_after=retry_after(self.headers))
        raise VenueUnavailable(f"{venue} has trouble (HTTP {status}).", retry_after=retry_after(self.headers))


async def _read_large(venue: str, status: int, headers: Mapping[str, str], body: bytes, url: str) -> VenueResponse:
    """The answer, whose JSON a thread has read already."""
    response = VenueResponse(venue, status, headers, body, url)
    try:
        value = await beside_the_loop(response._parse)
    except VenueMalformed as malformed:
        value = malformed
    return VenueResponse(venue, status, headers, body, url, value)


async def _count_marks(body: bytes) -> int:
    return count_marks(body) if len(body) <= _LARGE_BODY else await beside_the_loop(count_marks, body)


def _note_answer() -> None:
    """Keep when the first answer came: what a balance is made of is as old as the oldest of them."""
    reports = noting_answers.get()
    if reports is not None and reports.answered_at is None:
        reports.answered_at = time.monotonic()


def _bounded_response(venue: str, limit: int, *, public: bool = False) -> type[aiohttp.ClientResponse]:
    """A response class that stops reading a body at `limit` bytes, whatever method reads it, and refuses redirects and
    bodies of very many values. Unless it is for `public` answers it keeps when a call's first one came."""
    most_marks = min(limit // _BYTES_FOR_A_MARK, _MOST_MARKS)

    class BoundedResponse(aiohttp.ClientResponse):
        def __repr__(self) -> str:
            # aiohttp's own holds the whole URL, and is logged if a response is left open.
            return f"<BoundedResponse of {venue}: {self.status}>"

        async def start(self, connection: Connection) -> aiohttp.ClientResponse:
            await super().start(connection)
            if 300 <= self.status < 400 and self.status != 304:
                # Not followed: the headers that hold the key would go along. aiohttp closes what does not start.
                raise VenueMalformed(f"{venue} answered with a redirect, which is not followed.")
            if not public and self.status < 400:
                _note_answer()
            return self

        async def read(self) -> bytes:
            if self._body is None:
                chunks, size = [], 0
                while chunk := await self.content.read(_CHUNK):
                    size += len(chunk)
                    if size > limit:
                        self.close()
                        raise VenueMalformed(f"{venue} answered with more than {_in_words(limit)}.")
                    chunks.append(chunk)
                    if size > _CHUNK:
                        await asyncio.sleep(0)
                body = b"".join(chunks)
                if len(body) > most_marks and await _count_marks(body) > most_marks:
                    raise VenueMalformed(f"{venue} answered with more values than any account has.")
                self._body = body
            return await super().read()

    return BoundedResponse


def _in_words(size: int) -> str:
    """A number of bytes as a limit is told: 8 MiB, 512 KiB or 1000 bytes."""
    for unit, name in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


@dataclass(frozen=True, slots=True)
class _Reach:
    """What requests of one venue's session may reach: the manifest's origins, or the operator's in their place."""

    venue: str
    origins: frozenset[tuple[str, str | None, int | None]]
    by_operator: bool

    def check(self, url: URL) -> None:
        """Raise PluginFailed for a URL of another origin. It says in what the URL differs."""
        host, scheme = (url.host or "").lower(), _SCHEMES.get(url.scheme, url.scheme)
        if (scheme, host, url.port) in self.origins:
            return
        raise PluginFailed(
            f"The plugin for {self.venue} {self._difference(scheme, host, url.port)}", advice=self._advice(scheme, host)
        )

    def _advice(self, scheme: str, host: str) -> str | None:
        """What the plugin's author should write, if the URL shows the mistake."""
        if not scheme or not host:
            return WHOLE_ADDRESS
        if any(name and host != name and host.startswith(name) for _, name, _ in self.origins):
            return 'A slash is missing behind the host: write call.url() + "/v1/..." in the plugin.'
        return None

    def _difference(self, scheme: str, host: str, port: int | None) -> str:
        if scheme and scheme not in _SCHEMES:
            return f"asked for an address with the scheme {scheme}: only https, http, wss and ws are sent."
        if not scheme or not host:
            return "asked for something that is not an HTTP address."
        named = sorted((scheme, port) for scheme, name, port in self.origins if name == host)
        who = "the setting venue_urls names" if self.by_operator else "its manifest names"
        if not named:
            if self.by_operator:
                return f"asked for the host {host}, and venue_urls sends it to another: it should ask call.url()."
            return f"asked for a host that its manifest does not name: {host}."
        if all(scheme != known for known, _ in named):
            return f"asked for {host} by {scheme}, but {who} it with {named[0][0]}."
        return f"asked for the port {port} of {host}, but {who} {' and '.join(str(known) for _, known in named)}."


def _bound_request(reach: _Reach) -> type[aiohttp.ClientRequest]:
    """A request class for these origins alone. A middleware would do the same, but it costs more per request, and a
    request can name others in its place."""

    class BoundRequest(aiohttp.ClientRequest):
        def __init__(self, method: str, url: URL, **options: Any) -> None:
            reach.check(url)
            if options.get("proxy") is not None:
                raise PluginFailed(f"The plugin for {reach.venue} chose a proxy: the operator does, by egress.")
            super().__init__(method, url, **options)

    return BoundRequest


class _BoundedConnection(ResponseHandler):
    """A connection that ends if very many responses wait on it: aiohttp would read interim ones without an end."""

    def data_received(self, data: bytes) -> None:
        taken = 0
        # A body is taken as it comes: aiohttp bounds what it makes of it.
        while taken < len(data) and (self._payload is None or self._payload.is_eof()):
            if len(self) > _MOST_RESPONSES:
                self.abort()
                self.set_exception(HttpProcessingError(message="too many responses"))
            if self.exception() is not None:
                return
            super().data_received(data[taken : taken + _PART])
            taken += _PART
        if taken < len(data) or not data:
            super().data_received(data[taken:])


def _bounded_connection(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _BoundedConnection(loop)


class _Connector(aiohttp.TCPConnector):
    """Makes bounded connections. aiohttp has no option for their class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_bounded_connection, self._loop)


class _NotPublic(OSError):
    """A host resolved to an address to which no request is sent."""


class _Tunnels(_Connector):
    """Makes them through a proxy. All that the session opens goes that way, WebSockets too."""

    def __init__(self, way: Way, venue: str, *, by_operator: bool) -> None:
        super().__init__(limit=0, resolver=_NamesAsTheyAre())
        self._way = way
        self._venue = venue
        self._by_operator = by_operator

    async def _wrap_create_connection(
        self,
        *arguments: Any,
        addr_infos: list[aiohttp.AddrInfoType],
        req: aiohttp.ClientRequest,
        timeout: aiohttp.ClientTimeout,
        **options: Any,
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        host, port = req.url.raw_host or "", req.port or 0
        if not self._by_operator and not _may_be_public(host):
            raise aiohttp.ClientConnectorError(req.connection_key, _NotPublic())
        tunnel = await open_tunnel(self._way, self._venue, host, port, timeout.sock_connect or CONNECT_TIMEOUT)
        try:
            return await self._wrap_existing_connection(*arguments, req=req, timeout=timeout, sock=tunnel, **options)
        except BaseException:
            tunnel.close()
            raise


class _NamesAsTheyAre(AbstractResolver):
    """Gives names as they are: a proxy looks them up."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=host, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        return None


def _may_be_public(host: str) -> bool:
    """Whether a host that a proxy is to look up may be one of the public internet, by its name alone."""
    try:
        return is_public(host)
    except ValueError:
        return not is_private_host(host)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not of this machine, of a private network, of a cloud's
    metadata, or of a group, and not an IPv6 spelling of such an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        teredo = ip.teredo[1] if ip.teredo else None
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        inner = ip.ipv4_mapped or ip.sixtofour or teredo or nat64
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in network for network in _CLOUDS)


_SocketFactory = Callable[[aiohttp.AddrInfoType], socket.socket]


def _public_sockets(venue: str) -> _SocketFactory:
    """Makes sockets for public addresses only. It sees the very address that is connected to next. So it also catches a
    name that resolves differently a moment later, and an address in the place of a name."""

    logged: set[str] = set()

    def open_socket(where: aiohttp.AddrInfoType) -> socket.socket:
        address, *_ = where[4]
        if not is_public(str(address)):
            if address not in logged and len(logged) < _MOST_LOGGED:
                logged.add(address)
                log.warning("venue.address_refused", venue=venue, address=address)
            raise _NotPublic
        return _open_socket(where)

    return open_socket


def _sockets_of(way: Way, venue: str, inner: _SocketFactory) -> _SocketFactory:
    """Makes sockets as `inner` does, which begin at the way's local address if it has one."""
    if not way.local_address:
        return inner

    def open_socket(where: aiohttp.AddrInfoType) -> socket.socket:
        opened = inner(where)
        try:
            opened.bind((way.local_address, 0))
        except OSError as error:
            opened.close()
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            raise VenueUnavailable(
                f"{venue} cannot be reached: the address of the way {way.name} is not one of this machine.",
                advice=ADVICE,
            ) from None
        return opened

    return open_socket


def _family_of(way: Way) -> socket.AddressFamily:
    """The kind of addresses that the way reaches: those of the kind of its local address."""
    if not way.local_address:
        return socket.AF_UNSPEC
    return socket.AF_INET6 if ":" in way.local_address else socket.AF_INET


def _connector(way: Way, venue: str, resolver: AbstractResolver | None, *, by_operator: bool) -> _Connector:
    """What the session connects by."""
    if way.proxy is not None:
        return _Tunnels(way, venue, by_operator=by_operator)
    return _Connector(
        # What stays open for a venue's pushes must not take the places of requests: those have slots.
        limit=0,
        family=_family_of(way),
        resolver=_Resolver(resolver or aiohttp.ThreadedResolver()),
        socket_factory=_sockets_of(way, venue, _open_socket if by_operator else _public_sockets(venue)),
    )


def _open_socket(where: aiohttp.AddrInfoType) -> socket.socket:
    """A socket. ServiceOverloaded if this process has none left, which says nothing about the venue."""
    family, kind, protocol, *_ = where
    try:
        return socket.socket(family=family, type=kind, proto=protocol)
    except OSError as error:
        raise_if_none_left(error)
        raise


class _Resolver(AbstractResolver):
    """Looks names up as `inner` does; a failure for want of files is not taken for the name's."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            return await self._inner.resolve(host, port, family)
        except OSError as error:
            raise_if_none_left(error)
            raise

    async def close(self) -> None:
        await self._inner.close()


def _handshake_error(venue: str, error: aiohttp.WSServerHandshakeError) -> ServiceError:
    """What a refused handshake means by its status."""
    try:
        VenueResponse(venue, error.status, error.headers or {}, b"").raise_for_status()
    except ServiceError as refusal:
        return refusal
    return VenueMalformed(f"{venue} answered with something that is no WebSocket.")


@contextmanager
def _translated_failures(venue: str) -> Iterator[None]:
    """Turn failures below HTTP into our errors, without the exception's text: it may hold a signed URL."""
    try:
        yield
    except TimeoutError:
        raise VenueTimeout(f"{venue} did not answer in time.") from None
    except aiohttp.ClientConnectionError as error:
        if isinstance(getattr(error, "os_error", None), _NotPublic):
            raise VenueUnavailable(
                f"{venue}'s host leads to an address that is not of the public internet, so nothing is sent there.",
                advice="Name the host in the setting venue_urls if that is intended.",
            ) from None
        if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
            raise VenueUnavailable(f"{venue} cannot be reached, or ended the connection.") from None
        raise VenueUnavailable(f"{venue} cannot be reached.") from None
    except aiohttp.WSServerHandshakeError as error:
        # Its own text has the URL, which may hold a key: nothing is chained to it.
        raise _handshake_error(venue, error) from None
    except aiohttp.ClientPayloadError:
        raise VenueMalformed(f"{venue} answered with a broken body.") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise PluginFailed(
            f"The plugin for {venue} asked for something that is not an HTTP address.", advice=WHOLE_ADDRESS
        ) from None
    except aiohttp.ClientError:
        raise VenueMalformed(f"{venue} answered with something that is not HTTP.") from None


Params = Mapping[str, str] | Iterable[tuple[str, str]]


def _written(params: Params) -> str:
    """The query of these pairs, in their order. Every character but letters, digits and `_.-~` is percent-encoded."""
    pairs = [*(params.items() if isinstance(params, Mapping) else params)]
    for name, value in pairs:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise WrongType(f"the parameter {name!r} should be a text, not {type(value).__name__}")
    return urlencode(pairs, quote_via=quote, safe="")


class VenueHttp:
    """The guarded session of one exchange and environment; `for_call` bounds it by a call's deadline."""

    def __init__(
        self,
        reach: _Reach,
        session: aiohttp.ClientSession,
        slots: asyncio.Semaphore,
        pushes: OpenPushes,
        deadline: float | None = None,
    ) -> None:
        self._reach = reach
        self._venue = reach.venue
        self._session = session
        self._slots = slots
        self._pushes = pushes
        self._deadline = deadline
        # Whether an answer was large, so that what is made of it may take long too.
        self.has_read_much = False

    def for_call(self, deadline: float) -> VenueHttp:
        """The same session for one call that ends at `deadline`, in the event loop's time."""
        return VenueHttp(self._reach, self._session, self._slots, self._pushes, deadline)

    @property
    def client_session(self) -> aiohttp.ClientSession:
        """The guarded aiohttp session itself."""
        return self._session

    async def get(
        self, url: str, *, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> VenueResponse:
        """GET `url`."""
        return await self._request("GET", url, params=params, headers=headers)

    async def post(
        self,
        url: str,
        *,
        json: Any = None,
        data: bytes | Mapping[str, str] | None = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> VenueResponse:
        """POST to `url`."""
        return await self._request("POST", url, params=params, headers=headers, json=json, data=data)

    def _as_it_is(self, url: str, params: Params | None) -> URL:
        """The URL that goes on the wire, byte for byte but for a `?` at its end; PluginFailed for one that cannot be
        sent so, or not at all."""
        if params is not None and (query := _written(params)):
            begun = url.endswith(("?", "&"))
            url = f"{url}{'' if begun else '&' if '?' in url else '?'}{query}"
        if not _SENDABLE.match(url):
            raise PluginFailed(
                f"The plugin for {self._venue} asked for an address with a blank, a '#' or another character that is "
                "not plain ASCII: it has to be percent-encoded."
            )
        try:
            sent = URL(url, encoded=True)
            self._reach.check(sent)
        except ValueError:
            raise PluginFailed(
                f"The plugin for {self._venue} asked for something that is not an HTTP address.", advice=WHOLE_ADDRESS
            ) from None
        return sent

    async def _request(self, method: str, address: str, params: Params | None = None, **options: Any) -> VenueResponse:
        url = self._as_it_is(address, params)
        async with self._slots:
            return await self._send(method, url, **options)

    async def _send(self, method: str, url: URL, **options: Any) -> VenueResponse:
        if self._deadline is not None:
            left = self._deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise VenueTimeout(f"{self._venue} did not answer in time.")
            configured = self._session.timeout
            total = left if configured.total is None else min(left, configured.total)
            options["timeout"] = aiohttp.ClientTimeout(total=total, sock_connect=configured.sock_connect)
        with _translated_failures(self._venue):
            async with self._session.request(method, url, allow_redirects=False, **options) as response:
                body = await response.read()
        told = (self._venue, response.status, response.headers, body, str(url))
        if len(body) <= _LARGE or (len(body) <= _LARGE_BODY and count_marks(body) <= _LARGE):
            return VenueResponse(*told)
        self.has_read_much = True
        return await _read_large(*told)

    @asynccontextmanager
    async def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, silence: float = 60.0, ping: float = 20.0
    ) -> AsyncIterator[VenueSocket]:
        """See `plugin_api.Http`."""
        opening = self._session.ws_connect(
            self._as_it_is(url, None),
            headers=headers,
            heartbeat=ping or None,
            # They are answered one by one, so that a flood of them holds nobody up.
            autoping=False,
            max_msg_size=MESSAGE_LIMIT,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_LIMIT),
        )
        with _translated_failures(self._venue):
            socket = VenueSocket(self._venue, await opening, silence)
        try:
            yield socket
        finally:
            await socket.close()

    @asynccontextmanager
    async def lines(
        self,
        url: str,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float = 60.0,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `plugin_api.Http`."""
        configured = self._session.timeout
        with _translated_failures(self._venue):
            async with asyncio.timeout(configured.total):
                response = await self._session.get(
                    self._as_it_is(url, params),
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=configured.sock_connect),
                )
                if response.status >= _REFUSED:
                    await self._refuse(response)
        lines = self._lines(response, silence)
        try:
            with self._pushes.stream():
                yield lines
        finally:
            await lines.aclose()
            response.close()

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        try:
            body = await response.read()
        finally:
            response.close()
        VenueResponse(self._venue, response.status, response.headers, body).raise_for_status()

    async def _lines(self, response: aiohttp.ClientResponse, silence: float) -> AsyncGenerator[bytes, None]:
        with _translated_failures(self._venue):
            async for line in read_lines(self._venue, response.content, silence):
                yield line


def open_http(
    exchange: ExchangeMetadata,
    urls: Iterable[str],
    pushes: OpenPushes,
    *,
    timeout: float,
    by_operator: bool,
    public: bool,
    resolver: AbstractResolver | None,
    tap: HttpTap | None = None,
    way: Way,
    traced: bool = False,
) -> VenueHttp:
    """A new session that reaches the hosts of these `urls` and no others; see `VenueHttpPool.http`."""
    socket_class = pushes.socket_class()
    origins = frozenset((_SCHEMES.get(url.scheme, url.scheme), url.host, url.port) for url in map(URL, urls))
    reach = _Reach(exchange.name, origins, by_operator=by_operator)
    limit = exchange.public_answer_limit if public else exchange.answer_limit
    responses = _bounded_response(exchange.name, limit, public=public)
    traces = None if tap is None else tap.trace_configs()
    if traced:
        responses, traces = traced_response(responses), request_traces()
    session = aiohttp.ClientSession(
        connector=_connector(way, exchange.name, resolver, by_operator=by_operator),
        request_class=_bound_request(reach),
        response_class=responses,
        ws_response_class=socket_class if tap is None else tap.socket_class(socket_class),
        trace_configs=traces,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT),
        headers={"User-Agent": _USER_AGENT},
    )
    return VenueHttp(reach, session, asyncio.Semaphore(_AT_ONCE), pushes)
