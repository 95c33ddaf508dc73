"""The part of the contract about answers for another account, in venues whose answers name the account."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from exchange_service.plugin_api import Balance, VenueCall, VenueMalformed
from exchange_service.testing.malformed_contract import MalformedContract
from exchange_service.testing.venue import DemoVenue, Fault, LoopbackVenue


class NamesContract(MalformedContract):
    """Gives the plugin the answers of another user in place of its own."""

    @pytest.mark.asyncio
    async def test_another_users_answer_is_never_this_ones_balance(self) -> None:
        async with self._open_venue() as (venue, row):
            other_row = venue.other_credential() if isinstance(venue, DemoVenue) and venue.named_by else None
            if other_row is None:
                # The answers of this venue name no account, so nothing can tell them apart.
                return
            other = await self._read_by(venue, other_row)
            async with self._open_call(venue, row) as call:
                good = await self._fetch(call)
                before = len(venue.requests)
                assert _rows(await self._fetch(call)) == _rows(good), "the account must not move within the test"
                requests = venue.requests[before:]
                for path in (None, *dict.fromkeys(request.path for request in requests)):
                    fault = venue.fail(Fault(account=requests[0].account, path=path, as_account=other))
                    await self._assert_refused(call, good, f"another user's answer for {path or 'every request'}")
                    venue.recover(fault)
                    again = _rows(await self._fetch(call))
                    assert again == _rows(good), "the true answer is not read after another user's"

    async def _read_by(self, venue: LoopbackVenue, row: Mapping[str, Any]) -> str:
        """Read this account twice, as any account is, and return the venue's name of it, as `account_of` has it."""
        async with self._open_call(venue, row) as call:
            await self._fetch(call)
            await self._fetch(call)
        return venue.requests[-1].account

    async def _assert_refused(self, call: VenueCall, good: Balance, when: str) -> None:
        self._tried += 1
        try:
            result = await self._fetch(call)
        except VenueMalformed:
            return
        self._believed += 1
        refused = [account for account in result.venue_accounts if isinstance(account.error, VenueMalformed)]
        assert refused, f"{when} became a balance: {result}"
        self._assert_nothing_invented(result, good, when)
        self._believed -= 1


def _rows(balance: Balance) -> list[tuple[Any, ...]]:
    return [(account.identity, account.assets, type(account.error)) for account in balance.venue_accounts]
