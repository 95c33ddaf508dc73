"""The guarded sessions of a process. Their library is imported for the first account that the process reads: a start
does without it, and so does a service whose accounts are all read in plugins' processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exchange_service.model import Environment, ExchangeMetadata
from exchange_service.tasks import beside_the_loop
from exchange_service.venues.egress import Way
from exchange_service.venues.files_left import raise_if_none_left
from exchange_service.venues.push_figures import PushFigures

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

    from exchange_service.venues.http import VenueHttp
    from exchange_service.venues.sockets import OpenPushes
    from exchange_service.venues.tap import HttpTap

_DIRECT = Way()


class VenueHttpPool:
    """One guarded session for each exchange, environment and way out, made when first asked for."""

    def __init__(
        self,
        *,
        timeout: float,
        resolver: AbstractResolver | None = None,
        tap: HttpTap | None = None,
        traced: bool = False,
    ) -> None:
        self._timeout = timeout
        # Whether requests within a span have spans of their own. With a tap it has no effect.
        self._traced = traced and tap is None
        # Sees what passes, for a plugin's author; None in the service.
        self._tap = tap
        # None: the system's.
        self._resolver = resolver
        self._sessions: dict[tuple[str, str, bool, str], VenueHttp] = {}
        # By the exchange's id.
        self._pushes: dict[str, OpenPushes] = {}
        self._loaded = False

    def load(self) -> None:
        """Import what sessions are made of, which takes some hundredths of a second."""
        from exchange_service.venues import http  # noqa: F401

        self._loaded = True

    async def loaded(self) -> None:
        """Wait until that is imported, in a thread, so that the loop serves others meanwhile. ServiceOverloaded if this
        process has no file left to read it with."""
        if self._loaded:
            return
        try:
            await beside_the_loop(self.load)
        except (ImportError, OSError) as error:
            raise_if_none_left(error)
            raise

    def http(
        self,
        exchange: ExchangeMetadata,
        environment: Environment,
        override: str = "",
        *,
        public: bool = False,
        way: Way = _DIRECT,
    ) -> VenueHttp:
        """The session that reaches the environment's hosts, or only the operator's `override` if it is set.

        The operator's host may be inside our own network, a manifest's may not. `public`: for market data, with the
        larger size limit. Its connections leave by `way`.
        """
        key = (exchange.id, environment.name, public, way.name)
        if key not in self._sessions:
            self._sessions[key] = self._open(exchange, environment, override, public=public, way=way)
        return self._sessions[key]

    def _open(
        self, exchange: ExchangeMetadata, environment: Environment, override: str, *, public: bool, way: Way
    ) -> VenueHttp:
        from exchange_service.venues.http import open_http
        from exchange_service.venues.sockets import OpenPushes

        return open_http(
            exchange,
            [override] if override else environment.urls.values(),
            self._pushes.setdefault(exchange.id, OpenPushes()),
            timeout=self._timeout,
            by_operator=bool(override),
            public=public,
            resolver=self._resolver,
            tap=self._tap,
            way=way,
            traced=self._traced,
        )

    def push_figures(self) -> dict[str, PushFigures]:
        """What is open for pushes, by the exchange's id; only those for which anything was ever opened."""
        figures = {exchange: pushes.figures() for exchange, pushes in self._pushes.items()}
        return {exchange: figure for exchange, figure in figures.items() if figure.opened}

    async def close(self) -> None:
        """Close every session."""
        sessions, self._sessions = list(self._sessions.values()), {}
        for http in sessions:
            await http.client_session.close()
