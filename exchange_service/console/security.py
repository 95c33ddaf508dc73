"""What protects the pages from other pages: headers on each response, and checks on each request.

All of it is here, in one layer before the routes, so that no page can forget it.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exchange_service.observability.tracebacks import raised_at

log = structlog.get_logger(__name__)

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer a browser names no origin ("null") when it sends our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}
# The bytes of a form: a PEM key of several kilobytes and the other fields fit.
LARGEST_BODY = 64 * 1024


class Refused(Exception):
    """A request that is answered with an error page: its HTTP status, what is wrong and what to do next."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


# The page of an exception that nobody expected.
FAILED = Refused(500, "SERVICE_FAILED", "The page could not be made. Load it again; the service's log says more.")


class Protection:
    """The layer before the routes. `error_page` is the application that shows what `scope["refused"]` holds."""

    def __init__(self, app: ASGIApp, error_page: ASGIApp) -> None:
        self._app = app
        self._error_page = error_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        response = _Response(send)
        try:
            check_request(scope)
            await self._app(scope, _bounded(receive), response)
        except Refused as refused:
            await self._refuse(scope, receive, response, refused)
        except Exception as error:
            # The text of an exception may hold what a person has typed: neither the page nor the log gets it.
            log.error("console.failed", error=type(error).__name__, at=raised_at(error))
            await self._refuse(scope, receive, response, FAILED)

    async def _refuse(self, scope: Scope, receive: Receive, response: _Response, refused: Refused) -> None:
        if not response.begun:
            await self._error_page({**scope, "refused": refused}, receive, response)
        elif not response.ended:
            await response({"type": "http.response.body", "body": b"", "more_body": False})


class _Response:
    """Sends a response with our headers on it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)


def _bounded(receive: Receive) -> Receive:
    """The request's body, of which no more than LARGEST_BODY bytes are read."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > LARGEST_BODY:
            raise Refused(413, "REQUEST_TOO_LARGE", f"A form may have {LARGEST_BODY // 1024} KiB. Shorten it.")
        return message

    return bounded


def check_request(scope: Scope) -> None:
    """Raises Refused for a request that another site has made, and for a body that says it is too large."""
    headers = Headers(scope=scope)
    if _declared_length(headers) > LARGEST_BODY:
        raise Refused(413, "REQUEST_TOO_LARGE", f"A form may have {LARGEST_BODY // 1024} KiB. Shorten it.")
    allowed = _may_read(headers) if scope["method"] == "GET" else _may_write(headers, scope["scheme"])
    if not allowed:
        raise Refused(403, "OTHER_SITE", "Another site sent this request. Open the page here and try again.")
    if scope["method"] not in ("GET", "POST"):
        # HEAD too: what looks at an address for somebody else would use a sign-in link up, or leave a stream open.
        raise Refused(405, "METHOD_UNKNOWN", "Pages are opened by GET and take forms by POST. Start from the accounts.")


def _declared_length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _may_read(headers: Mapping[str, str]) -> bool:
    """Other sites may lead a browser here, and do nothing else: no frame, no image, no script, no fetch."""
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return True
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"


def _may_write(headers: Mapping[str, str], scheme: str) -> bool:
    """A form is taken from our own pages alone. A program that sends neither header may send one without a cookie."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if origin is not None and not _is_own(origin, headers.get("host", ""), scheme):
        return False
    if site is not None:
        return site == "same-origin"
    return origin is not None or "cookie" not in headers


def _is_own(origin: str, host: str, scheme: str) -> bool:
    parts = urlsplit(origin)
    # A proxy on this machine may have taken the TLS off.
    return bool(host) and parts.scheme in (scheme, "https") and parts.netloc.lower() == host.lower()
