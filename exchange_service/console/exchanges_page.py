"""The page of exchanges: what the service can connect to, and whether each can be reached."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange_service.console.api import as_dict
from exchange_service.console.exchange_cards import Selection, exchange_card, filter_choices
from exchange_service.console.logos import logos_in
from exchange_service.console.pages import json_reply, open_visit, render, state_of
from exchange_service.printable import printable
from exchange_service.v1.exchange_service_pb2 import ListExchangesResponse


async def show_exchanges(request: Request) -> Response:
    """Every exchange that the search and the filter select."""
    visit = open_visit(request)
    listed = await visit.api.list_exchanges()
    selection = Selection.from_query(request.query_params)
    logos = logos_in(state_of(request).options.logos)
    cards = [exchange_card(exchange, logos, selection) for exchange in listed.exchanges]
    values = {
        "cards": cards,
        "stats": listed.stats,
        "selection": selection,
        "choices": filter_choices(listed.exchanges, selection),
        "shown": sum(card.shown for card in cards),
        "troubled": sum(card.availability.tone in ("warning", "bad") and not card.obstacle for card in cards),
        "problems": [printable(problem.reason) for problem in listed.problems if not problem.notice],
    }
    return render(request, "exchanges.html", values, visit=visit)


async def list_exchanges(request: Request) -> Response:
    """The same as JSON: the API's message with the selected entries."""
    listed = await open_visit(request).api.list_exchanges()
    return json_reply(as_dict(_selected(listed, Selection.from_query(request.query_params))))


def _selected(listed: ListExchangesResponse, selection: Selection) -> ListExchangesResponse:
    """The message with the selected entries alone. Its etag is that of all of them, and is left out."""
    chosen = [exchange for exchange in listed.exchanges if selection.selects(exchange)]
    return ListExchangesResponse(
        exchanges=chosen, stats=listed.stats, matching_count=len(chosen), problems=listed.problems
    )


routes: list[Route] = [
    Route("/exchanges", show_exchanges, methods=["GET"]),
    Route("/exchanges.json", list_exchanges, methods=["GET"]),
]
