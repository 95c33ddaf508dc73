"""The catalogue's status follows what the service has seen of a venue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from exchange_service_oanda.simulator import OandaSimulator

from exchange_service.app import Service, start_service
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import CredentialRejected, PluginFailed, VenueRateLimited, VenueTimeout, VenueUnavailable
from exchange_service.model import Account, Credential
from exchange_service.settings import Settings
from exchange_service.testing import Fault
from exchange_service.v1 import exchange_pb2
from exchange_service.venue_gate.status import VenueStatus


@asynccontextmanager
async def serving(folder: Path, venue: OandaSimulator) -> AsyncIterator[tuple[Service, ExchangeServiceClient]]:
    database = f"sqlite:///{folder / 'service.db'}"
    service = await start_service(
        Settings(address="127.0.0.1:0", database_url=database, venue_urls={"oanda": venue.url})
    )
    for user, situation in (("demo", "moving"), ("refused", "refused")):
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


def test_a_listing_problem_has_the_time_of_its_beginning_and_the_newest_reason() -> None:
    status = VenueStatus()
    status.failed("oanda", VenueTimeout("OANDA did not answer in time."), 100.0)
    status.failed("oanda", VenueUnavailable("OANDA has trouble."), 200.0)
    assert status.troubles["oanda"].reason.startswith("The venue could not be reached")
    assert status.troubles["oanda"].since == 100.0
    generation = status.generation
    status.failed("oanda", VenueUnavailable("OANDA has trouble."), 300.0)
    assert status.generation == generation
    status.answered("oanda")
    assert (status.troubles, status.generation) == ({}, generation + 1)


def test_an_errors_message_for_one_user_is_not_shown_to_all() -> None:
    status = VenueStatus()
    status.failed("oanda", VenueUnavailable("Account 101-004-7654321-001 of alice cannot be read."), 1.0)
    assert "alice" not in status.troubles["oanda"].reason
    assert "7654321" not in status.troubles["oanda"].reason


def test_a_broken_plugin_is_a_listing_problem_and_a_rate_limit_is_not() -> None:
    status = VenueStatus()
    status.failed("oanda", VenueRateLimited("OANDA limits our requests."), 1.0)
    assert status.troubles == {}
    status.failed("oanda", PluginFailed("The plugin oanda failed."), 2.0)
    assert status.troubles["oanda"].since == 2.0


async def test_a_stream_without_accounts_begins_with_an_empty_heartbeat(tmp_path: Path) -> None:
    async with OandaSimulator() as venue, serving(tmp_path, venue) as (_, client):
        events = client.stream_balances("nobody")
        first = await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
    assert first.WhichOneof("event") == "heartbeat"
    assert list(first.heartbeat.accounts) == []
