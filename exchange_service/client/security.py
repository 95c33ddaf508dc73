"""How a client proves who it is, and whom it trusts: the bearer token and TLS."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from pathlib import Path
from typing import Any

import grpc

from exchange_service.client.endpoint import Endpoint

# A PEM file's path, or its content.
Pem = str | os.PathLike[str] | bytes
Token = str | Callable[[], str]
AsyncToken = str | Callable[[], str | Awaitable[str]]
Metadata = Sequence[tuple[str, str]]


def require_safe(endpoint: Endpoint, token: object, metadata: Metadata, *, encrypted: bool) -> None:
    """Raise ValueError for a token, also one in `metadata`, that would be sent to another machine in plaintext."""
    bears_token = bool(token) or any(name.lower() == "authorization" for name, _ in metadata)
    if bears_token and not encrypted and not endpoint.local:
        raise ValueError("A token is not sent to another machine in plaintext: use TLS.")


def channel_credentials(
    endpoint: Endpoint, tls: bool | None, ca: Pem | None, certificate: Pem | None, key: Pem | None
) -> grpc.ChannelCredentials | None:
    """The credentials of the channel; None: without TLS. `tls` None: TLS unless the service is on this machine and no
    file is given.

    Raises ValueError for arguments that contradict or are not PEM, and OSError for a file that cannot be read.
    """
    files = (ca, certificate, key)
    given = any(file is not None for file in files)
    if tls is False and given:
        raise ValueError("tls=False contradicts tls_ca, tls_certificate and tls_key: leave them out.")
    if (certificate is None) != (key is None):
        raise ValueError("Give tls_certificate and tls_key, or neither.")
    if not (given or tls or (tls is None and not endpoint.local)):
        return None
    authority = _read(ca, "tls_ca", b"CERTIFICATE-----")
    own = _read(certificate, "tls_certificate", b"CERTIFICATE-----")
    return grpc.ssl_channel_credentials(authority, _read(key, "tls_key", b"PRIVATE KEY-----"), own)


def _read(file: Pem | None, name: str, sign: bytes) -> bytes | None:
    if file is None:
        return None
    try:
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: the file {file!s} cannot be read ({error.strerror}).") from None
    if sign not in content:
        # The content may be a key, so it is not repeated.
        raise ValueError(f"{name} should be a PEM file's path, or its content as bytes.")
    return content


def current_token(token: Token) -> str:
    """The token to send now; empty if there is none."""
    return _text(token() if callable(token) else token)


async def current_token_async(token: AsyncToken) -> str:
    """As `current_token`, for a callable that may have to be awaited."""
    value: Any = token() if callable(token) else token
    return _text(await value if isawaitable(value) else value)


def with_token(metadata: Metadata, token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with this token."""
    return (*metadata, ("authorization", f"Bearer {token}")) if token else tuple(metadata)


def _text(token: object) -> str:
    if not isinstance(token, str):
        # Its value is not shown.
        raise TypeError(f"a token is a text, and `token` gave {type(token).__name__}")
    return token
