"""How Hyperliquid is asked, and what its answers and its trouble become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_hyperliquid import HYPERLIQUID, check_credential, fetch_balance
from exchange_service_hyperliquid.simulator import (
    HyperliquidSimulator,
    SimulatedPerps,
    SimulatedWallet,
    escrowed_wallet,
    portfolio_margin_wallet,
    standard_wallet,
    unified_wallet,
)

from exchange_service.plugin_api import (
    AccountUnknown,
    AddressNotAllowed,
    AssetBalance,
    Balance,
    CredentialInvalid,
    FeatureNotEnabled,
    KeyRights,
    RequestRefused,
    State,
    Summary,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import Fault, venue_call
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
MASTER = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
AGENT = "0x00000000000000000000000000000000000a6e47"
SUB = "0x035605fc2f24d65300227189025e90a0d947f16c"
SECOND_SUB = "0x035605fc2f24d65300227189025e90a0d947f16d"
VAULT = "0xdfc24b077bc1425ad1dea75bcb6f8158e10df303"


@asynccontextmanager
async def venue() -> AsyncIterator[HyperliquidSimulator]:
    """A venue with one wallet, which has 1000 in the main dex and 40 USDC on spot."""
    simulator = HyperliquidSimulator()
    simulator.add_wallet(
        MASTER, SimulatedWallet(perps={"": SimulatedPerps(Decimal(1000))}, spot=[("USDC", 0, "40.0", "15.5")])
    )
    async with simulator:
        yield simulator


def calling(simulator: HyperliquidSimulator, address: str = MASTER, **metadata: Any) -> Any:
    return venue_call(HYPERLIQUID, override=simulator.url, metadata={"wallet_address": address, **metadata})


async def read(
    simulator: HyperliquidSimulator, address: str = MASTER, *, account_type: str = "", **metadata: Any
) -> Balance:
    async with calling(simulator, address, **metadata) as call:
        return await fetch_balance(replace(call, account=replace(call.account, account_type=account_type)))


def kinds(simulator: HyperliquidSimulator) -> list[str]:
    """The types of all questions so far, sorted: their order says nothing."""
    return sorted(parse_json(request.body)["type"] for request in simulator.requests)


async def test_a_plain_address_gives_main_dex_and_spot() -> None:
    async with venue() as simulator:
        balance = await read(simulator)
        requested = kinds(simulator)
    assert [account.identity for account in balance.venue_accounts] == [(MASTER, "perpetual", ""), (MASTER, "spot", "")]
    assert [account.assets for account in balance.venue_accounts] == [
        (AssetBalance("USDC", Decimal(1000), Decimal(1000), Decimal(0)),),
        (AssetBalance("USDC", Decimal("40.0"), Decimal("24.5"), Decimal("15.5")),),
    ]
    assert balance.summary is not None
    assert (balance.summary.total, balance.summary.available) == (Decimal(1040), Decimal("1024.5"))
    assert balance.venue_time == datetime(2025, 11, 24, 16, 0, 0, 123000, tzinfo=UTC)
    assert balance.notes == ()
    assert requested == ["clearinghouseState", "spotClearinghouseState", "userAbstraction"]


async def test_the_weight_of_all_accounts_reads_is_reported() -> None:
    """The mode weighs ten times as much as a state, and is read once: what a read weighs differs."""
    async with venue() as simulator:
        simulator.add_wallet(SUB, standard_wallet())
        shared, reported = State(), []
        for address in (MASTER, SUB):
            metadata = {"wallet_address": address}
            async with venue_call(HYPERLIQUID, override=simulator.url, metadata=metadata, plugin_state=shared) as call:
                for _ in range(2):
                    await fetch_balance(call)
                    reported.append(call.reports.usage[60][0])
        await shared.close()
    assert reported == [24, 28, 52, 56]
    assert simulator.weight == 56


async def test_the_worked_examples_are_reproduced_to_the_digit() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        simulator.add_wallet(MASTER, standard_wallet())
        simulator.add_wallet(SUB, unified_wallet())
        standard, unified = await read(simulator), await read(simulator, SUB)
    perpetual = standard.venue_accounts[0]
    assert digits(perpetual.assets[0]) == ("USDC", "8420.118264", "7611.904113", "802.5")
    assert perpetual.summary == Summary(
        "USDC",
        total=Decimal("8420.118264"),
        equity=Decimal("8420.118264"),
        available=Decimal("7611.904113"),
        margin_used=Decimal("802.5"),
        unrealised_pnl=Decimal("321.5"),
    )
    # Nothing is held on spot, so it is the figure for everything too.
    assert standard.summary == perpetual.summary
    (spot,) = unified.venue_accounts
    assert [digits(row) for row in spot.assets if not row.is_zero()] == [
        ("USDC", "5230.118264", "4387.618264", "842.5"),
        ("HYPE", "31.25", "31.25", "0.0"),
    ]
    assert spot.summary == unified.summary
    assert spot.summary == Summary(
        "USDC",
        total=Decimal("5230.118264"),
        equity=Decimal("5230.118264"),
        available=Decimal("4387.618264"),
        margin_used=Decimal("842.5"),
        unrealised_pnl=Decimal("321.5"),
    )
    assert any("4810.334120" in note for note in unified.notes)


def digits(row: AssetBalance) -> tuple[str, str, str, str]:
    return row.asset, str(row.total), str(row.free), str(row.used)


async def test_the_recorded_payloads_come_through_whole() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].mode = "unifiedAccount"
        simulator.wallets[MASTER].answers = {
            "clearinghouseState": read_payload(PAYLOADS / "clearinghouse_state.json"),
            "spotClearinghouseState": read_payload(PAYLOADS / "spot_state_unified.json"),
        }
        balance = await read(simulator)
    assert [account.type for account in balance.venue_accounts] == ["spot"]
    assert balance.summary is not None
    assert balance.summary.equity == Decimal("5230.118264")
    assert balance.summary.available == Decimal("4387.618264")
    assert balance.summary.margin_used == Decimal("842.5")
    assert balance.summary.unrealised_pnl == Decimal("321.5")


async def test_the_mode_is_read_once() -> None:
    async with venue() as simulator, calling(simulator) as call:
        for _ in range(3):
            await fetch_balance(call)
        assert len(simulator.questions("userAbstraction")) == 1
        assert len(simulator.questions("clearinghouseState")) == 3


async def test_a_failed_mode_is_read_again() -> None:
    async with venue() as simulator, calling(simulator) as call:
        simulator.wallets[MASTER].answers["userAbstraction"] = {}
        with pytest.raises(VenueMalformed):
            await fetch_balance(call)
        simulator.wallets[MASTER].answers.clear()
        assert (await fetch_balance(call)).summary is not None


async def test_an_unknown_mode_gives_rows_and_a_remark() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].mode = "someNewMode"
        balance = await read(simulator)
    assert balance.summary is None
    assert [account.summary for account in balance.venue_accounts] == [None, None]
    assert all(account.assets for account in balance.venue_accounts)
    assert "someNewMode" in balance.notes[0]


async def test_an_unknown_mode_is_not_cached() -> None:
    async with venue() as simulator, calling(simulator) as call:
        simulator.wallets[MASTER].mode = "someNewMode"
        assert (await fetch_balance(call)).summary is None
        simulator.wallets[MASTER].mode = "default"
        assert (await fetch_balance(call)).summary is not None


def keep(simulator: HyperliquidSimulator, mode: str) -> None:
    """The wallet in this mode, worth 1040 in each: unified, its spot USDC holds the 1000 of the main dex too."""
    simulator.wallets[MASTER].mode = mode
    total = "1040.0" if mode in ("unifiedAccount", "portfolioMargin") else "40.0"
    simulator.wallets[MASTER].spot = [("USDC", 0, total, "15.5")]


@pytest.mark.parametrize("standard", ["disabled", "default", "dexAbstraction"])
@pytest.mark.parametrize("unified", ["unifiedAccount", "portfolioMargin"])
async def test_a_wallet_that_changes_its_mode_counts_its_money_once_at_once(standard: str, unified: str) -> None:
    async with venue() as simulator, calling(simulator) as call:
        costs = []
        for mode in (standard, standard, unified, unified, standard, standard):
            keep(simulator, mode)
            before = len(simulator.requests)
            balance = await fetch_balance(call)
            costs.append(len(simulator.requests) - before)
            assert balance.summary is not None
            assert (balance.summary.total, balance.summary.equity) == (1040, 1040)
            assert balance.notes == ()
            types = [account.type for account in balance.venue_accounts]
            assert types == (["spot"] if mode == unified else ["perpetual", "spot"])
        # The mode is asked for with the first read, and where it was changed.
        assert costs == [3, 2, 3, 2, 3, 2]


async def test_a_mode_that_changed_and_changed_back_between_two_reads_is_not_read_again() -> None:
    async with venue() as simulator, calling(simulator) as call:
        for modes in (("default",), ("unifiedAccount", "default")):
            for mode in modes:
                keep(simulator, mode)
            balance = await fetch_balance(call)
            assert balance.summary is not None
            assert balance.summary.total == 1040
        assert len(simulator.questions("userAbstraction")) == 1


@pytest.mark.parametrize(("played", "stated"), [("unifiedAccount", "default"), ("default", "unifiedAccount")])
async def test_a_mode_that_fits_no_answer_gives_no_figure_until_it_does(played: str, stated: str) -> None:
    async with venue() as simulator, calling(simulator) as call:
        keep(simulator, played)
        simulator.wallets[MASTER].answers["userAbstraction"] = stated
        for questions in (2, 3):
            balance = await fetch_balance(call)
            assert len(simulator.questions("userAbstraction")) == questions
            assert balance.summary is None
            assert [account.type for account in balance.venue_accounts] == ["perpetual", "spot"]
            assert [account.summary for account in balance.venue_accounts] == [None, None]
            assert len(balance.notes) == 1
        simulator.wallets[MASTER].answers.clear()
        balance = await fetch_balance(call)
        assert balance.summary is not None
        assert balance.summary.total == 1040


async def test_if_the_changed_mode_cannot_be_read_the_old_one_gives_no_balance() -> None:
    async with venue() as simulator, calling(simulator) as call:
        await fetch_balance(call)
        keep(simulator, "unifiedAccount")
        simulator.wallets[MASTER].answers["userAbstraction"] = {}
        for _ in range(2):
            with pytest.raises(VenueMalformed):
                await fetch_balance(call)
        simulator.wallets[MASTER].answers.clear()
        balance = await fetch_balance(call)
        assert balance.summary is not None
        assert balance.summary.total == 1040


async def test_only_the_mode_of_a_changed_sub_account_is_read_again() -> None:
    async with venue() as simulator, calling(simulator, sub_accounts=True) as call:
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB}
        sub = simulator.add_wallet(SUB, SimulatedWallet(perps={"": SimulatedPerps(Decimal(60))}))
        await fetch_balance(call)
        sub.mode, sub.spot = "unifiedAccount", [("USDC", 0, "60.0", "0.0")]
        balance = await fetch_balance(call)
        # The first two are asked at the same time.
        assert sorted(question["user"] for question in simulator.questions("userAbstraction")) == [SUB, SUB, MASTER]
    assert balance.summary is not None
    assert balance.summary.total == 1100


async def test_the_balance_is_as_old_as_its_oldest_dex() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].perps["xyz"] = SimulatedPerps(Decimal(7), time=1763999999000)
        balance = await read(simulator, dexs="xyz")
    assert balance.venue_time == datetime(2025, 11, 24, 15, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize("key", ["wallet_address", "l1_address", "user"])
async def test_the_address_is_taken_from_any_of_its_names_and_sent_in_lower_case(key: str) -> None:
    shouted = "0x" + MASTER[2:].upper()
    async with venue() as simulator:
        async with venue_call(HYPERLIQUID, override=simulator.url, metadata={key: shouted}) as call:
            balance = await fetch_balance(call)
        assert {question["user"] for question in simulator.questions("clearinghouseState")} == {MASTER}
    assert balance.venue_accounts[0].id == MASTER


async def test_an_address_in_the_key_is_taken() -> None:
    async with venue() as simulator, venue_call(HYPERLIQUID, override=simulator.url, api_key=MASTER) as call:
        assert (await fetch_balance(call)).venue_accounts[0].id == MASTER


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"wallet_address": "0x12"},
        {"wallet_address": "0x" + "g" * 40},
        {"wallet_address": MASTER, "private_key": "0x1"},
        {"wallet_address": MASTER, "sub_accounts": "yes"},
        {"wallet_address": MASTER, "dexs": "xyz,../info"},
        {"wallet_address": MASTER, "dexs": "x" * 33},
        {"wallet_address": MASTER, "dexs": ",".join(f"d{number}" for number in range(21))},
    ],
)
async def test_unknown_metadata_are_refused_before_a_request(metadata: dict[str, Any]) -> None:
    async with venue() as simulator:
        async with venue_call(HYPERLIQUID, override=simulator.url, metadata=metadata) as call:
            with pytest.raises(CredentialInvalid):
                await fetch_balance(call)
        assert not simulator.requests


async def test_an_api_wallets_address_shows_its_main_wallet_with_a_note() -> None:
    async with venue() as simulator, calling(simulator, AGENT) as call:
        simulator.add_agent(AGENT, MASTER)
        balance, again = await fetch_balance(call), await fetch_balance(call)
        assert len(simulator.questions("userRole")) == 1
    assert {account.id for account in balance.venue_accounts} == {MASTER}
    assert balance.summary is not None
    assert balance.summary.total == Decimal(1040)
    assert any("API wallet" in note for note in balance.notes)
    assert again == balance


async def test_an_api_wallet_shows_its_main_wallets_extras_and_sub_accounts_too() -> None:
    async with venue() as simulator:
        simulator.add_agent(AGENT, MASTER)
        simulator.wallets[MASTER].vaults = {VAULT: "742.500082"}
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB}
        balance = await read(simulator, AGENT, sub_accounts=True, vaults=True)
    assert [account.identity for account in balance.venue_accounts] == [
        (MASTER, "perpetual", ""),
        (MASTER, "spot", ""),
        (SUB, "perpetual", "Hedge"),
        (SUB, "spot", "Hedge"),
        (VAULT, "vault", ""),
    ]


async def test_an_address_that_was_never_seen_is_unknown() -> None:
    async with venue() as simulator:
        with pytest.raises(AccountUnknown, match="wallet_address"):
            await read(simulator, AGENT)


async def test_a_wallet_that_was_never_activated_shows_what_waits_in_escrow() -> None:
    async with venue() as simulator:
        simulator.add_wallet(AGENT, escrowed_wallet())
        balance = await read(simulator, AGENT)
    held = [(account.sub_account, row) for account, row in balance.rows() if not row.is_zero()]
    assert held == [("escrow", AssetBalance("USDC", total=Decimal("250.75")))]
    assert balance.summary is not None
    assert (balance.summary.total, balance.summary.available) == (Decimal("250.75"), None)
    assert any("activated" in note for note in balance.notes)


async def test_an_escrow_of_nothing_does_not_make_an_unknown_address_known() -> None:
    async with venue() as simulator:
        simulator.add_wallet(AGENT, SimulatedWallet(role={"role": "missing"}, escrows=[("USDC", 0, "0.0")]))
        with pytest.raises(AccountUnknown):
            await read(simulator, AGENT)


async def test_a_wallet_with_portfolio_margin_shows_what_is_free_and_what_is_borrowed() -> None:
    async with venue() as simulator:
        simulator.add_wallet(AGENT, portfolio_margin_wallet())
        balance = await read(simulator, AGENT)
    (account,) = balance.venue_accounts
    assert account.assets == (
        AssetBalance("USDC", Decimal("7.5"), Decimal("3.0"), Decimal("4.5"), debt=Decimal("0.2")),
    )
    assert balance.summary is not None
    assert (balance.summary.total, balance.summary.available, balance.summary.equity) == (Decimal("7.5"), 3, None)
    assert any("borrowed" in note for note in balance.notes)


async def test_a_mode_that_was_never_set_is_not_a_failure_and_is_kept() -> None:
    async with venue() as simulator, calling(simulator) as call:
        simulator.wallets[MASTER].mode = None
        for _ in range(3):
            balance = await fetch_balance(call)
            assert [account.assets[0].total for account in balance.venue_accounts] == [1000, 40]
            assert balance.summary is None
            assert len(balance.notes) == 1
        assert len(simulator.questions("userAbstraction")) == 1
        keep(simulator, "unifiedAccount")
        balance = await fetch_balance(call)
        assert balance.summary is not None
        assert balance.summary.total == 1040


async def test_a_mode_that_was_never_set_is_read_again_after_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with venue() as simulator, calling(simulator) as call:
        simulator.wallets[MASTER].mode = None
        assert (await fetch_balance(call)).summary is None
        simulator.wallets[MASTER].mode = "default"
        assert (await fetch_balance(call)).summary is None
        loop = asyncio.get_running_loop()
        later = loop.time() + 601
        monkeypatch.setattr("exchange_service_hyperliquid.client._now", lambda: later)
        assert (await fetch_balance(call)).summary is not None


@pytest.mark.parametrize("mode", ["default", None, "someNewMode"])
async def test_an_odd_spot_answer_does_not_hide_the_perpetuals(mode: str | None) -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].mode = mode
        simulator.wallets[MASTER].answers["spotClearinghouseState"] = {"balances": [{"coin": "USDC", "total": {}}]}
        balance = await read(simulator)
    perpetual, spot = balance.venue_accounts
    assert perpetual.assets == (AssetBalance("USDC", Decimal(1000), Decimal(1000), Decimal(0)),)
    assert (spot.identity, type(spot.error)) == ((MASTER, "spot", ""), VenueMalformed)
    assert (perpetual.summary, balance.summary) == (None, None)


async def test_an_odd_answer_for_the_main_dex_does_not_hide_the_spot_tokens() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].answers["clearinghouseState"] = {"marginSummary": None}
        balance = await read(simulator)
        keep(simulator, "unifiedAccount")
        unified = await read(simulator)
    spot, perpetual = balance.venue_accounts
    assert spot.assets == (AssetBalance("USDC", Decimal("40.0"), Decimal("24.5"), Decimal("15.5")),)
    assert (perpetual.identity, type(perpetual.error)) == ((MASTER, "perpetual", ""), VenueMalformed)
    assert balance.summary is None
    assert unified.venue_accounts[0].assets[0].total == 1040
    assert unified.summary is None


async def test_without_its_spot_state_a_unified_wallet_has_no_balance() -> None:
    async with venue() as simulator:
        keep(simulator, "unifiedAccount")
        simulator.wallets[MASTER].answers["spotClearinghouseState"] = {}
        with pytest.raises(VenueMalformed):
            await read(simulator)


async def test_an_odd_entry_of_a_sub_account_does_not_fail_the_wallet() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].answers["subAccounts"] = [
            {"name": "Hedge", "subAccountUser": SUB, "master": MASTER},
            {"name": "Odd", "subAccountUser": None, "master": MASTER},
        ]
        balance = await read(simulator, sub_accounts=True)
    assert [account.identity for account in balance.venue_accounts] == [
        (MASTER, "perpetual", ""),
        (MASTER, "spot", ""),
        (SUB, "perpetual", "Hedge"),
        (SUB, "spot", "Hedge"),
        (MASTER, "", "sub-account 2"),
    ]
    assert isinstance(balance.venue_accounts[-1].error, VenueMalformed)
    assert balance.summary is None


async def test_a_request_for_everything_says_what_is_read_only_if_it_is_named() -> None:
    async with venue() as simulator:
        plain = await read(simulator, account_type="all")
        named = await read(simulator, account_type="all", dexs="xyz", sub_accounts=True)
        default = await read(simulator)
    assert [any(word in note for note in plain.notes) for word in ("dexs", "sub_accounts")] == [True, True]
    assert named.notes == ()
    assert default.notes == ()


@pytest.mark.parametrize("role", ["user", "vault", "subAccount", "somethingNew"])
async def test_an_account_that_is_truly_empty_is_a_balance(role: str) -> None:
    async with venue() as simulator:
        simulator.add_wallet(AGENT, SimulatedWallet(role={"role": role}))
        balance = await read(simulator, AGENT)
    assert [account.type for account in balance.venue_accounts] == ["perpetual", "spot"]
    assert balance.summary is not None
    assert (balance.summary.equity, balance.summary.available) == (0, 0)
    assert balance.notes == ()


async def test_the_expensive_request_is_not_sent_if_something_is_held() -> None:
    async with venue() as simulator:
        await read(simulator)
        simulator.wallets[MASTER].perps.clear()
        await read(simulator)
        assert not simulator.questions("userRole")
        simulator.wallets[MASTER].spot.clear()
        await read(simulator)
        assert len(simulator.questions("userRole")) == 1


async def test_a_builder_dex_is_read_in_its_own_collateral() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].perps.update({"xyz": SimulatedPerps(Decimal(7)), "flx": SimulatedPerps(Decimal(5))})
        balance = await read(simulator, dexs=" xyz, flx,,xyz")
        assert [question["dex"] for question in simulator.questions("clearinghouseState")].count("xyz") == 1
    rows = {account.sub_account: account.assets[0] for account in balance.venue_accounts if account.type != "spot"}
    assert {dex: (held.asset, held.total) for dex, held in rows.items()} == {
        "": ("USDC", Decimal(1000)),
        "xyz": ("USDC", Decimal(7)),
        "flx": ("USDH", Decimal(5)),
    }
    assert balance.summary is None
    assert any("USDC" in note for note in balance.notes)


async def test_dexs_in_usdc_are_summed() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].perps["xyz"] = SimulatedPerps(Decimal(7))
        balance = await read(simulator, dexs="xyz,flx")
    assert balance.summary is not None
    assert balance.summary.total == Decimal(1047)


async def test_a_dex_that_does_not_exist_stands_with_its_error_beside_the_others() -> None:
    async with venue() as simulator:
        balance = await read(simulator, dexs="gone")
        assert [question["dex"] for question in simulator.questions("clearinghouseState")] == [""]
    failed = {account.sub_account: account.error for account in balance.venue_accounts if account.error}
    assert list(failed) == ["gone"]
    assert isinstance(failed["gone"], CredentialInvalid)
    assert len(balance.venue_accounts) == 3
    assert balance.summary is None


@pytest.mark.parametrize("table", ["dexs", "tokens"])
async def test_a_dex_whose_collateral_is_not_known_is_not_guessed_at(table: str) -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].perps["flx"] = SimulatedPerps(Decimal(5))
        if table == "dexs":
            simulator.dexs["flx"] = 999
        else:
            del simulator.tokens[360]
        balance = await read(simulator, dexs="flx")
    errors = [account.error for account in balance.venue_accounts if account.sub_account == "flx"]
    assert isinstance(errors[0], VenueMalformed)


async def test_the_market_tables_are_shared_by_all_accounts_of_an_environment() -> None:
    shared = State()
    async with venue() as simulator:
        simulator.add_wallet(SUB, SimulatedWallet(perps={"xyz": SimulatedPerps(Decimal(3))}))
        for address in (MASTER, SUB):
            metadata = {"wallet_address": address, "dexs": "xyz"}
            async with venue_call(HYPERLIQUID, override=simulator.url, metadata=metadata, plugin_state=shared) as call:
                await fetch_balance(call)
        for table in ("perpDexs", "meta", "spotMeta"):
            assert len(simulator.questions(table)) == 1
    await shared.close()


async def test_sub_accounts_are_kept_apart() -> None:
    async with venue() as simulator, calling(simulator, sub_accounts=True) as call:
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB, "Idle": SECOND_SUB}
        unified = SimulatedWallet(mode="unifiedAccount", spot=[("USDC", 0, "60.0", "10.0")])
        unified.perps[""] = SimulatedPerps(Decimal(60))
        simulator.add_wallet(SUB, unified)
        balance = await fetch_balance(call)
        await fetch_balance(call)
        assert len(simulator.questions("subAccounts")) == 1
    assert [account.identity for account in balance.venue_accounts] == [
        (MASTER, "perpetual", ""),
        (MASTER, "spot", ""),
        (SUB, "spot", "Hedge"),
        (SECOND_SUB, "perpetual", "Idle"),
        (SECOND_SUB, "spot", "Idle"),
    ]
    assert balance.summary is not None
    # The unified sub-account's 60 are counted once.
    assert balance.summary.total == Decimal(1100)


async def test_sub_accounts_are_not_read_unless_requested() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB}
        balance = await read(simulator)
        assert not simulator.questions("subAccounts")
    assert len(balance.venue_accounts) == 2


async def test_a_sub_account_that_fails_stands_with_its_error() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB}
        simulator.fail(Fault.html(503)).account = SUB
        balance = await read(simulator, sub_accounts=True)
    failed = balance.venue_accounts[-1]
    assert (failed.id, failed.sub_account) == (SUB, "Hedge")
    assert isinstance(failed.error, VenueUnavailable)
    assert balance.summary is None


async def test_more_sub_accounts_than_possible_are_not_read() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].sub_accounts = {f"Sub {number}": f"0x{number:040x}" for number in range(101)}
        with pytest.raises(VenueMalformed, match="100 sub-accounts"):
            await read(simulator, sub_accounts=True)
        assert kinds(simulator) == ["subAccounts"]


async def test_many_sub_accounts_are_all_read_and_not_at_the_same_time() -> None:
    async with venue() as simulator:
        for number in range(1, 10):
            address = f"0x{number:040x}"
            simulator.wallets[MASTER].sub_accounts[f"Sub {number}"] = address
            simulator.add_wallet(address, SimulatedWallet(perps={"": SimulatedPerps(Decimal(number))}))
        balance = await read(simulator, sub_accounts=True)
        assert balance.summary is not None
        assert balance.summary.total == Decimal(1040 + 45)
        before = len(simulator.requests)
        for address in simulator.wallets[MASTER].sub_accounts.values():
            simulator.fail(Fault(silent=True)).account = address
        async with calling(simulator, sub_accounts=True) as call:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(fetch_balance(call), 0.3)
        assert len({request.account for request in simulator.requests[before:]} - {MASTER}) == 4


async def test_vaults_and_staking_are_shown_if_requested() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].vaults = {VAULT: "742.500082"}
        simulator.wallets[MASTER].staked = ("10.0", "2.0", "0.5")
        balance = await read(simulator, vaults=True, staking=True)
    vault, staking = balance.venue_accounts[2:]
    assert (vault.id, vault.type, vault.assets[0].total) == (VAULT, "vault", Decimal("742.500082"))
    assert (staking.id, staking.type, staking.assets[0].total) == (MASTER, "staking", Decimal("12.5"))
    assert balance.summary is None


def filled(simulator: HyperliquidSimulator) -> SimulatedWallet:
    """The wallet of `venue`, with something in every place."""
    wallet = simulator.wallets[MASTER]
    wallet.vaults = {VAULT: "742.500082"}
    wallet.staked = ("10.0", "2.0", "0.5")
    return wallet


STATES = ["clearinghouseState", "spotClearinghouseState", "userAbstraction"]


@pytest.mark.parametrize(
    ("account_type", "types", "questions"),
    [
        ("", ["perpetual", "spot"], STATES),
        ("perpetual", ["perpetual"], STATES),
        ("spot", ["spot"], STATES),
        ("vault", ["vault"], ["userVaultEquities"]),
        ("staking", ["staking"], ["delegatorSummary"]),
        ("all", ["perpetual", "spot", "vault", "staking"], sorted([*STATES, "userVaultEquities", "delegatorSummary"])),
    ],
)
async def test_only_the_requested_type_of_account_is_read(
    account_type: str, types: list[str], questions: list[str]
) -> None:
    async with venue() as simulator:
        filled(simulator)
        balance = await read(simulator, account_type=account_type)
        assert kinds(simulator) == questions
    assert [account.type for account in balance.venue_accounts] == types


async def test_the_summary_is_of_the_requested_accounts() -> None:
    async with venue() as simulator:
        filled(simulator)
        totals = {}
        for account_type in ("perpetual", "spot", "vault"):
            summary = (await read(simulator, account_type=account_type)).summary
            assert summary is not None
            totals[account_type] = str(summary.total)
        assert totals == {"perpetual": "1000.0", "spot": "40.0", "vault": "742.500082"}
        assert (await read(simulator, account_type="staking")).summary is None


async def test_a_request_for_one_type_is_not_extended_by_the_metadata() -> None:
    async with venue() as simulator:
        filled(simulator)
        balance = await read(simulator, account_type="spot", vaults=True, staking=True)
        assert kinds(simulator) == STATES
    assert [account.type for account in balance.venue_accounts] == ["spot"]


async def test_sub_accounts_are_not_read_if_only_extras_are_requested() -> None:
    async with venue() as simulator:
        filled(simulator).sub_accounts = {"Hedge": SUB}
        await read(simulator, account_type="vault", sub_accounts=True)
        assert kinds(simulator) == ["userVaultEquities"]


async def test_a_sub_account_that_could_not_be_read_is_shown_for_every_requested_type() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB}
        simulator.fail(Fault.html(503)).account = SUB
        balance = await read(simulator, account_type="spot", sub_accounts=True)
    assert [(account.id, bool(account.error)) for account in balance.venue_accounts] == [(MASTER, False), (SUB, True)]
    assert balance.summary is None


async def test_a_unified_wallet_has_no_perpetual_account_and_the_error_names_the_spot_account() -> None:
    async with venue() as simulator:
        keep(simulator, "unifiedAccount")
        with pytest.raises(FeatureNotEnabled, match="spot"):
            await read(simulator, account_type="perpetual")
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB}
        simulator.add_wallet(SUB, SimulatedWallet(perps={"": SimulatedPerps(Decimal(60))}))
        balance = await read(simulator, account_type="perpetual", sub_accounts=True)
    assert [account.identity for account in balance.venue_accounts] == [(SUB, "perpetual", "Hedge")]
    assert any("unified" in note for note in balance.notes)


@pytest.mark.parametrize("account_type", ["vault", "staking"])
async def test_a_wrong_address_is_noticed_whatever_is_requested(account_type: str) -> None:
    async with venue() as simulator:
        filled(simulator)
        simulator.add_agent(AGENT, MASTER)
        with pytest.raises(AccountUnknown):
            await read(simulator, SECOND_SUB, account_type=account_type)
        balance = await read(simulator, AGENT, account_type=account_type)
        assert len(simulator.questions("userRole")) == 2
    assert [account.type for account in balance.venue_accounts] == [account_type]
    assert any("API wallet" in note for note in balance.notes)


async def test_a_wallet_with_nothing_but_a_stake_is_not_taken_for_a_wrong_address() -> None:
    async with venue() as simulator:
        simulator.add_wallet(AGENT, SimulatedWallet(staked=("10.0", "0.0", "0.0")))
        await read(simulator, AGENT, staking=True)
        assert not simulator.questions("userRole")


async def test_an_empty_staking_account_does_not_take_the_summary_away() -> None:
    async with venue() as simulator:
        balance = await read(simulator, vaults=True, staking=True)
    assert balance.summary is not None
    assert balance.summary.total == Decimal(1040)


@pytest.mark.parametrize(("wanted", "question"), [("vaults", "userVaultEquities"), ("staking", "delegatorSummary")])
async def test_an_extra_that_fails_does_not_hide_the_wallet(wanted: str, question: str) -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].answers[question] = None
        balance = await read(simulator, **{wanted: True})
    assert isinstance(balance.venue_accounts[-1].error, VenueMalformed)
    assert balance.venue_accounts[0].assets[0].total == Decimal(1000)


@pytest.mark.parametrize(
    ("account_type", "question"), [("vault", "userVaultEquities"), ("staking", "delegatorSummary")]
)
async def test_an_extra_that_is_requested_alone_and_fails_raises_its_error(account_type: str, question: str) -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].answers[question] = None
        with pytest.raises(VenueMalformed):
            await read(simulator, account_type=account_type)
        assert kinds(simulator) == [question]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=422, body=b"Failed to deserialize the JSON body", content_type="text/plain"), RequestRefused),
        (Fault(status=400), RequestRefused),
        (Fault(status=418), VenueRateLimited),
        (Fault(status=401), RequestRefused),
        (Fault(status=403, body=b'{"error": "forbidden"}'), AddressNotAllowed),
        (Fault.html(403), VenueUnavailable),
        (Fault(status=403, body=b""), VenueUnavailable),
        (Fault(status=404), RequestRefused),
        (Fault(status=429, body=b"null"), VenueRateLimited),
        (Fault(status=500, body=b"null"), VenueUnavailable),
        (Fault.html(502), VenueUnavailable),
        (Fault.html(503), VenueUnavailable),
        (Fault(status=503, body=b"under maintenance"), VenueMaintenance),
        (Fault(status=504), VenueTimeout),
        (Fault(status=204), VenueMalformed),
    ],
)
async def test_the_venues_errors_have_our_reasons(fault: Fault, expected: type[VenueError]) -> None:
    async with venue() as simulator:
        simulator.fail(fault)
        with pytest.raises(expected) as raised:
            await read(simulator)
    assert type(raised.value) is expected
    assert raised.value.message.endswith(".")


@pytest.mark.parametrize("fault", [Fault.html(403), Fault(status=403, body=b"{}")], ids=["a page", "an answer"])
async def test_no_refusal_speaks_of_a_key(fault: Fault) -> None:
    async with venue() as simulator:
        simulator.fail(fault)
        with pytest.raises(VenueError) as raised:
            await read(simulator)
    assert "key" not in f"{raised.value.message} {raised.value.advice}".lower()


async def test_an_unreadable_request_points_to_the_stored_address() -> None:
    async with venue() as simulator:
        simulator.fail(Fault(status=422, body=b"Failed to deserialize the JSON body", content_type="text/plain"))
        with pytest.raises(RequestRefused, match="wallet_address"):
            await read(simulator)


async def test_a_status_that_is_neither_success_nor_error_is_malformed() -> None:
    async with venue() as simulator:
        simulator.fail(Fault(status=202, body=b'"default"'))
        with pytest.raises(VenueMalformed, match="HTTP 202"):
            await read(simulator)


@pytest.mark.parametrize(("header", "seconds"), [("25", 25.0), ("", 10.0)])
async def test_a_limit_names_the_venues_delay_or_ten_seconds(header: str, seconds: float) -> None:
    async with venue() as simulator:
        simulator.fail(Fault(status=429, body=b"null", headers={"Retry-After": header} if header else {}))
        with pytest.raises(VenueRateLimited) as raised:
            await read(simulator)
    assert raised.value.retry_after == seconds


MALFORMED = {
    "null": b"null",
    "html": b"<html>We'll be back soon</html>",
    "list": b"[]",
    "object": b"{}",
    "empty": b"",
    "text": b'"ok"',
    "truncated": b'{"marginSummary": {"accountValue": "1',
    "nan": b'{"marginSummary": {"accountValue": NaN}}',
    "error": b'{"error": "try again"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_nonsense_about_the_role_is_never_an_empty_balance(body: bytes) -> None:
    async with venue() as simulator:
        simulator.add_wallet(AGENT, SimulatedWallet(answers={"userRole": body}))
        with pytest.raises(VenueMalformed):
            await read(simulator, AGENT)


async def test_one_failure_ends_the_other_questions() -> None:
    async with venue() as simulator, calling(simulator) as call:
        simulator.fail(Fault(silent=True))
        simulator.fail(Fault(status=500, times=1))
        with pytest.raises(VenueUnavailable):
            await asyncio.wait_for(fetch_balance(call), 2.0)


async def rights_of(**row: Any) -> KeyRights:
    async with venue() as simulator, venue_call(HYPERLIQUID, override=simulator.url, **row) as call:
        rights = await check_credential(call)
        assert simulator.requests == []
    return rights


@pytest.mark.parametrize("row", [{"metadata": {"wallet_address": MASTER}}, {"api_key": MASTER.upper()}])
async def test_an_address_can_neither_trade_nor_withdraw(row: dict[str, Any]) -> None:
    assert await rights_of(**row) == KeyRights(trade=False, withdraw=False)


@pytest.mark.parametrize("name", ["api_key", "api_secret", "passphrase"])
async def test_a_secret_that_is_stored_all_the_same_should_be_removed(name: str) -> None:
    rights = await rights_of(metadata={"wallet_address": MASTER}, **{name: "0x" + "5e" * 32})
    (note,) = rights.notes
    assert name in note
    assert "remove" in note
    assert "5e5e" not in note


async def test_the_rights_of_an_invalid_address_are_not_known() -> None:
    with pytest.raises(CredentialInvalid, match="wallet_address"):
        await rights_of(api_key="0x" + "5e" * 32)


async def test_an_api_wallet_that_is_suddenly_another_main_wallets_is_refused() -> None:
    async with venue() as simulator, calling(simulator, AGENT) as call:
        simulator.add_agent(AGENT, MASTER)
        await fetch_balance(call)
        simulator.add_wallet(SUB, SimulatedWallet(perps={"": SimulatedPerps(Decimal(7))}))
        simulator.add_agent(AGENT, SUB)
        call.account_state.forget(f"role {AGENT}")
        with pytest.raises(VenueMalformed, match="another account than before"):
            await fetch_balance(call)


async def test_the_sub_accounts_of_another_wallet_are_refused() -> None:
    async with venue() as simulator:
        simulator.wallets[MASTER].sub_accounts = {"Hedge": SUB}
        entry = simulator._sub_account(SECOND_SUB, "Hedge", SUB)
        simulator._sub_account = lambda *_: entry  # type: ignore[method-assign]
        balance = await read(simulator, sub_accounts=True)
    assert [type(account.error) for account in balance.venue_accounts] == [type(None), type(None), VenueMalformed]
