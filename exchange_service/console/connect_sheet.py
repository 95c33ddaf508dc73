"""The sheet on which a user adds an account: the catalogue, a form, and what came of it. Also repair, check and remove.

Each step is a page of its own. With JavaScript the same steps are fragments in a dialog over the page.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from exchange_service.accounts.v1.account_service_pb2 import ListAccountsResponse
from exchange_service.console.api import ApiError
from exchange_service.console.credential_form import PRODUCTION, Typed, credential_form, environment_label, field_faults
from exchange_service.console.exchange_cards import ExchangeCard, Selection, exchange_card, filter_choices
from exchange_service.console.figures import AccountKey
from exchange_service.console.logos import logos_in
from exchange_service.console.outcomes import check_outcome
from exchange_service.console.pages import Visit, is_fragment, open_visit, read_form, render, state_of
from exchange_service.printable import printable
from exchange_service.v1.exchange_pb2 import Exchange

_UNREACHABLE = ("VENUE_UNAVAILABLE", "VENUE_MAINTENANCE", "VENUE_TIMEOUT", "PLUGIN_UNAVAILABLE", "DEADLINE_PASSED")
# After these the venue has not said a word about the key, and a user may want to store it all the same.
_UNDECIDED = frozenset((*_UNREACHABLE, "VENUE_RATE_LIMITED", "VENUE_MALFORMED"))
_TITLES: Mapping[str, str] = {
    "CREDENTIAL_REJECTED": "{name} refuses the key",
    "PERMISSION_MISSING": "The key may not read balances",
    "ADDRESS_NOT_ALLOWED": "{name} does not take the key from this service's address",
    "CLOCK_SKEW": "{name} refuses the time of the request",
    "REGION_RESTRICTED": "{name} does not serve this region",
    "ACCOUNT_UNKNOWN": "{name} knows no such account",
    "FEATURE_NOT_ENABLED": "The account lacks something",
    "FIELD_INVALID": "Something is not right yet",
    "CREDENTIAL_INVALID": "Something is not right yet",
    "CREDENTIAL_MISSING": "No key is stored for this account",
    "EXCHANGE_RETIRED": "{name} is not served any more",
    "VENUE_RATE_LIMITED": "{name} asks for a pause",
    "VENUE_MALFORMED": "{name} gave no valid answer",
    **dict.fromkeys(_UNREACHABLE, "{name} cannot be reached"),
}

_CLOSED = "Accounts cannot be added here: the service does not manage them, or you may only read."


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something did not work, as a page shows it. `message` ends with the next step."""

    title: str
    message: str
    reason: str
    retry_seconds: int = 0


async def choose_exchange(request: Request) -> Response:
    """The catalogue, to search and to pick from."""
    visit = await _open(request)
    exchanges, stored = await visit.api.all_exchanges(), await visit.accounts()
    selection, connected = Selection.from_query(request.query_params), _connected(stored)
    logos = logos_in(state_of(request).options.logos)
    cards = [exchange_card(exchange, logos, selection, connected[exchange.id]) for exchange in exchanges]
    return _sheet(
        request,
        visit,
        "sheet_catalogue.html",
        "Add exchange",
        cards=cards,
        closed=stored is None,
        selection=selection,
        choices=filter_choices(exchanges, selection),
        shown=sum(card.shown for card in cards),
    )


async def show_form(request: Request) -> Response:
    """The empty form of an exchange; with `repair`, for an account that is stored."""
    visit = await _open(request)
    if await visit.accounts() is None:
        # Before a key is typed in vain.
        raise ApiError("USER_FORBIDDEN", f"{_CLOSED} Ask the service's operator.", 403)
    exchange = await _exchange(visit, request.path_params["exchange_id"])
    typed = Typed({}, request.query_params.get("environment", ""))
    return await _form(request, visit, exchange, typed, repair=request.query_params.get("repair") == "1")


async def connect(request: Request) -> Response:
    """Try what was typed at the venue, and store it."""
    visit = await _open(request)
    exchange = await _exchange(visit, request.path_params["exchange_id"])
    form = await read_form(request)
    typed, repair = Typed.from_form(form, exchange), form.get("repair") == "1"
    try:
        reply = await visit.api.connect_account(typed.request(await visit.user(), exchange))
    except ApiError as error:
        _raise_if_signed_out(error)
        return await _form(request, visit, exchange, typed, repair=repair, error=error)
    name, word = printable(exchange.name), "repaired" if repair else "connected"
    return _sheet(
        request,
        visit,
        "sheet_outcome.html",
        f"{name} is {word}" if reply.HasField("check") else f"The key for {name} is stored",
        card=_card(request, exchange),
        environment=environment_label(reply.account.environment),
        accounts_url=_place_of(visit, exchange, reply.account.environment),
        outcome=check_outcome(reply.check) if reply.HasField("check") else None,
        may_add_more=not repair,
    )


async def check(request: Request) -> Response:
    """Try a stored key at the venue, and say what it shows."""
    visit, form = await _open(request), await read_form(request)
    exchange = await _named_exchange(visit, form.get("exchange_id", ""))
    environment = form.get("environment") or PRODUCTION
    try:
        reply = await visit.api.check_account(await visit.user(), exchange.id, environment)
    except ApiError as error:
        _raise_if_signed_out(error)
        return _failed(request, visit, exchange, environment, error)
    return _sheet(
        request,
        visit,
        "sheet_outcome.html",
        f"{printable(exchange.name)} works",
        card=_card(request, exchange),
        environment=environment_label(environment),
        accounts_url=_place_of(visit, exchange, environment),
        outcome=check_outcome(reply.check),
        may_add_more=False,
    )


async def ask_removal(request: Request) -> Response:
    """Ask whether an account is to be removed."""
    visit, query = await _open(request), request.query_params
    exchange = await _named_exchange(visit, query.get("exchange_id", ""))
    return _removal(request, visit, exchange, query.get("environment") or PRODUCTION)


async def remove(request: Request) -> Response:
    """Remove a stored account, and go back to the others."""
    visit, form = await _open(request), await read_form(request)
    exchange_id, environment = form.get("exchange_id", ""), form.get("environment") or PRODUCTION
    try:
        await visit.api.remove_account(await visit.user(), exchange_id, environment)
    except ApiError as error:
        _raise_if_signed_out(error)
        return _removal(request, visit, await _named_exchange(visit, exchange_id), environment, error)
    return RedirectResponse(visit.link("/accounts"), 303)


async def _open(request: Request) -> Visit:
    """The visit, whose links and forms all name the user: one that was opened before somebody else signed in here must
    not change that person's accounts."""
    visit = open_visit(request)
    visit.named_user = await visit.user()
    return visit


async def _form(
    request: Request, visit: Visit, exchange: Exchange, typed: Typed, *, repair: bool, error: ApiError | None = None
) -> Response:
    """The form, empty or after an error."""
    stored = await visit.accounts() or ListAccountsResponse()
    card, faults = _card(request, exchange), field_faults(error.fields, exchange) if error else {}
    refusal = _refusal(card.name, error) if error else None
    if error and refusal and faults and len(faults) == len(error.fields):
        refusal = replace(refusal, message="The marked fields say what. Nothing was stored.")
    form = credential_form(
        exchange, stored=stored.accounts, outgoing_address=stored.outgoing_address, typed=typed, faults=faults
    )
    return _sheet(
        request,
        visit,
        "sheet_form.html",
        f"{'Repair' if repair else 'Connect'} {card.name}",
        status=error.http_status if error else 200,
        card=card,
        form=form,
        repair=repair,
        refusal=refusal,
        offer_skip=bool(error and error.reason in _UNDECIDED),
    )


def _removal(
    request: Request, visit: Visit, exchange: Exchange, environment: str, error: ApiError | None = None
) -> Response:
    name = printable(exchange.name)
    return _sheet(
        request,
        visit,
        "sheet_remove.html",
        f"Remove {name}?",
        status=error.http_status if error else 200,
        exchange_id=exchange.id,
        environment=environment,
        environment_label=environment_label(environment),
        refusal=_refusal(name, error) if error else None,
    )


def _failed(request: Request, visit: Visit, exchange: Exchange, environment: str, error: ApiError) -> Response:
    """What a check that failed shows, with the way to repair the account."""
    repair = visit.link(f"/connect/{quote(exchange.id, safe='')}", environment=environment, repair="1")
    refusal = _refusal(printable(exchange.name), error)
    return _sheet(
        request,
        visit,
        "sheet_failed.html",
        refusal.title,
        status=error.http_status,
        refusal=refusal,
        card=_card(request, exchange),
        repair_url=repair if exchange.capabilities.balance and error.reason not in _UNDECIDED else "",
    )


def _sheet(request: Request, visit: Visit, fragment: str, title: str, *, status: int = 200, **context: Any) -> Response:
    """A step of the sheet: the fragment alone if the dialog asks for it, else a page around it."""
    in_dialog = is_fragment(request)
    values = {"title": title, "fragment": fragment, "in_dialog": in_dialog, **context}
    return render(request, fragment if in_dialog else "sheet.html", values, visit=visit, status=status)


def _refusal(name: str, error: ApiError) -> Refusal:
    title = _TITLES.get(error.reason, "This did not work").format(name=name)
    return Refusal(title, printable(error.message), error.reason, math.ceil(error.retry_delay or 0))


def _card(request: Request, exchange: Exchange) -> ExchangeCard:
    return exchange_card(exchange, logos_in(state_of(request).options.logos))


def _place_of(visit: Visit, exchange: Exchange, environment: str) -> str:
    """Where the page of accounts has this one."""
    return f"{visit.link('/accounts')}#account-{AccountKey(exchange.id, environment).mark}"


async def _exchange(visit: Visit, exchange_id: str) -> Exchange:
    """The listing of an id. Raises ApiError if there is none, or if its balances cannot be read."""
    exchange = await _named_exchange(visit, exchange_id)
    if not exchange.HasField("plugin"):
        raise ApiError("EXCHANGE_UNKNOWN", "No plugin serves this exchange. Choose one from the list.", 404)
    if not exchange.capabilities.balance:
        raise ApiError("NOT_SUPPORTED", "Balances of this exchange cannot be read yet. Choose another one.", 501)
    return exchange


async def _named_exchange(visit: Visit, exchange_id: str) -> Exchange:
    """The listing of an id; for an account whose exchange is not listed any more, one that has only the id."""
    found = await visit.api.all_exchanges(search=exchange_id)
    return next((item for item in found if item.id == exchange_id), Exchange(id=exchange_id, name=exchange_id))


def _connected(stored: ListAccountsResponse | None) -> dict[str, list[str]]:
    """The environments that are stored, by exchange."""
    environments: dict[str, list[str]] = defaultdict(list)
    for account in stored.accounts if stored else ():
        environments[account.exchange_id].append(account.environment)
    return environments


def _raise_if_signed_out(error: ApiError) -> None:
    """The page of signing in is in place, and not the form again."""
    if error.reason == "CALLER_UNKNOWN":
        raise error


routes: list[Route] = [
    Route("/connect", choose_exchange, methods=["GET"]),
    Route("/connect/{exchange_id}", show_form, methods=["GET"]),
    Route("/connect/{exchange_id}", connect, methods=["POST"]),
    Route("/accounts/check", check, methods=["POST"]),
    Route("/accounts/remove", ask_removal, methods=["GET"]),
    Route("/accounts/remove", remove, methods=["POST"]),
]
