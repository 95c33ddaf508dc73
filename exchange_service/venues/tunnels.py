"""Connections to venues through a proxy: by HTTP's CONNECT, or by SOCKS5.

The proxy is told the venue's host and port and looks the name up. All else, TLS included, passes between this process
and the venue. A failure of the proxy is told as its own: nothing that a proxy sends is taken for a venue's answer.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from typing import NoReturn

from exchange_service.errors import VenueUnavailable
from exchange_service.venues.egress import Proxy, Way
from exchange_service.venues.files_left import raise_if_none_left

# Bytes of a proxy's answer to CONNECT, up to the empty line.
_LONGEST_HEAD = 16 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")
_PROXY_AUTHENTICATION_REQUIRED = 407
# SOCKS5's own words for why a connection was not made (RFC 1928).
_RULESET, _UNREACHABLE = 2, (3, 4, 5, 6)
ADVICE = "Call again after the delay. The operator: `exchange-service doctor` says which ways answer."


class _ProxyFault(Exception):
    """What is wrong with a proxy, as the end of a sentence that begins with it."""


async def open_tunnel(way: Way, venue: str, host: str, port: int, limit: float) -> socket.socket:
    """A socket that is connected to the venue's host through the way's proxy, within `limit` seconds.

    Raises VenueUnavailable that names the way, and ServiceOverloaded if this process has no file left.
    """
    proxy = way.proxy
    assert proxy is not None
    connect = _by_connect if proxy.kind == "http" else _by_socks
    try:
        async with asyncio.timeout(limit):
            return await connect(proxy, host, port)
    except TimeoutError:
        fault = "does not answer in time"
    except OSError as error:
        raise_if_none_left(error)
        fault = "cannot be reached"
    except _ProxyFault as error:
        fault = str(error)
    # After the block: what the failure comes from may hold the password.
    raise VenueUnavailable(f"{venue} cannot be reached: the proxy {way.name} {fault}.", advice=ADVICE)


async def _by_connect(proxy: Proxy, host: str, port: int) -> socket.socket:
    loop, connection = asyncio.get_running_loop(), await _connect(proxy)
    try:
        await loop.sock_sendall(connection, _connect_request(proxy, host, port))
        head = b""
        while b"\r\n\r\n" not in head:
            part = await loop.sock_recv(connection, 4096)
            if not part:
                raise _ProxyFault("ended the connection")
            head += part
            if len(head) > _LONGEST_HEAD:
                raise _ProxyFault("answered with something that is not HTTP")
        _check_answer(proxy, head)
        return connection
    except BaseException:
        connection.close()
        raise


async def _connect(proxy: Proxy) -> socket.socket:
    """A socket that is connected to the proxy itself."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    failure: OSError = OSError("the name of the proxy leads nowhere")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, address)
            return connection
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
    raise failure


def _connect_request(proxy: Proxy, host: str, port: int) -> bytes:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.user:
        known = base64.b64encode(f"{proxy.user}:{proxy.password.reveal()}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {known}")
    return "\r\n".join([*lines, "", ""]).encode()


def _check_answer(proxy: Proxy, head: bytes) -> None:
    line = _STATUS_LINE.match(head)
    if line is None:
        raise _ProxyFault("answered with something that is not HTTP")
    status = int(line[1])
    if status == _PROXY_AUTHENTICATION_REQUIRED:
        _refuse_user(proxy)
    if not 200 <= status < 300:
        raise _ProxyFault(f"does not connect to it (HTTP {status})")
    if not head.endswith(b"\r\n\r\n"):
        # A venue speaks when it is spoken to: this came from the proxy.
        raise _ProxyFault("sent something of its own")


def _refuse_user(proxy: Proxy) -> NoReturn:
    raise _ProxyFault("refuses our user and password" if proxy.user else "asks for a user and a password")


async def _by_socks(proxy: Proxy, host: str, port: int) -> socket.socket:
    try:
        from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
        from python_socks.async_.asyncio import Proxy as SocksProxy
    except ImportError:
        raise _ProxyFault("speaks SOCKS, for which exchange-service[socks] has to be installed") from None
    user, password = (proxy.user, proxy.password.reveal()) if proxy.user else (None, None)
    # The proxy looks the name up, and this machine's name server is not asked.
    through = SocksProxy(ProxyType.SOCKS5, proxy.host, proxy.port, user, password, rdns=True)
    try:
        connected: socket.socket = await through.connect(dest_host=host, dest_port=port)
        return connected
    except ProxyTimeoutError:
        raise TimeoutError from None
    except ProxyConnectionError as error:
        raise OSError(error.errno, "not reached") from None
    except ProxyError as error:
        raise _ProxyFault(_socks_fault(proxy, error.error_code, str(error))) from None


def _socks_fault(proxy: Proxy, code: int | None, text: str) -> str:
    if code == _RULESET:
        return "does not connect to it (its rules forbid that)"
    if code in _UNREACHABLE:
        return f"does not connect to it (SOCKS reply {code})"
    if "auth" in text.lower():
        return "refuses our user and password" if proxy.user else "asks for a user and a password"
    return "failed, or does not speak SOCKS5"
