"""The part of the contract about malformed answers, which must never become a balance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest

from exchange_service.plugin_api import Balance, Http, Response, Socket, VenueError
from exchange_service.pytest_plugin import MALFORMED
from exchange_service.testing.calling_contract import CallingContract
from exchange_service.testing.malformed import NONSENSE, gateway_answers, poison_figures
from exchange_service.testing.venue import Fault, LoopbackVenue


class MalformedContract(CallingContract):
    """Sends the plugin answers that no venue means as a balance, in place of each of its answers."""

    # The malformed answers that are tried, by what they are.
    nonsense: Mapping[str, Fault] = NONSENSE
    # In one test: how many malformed answers were tried, and how many became a false balance.
    _tried = _believed = 0

    @pytest.fixture(autouse=True)
    def _count_malformed_answers(self, record_property: Callable[[str, object], None]) -> Iterator[None]:
        """Report to `pytest_plugin` how many malformed answers were tried, and how many became a false balance."""
        self._tried = self._believed = 0
        yield
        if self._tried:
            record_property(MALFORMED, [self.exchange_id, self._tried, self._believed])

    @pytest.mark.asyncio
    async def test_nonsense_is_never_a_balance(self) -> None:
        async with self._open_venue() as (venue, row):
            good = await self._fetch_good(venue, row)
            steps = len(venue.requests)
            for name, fault in self.nonsense.items():
                for step in range(steps):
                    venue.recover()
                    venue.fail(replace(fault))
                    if step:
                        venue.fail(Fault(pass_on=True, times=step))
                    result = await self._fetch_outcome(venue, row)
                    self._assert_honest(result, good, f"{name} in answer {step + 1}", whole=step == 0)

    @pytest.mark.asyncio
    async def test_a_gateways_page_is_never_a_balance_nor_a_word_on_the_key(self) -> None:
        async with self._open_venue() as (venue, row):
            good = await self._fetch_good(venue, row)
            steps = len(venue.requests)
            for name, fault in gateway_answers():
                for step in range(steps):
                    venue.recover()
                    venue.fail(fault)
                    if step:
                        venue.fail(Fault(pass_on=True, times=step))
                    result = await self._fetch_outcome(venue, row)
                    self._assert_honest(result, good, f"{name} in answer {step + 1}", whole=step == 0)

    @pytest.mark.asyncio
    async def test_a_figure_that_is_no_number_is_never_believed(self) -> None:
        async with self._open_venue() as (venue, row):
            good, bodies = await self._record_answers(venue, row)
            for step, body in enumerate(bodies):
                for where, changed in poison_figures(body):
                    venue.recover()
                    venue.fail(Fault(body=changed, times=1))
                    if step:
                        venue.fail(Fault(pass_on=True, times=step))
                    result = await self._fetch_outcome(venue, row)
                    self._tried += 1
                    if isinstance(result, Balance):
                        self._believed += 1
                        self._assert_nothing_invented(result, good, f"{where} in answer {step + 1}")
                        self._assert_nothing_lost(result, good, f"{where} in answer {step + 1}")
                        self._believed -= 1

    @pytest.mark.asyncio
    async def test_a_truncated_answer_is_never_a_balance(self) -> None:
        async with self._open_venue() as (venue, row):
            good, bodies = await self._record_answers(venue, row)
            for step, body in enumerate(bodies):
                for length in sorted({1, len(body) // 3, len(body) // 2, len(body) - 1}):
                    venue.recover()
                    venue.fail(Fault(body=body[:length]))
                    if step:
                        venue.fail(Fault(pass_on=True, times=step))
                    result = await self._fetch_outcome(venue, row)
                    self._assert_honest(result, good, f"{length} bytes of answer {step + 1}", whole=step == 0)

    def _assert_honest(self, result: Balance | VenueError, good: Balance, when: str, *, whole: bool) -> None:
        """Accept a transient error. If not the `whole` venue failed, also accept a balance that says what it lacks."""
        self._tried += 1
        if isinstance(result, VenueError):
            judged = f"{when} became {type(result).__name__}, as if the venue had judged the credential"
            assert result.transient, judged
            return
        self._believed += 1
        assert not whole, f"{when} became a balance: {result}"
        assert _says_what_it_lacks(result), f"neither a note nor an account's error mentions {when}: {result}"
        self._assert_nothing_invented(result, good, when)
        self._believed -= 1

    def _assert_nothing_invented(self, result: Balance, good: Balance, when: str) -> None:
        true = {account.identity: account.assets for account in good.venue_accounts}
        for account in result.venue_accounts:
            invented = account.error is None and account.assets != true.get(account.identity)
            assert not invented, f"{when} changed the rows of {account.identity}: {account.assets}"

    def _assert_nothing_lost(self, result: Balance, good: Balance, when: str) -> None:
        """An account that is left out in silence makes the sum of the others look like all that there is."""
        left = {account.identity for account in result.venue_accounts}
        lost = [account.identity for account in good.venue_accounts if account.identity not in left]
        assert not lost or _says_what_it_lacks(result), (
            f"{when}: the balance left {lost[0]} out in silence. Keep an account that cannot be read with its error, "
            "also if `call.wants` is asked for its type"
        )

    async def _record_answers(self, venue: LoopbackVenue, row: Mapping[str, Any]) -> tuple[Balance, list[bytes]]:
        """A good balance and the bodies of the answers that it was read from, in the order of the requests."""
        bodies: list[bytes] = []
        async with self._open_call(venue, row) as call:
            http, public_http = _RecordingHttp(call.http, bodies), _RecordingHttp(call.public_http, bodies)
            balance = await self._fetch(replace(call, http=http, public_http=public_http))
        if len(bodies) != len(venue.requests):
            pytest.skip("the plugin uses an HTTP client of its own, whose answers cannot be recorded")
        return balance, bodies


def _says_what_it_lacks(balance: Balance) -> bool:
    return bool(balance.notes) or any(account.error for account in balance.venue_accounts)


class _RecordingHttp:
    """The session of a call, which also records the body of every answer."""

    def __init__(self, http: Http, bodies: list[bytes]) -> None:
        self._http = http
        self._bodies = bodies

    @property
    def client_session(self) -> Any:
        return self._http.client_session

    @property
    def has_read_much(self) -> bool:
        return getattr(self._http, "has_read_much", False)

    async def get(self, url: str, **options: Any) -> Response:
        return self._record(await self._http.get(url, **options))

    async def post(self, url: str, **options: Any) -> Response:
        return self._record(await self._http.post(url, **options))

    def websocket(self, url: str, **options: Any) -> AbstractAsyncContextManager[Socket]:
        return self._http.websocket(url, **options)

    def lines(self, url: str, **options: Any) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._http.lines(url, **options)

    def _record(self, response: Response) -> Response:
        self._bodies.append(response.body)
        return response
