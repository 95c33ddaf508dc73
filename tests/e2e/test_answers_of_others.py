"""A venue that answers with another user's figures, where its answer names the account: they are never shown."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from exchange_service.model import Account, Credential
from exchange_service.testing import DemoVenue, Fault
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.venues.loading import SIMULATOR_GROUP
from tests.harness import PATIENCE, Running, balance_request, failure, serving

USER, OTHER = "alice", "bob"
# By listing, each simulator whose answers name the account.
SIMULATORS: Mapping[str, type[DemoVenue]] = {
    kind.exchange_id: kind for point in entry_points(group=SIMULATOR_GROUP) if (kind := point.load()).named_by
}


async def read(running: Running, venue: DemoVenue, user: str) -> tuple[balance_pb2.Balance, str]:
    """The user's balance, and the venue's name of the user."""
    row = venue.other_credential() if user == OTHER else venue.demo_credential("moving")
    assert row is not None
    credential = Credential.from_texts(row, row.get("extra_metadata"))
    await running.service.store.put(Account(user, venue.exchange_id), credential)
    # CCXT is imported for the first call.
    request = balance_request(venue.exchange_id, user_id=user)
    reply = await running.stub.GetBalance(request, timeout=2 * PATIENCE)
    return reply.balance, venue.requests[-1].account


def test_the_own_venues_whose_answers_name_the_account_are_all_here() -> None:
    assert set(SIMULATORS) == {"alpaca", "binance", "lighter", "oanda", "tastytrade", "tradier", "tradier_options"}


@pytest.mark.parametrize("exchange_id", sorted(SIMULATORS))
async def test_the_last_good_balance_is_shown_in_place_of_another_users(tmp_path: Path, exchange_id: str) -> None:
    async with (
        SIMULATORS[exchange_id]() as venue,
        serving(tmp_path, venue_urls={exchange_id: venue.url}, venue_timeout=PATIENCE) as running,
    ):
        other, as_account = await read(running, venue, OTHER)
        good, account = await read(running, venue, USER)
        assert good.venue_accounts[0].assets != other.venue_accounts[0].assets
        fault = venue.fail(Fault(account=account, as_account=as_account))
        before = len(venue.requests)
        reply = await running.client.get_balance(USER, exchange_id, max_age=1e-6)
        forced = await failure(running.stub.GetBalance(balance_request(exchange_id, max_age={})))
        assert any(request.account == as_account for request in venue.requests[before:]), "nothing was mixed up"
        assert reply.balance == good
        assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
        assert reply.freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_MALFORMED
        assert forced.reason == "VENUE_MALFORMED"
        venue.recover(fault)
        again = await running.client.get_balance(USER, exchange_id, max_age=0)
        assert again.balance.venue_accounts == good.venue_accounts
