"""Answers of what stands before a venue: a content network, a firewall, a proxy, a captive portal.

The venue has not seen the request, so such an answer says nothing about a key, a right or an account. Venues answer
programs in JSON, gateways answer in HTML or a short text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from exchange_service.errors import RegionRestricted, VenueError, VenueUnavailable
from exchange_service.plugin_kit.payload import retry_after

# Statuses that say what is wrong, also if a gateway sends them.
_TELL_ENOUGH = frozenset({408, 418, 429, 451, 504})
# A proxy's own statuses: it wants to be signed in to.
_OF_PROXIES = frozenset({407, 511})
# In a text that is not HTML, only these come from gateways. With others, venues explain in a text what is wrong.
_TEXT_FROM_GATEWAYS = frozenset({403, *_OF_PROXIES})
# What is read of a page. The sentence about a region stands near the top.
_MOST_READ = 100_000
_REGION = re.compile(
    r"block access from your country|"
    r"(?:country|region|territory|jurisdiction|location)[^.<>]{0,80}"
    r"(?:not (?:supported|available|allowed|permitted|served)|unavailable|restricted|prohibited|blocked|banned)|"
    r"(?:not (?:supported|available|allowed|permitted)|unavailable|restricted|prohibited|blocked|banned)[^.<>]{0,80}"
    r"(?:country|region|territory|jurisdiction)|"
    # Cloudflare's number for a blocked country.
    r"error(?: code)?:? 1009\b",
    re.IGNORECASE,
)
# Cloudflare answers in JSON where JSON is asked for, and marks it.
_MARKED = re.compile(r'"cloudflare_error"\s*:\s*true')

# Amazon's gateway refuses a request in JSON, such as {"message":"Forbidden"}, before the venue has seen it.
_AMAZONS_NAME = "x-amzn-errortype"
# witness: vendor: https://repost.aws/knowledge-center/api-gateway-troubleshoot-403-forbidden
_AMAZONS_REFUSALS = ("forbiddenexception", "missingauthenticationtokenexception")


class _Response(Protocol):
    """What is needed here of `plugin_api.Response`."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def body(self) -> bytes | str: ...


def gateway_error(response: _Response, venue: str) -> VenueError | None:
    """The error of an answer that is not from the venue's interface; None if it may be.

    It is VenueUnavailable, which is transient, or RegionRestricted for a page that says so. A success, a redirect, a
    server's trouble and a limit (408, 418, 429, 5xx) say enough by their status, except for the statuses of proxies: a
    page that was sent as a success, as by a captive portal, is not JSON and so malformed.
    """
    status, text = response.status, _text(response.body)
    if status < 400 or status in _TELL_ENOUGH:
        return None
    if not _is_from_gateway(status, text) and not (status == 403 and _is_from_amazon(response.headers)):
        return None
    if _REGION.search(text):
        return RegionRestricted(f"{venue} does not serve the region that this service calls from (HTTP {status}).")
    return VenueUnavailable(
        f"{venue} was not reached: a gateway answered in its place (HTTP {status}).",
        retry_after=retry_after(response.headers),
        advice="Call again later. If it lasts, the gateway may refuse this service's network address.",
    )


def _text(body: bytes | str) -> str:
    if isinstance(body, bytes):
        body = body[:_MOST_READ].decode("utf-8", "replace")
    return body[:_MOST_READ].lstrip("\ufeff").strip()


def _is_from_amazon(headers: Mapping[str, str]) -> bool:
    kind = next((value for name, value in headers.items() if name.lower() == _AMAZONS_NAME), "")
    return kind.lower().startswith(_AMAZONS_REFUSALS)


def _is_from_gateway(status: int, text: str) -> bool:
    if text.startswith("{") and _MARKED.search(text):
        return True
    if status >= 500 and status not in _OF_PROXIES:
        # A page of the venue's own server says as much as the status.
        return False
    if text.startswith("<"):
        return True
    if text.startswith(("{", "[")):
        return status in _OF_PROXIES
    return status in _TEXT_FROM_GATEWAYS
