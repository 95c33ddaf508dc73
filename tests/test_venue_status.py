"""The catalogue's status follows what the service has seen of a venue."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda.simulator import OandaSimulator

from exchange_service.app import Service, start_service
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import (
    CredentialRejected,
    PluginFailed,
    ServiceError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import Account, Credential
from exchange_service.settings import Settings
from exchange_service.testing import Fault
from exchange_service.v1 import exchange_pb2
from exchange_service.venue_gate.status import VenueStatus
from tests.harness import Clock, eventually


@asynccontextmanager
async def serving(folder: Path, venue: OandaSimulator) -> AsyncIterator[tuple[Service, ExchangeServiceClient]]:
    database = f"sqlite:///{folder / 'service.db'}"
    service = await start_service(
        Settings(address="127.0.0.1:0", database_url=database, venue_urls={"oanda": venue.url})
    )
    for user, situation in (("demo", "moving"), ("another", "moving"), ("refused", "refused")):
        row = venue.demo_credential(situation)
        assert row is not None
        await service.store.put(Account(user, "oanda"), Credential.from_texts(row))
    async with ExchangeServiceClient(service.address) as client:
        yield service, client
    await service.stop()


async def status_of(client: ExchangeServiceClient) -> exchange_pb2.ExchangeStatus:
    (entry,) = (await client.list_exchanges(search="oanda")).exchanges
    return entry.status


async def test_a_venue_that_is_down_is_listed_as_degraded_with_the_reason_until_it_answers(tmp_path: Path) -> None:
    async with OandaSimulator() as venue, serving(tmp_path, venue) as (_, client):
        assert (await status_of(client)).availability == exchange_pb2.AVAILABILITY_AVAILABLE
        before = (await client.list_exchanges()).etag
        venue.fail(Fault.html(503))
        with pytest.raises(VenueUnavailable):
            await client.get_balance("demo", "oanda", max_age=0)
        assert (await status_of(client)).availability == exchange_pb2.AVAILABILITY_AVAILABLE
        with pytest.raises(VenueUnavailable):
            await client.get_balance("another", "oanda", max_age=0)
        status = await status_of(client)
        assert status.availability == exchange_pb2.AVAILABILITY_DEGRADED
        assert status.reason == "The venue could not be reached, or had trouble, when last asked."
        assert status.HasField("since_time")
        assert not (await client.list_exchanges(etag=before)).not_modified
        venue.recover()
        await client.get_balance("demo", "oanda", max_age=0)
        assert (await status_of(client)).availability == exchange_pb2.AVAILABILITY_AVAILABLE
        assert (await client.list_exchanges(etag=before)).not_modified


async def test_a_refused_key_does_not_change_the_status(tmp_path: Path) -> None:
    async with OandaSimulator() as venue, serving(tmp_path, venue) as (_, client):
        with pytest.raises(CredentialRejected):
            await client.get_balance("refused", "oanda")
        assert (await status_of(client)).availability == exchange_pb2.AVAILABILITY_AVAILABLE


def failed(status: VenueStatus, error: ServiceError, now: float, *, accounts: int = 2, **changes: Any) -> None:
    """Fetches of so many accounts fail so."""
    for number in range(accounts):
        status.failed("oanda", error, now, account=str(number), **changes)


def test_a_listing_problem_has_the_time_of_its_beginning_and_the_newest_reason() -> None:
    status = VenueStatus()
    failed(status, VenueTimeout("OANDA did not answer in time."), 100.0)
    failed(status, VenueUnavailable("OANDA has trouble."), 200.0)
    assert status.troubles["oanda"].reason.startswith("The venue could not be reached")
    assert status.troubles["oanda"].since == 100.0
    generation = status.generation
    failed(status, VenueUnavailable("OANDA has trouble."), 300.0)
    assert status.generation == generation
    status.answered("oanda", account="1", began=301.0, now=302.0)
    assert (status.troubles, status.generation) == ({}, generation + 1)


def test_an_errors_message_for_one_user_is_not_shown_to_all() -> None:
    status = VenueStatus()
    failed(status, VenueUnavailable("Account 101-004-7654321-001 of alice cannot be read."), 1.0)
    assert "alice" not in status.troubles["oanda"].reason
    assert "7654321" not in status.troubles["oanda"].reason


def test_a_broken_plugin_is_a_listing_problem_and_a_rate_limit_is_not() -> None:
    status = VenueStatus()
    failed(status, VenueRateLimited("OANDA limits our requests."), 1.0)
    assert status.troubles == {}
    failed(status, PluginFailed("The plugin oanda failed."), 2.0)
    assert status.troubles["oanda"].since == 2.0


@pytest.mark.parametrize("error", [PluginFailed("It broke."), VenueMalformed("Nonsense."), VenueTimeout("Too slow.")])
def test_one_accounts_trouble_is_no_listing_problem_also_beside_another_ones_slip(error: ServiceError) -> None:
    status = VenueStatus()
    for now in range(20):
        status.failed("oanda", error, float(now), account="bad")
    assert status.troubles == {}
    status.answered("oanda", account="good", began=20.0, now=21.0)
    status.failed("oanda", error, 22.0, account="bad")
    status.failed("oanda", error, 23.0, account="good")
    assert status.troubles == {}


def test_a_listing_that_was_left_alone_recovers_by_itself() -> None:
    clock = Clock(1000.0)
    status = VenueStatus(clock)
    failed(status, VenueUnavailable("OANDA has trouble."), 1000.0, left_alone=30.0)
    status.pass_time()
    assert not status.troubles["oanda"].serves
    generation, clock.now = status.generation, 1031.0
    status.pass_time()
    trouble = status.troubles["oanda"]
    assert (trouble.serves, trouble.since, status.generation) == (True, 1000.0, generation + 1)
    assert "has not been tried since" in trouble.reason
    status.pass_time()
    assert status.generation == generation + 1
    clock.now = 1631.0
    status.pass_time()
    assert status.troubles == {}


def test_a_trouble_that_nobody_meets_any_more_is_forgotten_although_one_account_still_fails() -> None:
    clock = Clock(1000.0)
    status = VenueStatus(clock)
    failed(status, VenueUnavailable("OANDA has trouble."), 1000.0)
    for _ in range(20):
        clock.now += 60.0
        status.failed("oanda", VenueUnavailable("OANDA has trouble."), clock.now, account="0")
        status.pass_time()
    assert clock.now - 1000.0 > 600.0
    clock.now += 600.0
    status.pass_time()
    assert status.troubles == {}


async def test_a_client_sees_a_listing_that_was_left_alone_recover_without_a_call(tmp_path: Path) -> None:
    async with OandaSimulator() as venue, serving(tmp_path, venue) as (service, client):
        status = service.status
        now = time.time()
        failed(status, VenueUnavailable("OANDA has trouble."), now, left_alone=0.5)
        assert (await status_of(client)).availability == exchange_pb2.AVAILABILITY_UNAVAILABLE

        async def serves() -> bool:
            return (await status_of(client)).availability == exchange_pb2.AVAILABILITY_DEGRADED

        await eventually(serves)
        assert venue.requests == []


async def test_a_stream_without_accounts_begins_with_an_empty_heartbeat(tmp_path: Path) -> None:
    async with OandaSimulator() as venue, serving(tmp_path, venue) as (_, client):
        events = client.stream_balances("nobody")
        first = await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
    assert first.WhichOneof("event") == "heartbeat"
    assert list(first.heartbeat.accounts) == []
