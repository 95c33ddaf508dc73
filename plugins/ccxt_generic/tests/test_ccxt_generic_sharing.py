"""What is shared and for how long: markets by exchange, environment and address, an instance by credential."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet

from exchange_service.plugin_api import SANDBOX, ExchangeMetadata, State, VenueUnavailable
from exchange_service.testing import Fault, venue_call

Listings = Mapping[str, ExchangeMetadata]
MARKETS = "/api/v3/exchangeInfo"


def options(name: str = "alice", **more: Any) -> dict[str, Any]:
    return {"api_key": f"{name}key", "api_secret": f"{name}secret", "timeout": 20.0, **more}


def loadings(venue: BinanceSimulator) -> int:
    """How often the venue was asked for its markets."""
    return [request.path for request in venue.requests].count(MARKETS)


async def test_many_accounts_load_the_markets_once(listings: Listings, binance: BinanceSimulator) -> None:
    shared = State()
    for number in range(5):
        binance.add_wallet(SimulatedWallet(f"user{number}key", f"user{number}secret", {"ETH": ("1", "0")}))
        more = options(f"user{number}", plugin_state=shared)
        async with venue_call(listings["binance"], override=binance.url, **more) as call:
            await plugin.fetch_balance(call)
            await plugin.fetch_balance(call)
    await shared.close()
    assert loadings(binance) == 1
    assert len([request for request in binance.requests if request.account]) == 10


async def test_the_types_of_an_account_share_its_instance(listings: Listings, binance: BinanceSimulator) -> None:
    async with venue_call(listings["binance"], override=binance.url, **options()) as call:
        instances = set()
        for account_type in ("", "spot", "future", "all"):
            await plugin.fetch_balance(replace(call, account=replace(call.account, account_type=account_type)))
            instances.add(id(await instance_of(call)))
    assert len(instances) == 1
    assert loadings(binance) == 1


async def instance_of(call: Any) -> Any:
    """The account's instance, which the plugin keeps in the state that the host gives it."""

    async def none_kept() -> Any:
        raise AssertionError("the account keeps no instance")

    return await call.account_state.get("instance", none_kept)


async def test_two_accounts_with_one_key_take_their_nonces_from_one_sequence(
    listings: Listings, binance: BinanceSimulator
) -> None:
    key, nonces = State(), []
    for _ in range(2):
        async with venue_call(listings["binance"], override=binance.url, **options(key_state=key)) as call:
            await plugin.fetch_balance(call)
            instance = await instance_of(call)
            # A clock that stands still shows that the second account goes on where the first one was.
            instance.nonce = lambda: 1_000.0
            nonces += [instance.incrementing_nonce() for _ in range(2)]
    await key.close()
    assert nonces == [1000, 1001, 1002, 1003]


async def test_two_environments_do_not_share_markets(listings: Listings, binance: BinanceSimulator) -> None:
    shared = State()
    for environment in ("production", SANDBOX, "production", SANDBOX):
        more = options(environment=environment, plugin_state=shared)
        async with venue_call(listings["binance"], override=binance.url, **more) as call:
            await plugin.fetch_balance(call)
    await shared.close()
    assert loadings(binance) == 2


async def test_two_addresses_do_not_share_markets(listings: Listings, binance: BinanceSimulator) -> None:
    shared = State()
    async with BinanceSimulator() as other:
        assert isinstance(other, BinanceSimulator)
        other.add_wallet(SimulatedWallet("alicekey", "alicesecret", {"ETH": ("1", "0")}))
        for venue in (binance, other, binance, other):
            more = options(plugin_state=shared)
            async with venue_call(listings["binance"], override=venue.url, **more) as call:
                await plugin.fetch_balance(call)
        assert (loadings(binance), loadings(other)) == (1, 1)
    await shared.close()


async def test_two_exchanges_of_one_family_do_not_share_markets(listings: Listings, binance: BinanceSimulator) -> None:
    shared = State()
    for exchange_id in ("binance", "binanceusdm"):
        more = options(plugin_state=shared)
        async with venue_call(listings[exchange_id], override=binance.url, **more) as call:
            await plugin.fetch_balance(call)
    await shared.close()
    assert [request.path for request in binance.requests].count("/fapi/v1/exchangeInfo") == 2


async def test_an_account_uses_the_hosts_session_and_leaves_it_open(
    listings: Listings, binance: BinanceSimulator
) -> None:
    async with venue_call(listings["binance"], override=binance.url, **options()) as call:
        await plugin.fetch_balance(call)
        session = call.http.client_session
        assert (await instance_of(call)).session is session
        await call.account_state.close()
        assert not session.closed


async def test_another_credential_has_another_instance(listings: Listings, binance: BinanceSimulator) -> None:
    binance.add_wallet(SimulatedWallet("bobkey", "bobsecret", {"ETH": ("1", "0")}))
    shared, keys = State(), []
    for name in ("alice", "bob"):
        more = options(name, plugin_state=shared)
        async with venue_call(listings["binance"], override=binance.url, **more) as call:
            await plugin.fetch_balance(call)
            keys.append((await instance_of(call)).apiKey)
    await shared.close()
    assert keys == ["alicekey", "bobkey"]


async def test_after_an_error_of_the_venue_the_next_call_has_a_new_instance(
    listings: Listings, binance: BinanceSimulator
) -> None:
    async with venue_call(listings["binance"], override=binance.url, **options()) as call:
        await plugin.fetch_balance(call)
        before = await instance_of(call)
        binance.fail(Fault(status=502, path="/api/v3/account", times=1))
        with pytest.raises(VenueUnavailable):
            await plugin.fetch_balance(call)
        await plugin.fetch_balance(call)
        assert await instance_of(call) is not before
    assert loadings(binance) == 1
