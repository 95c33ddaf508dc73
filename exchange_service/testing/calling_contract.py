"""What the suites that call a plugin share: the venue on loopback, the call, and the search for secrets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any

import pytest

from exchange_service.plugin_api import Balance, VenueCall, VenueError
from exchange_service.testing.calls import venue_call
from exchange_service.testing.listing_contract import ListingContract
from exchange_service.testing.venue import DemoVenue, Fault, LoopbackVenue
from exchange_service.venues.answers import answer_fault, undeclared_field
from exchange_service.venues.failures import describe_failure, known_problem
from exchange_service.venues.printing import PRINTS, printed_at
from exchange_service.venues.setting_values import secret_texts

# Seconds after its deadline within which a plugin must have ended. Busy machines are slow.
GRACE = 3.0

_QUERY_IN_TEXT = re.compile(r"https?://\S*\?")


class CallingContract(ListingContract):
    """Calls the plugin against a simulator. Searches every error and every log record for the credential's secrets."""

    # A class or function that makes the venue on loopback.
    simulator: Callable[..., LoopbackVenue]
    # The requests that the plugin may send, such as "GET /v3/accounts/{id}/summary". Empty: the requests that the
    # simulator allows. If it names none either, requests are not checked.
    allowed_requests: Sequence[str] = ()

    def credential(self, venue: Any) -> Mapping[str, Any]:
        """The row that opens an account that holds something: any of `api_key`, `api_secret`, `passphrase` and
        `extra_metadata`. A `DemoVenue` has one; for any other simulator set the account up here."""
        assert isinstance(venue, DemoVenue), "override `credential`: this simulator does not play in the demo"
        row = venue.demo_credential("moving")
        assert row is not None
        return row

    @cached_property
    def _secrets(self) -> set[str]:
        """The secrets that were used in this test so far."""
        return set()

    @pytest.fixture(autouse=True)
    def _keep_logs_free_of_secrets(self, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        with caplog.at_level(logging.DEBUG):
            yield
        for record in caplog.get_records("call"):
            self._assert_no_secret(logging.Formatter().format(record), f"the log of {record.name}")

    @asynccontextmanager
    async def _open_venue(self) -> AsyncIterator[tuple[LoopbackVenue, Mapping[str, Any]]]:
        """The running simulator and the row that opens a good account. Fails if a task is left at the end."""
        before = asyncio.all_tasks()
        async with type(self).simulator() as venue:
            if isinstance(venue, DemoVenue):
                venue.lift_limits()
            yield venue, self.credential(venue)
        await _assert_no_new_task(before)

    @asynccontextmanager
    async def _open_call(
        self, venue: LoopbackVenue, row: Mapping[str, Any], *, timeout: float = 5.0, account_type: str = ""
    ) -> AsyncIterator[VenueCall]:
        listing = self._find_listing()
        hidden = {field.name for field in listing.credential_fields if field.secret}
        hidden.update(name for name in ("api_secret", "passphrase") if row.get(name))
        metadata = row.get("extra_metadata") or {}
        settings = self._setting_values(venue.settings if isinstance(venue, DemoVenue) else {})
        self._secrets.update(secret_texts(settings))
        self._secrets.update(str(value) for name, value in {**metadata, **row}.items() if name in hidden and value)
        async with venue_call(
            listing,
            override=venue.url,
            api_key=row.get("api_key") or "",
            api_secret=row.get("api_secret") or "",
            passphrase=row.get("passphrase") or "",
            metadata=metadata,
            account_type=account_type,
            timeout=timeout,
            settings=settings,
        ) as call:
            yield call

    async def _fetch(self, call: VenueCall) -> Balance:
        balance = await self._ask(call)
        fault = answer_fault(balance, call.exchange)
        assert not fault, f"the service would refuse the balance: {fault}"
        assert isinstance(balance, Balance)
        return balance

    async def _ask(self, call: VenueCall) -> object:
        """What the hook returns; a test fails for what the service would tell its author."""
        hooks, printed = self._load_hooks(), _Printed(self.plugin.__name__)
        try:
            # The plugin must keep its deadline. This timeout ends the test of a plugin that does not.
            with contextlib.redirect_stdout(printed):
                async with asyncio.timeout(call.remaining() + GRACE):
                    return await hooks.fetch_balance(call=call)
        except VenueError as error:
            fault = undeclared_field(error, call.exchange)
            assert not fault, f"the service would refuse to pass the error on: {fault}"
            raise
        except (TypeError, ValueError) as error:
            problem = known_problem(error)
            # Another one is shown as it is, with its traceback.
            if problem:
                raise AssertionError(
                    f"fetch_balance failed: {describe_failure(error, self.plugin.__name__)}"
                ) from error
            raise
        finally:
            assert not printed.places, f"{PRINTS}; in {' and '.join(printed.places)}"

    async def _fetch_good(self, venue: LoopbackVenue, row: Mapping[str, Any]) -> Balance:
        async with self._open_call(venue, row) as call:
            return await self._fetch(call)

    async def _fetch_outcome(
        self, venue: LoopbackVenue, row: Mapping[str, Any], *, timeout: float = 5.0
    ) -> Balance | VenueError:
        """The balance or the VenueError of a fresh call. Any other exception fails the test."""
        async with self._open_call(venue, row, timeout=timeout) as call:
            try:
                return await self._fetch(call)
            except VenueError as error:
                self._assert_safe_to_show(error, venue)
                return error

    async def _fetch_error(
        self, venue: LoopbackVenue, row: Mapping[str, Any], when: str, *, timeout: float = 5.0
    ) -> VenueError:
        result = await self._fetch_outcome(venue, row, timeout=timeout)
        assert isinstance(result, VenueError), f"{when} became a balance: {result}"
        return result

    async def _error_from(self, fault: Fault, when: str, *, timeout: float = 5.0) -> tuple[VenueError, int]:
        """The error of a call to a venue with this fault, and how many requests the venue saw."""
        async with self._open_venue() as (venue, row):
            venue.fail(fault)
            error = await self._fetch_error(venue, row, when, timeout=timeout)
            return error, len(venue.requests)

    def _assert_safe_to_show(self, error: VenueError, venue: LoopbackVenue) -> None:
        """Check all that could be shown or logged of an error: its text, its arguments and the chain of its causes."""
        assert error.message.strip(), f"a {type(error).__name__} has an empty message"
        assert not _QUERY_IN_TEXT.search(str(error)), "an error's text holds a URL with a query"
        for request in venue.requests:
            credential = request.headers.get("Authorization", ""), request.query.get("signature", "")
            self._secrets.update(text for text in credential if len(text) > 8)
        shown = [str(error), repr(error), repr(error.args), repr(vars(error)), *traceback.format_exception(error)]
        self._assert_no_secret("\n".join(shown), f"a {type(error).__name__}")

    def _assert_no_secret(self, text: str, where: str) -> None:
        # The message does not show the secret: it would be printed in the log of a build.
        assert not any(secret in text for secret in self._secrets), f"{where} holds a secret"

    def _assert_well_formed(self, balance: Balance) -> None:
        accounts = [account.identity for account in balance.venue_accounts]
        assert len(set(accounts)) == len(accounts), f"two accounts have the same id, type and sub-account: {accounts}"
        rows = [(*account.identity, *row.identity) for account, row in balance.rows()]
        assert len(set(rows)) == len(rows), f"two rows are for the same account, asset and kind: {rows}"
        types = self._find_listing().account_types
        for account in balance.venue_accounts:
            unknown = not account.type and (account.error is not None or account.sub_account)
            assert unknown or account.type in types, f"account_types lacks {account.type!r}"
        for _, asset in balance.rows():
            assert asset.asset.strip(), "a row has no asset"
            amounts = (asset.total, asset.free, asset.used, asset.debt)
            assert any(amount is not None for amount in amounts), f"the row {asset.asset} has no amount"
            for amount in amounts:
                assert amount is None or isinstance(amount, Decimal), f"the row {asset.asset} holds {amount!r}"
            assert asset.used is None or asset.used >= 0, f"{asset.asset}: `used` is negative; leave it out instead"
        for summary in (balance.summary, *(account.summary for account in balance.venue_accounts)):
            assert summary is None or summary.currency, "a summary has no currency"
        for time in (balance.venue_time, *(account.venue_time for account in balance.venue_accounts)):
            assert time is None or time.utcoffset() == timedelta(0), "times must be aware and in UTC"


class _Printed(io.TextIOBase):
    """Standard output that keeps where the plugin's package prints, and passes everything on."""

    def __init__(self, module: str) -> None:
        self._package = module.partition(".")[0]
        self._out = sys.stdout
        self.places: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        place = printed_at()
        if place.partition(",")[0].partition(".")[0] == self._package and place not in self.places:
            self.places.append(place)
        return self._out.write(text)


async def _assert_no_new_task(before: set[asyncio.Task[Any]]) -> None:
    def left() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() - before if not task.done()]

    # The simulator's own connections end a moment later.
    for _ in range(200):
        if not left():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks are left behind: {left()}")
