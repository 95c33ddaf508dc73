"""What every page has: the person who looks, whose accounts they look at, and how pages and JSON are made."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from exchange_service.accounts.v1.account_service_pb2 import ListAccountsResponse
from exchange_service.console.api import Api, ApiError
from exchange_service.console.exchange_names import ExchangeNames
from exchange_service.console.figures import (
    KINDS,
    POLLED_BECAUSE,
    REPAIRABLE,
    SOURCES,
    age_text,
    amount_markup,
    holds_something,
    reason_name,
    row_id,
)
from exchange_service.console.security import Refused
from exchange_service.console.sessions import LoginLinks, Session, Sessions
from exchange_service.grpc_server.direct import DirectCalls
from exchange_service.printable import printable
from exchange_service.v1.balance_pb2 import BALANCE_SOURCE_LAST_GOOD, DELIVERY_MODE_PUSHED

_PACKAGE = files("exchange_service.console")
# What the error says if the account API is off, or the caller may not manage accounts.
_READ_ONLY = ("NOT_SUPPORTED", "USER_FORBIDDEN")
_LONGEST_USER = 256
_MOST_FIELDS = 64
# Seconds for which a large fragment may hold up everything else.
_TURN = 0.01


@dataclass(frozen=True, slots=True)
class ConsoleOptions:
    """How the console is served."""

    # The key of sessions is derived from it.
    hash_key: bytes = field(repr=False)
    # Whether the pages are served over TLS.
    secure: bool = False
    # Whether the service wants a token with each call. Without, one-time links sign in.
    authenticated: bool = True
    # A folder of the operator's logos, named `exchange-id.svg` or `.png`.
    logos: Path | None = None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a demo offers to try: its users, each with what it shows, and by exchange the keys that its simulated venue
    takes at the moment, each with its values by the names of the credential fields."""

    users: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)


@dataclass(slots=True)
class ConsoleState:
    """What the routes share, as `request.app.state.console`."""

    calls: DirectCalls
    options: ConsoleOptions
    sessions: Sessions
    links: LoginLinks
    demo: Demonstration = field(default_factory=Demonstration)
    names: ExchangeNames = field(default_factory=ExchangeNames)


class SignInNeeded(Exception):
    """The page needs a person who has signed in."""


class UserNeeded(Exception):
    """The caller may look at several users, and has not said at which."""


@dataclass(slots=True)
class Visit:
    """One request of a person who has signed in."""

    console: ConsoleState
    session: Session
    api: Api
    # The user that the address names, which all links keep; empty if it names none.
    named_user: str
    _accounts: ListAccountsResponse | None = None

    async def user(self) -> str:
        """Whose accounts the page shows: as the address says, else the session's, else the caller's only one.

        Raises UserNeeded if the caller may look at several.
        """
        known = self.named_user or self.session.user
        if known:
            return known
        try:
            self._accounts = await self.api.list_accounts()
        except ApiError as error:
            if error.reason in ("FIELD_INVALID", *_READ_ONLY):
                raise UserNeeded from None
            raise
        return self._accounts.user_id

    async def accounts(self) -> ListAccountsResponse | None:
        """The user's stored accounts; None if this person may only read balances."""
        if self._accounts is None:
            try:
                self._accounts = await self.api.list_accounts(await self.user())
            except ApiError as error:
                if error.reason not in _READ_ONLY:
                    raise
        return self._accounts

    def link(self, path: str, **parameters: str) -> str:
        """The address of one of our pages, with the user of this one."""
        named = {"user": self.named_user} if self.named_user else {}
        query = urlencode({**parameters, **named})
        return f"{path}?{query}" if query else path


def state_of(request: Request) -> ConsoleState:
    """What the routes share."""
    console: ConsoleState = request.app.state.console
    return console


def open_visit(request: Request) -> Visit:
    """The visit of a request. Raises SignInNeeded if nobody has signed in."""
    console = state_of(request)
    session = console.sessions.read(request)
    if session is None:
        raise SignInNeeded
    named = request.query_params.get("user", "").strip()
    if len(named) > _LONGEST_USER:
        raise Refused(400, "FIELD_INVALID", f"A user's id has at most {_LONGEST_USER} characters. Correct `user`.")
    return Visit(console, session, Api(console.calls, session.token), named)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of several with one name the last. Raises Refused for a body that is no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "CONTENT_TYPE", "A form is sent as application/x-www-form-urlencoded. Send it so.")
    form: FormData = await request.form(max_files=0, max_fields=_MOST_FIELDS)
    return {name: value for name, value in form.items() if isinstance(value, str)}


def wants_json(request: Request) -> bool:
    """Whether the address ends in .json."""
    return request.url.path.endswith(".json")


def is_fragment(request: Request) -> bool:
    """Whether htmx asks, for a part of a page."""
    return request.headers.get("hx-request") == "true"


def render(
    request: Request,
    template: str,
    context: Mapping[str, Any] | None = None,
    *,
    visit: Visit | None = None,
    status: int = 200,
) -> Response:
    """A page or fragment of this template. It has `visit`, and `link` makes addresses that keep the visit's user."""
    link = visit.link if visit is not None else (lambda path, **parameters: _address(path, parameters))
    demo = state_of(request).demo
    values = {"visit": visit, "link": link, "path": request.url.path, "demo": demo, **(context or {})}
    return HTMLResponse(environment().get_template(template).render(values), status)


def render_fragment(template: str, context: Mapping[str, Any]) -> str:
    """The text of a fragment, for an event."""
    return environment().get_template(template).render(context)


async def render_in_turns(template: str, context: Mapping[str, Any]) -> Markup:
    """The same of a fragment that may be large: other work gets its turn meanwhile."""
    pieces: list[str] = []
    turn_ends = time.perf_counter() + _TURN
    for piece in environment().get_template(template).generate(context):
        pieces.append(piece)
        if time.perf_counter() >= turn_ends:
            await asyncio.sleep(0)
            turn_ends = time.perf_counter() + _TURN
    # The environment has escaped what is in them.
    return Markup("".join(pieces))  # noqa: S704


def json_reply(content: Any, status: int = 200) -> Response:
    """A page as JSON."""
    return JSONResponse(content, status)


def error_reply(request: Request, reason: str, message: str, status: int, **more: Any) -> Response:
    """An error as a page, a fragment or JSON, as the request wants it."""
    if wants_json(request):
        return json_reply({"error": {"reason": reason, "message": message, **more}}, status)
    template = "_error.html" if is_fragment(request) else "error.html"
    try:
        visit = open_visit(request)
    except (SignInNeeded, Refused):
        visit = None
    return render(request, template, {"reason": reason, "message": message, **more}, visit=visit, status=status)


def _address(path: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(parameters)}" if parameters else path


@cache
def environment() -> jinja2.Environment:
    """The templates. Every text is escaped, and a name that is not there is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("exchange_service.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["static"] = static_address
    made.filters["shown"] = shown
    made.filters["amount"] = amount_markup
    made.filters["reason"] = reason_name
    made.filters["age_text"] = age_text
    made.tests["holds_something"] = holds_something
    made.globals.update(REPAIRABLE=REPAIRABLE, row_id=row_id, KINDS=KINDS)
    made.globals["BALANCE_SOURCE_LAST_GOOD"] = BALANCE_SOURCE_LAST_GOOD
    made.globals.update(SOURCES=SOURCES, POLLED_BECAUSE=POLLED_BECAUSE, DELIVERY_MODE_PUSHED=DELIVERY_MODE_PUSHED)
    return made


def shown(text: object) -> str:
    """A text of somebody else, on one line: without characters that turn text around or cannot be seen."""
    return printable(str(text))


@cache
def static_address(name: str) -> str:
    """The address of a static file, with a mark of its content, so that a browser never uses an old one."""
    content = _PACKAGE.joinpath("static", name).read_bytes()
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"
