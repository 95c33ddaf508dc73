"""Aster over HTTP: two hosts, signed queries, one clock, and no request while the venue has shut us out."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from exchange_service.plugin_api import ClockSkew, Response, VenueCall, VenueRateLimited
from exchange_service_aster import errors, parse
from exchange_service_aster.host import VenueHost
from exchange_service_aster.scheme import AgentScheme, HmacScheme, read_scheme

# All accounts behind one network address share this weight a minute; who goes on beyond it is banned.
_WEIGHT_LIMIT = 2400
_WEIGHT_HEADER = "X-MBX-USED-WEIGHT-1M"
# Seconds for which a measured clock is good for all requests that were refused for the time.
_CLOCK_AGE = 1.0


class AsterClient:
    """The reads that a balance and a check of the key need."""

    def __init__(self, call: VenueCall, scheme: HmacScheme | AgentScheme, host: VenueHost) -> None:
        self.scheme = scheme
        self._call = call
        self._host = host
        self._futures = call.url()
        self._spot = call.url("spot")

    @classmethod
    async def open(cls, call: VenueCall) -> AsterClient:
        """The client of a call; CredentialInvalid where what is stored fits no scheme."""
        scheme = await read_scheme(call)
        return cls(call, scheme, await call.plugin_state.get(f"host {call.url()}", _new_host))

    async def futures_account(self) -> Any:
        """The futures account, as Aster sends it."""
        return await self._signed_get(self._futures, self.scheme.futures_path)

    async def spot_account(self) -> Any:
        """The spot account, as Aster sends it."""
        return await self._signed_get(self._spot, self.scheme.spot_path)

    async def agents(self) -> Any:
        """The wallet's agents, as Aster sends them. For agents only."""
        return await self._signed_get(self._futures, "/fapi/v3/agent")

    async def _signed_get(self, base: str, path: str) -> Any:
        try:
            return await self._ask(base, path)
        except ClockSkew:
            # Once more by the venue's own clock, and with a fresh nonce. A second refusal has another cause.
            await self._call.plugin_state.get(f"clock {self._futures}", self._measure_clock, max_age=_CLOCK_AGE)
        return await self._ask(base, path)

    async def _ask(self, base: str, path: str) -> Any:
        self._refuse_while_shut(base)
        url = f"{base}{path}?{self.scheme.query(self._host)}"
        return self._read(base, await self._call.http.get(url, headers=self.scheme.headers))

    async def _measure_clock(self) -> None:
        self._refuse_while_shut(self._futures)
        began = time.time_ns()
        response = await self._call.public_http.get(self._futures + "/fapi/v1/time")
        ended = time.time_ns()
        self._host.set_clock(parse.server_time(self._read(self._futures, response)), began, ended)

    def _read(self, base: str, response: Response) -> Any:
        if _used_weight(response.headers) >= _WEIGHT_LIMIT:
            self._host.shut(base, 60 - self._host.milliseconds() // 1000 % 60)
        try:
            return errors.read_answer(response, self._host.milliseconds())
        except VenueRateLimited as limit:
            if errors.is_ban(response) and limit.retry_after is not None:
                self._host.shut(base, limit.retry_after)
            raise

    def _refuse_while_shut(self, base: str) -> None:
        delay = self._host.shut_for(base)
        if delay:
            raise VenueRateLimited("Aster limits the requests from this service's address.", retry_after=delay)


async def _new_host() -> VenueHost:
    return VenueHost()


def _used_weight(headers: Mapping[str, str]) -> int:
    """The weight used in this minute; zero where the venue does not say."""
    value = headers.get(_WEIGHT_HEADER, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else 0
