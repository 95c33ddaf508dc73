"""Signing in with the service's own token or by a link that works once, and signing out."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from exchange_service.console.api import Api, ApiError
from exchange_service.console.pages import read_form, render, state_of
from exchange_service.console.security import Refused
from exchange_service.console.sessions import LONGEST_TOKEN

HOME = "/accounts"
# Pages to which one may return: our own, by name, so that no text leads to another site.
_OWN_PAGE = re.compile(r"/(?:accounts|exchanges|plugins)(?:\?[A-Za-z0-9_.~%+=&@:-]{0,600})?\Z")
# In place of the service's own sentence, which also advises certificates; those do not work in a browser's form.
_NOT_TAKEN = (
    "CALLER_UNKNOWN: The service does not take this token: it is unknown, withdrawn or expired. "
    "Copy it again, or ask the operator for a new one."
)


def safe_next(text: str) -> str:
    """The page to go to after signing in: `text` if it is one of ours, else the accounts."""
    return text if _OWN_PAGE.match(text) else HOME


async def show_form(request: Request) -> Response:
    """The form; on a service without authentication it says where the link is."""
    return _form(request, request.query_params.get("next", ""))


def _form(request: Request, following: str, *, error: str = "", user: str = "", status: int = 200) -> Response:
    context = {
        "next": safe_next(following),
        "error": error,
        "user": user,
        "authenticated": state_of(request).options.authenticated,
    }
    return render(request, "login.html", context, status=status)


async def sign_in(request: Request) -> Response:
    """Start a session with the token of the form, if the service takes it."""
    console = state_of(request)
    form = await read_form(request)
    token, user = form.get("token", "").strip(), form.get("user", "").strip()
    following = form.get("next", "")
    if not console.options.authenticated:
        return _form(request, following, status=403)
    problem = _token_problem(token)
    if not problem:
        try:
            await Api(console.calls, token).list_exchanges(page_size=1)
        except ApiError as error:
            problem = _NOT_TAKEN if error.reason == "CALLER_UNKNOWN" else error.message
    if problem:
        return _form(request, following, error=problem, user=user, status=401)
    response = RedirectResponse(safe_next(following), 303)
    console.sessions.start(request, response, token=token, user=user)
    return response


def _token_problem(token: str) -> str:
    """What is wrong with a token before anybody is asked; empty if nothing is."""
    if not token:
        return "Give a token."
    if not token.isascii() or not token.isprintable() or " " in token:
        return "A token has letters, digits and signs without blanks. Copy it again."
    if len(token) > LONGEST_TOKEN:
        return f"A token may have {LONGEST_TOKEN} characters here. Ask the operator for a shorter one."
    return ""


async def use_link(request: Request) -> Response:
    """Start a session by a link's key, which is then used up."""
    console = state_of(request)
    user = None if console.options.authenticated else console.links.use(request.query_params.get("key", ""))
    if user is None:
        raise Refused(
            403, "LINK_USED", "This link was used already, or is not one of this service. Start the service again."
        )
    # A page, and not a redirect: after a link on another site, the browser would not send a new strict cookie with it.
    response = render(request, "continue.html", {"next": HOME})
    console.sessions.start(request, response, user=user)
    return response


async def sign_out(request: Request) -> Response:
    """End the session."""
    response = RedirectResponse("/login", 303)
    state_of(request).sessions.end(request, response)
    return response


routes: list[Route] = [
    Route("/login", show_form, methods=["GET"]),
    Route("/login", sign_in, methods=["POST"]),
    Route("/login/link", use_link, methods=["GET"]),
    Route("/logout", sign_out, methods=["POST"]),
]
