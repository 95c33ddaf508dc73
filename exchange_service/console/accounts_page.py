"""The accounts page: live balances, the headline, and each account's state."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange_service.console.api import as_dict
from exchange_service.console.pages import json_reply, open_visit, render


async def show_accounts(request: Request) -> Response:
    """The page, which an event stream then fills."""
    visit = open_visit(request)
    user = await visit.user()
    stored = await visit.accounts()
    return render(request, "accounts.html", {"user": user, "stored": stored}, visit=visit)


async def list_accounts(request: Request) -> Response:
    """The stored accounts as JSON."""
    visit = open_visit(request)
    stored = await visit.accounts()
    return json_reply(as_dict(stored) if stored is not None else {"user_id": await visit.user()})


routes: list[Route] = [
    Route("/accounts", show_accounts, methods=["GET"]),
    Route("/accounts.json", list_accounts, methods=["GET"]),
]
