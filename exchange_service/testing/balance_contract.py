"""The part of the contract about a venue that answers: the balance, and the requests that are sent for it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    SECRET_FIELDS,
    Balance,
    CredentialInvalid,
    FeatureNotEnabled,
    VenueAccount,
)
from exchange_service.testing.calling_contract import CallingContract
from exchange_service.testing.venue import DemoVenue
from exchange_service.venues.answers import unlisted_field


class BalanceContract(CallingContract):
    """What the plugin returns for good credentials, and what it refuses before it sends a request."""

    @pytest.mark.asyncio
    async def test_a_good_credential_gives_a_balance(self) -> None:
        async with self._open_venue() as (venue, row):
            for name in SECRET_FIELDS:
                unlisted = unlisted_field(name if row.get(name) else "", self._find_listing())
                assert not unlisted, f"nobody could store the good credential: {unlisted}"
            balance = await self._fetch_good(venue, row)
        assert balance.venue_accounts, "a balance has at least one account"
        for account in balance.venue_accounts:
            assert account.error is None, f"the good credential's account {account.id!r} has an error"
            assert account.assets, f"the good credential's account {account.id!r} has no rows"
        self._assert_well_formed(balance)

    @pytest.mark.asyncio
    async def test_it_is_read_again_with_the_state_of_the_call_before(self) -> None:
        async with self._open_venue() as (venue, row), self._open_call(venue, row) as call:
            first, second = await self._fetch(call), await self._fetch(call)
        assert figures(second) == figures(first)

    @pytest.mark.asyncio
    async def test_it_reads_at_the_same_time_for_several(self) -> None:
        async with self._open_venue() as (venue, row), self._open_call(venue, row) as call:
            balances = await asyncio.gather(*(self._fetch(call) for _ in range(5)))
        assert all(figures(balance) == figures(balances[0]) for balance in balances)

    @pytest.mark.asyncio
    async def test_it_asks_for_nothing_but_what_it_says(self) -> None:
        async with self._open_venue() as (venue, row):
            await self._fetch_good(venue, row)
            seen = {f"{request.method} {request.path}" for request in venue.requests}
        assert seen, "a balance was returned without a request to the venue"
        allowed = self.allowed_requests or getattr(venue, "allowed_requests", ())
        patterns = [re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(text))) for text in allowed]
        unexpected = [text for text in seen if patterns and not any(pattern.fullmatch(text) for pattern in patterns)]
        assert not unexpected, f"allowed_requests lacks {unexpected}"

    @pytest.mark.asyncio
    async def test_a_missing_field_is_named_before_the_venue_is_asked(self) -> None:
        for field in self._find_listing().credential_fields:
            if not field.required:
                continue
            async with self._open_venue() as (venue, row):
                incomplete = {name: value for name, value in row.items() if name not in (field.name, "extra_metadata")}
                metadata = row.get("extra_metadata") or {}
                incomplete["extra_metadata"] = {name: value for name, value in metadata.items() if name != field.name}
                error = await self._fetch_error(venue, incomplete, f"a credential without {field.name}")
                assert isinstance(error, CredentialInvalid), f"without {field.name} it raises {type(error).__name__}"
                assert field.name in error.message, f"the message does not name {field.name}"
                assert not venue.requests, f"without {field.name} a request is still sent"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("name", ["urls", "hostname", "verify", "httpsProxy", "headers"])
    async def test_metadata_that_it_does_not_know_are_refused(self, name: str) -> None:
        async with self._open_venue() as (venue, row):
            metadata = {**(row.get("extra_metadata") or {}), name: "http://127.0.0.1:1"}
            error = await self._fetch_error(venue, {**row, "extra_metadata": metadata}, f"extra_metadata.{name}")
            assert isinstance(error, CredentialInvalid), f"it raises {type(error).__name__}"
            assert not venue.requests, "a request is still sent"

    @pytest.mark.asyncio
    async def test_what_could_not_be_read_is_told_of_and_never_summed_over(self) -> None:
        async with self._open_venue() as (venue, _):
            row = venue.demo_credential("partly") if isinstance(venue, DemoVenue) else None
            if row is None:
                return
            balance = await self._fetch_good(venue, row)
        failed = [account for account in balance.venue_accounts if account.error]
        assert failed, "the situation 'partly' must show an account with an error"
        assert len(failed) < len(balance.venue_accounts), "the situation 'partly' must show an account without an error"
        unread = [account for account in failed if not isinstance(account.error, FeatureNotEnabled)]
        assert not unread or balance.summary is None, "the summary leaves out an account that could not be read"
        self._assert_well_formed(balance)

    @pytest.mark.asyncio
    async def test_an_account_type_is_read_alone(self) -> None:
        for account_type in (*self._find_listing().account_types, ALL_ACCOUNT_TYPES):
            async with (
                self._open_venue() as (venue, row),
                self._open_call(venue, row, account_type=account_type) as call,
            ):
                try:
                    balance = await self._fetch(call)
                except FeatureNotEnabled:
                    continue
            self._assert_well_formed(balance)


def figures(balance: Balance) -> list[tuple[Any, ...]]:
    """The identity, rows, summary and kind of error of each account; without times."""

    def of_account(account: VenueAccount) -> tuple[Any, ...]:
        return (account.identity, account.assets, account.summary, type(account.error))

    return [of_account(account) for account in balance.venue_accounts]
