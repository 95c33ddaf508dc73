"""A venue that distinguishes requests by their parameters too, as account types are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from exchange_service.testing import LoopbackVenue

# A request, such as "/api/v1/accounts?type=trade", and its answer: a body, or a status and a body.
Answers = Mapping[str, Any]


class VenueByQuery(LoopbackVenue):
    """It answers each request by its path and by the parameters that the script names."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Any] = {}

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{tail:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        for name, answer in self.answers.items():
            path, _, query = name.partition("?")
            named = dict(part.split("=") for part in query.split("&") if part)
            if path == request.path and named.items() <= dict(request.query).items():
                status, body = answer if isinstance(answer, tuple) else (200, answer)
                return web.json_response(body, status=status)
        return web.json_response({"code": "404", "msg": "no such path"}, status=404)

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(request.path == path for request in self.requests)
