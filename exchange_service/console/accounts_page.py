"""The accounts page: live balances, the headline, and each account's state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

from google.protobuf.message import Message
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange_service.console.api import ApiError, as_dict
from exchange_service.console.events import LiveAccounts, page_events, render_roster, signed_out, stream_request
from exchange_service.console.figures import Headline, LiveAccount
from exchange_service.console.pages import SignInNeeded, Visit, json_reply, open_visit, render

# Seconds that the page as JSON waits for accounts that were not read yet.
_SNAPSHOT_TIMEOUT = 10.0
# Seconds between two comments on a stream without events, by which a browser that is gone is noticed.
_PING_INTERVAL = 15
# Seconds that a browser may leave an event unread.
_SEND_TIMEOUT = 30


async def show_accounts(request: Request) -> Response:
    """The page, which an event stream then fills."""
    visit = open_visit(request)
    live, context = await _known_accounts(visit), await _fragment_context(visit)
    values = {
        **context,
        "roster": await render_roster(live, context),
        "headline": live.headline(),
        "events": visit.link("/accounts/events"),
    }
    return render(request, "accounts.html", values, visit=visit)


async def _known_accounts(visit: Visit) -> LiveAccounts:
    """The user's accounts before anything is read of them: the stored ones, if this person may list them."""
    live = LiveAccounts(await visit.console.names.read(visit.api))
    stored = await visit.accounts()
    if stored is not None:
        live.add_stored(stored.accounts)
    return live


async def _fragment_context(visit: Visit) -> Mapping[str, Any]:
    """What the fragments need besides accounts."""
    return {"user": await visit.user(), "manages": await visit.accounts() is not None, "link": visit.link}


async def stream_accounts(request: Request) -> Response:
    """The events of an open page. They begin with all that is known."""
    try:
        visit = open_visit(request)
        user, live, context = await visit.user(), await _known_accounts(visit), await _fragment_context(visit)
    except SignInNeeded:
        return _over()
    except ApiError as error:
        if error.reason == "CALLER_UNKNOWN":
            return _over()
        # The browser tries again.
        raise
    sessions = visit.console.sessions
    events = page_events(visit.api, user, live, context, lambda: sessions.is_live(visit.session))
    return EventSourceResponse(events, ping=_PING_INTERVAL, send_timeout=_SEND_TIMEOUT)


def _over() -> Response:
    """The stream of a page whose session or token has ended, which closes it."""
    return Response(b"".join(event.encode() for event in signed_out()), media_type="text/event-stream")


async def list_accounts(request: Request) -> Response:
    """The accounts with their balances and the headline, as JSON. What was not read in time has neither a balance nor
    an error."""
    visit = open_visit(request)
    user = await visit.user()
    live = await _known_accounts(visit)
    with suppress(TimeoutError):
        async with asyncio.timeout(_SNAPSHOT_TIMEOUT):
            await _read_each_once(visit, user, live)
    if not live.began and not live.accounts:
        # An empty list would say that this user has no account.
        raise ApiError("DEADLINE_PASSED", "The accounts could not be listed in time. Load the page again.", 504)
    accounts = []
    for account in live.in_order():
        accounts.append(_account_as_dict(account))
        # Of very many accounts the turn of everything else comes between two.
        await asyncio.sleep(0)
    return json_reply({"user_id": user, "accounts": accounts, "headline": _headline_as_dict(live.headline())})


async def _read_each_once(visit: Visit, user: str, live: LiveAccounts) -> None:
    async with aclosing(visit.api.stream_balances(stream_request(user, live))) as events:
        async for event in events:
            live.apply(event)
            if live.began and not any(account.situation == "waiting" for account in live.accounts.values()):
                return


def _account_as_dict(account: LiveAccount) -> dict[str, Any]:
    parts: Mapping[str, Message | None] = {
        "stored": account.stored,
        "balance": account.balance,
        "freshness": account.freshness,
        "error": account.fault,
        "delivery": account.delivery,
    }
    shown = {name: as_dict(message) for name, message in parts.items() if message is not None}
    return {**account.key._asdict(), "name": account.name, **shown}


def _headline_as_dict(headline: Headline) -> dict[str, Any]:
    return {
        "accounts": headline.accounts,
        "counted": headline.counted,
        "sums": [
            {
                "environment": entry.environment,
                "currency": entry.currency,
                "value": entry.value,
                "accounts": entry.accounts,
                "by_total": entry.by_total,
                "stale": entry.stale,
                "noted": entry.noted,
                "oldest_age": round(entry.oldest, 3),
            }
            for entry in headline.sums
        ],
        "left_out": [{**left.account.key._asdict(), "why": left.why} for left in headline.left_out],
    }


routes: list[Route] = [
    Route("/accounts", show_accounts, methods=["GET"]),
    Route("/accounts.json", list_accounts, methods=["GET"]),
    Route("/accounts/events", stream_accounts, methods=["GET"]),
]
