"""The simulated exchanges: they check what the real ones check, and play the demo's situations."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.simulator import (
    ApexSimulator,
    BinanceSimulator,
    CoinbaseSimulator,
    SimulatedProfile,
)
from exchange_service_ccxt_generic.simulator.coinbase import private_key

from exchange_service.plugin_api import (
    Balance,
    ClockSkew,
    CredentialRejected,
    ExchangeMetadata,
    PermissionMissing,
    VenueError,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.testing import DemoVenue, venue_call
from exchange_service.testing.venue import TROUBLES

Listings = Mapping[str, ExchangeMetadata]
Row = Mapping[str, Any]
Read = Callable[[Row], Awaitable[Balance]]

pytestmark = pytest.mark.usefixtures("without_pauses")

SIMULATORS = (ApexSimulator, BinanceSimulator, CoinbaseSimulator)


@asynccontextmanager
async def played(simulator: type[DemoVenue], listings: Listings) -> AsyncIterator[tuple[Any, Read]]:
    """The venue, and a way to read a row there as the service would."""
    async with simulator() as venue:

        async def read(row: Row) -> Balance:
            async with venue_call(listings[venue.exchange_id], override=venue.url, timeout=20.0, **row) as call:
                return await plugin.fetch_balance(call)

        yield venue, read


@pytest.fixture(params=SIMULATORS, ids=lambda simulator: simulator.exchange_id)
async def demo(request: pytest.FixtureRequest, listings: Listings) -> AsyncIterator[tuple[Any, Read]]:
    """Each of the simulators in turn."""
    async with played(request.param, listings) as pair:
        yield pair


async def test_a_moving_account_moves(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    row = venue.demo_credential("moving")
    before = (await read(row)).summary
    venue.move()
    after = (await read(row)).summary
    assert before is not None
    assert after is not None
    assert before.total != after.total


async def test_an_empty_account_holds_nothing(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    balance = await read(venue.demo_credential("empty"))
    assert all(row.is_zero() for _, row in balance.rows())


async def test_a_refused_key_is_refused(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    with pytest.raises(CredentialRejected):
        await read(venue.demo_credential("refused"))


async def test_a_limited_account_names_its_delay(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    with pytest.raises(VenueRateLimited) as caught:
        await read(venue.demo_credential("limited"))
    assert caught.value.retry_after == 30.0


async def test_a_stale_account_answers_once(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    row = venue.demo_credential("stale")
    await read(row)
    with pytest.raises(VenueUnavailable):
        await read(row)


async def test_a_slow_account_answers_in_the_end(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    row = venue.demo_credential("slow")
    venue.faults[-1].delay = 0.2
    assert list((await read(row)).rows())


async def test_one_key_is_one_account_and_never_partly_readable(demo: tuple[Any, Read]) -> None:
    assert demo[0].demo_credential("partly") is None


async def test_situations_do_not_disturb_each_other(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    moving = venue.demo_credential("moving")
    for situation in ("empty", "refused", "limited", "slow", "stale"):
        venue.demo_credential(situation)
    for trouble in TROUBLES:
        venue.troubled_credential(trouble)
    assert list((await read(moving)).rows())


EXPECTED: Mapping[str, type[VenueError]] = {
    "wrong key": CredentialRejected,
    "missing right": PermissionMissing,
    "wrong environment": CredentialRejected,
    "rate limit": VenueRateLimited,
    "outage": VenueUnavailable,
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_each_trouble_has_the_venues_own_answer(demo: tuple[Any, Read], trouble: str) -> None:
    venue, read = demo
    row = venue.troubled_credential(trouble)
    if row is None:
        assert trouble in ("missing right", "wrong environment", "unknown account")
        return
    with pytest.raises(EXPECTED[trouble]):
        await read(row)


def test_all_three_are_found_by_the_demo() -> None:
    from importlib.metadata import entry_points

    simulators = {point.name: point.load() for point in entry_points(group="exchange_service.simulators")}
    assert {name: simulators.get(name) for name in ("apex", "binance", "coinbase")} == {
        "apex": ApexSimulator,
        "binance": BinanceSimulator,
        "coinbase": CoinbaseSimulator,
    }


async def test_binance_refuses_a_time_outside_the_window(listings: Listings) -> None:
    async with played(BinanceSimulator, listings) as (venue, read):
        row = venue.demo_credential("moving")
        for ahead in (60_000, -60_000):
            venue.clock_ahead = ahead
            with pytest.raises(ClockSkew):
                await read(row)


async def test_a_changed_secret_is_refused_everywhere(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    row = venue.demo_credential("moving")
    secret = private_key("another") if venue.exchange_id == "coinbase" else row["api_secret"] + "x"
    with pytest.raises(CredentialRejected):
        await read({**row, "api_secret": secret})


async def test_apex_refuses_another_passphrase(listings: Listings) -> None:
    async with played(ApexSimulator, listings) as (venue, read):
        row = venue.demo_credential("moving")
        with pytest.raises(CredentialRejected):
            await read({**row, "passphrase": "other words"})


async def test_coinbases_list_is_read_to_its_last_page(listings: Listings) -> None:
    async with played(CoinbaseSimulator, listings) as (venue, read):
        row = venue.demo_credential("moving")
        venue.largest_page = 1
        assert {entry.asset: entry.total for _, entry in (await read(row)).rows()} == {
            "BTC": Decimal("0.3"),
            "ETH": Decimal(4),
            "USD": Decimal("3220.55"),
        }
        cursors = [request.query.get("cursor") for request in venue.requests if request.path.endswith("/accounts")]
        assert cursors == [None, "1", "2"]


# One key of each kind that Coinbase has handed out: its name, its secret, and another one's.
COINBASE_KEYS = {
    "ES256": ("organizations/1/apiKeys/2", private_key("some"), private_key("another")),
    "EdDSA": (
        "d2efa49a-369c-43d7-a60e-ae26e28853c2",
        base64.b64encode(bytes(range(64))).decode(),
        base64.b64encode(bytes(64)).decode(),
    ),
    "legacy": ("legacykey", "legacysecret", "anothersecret"),
}


@pytest.mark.parametrize(("name", "secret", "another"), COINBASE_KEYS.values(), ids=COINBASE_KEYS)
async def test_each_kind_of_coinbases_keys_is_checked(listings: Listings, name: str, secret: str, another: str) -> None:
    async with played(CoinbaseSimulator, listings) as (venue, read):
        venue.add_profile(SimulatedProfile(name, secret, {"BTC": ("1", "0")}))
        assert [entry.asset for _, entry in (await read({"api_key": name, "api_secret": secret})).rows()] == ["BTC"]
        venue.profiles[name].secret = another
        with pytest.raises(CredentialRejected):
            await read({"api_key": name, "api_secret": secret})


async def test_a_token_for_another_address_is_refused(listings: Listings) -> None:
    from aiohttp import ClientSession

    async with played(CoinbaseSimulator, listings) as (venue, read):
        await read(venue.demo_credential("moving"))
        token = venue.requests[-1].headers["Authorization"]
        async with ClientSession() as session:
            statuses = []
            for path in ("/api/v3/brokerage/accounts", "/api/v3/brokerage/key_permissions"):
                async with session.get(venue.url + path, headers={"Authorization": token}) as answer:
                    statuses.append(answer.status)
    assert statuses == [200, 401]


async def test_the_simulators_move_no_other_account(demo: tuple[Any, Read]) -> None:
    venue, read = demo
    row = venue.demo_credential("slow")
    venue.recover()
    before = await read(row)
    for _ in range(3):
        venue.move()
    after = await asyncio.wait_for(read(row), 20)
    assert [entry for _, entry in before.rows()] == [entry for _, entry in after.rows()]
