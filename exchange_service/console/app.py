"""Joins the console's pages into one ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from exchange_service.console import (
    accounts_page,
    connect_sheet,
    exchanges_page,
    logos,
    plugins_page,
    sign_in_page,
)
from exchange_service.console.api import ApiError
from exchange_service.console.pages import (
    ConsoleOptions,
    ConsoleState,
    Demonstration,
    SignInNeeded,
    UserNeeded,
    error_reply,
    is_fragment,
    json_reply,
    open_visit,
    render,
    wants_json,
)
from exchange_service.console.security import FAILED, Protection, Refused
from exchange_service.console.sessions import LoginLinks, Sessions
from exchange_service.grpc_server.direct import DirectCalls

_PAGES = (accounts_page, connect_sheet, exchanges_page, logos, plugins_page, sign_in_page)
_HTTP_ERRORS = {
    404: ("PAGE_UNKNOWN", "There is no such page. Start from the accounts."),
    405: ("METHOD_UNKNOWN", "This page is not used in this way. Start from the accounts."),
}


class Console:
    """The pages, as an ASGI application."""

    def __init__(self, calls: DirectCalls, options: ConsoleOptions) -> None:
        sessions = Sessions(options.hash_key, secure=options.secure)
        self._state = ConsoleState(calls, options, sessions, LoginLinks())
        app = Starlette(routes=_routes(), exception_handlers=_handlers())
        app.state.console = self._state
        # It would answer with a whole address, which has no TLS if a proxy takes that off.
        app.router.redirect_slashes = False
        self._app = Protection(app, _ErrorPage(app))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app(scope, receive, send)

    def new_login_path(self, user: str = "") -> str:
        """The path of a link that signs in once, without a token, and shows this user's accounts."""
        return f"/login/link?key={self._state.links.new_key(user)}"

    def demonstrate(self, users: Mapping[str, str], keys: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """Offer from now on what a demo has to try: its users, each with what it shows, and by exchange the keys that
        its venue takes. `keys` is read for each page, and may change."""
        self._state.demo = Demonstration(users, keys)


def make_console(calls: DirectCalls, options: ConsoleOptions) -> Console:
    """The console over these calls."""
    # It would write every event into the log, balances included.
    logging.getLogger("sse_starlette").setLevel(logging.INFO)
    return Console(calls, options)


def _routes() -> list[BaseRoute]:
    pages = [route for page in _PAGES for route in page.routes]
    static = Mount("/static", _Static(packages=[("exchange_service.console", "static")]))
    return [Route("/", _home), *pages, static]


class _Static(StaticFiles):
    """Our own files, which a browser may keep: their addresses change with their content."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """The file."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "private, max-age=86400"
        return response


async def _home(request: Request) -> Response:
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/accounts{query}", 303)


class _ErrorPage:
    """Answers with the page of the Refused in `scope["refused"]`."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self._app
        request = Request(scope, receive)
        response = await _on_refused(request, scope["refused"])
        await response(scope, receive, send)


async def _on_refused(request: Request, error: Refused) -> Response:
    return error_reply(request, error.reason, error.message, error.status)


async def _on_failure(request: Request, error: Exception) -> Response:
    return await _on_refused(request, FAILED)


def _handlers() -> Mapping[Any, Any]:
    return {
        Exception: _on_failure,
        Refused: _on_refused,
        ApiError: _on_api_error,
        HTTPException: _on_http_error,
        SignInNeeded: _on_sign_in_needed,
        UserNeeded: _on_user_needed,
    }


async def _on_api_error(request: Request, error: ApiError) -> Response:
    if error.reason == "CALLER_UNKNOWN":
        # The token of the session is not valid any more.
        return await _on_sign_in_needed(request, SignInNeeded())
    more = {name: value for name, value in error.as_dict().items() if name not in ("reason", "message")}
    return error_reply(request, error.reason, error.message, error.http_status, **more)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    reason, message = _HTTP_ERRORS.get(
        error.status_code, ("REQUEST_REFUSED", "The request could not be read. Load the page again.")
    )
    response = error_reply(request, reason, message, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _on_sign_in_needed(request: Request, error: SignInNeeded) -> Response:
    if wants_json(request):
        return json_reply({"error": {"reason": "CALLER_UNKNOWN", "message": "Sign in first."}}, 401)
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        # A strict cookie does not come with a click on another site. It comes with the next step, from our own page.
        return render(request, "continue.html", {"next": _own_address(request)})
    target = "/login" if is_fragment(request) else f"/login?next={quote(_own_address(request), safe='')}"
    if is_fragment(request):
        return Response(status_code=401, headers={"HX-Redirect": target})
    return RedirectResponse(target, 303)


def _own_address(request: Request) -> str:
    """The request's path and query, which begin with one slash."""
    query = f"?{request.url.query}" if request.url.query else ""
    return "/" + request.url.path.lstrip("/\\") + query


async def _on_user_needed(request: Request, error: UserNeeded) -> Response:
    if wants_json(request):
        message = "Name the user, as ?user=ID."
        return json_reply({"error": {"reason": "FIELD_INVALID", "message": message}}, 400)
    return render(request, "user.html", {}, visit=open_visit(request), status=200)
