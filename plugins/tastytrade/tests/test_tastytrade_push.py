"""tastytrade's account streamer: what it sends becomes the balance that a read would give, and its faults end it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange_service_tastytrade
import pytest
from exchange_service_tastytrade import TASTYTRADE, push
from exchange_service_tastytrade.client import USER_AGENT, TastytradeClient
from exchange_service_tastytrade.push import StreamerLanguage
from exchange_service_tastytrade.simulator import SimulatedAccount, TastytradeSimulator

from exchange_service.plugin_api import (
    Balance,
    Changed,
    CredentialRejected,
    NotSupported,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueTimeout,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import Fault, venue_call
from exchange_service.testing.push import PushFault
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
REFRESH, SECRET = "a-refresh-token-for-tests", "a-client-secret-for-tests"
OTHER = "another-refresh-token"
FIRST, SECOND, THIRD = (f"5WX0000{number}" for number in range(3))
STREAMER = "/"

Watch = AsyncGenerator[Balance | Changed, None]


@pytest.fixture
def venue_accounts() -> list[SimulatedAccount]:
    return [SimulatedAccount(FIRST), SimulatedAccount(SECOND, "Retirement", margin_or_cash="Cash")]


@pytest.fixture
async def venue(venue_accounts: list[SimulatedAccount]) -> AsyncIterator[TastytradeSimulator]:
    async with TastytradeSimulator() as simulator:
        simulator.add_grant(REFRESH, SECRET, *venue_accounts)
        yield simulator


@asynccontextmanager
async def calling(venue: TastytradeSimulator, refresh: str = REFRESH, **metadata: Any) -> AsyncIterator[VenueCall]:
    async with venue_call(
        TASTYTRADE, override=venue.url, api_secret=SECRET, passphrase=refresh, metadata=metadata
    ) as call:
        yield call


@asynccontextmanager
async def watching(call: VenueCall) -> AsyncIterator[Watch]:
    """The watch of an account that has been read, after its first item."""
    watch: Any = exchange_service_tastytrade.watch_balance(call)
    async with asyncio.timeout(10), aclosing(watch):
        assert await anext(watch) == Changed()
        await exchange_service_tastytrade.fetch_balance(call)
        yield watch


async def next_balance(watch: Watch) -> Balance:
    item = await anext(watch)
    assert isinstance(item, Balance)
    return item


async def failure_of(watch: Watch) -> VenueError:
    """What a watch ends with, after whatever else it says."""
    with pytest.raises(VenueError) as raised:
        await _exhaust(watch)
    return raised.value


async def _exhaust(watch: Watch) -> None:
    async for _ in watch:
        pass


def cash(balance: Balance) -> list[Decimal | None]:
    return [account.summary.cash if account.summary else None for account in balance.venue_accounts]


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / name))


async def test_it_connects_with_every_open_account_and_the_token_that_reads_use(venue: TastytradeSimulator) -> None:
    venue.grants[REFRESH].accounts[THIRD] = SimulatedAccount(THIRD, closed=True)
    async with calling(venue) as call, watching(call):
        [client] = venue.push.clients
        assert client.received[0]["action"] == "connect"
        assert client.received[0]["value"] == [FIRST, SECOND]
        assert client.received[0]["auth-token"] == "Bearer simulated.access-token.00000001"
    assert venue.token_requests == 1
    [handshake] = [request for request in venue.requests if request.path == STREAMER]
    assert handshake.headers["User-Agent"] == USER_AGENT


async def test_a_stored_account_is_connected_alone(venue: TastytradeSimulator) -> None:
    async with calling(venue, account_id=SECOND) as call, watching(call):
        assert venue.push.clients[0].received[0]["value"] == [SECOND]


@pytest.mark.parametrize(("account_type", "numbers"), [("cash", [SECOND]), ("margin", [FIRST])])
async def test_only_accounts_of_the_requested_type_are_connected(
    venue: TastytradeSimulator, account_type: str, numbers: list[str]
) -> None:
    async with calling(venue) as call:
        typed = replace(call, account=replace(call.account, account_type=account_type))
        async with watching(typed) as watch:
            assert venue.push.clients[0].received[0]["value"] == numbers
            venue.change(REFRESH, numbers[0], cash=Decimal(7))
            assert [account.id for account in (await next_balance(watch)).venue_accounts] == numbers


async def test_a_change_of_one_account_is_the_whole_balance_that_a_read_then_gives(
    venue: TastytradeSimulator,
) -> None:
    async with calling(venue) as call, watching(call) as watch:
        for number, amount in ((SECOND, "1.5"), (FIRST, "2"), (SECOND, "3.25")):
            venue.change(REFRESH, number, cash=Decimal(amount))
            pushed = await next_balance(watch)
            assert pushed == await exchange_service_tastytrade.fetch_balance(call)
    assert cash(pushed) == [Decimal(2), Decimal("3.25")]
    assert [account.label for account in pushed.venue_accounts] == ["Individual", "Retirement"]


async def test_before_the_first_read_a_change_is_only_a_hint(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call, aclosing(exchange_service_tastytrade.watch_balance(call)) as watch:  # type: ignore[type-var]
        assert await anext(watch) == Changed()
        venue.change(REFRESH, FIRST, cash=Decimal(5))
        assert await anext(watch) == Changed()
        read = await exchange_service_tastytrade.fetch_balance(call)
        assert cash(read)[0] == 5
        venue.change(REFRESH, FIRST, cash=Decimal(6))
        assert cash(await next_balance(watch))[0] == 6


async def test_what_changed_while_nothing_was_pushed_is_read_before_a_push_counts(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call:
        async with watching(call):
            pass
        venue.grants[REFRESH].accounts[SECOND].cash = Decimal(5)
        async with aclosing(exchange_service_tastytrade.watch_balance(call)) as watch:  # type: ignore[type-var]
            assert await anext(watch) == Changed()
            venue.change(REFRESH, FIRST, cash=Decimal(6))
            assert await anext(watch) == Changed()
            await exchange_service_tastytrade.fetch_balance(call)
            venue.change(REFRESH, FIRST, cash=Decimal(7))
            assert cash(await next_balance(watch)) == [Decimal(7), Decimal(5)]


async def test_what_is_pushed_during_a_read_counts_and_a_later_read_counts_before_it(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TastytradeClient.balances
    async with calling(venue) as call, watching(call) as watch:

        async def overtaken(self: TastytradeClient, number: str) -> Any:
            answer = await read(self, number)
            if number == SECOND:
                venue.change(REFRESH, SECOND, cash=Decimal(9))
                assert cash(await next_balance(watch))[1] == 9
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(TastytradeClient, "balances", overtaken)
            assert cash(await exchange_service_tastytrade.fetch_balance(call))[1] == 9
        # The venue changes a figure and pushes nothing.
        venue.grants[REFRESH].accounts[SECOND].cash = Decimal(10)
        assert cash(await exchange_service_tastytrade.fetch_balance(call))[1] == 10
        venue.change(REFRESH, FIRST, cash=Decimal(4))
        assert cash(await next_balance(watch)) == [Decimal(4), Decimal(10)]


async def test_while_positions_are_open_the_accounts_are_read_now_and_then(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_PRICES", 0.1)
    nothing = dict.fromkeys(("long_equity", "long_derivative", "short_derivative"), Decimal(0))
    async with calling(venue) as call, watching(call) as watch:
        # Pushes of one account do not put the hints off.
        hints = 0
        while hints < 3:
            venue.change(REFRESH, FIRST, cash=Decimal(hints))
            hints += await anext(watch) == Changed()
        for number in (FIRST, SECOND):
            venue.change(REFRESH, number, **nothing)
        balance = await anext(watch)
        while isinstance(balance, Changed) or not all_sold(balance):
            balance = await anext(watch)
        more = asyncio.ensure_future(anext(watch))
        done, _ = await asyncio.wait({more}, timeout=0.3)
        assert not done
        more.cancel()
        await asyncio.wait({more})


def all_sold(balance: Balance) -> bool:
    return all(account.summary and account.summary.equity == account.summary.cash for account in balance.venue_accounts)


async def test_an_account_whose_read_failed_for_a_while_is_read_soon_until_it_is_known(
    venue: TastytradeSimulator,
) -> None:
    async with calling(venue) as call, watching(call) as watch:
        fault = venue.fail(replace(Fault.html(502), path=f"/accounts/{SECOND}/balances"))
        await exchange_service_tastytrade.fetch_balance(call)
        venue.change(REFRESH, FIRST, cash=Decimal(1))
        assert await anext(watch) == Changed()
        venue.recover(fault)
        await exchange_service_tastytrade.fetch_balance(call)
        venue.change(REFRESH, FIRST, cash=Decimal(2))
        assert all(account.error is None for account in (await next_balance(watch)).venue_accounts)


async def test_an_account_with_other_currencies_is_read_after_a_push_of_one(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call, watching(call) as watch:
        entries = [balances_of(FIRST), balances_of(FIRST) | {"currency": "EUR"}]
        body = json.dumps({"data": {"items": entries}}).encode()
        fault = venue.fail(Fault(body=body, path=f"/accounts/{FIRST}/balances"))
        read = await exchange_service_tastytrade.fetch_balance(call)
        assert len(read.venue_accounts[0].assets) == 2
        venue.change(REFRESH, FIRST, cash=Decimal(3))
        assert await anext(watch) == Changed()
        # What other accounts push is not delayed once the account has been read.
        await exchange_service_tastytrade.fetch_balance(call)
        venue.change(REFRESH, SECOND, cash=Decimal(3))
        assert len((await next_balance(watch)).venue_accounts[0].assets) == 2
        venue.recover(fault)


def balances_of(number: str) -> dict[str, Any]:
    data: dict[str, Any] = payload("balances.json")["data"]
    return data | {"account-number": number}


@pytest.mark.parametrize("figure", ["cash-balance", "net-liquidating-value"])
async def test_a_push_without_a_figure_that_every_account_has_is_a_hint_and_never_a_zero(
    venue: TastytradeSimulator, figure: str
) -> None:
    async with calling(venue) as call, watching(call) as watch:
        message = push_of(FIRST, 2)
        del message["data"][figure]
        venue.push.clients[0].send(message)
        assert await anext(watch) == Changed()


def push_of(number: str, cash_balance: Any, at: int = 4_000_000_000_000, **more: Any) -> dict[str, Any]:
    """A message as the venue sends it, which is later than those of the simulator."""
    message: dict[str, Any] = json.loads(read_payload(PAYLOADS / "pushed_balance.json"))
    message["data"] |= {"account-number": number, "cash-balance": str(cash_balance)}
    return message | {"timestamp": at} | more


async def test_messages_are_ordered_by_their_time_and_then_by_their_sequence(venue: TastytradeSimulator) -> None:
    late = 4_000_000_000_000
    async with calling(venue) as call, watching(call) as watch:
        client = venue.push.clients[0]
        for at, sequence, amount in ((5, 1, "5"), (3, 9, "3"), (5, 3, "7"), (5, 2, "6"), (4, 4, "4")):
            client.send(push_of(FIRST, amount, late + at, **{"ws-sequence": sequence}))
        client.send(push_of(SECOND, "8", late))
        balance = await next_balance(watch)
        while cash(balance)[1] != 8:
            balance = await next_balance(watch)
        assert cash(balance) == [Decimal(7), Decimal(8)]


async def test_an_old_message_is_ignored_by_a_new_connection_too(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call:
        async with watching(call) as watch:
            venue.push.clients[0].send(push_of(FIRST, 5))
            assert cash(await next_balance(watch))[0] == 5
        async with watching(call) as watch:
            venue.push.clients[-1].send(push_of(FIRST, 4, at=3_000_000_000_000))
            venue.push.clients[-1].send(push_of(SECOND, 6))
            assert cash(await next_balance(watch)) == [Decimal("12875.412"), Decimal(6)]


async def test_a_batch_of_messages_is_taken_apart(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call, watching(call) as watch:
        order = {"type": "Order", "data": {"account-number": FIRST}, "timestamp": 1}
        results = [order, None, push_of(FIRST, "1.5"), 7, push_of(SECOND, "2.5")]
        venue.push.clients[0].send({"results": results})
        assert cash(await next_balance(watch)) == [Decimal("1.5"), Decimal("2.5")]


@pytest.mark.parametrize(
    "fault",
    [
        PushFault(to_everybody=True, replay=True),
        PushFault(to_everybody=True, shuffled=4),
        PushFault.nonsense(),
    ],
    ids=["replayed", "shuffled", "nonsense"],
)
async def test_two_users_never_get_each_others_figures(venue: TastytradeSimulator, fault: PushFault) -> None:
    venue.add_grant(OTHER, SECRET, SimulatedAccount(THIRD))
    async with (
        calling(venue) as mine,
        calling(venue, OTHER) as theirs,
        watching(mine) as my_watch,
        watching(theirs) as their_watch,
    ):
        venue.push.fail(fault)
        for amount in range(1, 5):
            venue.change(REFRESH, FIRST, cash=Decimal(amount))
            venue.change(OTHER, THIRD, cash=Decimal(1000 + amount))
        for watch, last, numbers in ((my_watch, 4, [FIRST, SECOND]), (their_watch, 1004, [THIRD])):
            figure = None
            while figure != last:
                balance = await next_balance(watch)
                assert [account.id for account in balance.venue_accounts] == numbers
                figure = cash(balance)[0]
                assert figure is not None
                assert (figure > 1000) is (numbers == [THIRD]) or figure == Decimal("12875.412")


async def test_a_malformed_figure_ends_the_watch_with_its_error(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call, watching(call) as watch:
        venue.push.clients[0].send(push_of(FIRST, "many"))
        assert isinstance(await failure_of(watch), VenueMalformed)


async def test_each_heartbeat_has_the_token_of_its_time(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamerLanguage, "keep_alive_every", 0.02)
    venue.token_life = 0.1
    async with calling(venue) as call, watching(call):
        [client] = venue.push.clients
        await until(lambda: len({message["auth-token"] for message in client.received}) >= 4)
        assert {message["action"] for message in client.received[1:]} == {"heartbeat"}
        # Nothing was refused, and reads use the same tokens.
        assert venue.push.clients == [client]
        before = venue.token_requests
        venue.token_life = 900
        await asyncio.gather(*(exchange_service_tastytrade.fetch_balance(call) for _ in range(5)))
        assert venue.token_requests <= before + 1


async def test_a_token_that_the_venue_ended_early_ends_the_watch_and_the_next_one_has_another(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamerLanguage, "keep_alive_every", 0.02)
    async with calling(venue) as call:
        async with watching(call) as watch:
            venue.end_tokens()
            assert isinstance(await failure_of(watch), VenueUnavailable)
        async with watching(call):
            tokens = {message["auth-token"] for message in venue.push.clients[-1].received}
            assert tokens == {"Bearer simulated.access-token.00000002"}
    assert venue.token_requests == 2


async def test_a_revoked_grant_ends_the_watch_at_a_heartbeat(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamerLanguage, "keep_alive_every", 0.02)
    venue.token_life = 0.1
    async with calling(venue) as call, watching(call) as watch:
        refused = b'{"error_code":"invalid_grant","error_description":"Invalid JWT"}'
        venue.fail(Fault(status=400, body=refused, path="/oauth/token"))
        assert isinstance(await failure_of(watch), CredentialRejected)


async def test_a_change_of_the_open_accounts_ends_the_watch_so_that_all_are_connected(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamerLanguage, "keep_alive_every", 0.02)
    async with calling(venue) as call:
        async with watching(call) as watch:
            venue.grants[REFRESH].accounts[THIRD] = SimulatedAccount(THIRD)
            call.account_state.forget("accounts")
            await exchange_service_tastytrade.fetch_balance(call)
            assert "accounts" in (await failure_of(watch)).message
        async with watching(call):
            assert venue.push.clients[-1].received[0]["value"] == [FIRST, SECOND, THIRD]


async def test_accounts_that_are_refused_with_a_new_token_too_are_not_pushed(
    venue: TastytradeSimulator,
) -> None:
    venue.grants[REFRESH].accounts[SECOND].refused = True
    async with calling(venue) as call:
        await exchange_service_tastytrade.fetch_balance(call)
        kinds, messages = [], []
        for _ in range(3):
            error = await failure_of(exchange_service_tastytrade.watch_balance(call))  # type: ignore[arg-type]
            kinds.append(type(error))
            messages.append(error.message)
    # The first attempt had the token of the read, and the third that of the second.
    assert kinds == [VenueUnavailable, NotSupported, VenueUnavailable]
    assert venue.token_requests == 2
    # The venue's own text is not shown.
    assert not any("failed" in message for message in messages)


async def test_an_account_that_the_answer_to_connect_lacks_is_said_not_to_be_pushed(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(client: Any, message: Any) -> None:
        client.send(payload("streamer_connected.json") | {"value": [FIRST]})

    monkeypatch.setattr(venue, "_answer_streamer", answer)
    async with calling(venue) as call:
        error = await failure_of(exchange_service_tastytrade.watch_balance(call))  # type: ignore[arg-type]
    assert isinstance(error, NotSupported)


async def test_a_login_without_an_account_of_the_requested_type_has_no_push(venue: TastytradeSimulator) -> None:
    del venue.grants[REFRESH].accounts[SECOND]
    async with calling(venue) as call:
        typed = replace(call, account=replace(call.account, account_type="cash"))
        error = await failure_of(exchange_service_tastytrade.watch_balance(typed))  # type: ignore[arg-type]
    assert isinstance(error, NotSupported)
    assert venue.push.opened == 0


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (PushFault(silent=True), VenueTimeout),
        (PushFault(half_open=True), VenueTimeout),
        (PushFault.oversized(), VenueMalformed),
    ],
    ids=["silent", "half-open", "oversized"],
)
async def test_a_broken_push_ends_in_time(
    venue: TastytradeSimulator, monkeypatch: pytest.MonkeyPatch, fault: PushFault, error: type[VenueError]
) -> None:
    monkeypatch.setattr(StreamerLanguage, "silence", 0.3)
    monkeypatch.setattr(StreamerLanguage, "keep_alive_every", 0.05)
    async with calling(venue) as call, watching(call) as watch:
        venue.push.fail(fault)
        venue.change(REFRESH, FIRST, cash=Decimal(1))
        assert isinstance(await failure_of(watch), error)
        venue.push.recover()


async def test_a_dropped_connection_and_a_refused_one_end_the_watch(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call:
        async with watching(call) as watch:
            venue.push.drop_all()
            assert isinstance(await failure_of(watch), VenueUnavailable)
        venue.push.fail(PushFault(refused=503))
        error = await failure_of(exchange_service_tastytrade.watch_balance(call))  # type: ignore[arg-type]
        assert isinstance(error, VenueUnavailable)


async def test_closing_a_watch_closes_its_connection_and_leaves_no_task(venue: TastytradeSimulator) -> None:
    async with calling(venue) as call:
        async with watching(call):
            assert len(venue.push.clients) == 1
        await until(lambda: not venue.push.clients)
        await until(lambda: not any("Tasty Trade" in task.get_name() for task in asyncio.all_tasks()))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no event to wait for."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
