"""What simulators share: the situations and troubles that any venue can show, and the reading of requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from exchange_service.testing.venue import Fault, LoopbackVenue

_LIMIT = Fault.rate_limited("30")


def show_situation(
    venue: LoopbackVenue,
    situation: str,
    account: str,
    *,
    answers: int = 1,
    delay: float = 3.0,
    limit: Fault = _LIMIT,
) -> None:
    """Let `venue` treat the requests of `account` as the situation or trouble says; other words change nothing.

    "limited" and "rate limit": every request gets the fault `limit`, by default a 429 with Retry-After: 30.
    "slow": each answer comes after `delay` seconds. "stale": the first `answers` requests are answered, so many as one
    balance needs, and the rest get a page with status 503. "outage": every request gets that page.
    """
    if situation in ("limited", "rate limit"):
        venue.fail(replace(limit, account=account))
    elif situation == "slow":
        venue.fail(Fault(delay=delay, pass_on=True, account=account))
    elif situation in ("stale", "outage"):
        venue.fail(replace(Fault.html(503), account=account))
    if situation == "stale":
        venue.fail(Fault(pass_on=True, account=account, times=answers))


def bearer_token(request: web.Request) -> str:
    """The token of the Authorization header with the scheme Bearer; empty if there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" else ""


def json_object(body: bytes) -> Mapping[str, Any]:
    """The JSON object in the body of a request; an empty one if the body is anything else."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
