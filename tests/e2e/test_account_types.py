"""Account types: one asked for by name, all of them, or the exchange's default; on calls and on streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from exchange_service.errors import FeatureNotEnabled, FieldInvalid
from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    PermissionMissing,
    Summary,
    VenueAccount,
    VenueCall,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.v1.exchange_service_pb2 import AccountSelector
from tests.harness import USER, Running, ScriptedPlugin, listing, raising, registry_of, serving, streaming, totals

TYPES = ("spot", "margin", "funding")


def wallet(type: str, total: str) -> VenueAccount:
    amount = Decimal(total)
    return VenueAccount(type=type, assets=(AssetBalance("USDT", total=amount),), summary=Summary("USDT", total=amount))


WALLETS = {kind: wallet(kind, total) for kind, total in zip(TYPES, ("1.0", "20.0", "300.0"), strict=True)}


async def obedient(call: VenueCall) -> Balance:
    """Reads what is asked for, and no more."""
    return Balance(tuple(account for account in WALLETS.values() if call.wants(account.type)))


async def careless(call: VenueCall) -> Balance:
    """Reads everything, whatever is asked for."""
    return Balance(tuple(WALLETS.values()))


@pytest.fixture
def plugin() -> ScriptedPlugin:
    exchange = listing(account_types=TYPES, default_account_types=("spot",))
    return ScriptedPlugin(exchange, listing("brokerage", account_types=TYPES), answer=obedient)


@pytest.fixture
async def running(tmp_path: Path, plugin: ScriptedPlugin) -> AsyncIterator[Running]:
    async with serving(tmp_path, registry=registry_of(plugin), poll_interval=0.1) as opened:
        await opened.store("fakex")
        await opened.store("brokerage")
        yield opened


async def read(running: Running, account_type: str, exchange_id: str = "fakex") -> dict[str, str]:
    reply = await running.client.get_balance(USER, exchange_id, account_type=account_type)
    assert reply.balance.account_type == account_type.lower()
    return {account.type: account.assets[0].total for account in reply.balance.venue_accounts}


async def test_without_a_requested_type_the_exchanges_default_is_read(running: Running) -> None:
    assert await read(running, "") == {"spot": "1.0"}


async def test_an_exchange_without_a_default_reads_all_its_types(running: Running) -> None:
    assert set(await read(running, "", "brokerage")) == set(TYPES)


async def test_one_type_is_requested_by_its_name_in_any_case(running: Running) -> None:
    assert await read(running, "Margin") == {"margin": "20.0"}


async def test_all_types_are_read_each_in_rows_of_its_own(running: Running) -> None:
    assert await read(running, "all") == {"spot": "1.0", "margin": "20.0", "funding": "300.0"}


async def test_types_are_cached_apart_and_a_cached_answer_serves_its_own_type_alone(
    running: Running, plugin: ScriptedPlugin
) -> None:
    for _ in range(2):
        assert await read(running, "spot") == {"spot": "1.0"}
        assert await read(running, "margin") == {"margin": "20.0"}
    assert len(plugin.calls) == 2


async def test_the_types_of_one_account_share_its_session(running: Running, plugin: ScriptedPlugin) -> None:
    await read(running, "spot")
    await read(running, "margin")
    first, second = plugin.calls
    assert first.account_state is second.account_state


async def test_a_type_that_the_exchange_lacks_is_refused_with_a_list_of_its_types(running: Running) -> None:
    with pytest.raises(FieldInvalid) as refusal:
        await read(running, "options")
    assert "account_type" in refusal.value.message
    assert "spot, margin, funding, all" in refusal.value.message
    named = (refusal.value.field, refusal.value.description)
    assert named == ("account_type", "Fakex has no accounts of this type.")


async def test_accounts_that_were_not_requested_are_dropped_and_the_summary_is_of_the_rest(
    running: Running, plugin: ScriptedPlugin
) -> None:
    plugin.answer = careless
    reply = await running.client.get_balance(USER, "fakex", account_type="funding")
    assert [account.type for account in reply.balance.venue_accounts] == ["funding"]
    assert reply.balance.summary.total == "300.0"


async def test_an_account_that_lacks_the_type_is_an_error_and_not_nothing_held(
    running: Running, plugin: ScriptedPlugin
) -> None:
    async def only_spot(call: VenueCall) -> Balance:
        return Balance((WALLETS["spot"],))

    plugin.answer = only_spot
    with pytest.raises(FeatureNotEnabled):
        await read(running, "margin")


async def test_one_type_with_an_error_is_shown_beside_the_others(running: Running, plugin: ScriptedPlugin) -> None:
    async def partly(call: VenueCall) -> Balance:
        return Balance((WALLETS["spot"], VenueAccount(type="margin", error=VenueUnavailable("It is down."))))

    plugin.answer = partly
    reply = await running.client.get_balance(USER, "fakex", account_type="all")
    spot, margin = reply.balance.venue_accounts
    assert not spot.HasField("error")
    assert margin.error.message == "It is down."
    assert not reply.balance.HasField("summary")


async def test_where_no_account_could_be_read_their_error_is_the_answer(
    running: Running, plugin: ScriptedPlugin
) -> None:
    async def down(call: VenueCall) -> Balance:
        return Balance((VenueAccount(type="spot", error=VenueUnavailable("It is down.")),))

    plugin.answer = down
    with pytest.raises(VenueUnavailable):
        await read(running, "")


async def test_a_venues_cooldown_applies_to_every_type_of_the_account(running: Running, plugin: ScriptedPlugin) -> None:
    plugin.answer = raising(VenueRateLimited("Slowly.", retry_after=30))
    for account_type in ("spot", "margin", "all"):
        with pytest.raises(VenueRateLimited):
            await read(running, account_type)
    assert len(plugin.calls) == 1


async def test_a_right_that_one_type_lacks_does_not_affect_the_others(running: Running, plugin: ScriptedPlugin) -> None:
    plugin.answer = raising(PermissionMissing("Not margin."))
    with pytest.raises(PermissionMissing):
        await read(running, "margin")
    plugin.answer = obedient
    assert await read(running, "spot") == {"spot": "1.0"}


async def test_a_stream_follows_several_types_of_one_account(running: Running) -> None:
    wishes = [AccountSelector(exchange_id="fakex", account_type=name) for name in ("spot", "all")]
    async with streaming(running, *wishes) as stream:
        seen = {}
        while len(seen) < 2:
            balance = (await stream.next_of("balance")).balance
            seen[balance.account_type] = len(balance.venue_accounts)
    assert seen == {"spot": 1, "all": 3}


async def test_a_stream_reports_the_state_of_each_type(tmp_path: Path, plugin: ScriptedPlugin) -> None:
    async with serving(tmp_path, registry=registry_of(plugin), heartbeat_interval=0.1) as running:
        await running.store("fakex")
        wishes = [AccountSelector(exchange_id="fakex", account_type=name) for name in ("spot", "perpetual")]
        async with streaming(running, *wishes) as stream:
            error = await stream.next_of("account_error")
            heartbeat = await stream.next_of("heartbeat")
    assert error.account_type == "perpetual"
    assert "account_type" in error.error.message
    assert {state.account_type for state in heartbeat.accounts} == {"spot", "perpetual"}


async def test_the_catalogue_lists_the_types_and_the_default(running: Running) -> None:
    entries = {entry.id: entry for entry in await running.client.all_exchanges()}
    assert list(entries["fakex"].account_types) == list(TYPES)
    assert list(entries["fakex"].default_account_types) == ["spot"]
    assert list(entries["brokerage"].default_account_types) == list(TYPES)


async def test_a_row_whose_figures_do_not_add_up_is_marked_and_left_as_it_is(
    running: Running, plugin: ScriptedPlugin
) -> None:
    async def margin_venue(call: VenueCall) -> Balance:
        rows = (
            AssetBalance("USD", total=Decimal("10.0"), free=Decimal("12.5"), used=Decimal("1")),
            AssetBalance("EUR", total=Decimal("10"), free=Decimal("9.0"), used=Decimal("1.000")),
            AssetBalance("GBP", total=Decimal("10"), free=Decimal("9")),
        )
        return Balance((VenueAccount(type="spot", assets=rows),))

    plugin.answer = margin_venue
    reply = await running.client.get_balance(USER, "fakex")
    assert {row.asset: row.mismatch for row in reply.balance.venue_accounts[0].assets} == {
        "USD": True,
        "EUR": False,
        "GBP": False,
    }
    assert totals(reply.balance)["USD"] == "10.0"
