"""What Hyperliquid pushes: a wallet's states become its balance, and nobody gets another wallet's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from exchange_service_hyperliquid import HYPERLIQUID, fetch_balance, watch_balance
from exchange_service_hyperliquid.push import HyperliquidLanguage, topics
from exchange_service_hyperliquid.simulator import (
    HyperliquidSimulator,
    SimulatedPerps,
    SimulatedWallet,
    portfolio_margin_wallet,
    standard_wallet,
    unified_wallet,
)

from exchange_service.plugin_api import (
    Balance,
    Changed,
    NotSupported,
    RequestRefused,
    State,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import Fault, venue_call
from exchange_service.testing.push import PushFault
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
ALICE = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
BOB = "0x035605fc2f24d65300227189025e90a0d947f16c"
AGENT = "0x00000000000000000000000000000000000a6e47"

Watch = AsyncGenerator[Balance | Changed, None]


class Watched:
    """A watch of one account, and its reads, as the service runs them."""

    def __init__(self, call: VenueCall) -> None:
        self.call = call
        self.watch = cast("Watch", watch_balance(call))

    async def close(self) -> None:
        await self.watch.aclose()

    async def next(self) -> Balance | Changed:
        async with asyncio.timeout(5.0):
            return await anext(self.watch)

    async def read(self) -> Balance:
        return await fetch_balance(self.call)

    async def begin(self) -> Balance:
        """The read that follows the first word of the watch."""
        assert await self.next() == Changed()
        return await self.read()

    async def again(self) -> None:
        """Begin another watch of the account, as the service does after one that has broken."""
        await self.watch.aclose()
        self.watch = cast("Watch", watch_balance(self.call))
        assert await self.next() == Changed()

    async def balance(self) -> Balance:
        """The next whole balance."""
        while not isinstance(item := await self.next(), Balance):
            pass
        return item

    async def balance_where(self, holds: Callable[[Balance], bool]) -> Balance:
        """The next whole balance of which this holds: the states of one change are messages of their own."""
        while not holds(balance := await self.balance()):
            pass
        return balance

    async def error(self) -> VenueError:
        """What ends the watch."""
        while True:
            try:
                await self.next()
            except VenueError as error:
                return error


class Venue(HyperliquidSimulator):
    """A venue that tells when it is asked something, and that does not push these kinds of states."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.withheld: tuple[str, ...] = ()

    def _pushed(self, topic: tuple[str, str, str]) -> Any:
        return {"channel": "pong"} if topic[0] in self.withheld else super()._pushed(topic)

    def account_of(self, request: web.Request, body: bytes) -> str:
        self.asked.set()
        return super().account_of(request, body)


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    """A venue with Alice's unified wallet and Bob's standard one."""
    async with Venue() as simulator:
        simulator.add_wallet(ALICE, unified_wallet())
        simulator.add_wallet(BOB, standard_wallet())
        yield simulator


@pytest.fixture
async def watching(venue: Venue) -> AsyncIterator[Callable[..., Awaitable[Watched]]]:
    """Opens a watch. All of them share the plugin's state, as in the service. At the end no task may be left."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        shared = State()
        stack.push_async_callback(shared.close)

        async def start(address: str = ALICE, *, account_type: str = "", **metadata: Any) -> Watched:
            call = await stack.enter_async_context(
                venue_call(
                    HYPERLIQUID,
                    override=venue.url,
                    metadata={"wallet_address": address, **metadata},
                    account_type=account_type,
                    plugin_state=shared,
                )
            )
            watched = Watched(replace(call, deadline=float("inf")))
            stack.push_async_callback(watched.close)
            return watched

        yield start
    venue.push.recover()
    async with asyncio.timeout(5.0):
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed at once."""
    monkeypatch.setattr(HyperliquidLanguage, "silence", 0.4)
    monkeypatch.setattr(HyperliquidLanguage, "keep_alive_every", 0.1)


def spend(venue: Venue, address: str, amount: str) -> None:
    """The USDC of the spot wallet becomes this, and the venue tells it."""
    wallet = venue.wallets[address]
    wallet.spot = [(coin, token, amount if coin == "USDC" else total, hold) for coin, token, total, hold in wallet.spot]
    venue.announce(address)


def usdc(balance: Balance) -> Decimal | None:
    return next(row.total for account, row in balance.rows() if account.type == "spot" and row.asset == "USDC")


@pytest.mark.parametrize("wallet", [unified_wallet, standard_wallet, portfolio_margin_wallet])
async def test_a_change_arrives_as_the_balance_that_a_read_then_gives(
    wallet: Callable[[], SimulatedWallet], venue: Venue, watching: Any
) -> None:
    venue.add_wallet(ALICE, wallet())
    watched = await watching()
    before = await watched.begin()
    requests = len(venue.requests)
    spend(venue, ALICE, "4711.5")
    balance = await watched.balance_where(lambda balance: usdc(balance) == Decimal("4711.5"))
    # The socket apart, the change has cost no request.
    assert len(venue.requests) == requests
    assert balance == await watched.read() != before


async def test_stored_builder_dexs_are_pushed_each_by_its_name(venue: Venue, watching: Any) -> None:
    venue.wallets[BOB].perps["flx"] = SimulatedPerps(Decimal(7))
    watched = await watching(BOB, dexs="xyz,flx")
    await watched.begin()
    venue.wallets[BOB].perps["flx"].deposit = Decimal(9)
    venue.announce(BOB)
    found = await watched.balance_where(lambda balance: perpetuals(balance)["flx"] == ("USDH", Decimal(9)))
    assert perpetuals(found)["xyz"] == ("USDC", Decimal(508))
    assert perpetuals(found)[""] == ("USDC", Decimal("8420.118264"))


def perpetuals(balance: Balance) -> dict[str, tuple[str, Decimal | None]]:
    """Asset and total by dex."""
    return {
        account.sub_account: (account.assets[0].asset, account.assets[0].total)
        for account in balance.venue_accounts
        if account.type == "perpetual"
    }


async def test_a_push_that_overtakes_a_read_counts(venue: Venue, watching: Any) -> None:
    watched = await watching()
    await watched.begin()
    known = venue.wallets[ALICE].spot
    venue.asked.clear()
    slow = venue.fail(Fault(delay=0.3, pass_on=True))
    reading = asyncio.create_task(watched.read())
    await venue.asked.wait()
    spend(venue, ALICE, "99.5")
    assert await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))
    # The answer is of before the change.
    venue.wallets[ALICE].spot = known
    assert usdc(await reading) == Decimal("5230.118264")
    venue.recover(slow)
    assert usdc(await watched.balance()) == Decimal("99.5")


async def test_of_two_reads_the_one_that_began_later_counts(venue: Venue, watching: Any) -> None:
    watched = await watching()
    await watched.begin()
    known = venue.wallets[ALICE].spot
    venue.asked.clear()
    slow = venue.fail(Fault(delay=0.2, pass_on=True))
    reading = asyncio.create_task(watched.read())
    await venue.asked.wait()
    venue.recover(slow)
    venue.wallets[ALICE].spot = [("USDC", 0, "98.5", "0.0")]
    assert usdc(await watched.read()) == Decimal("98.5")
    venue.wallets[ALICE].spot = known
    await reading
    venue.announce_perpetuals(ALICE)
    assert usdc(await watched.balance()) == Decimal("98.5")


async def test_what_a_read_has_seen_is_not_replaced_by_an_older_push(venue: Venue, watching: Any) -> None:
    """A push that was lost is made up for by the next read, and other parts' pushes do not bring the old part back."""
    watched = await watching()
    await watched.begin()
    spend(venue, ALICE, "99.5")
    assert await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))
    venue.wallets[ALICE].spot = [("USDC", 0, "98.5", "0.0")]
    assert usdc(await watched.read()) == Decimal("98.5")
    venue.announce_perpetuals(ALICE)
    assert usdc(await watched.balance()) == Decimal("98.5")


async def test_after_a_break_no_part_is_taken_from_a_read_before_it(venue: Venue, watching: Any) -> None:
    """The states of a new connection come one by one, and what the old one brought last is gone with it."""
    watched = await watching()
    await watched.begin()
    spend(venue, ALICE, "99.5")
    assert await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))
    venue.withheld = ("spotState",)
    await watched.again()
    venue.announce(ALICE)
    assert await watched.next() == Changed()
    assert usdc(await watched.read()) == Decimal("99.5")
    venue.announce(ALICE)
    assert usdc(await watched.balance()) == Decimal("99.5")


async def test_after_a_break_no_read_is_needed_once_every_part_has_come(venue: Venue, watching: Any) -> None:
    watched = await watching()
    await watched.begin()
    await watched.again()
    spend(venue, ALICE, "99.5")
    assert await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))


async def test_a_pushed_state_that_is_older_than_the_read_by_the_venues_time_is_passed_over(
    venue: Venue, watching: Any
) -> None:
    """Reads and pushes come from different servers of the venue, and either may lag."""
    watched = await watching(BOB)
    await watched.begin()
    main = venue.wallets[BOB].perps[""]
    lagging = venue._pushed(("clearinghouseState", BOB, ""))
    main.deposit, main.time = main.deposit + 100, main.time + 50
    read = await watched.read()
    venue.push.publish(("clearinghouseState", BOB, ""), lagging)
    assert perpetuals(await watched.balance()) == perpetuals(read)


async def test_what_came_before_the_first_word_is_not_told_again(venue: Venue, watching: Any) -> None:
    await (await watching()).begin()
    # The wallet is followed already, and its states are known.
    second = await watching()
    assert await second.next() == Changed()
    following = asyncio.create_task(second.next())
    await asyncio.sleep(0.05)
    assert not following.done()
    venue.announce(ALICE)
    assert await following == Changed()


async def test_one_wallet_of_two_users_is_followed_once(venue: Venue, watching: Any) -> None:
    first, second = await watching(), await watching()
    await first.begin()
    await second.begin()
    (client,) = venue.push.clients
    assert client.topics == set(topics(ALICE, ()))
    spend(venue, ALICE, "99.5")
    for watched in (first, second):
        assert await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))
    await first.watch.aclose()
    spend(venue, ALICE, "98.5")
    assert await second.balance_where(lambda balance: usdc(balance) == Decimal("98.5"))
    await second.watch.aclose()
    # The venue hears of it before it hears of the next one.
    await (await watching(BOB)).begin()
    assert client.topics == set(topics(BOB, ()))
    assert venue.push.opened == 1


@pytest.mark.parametrize(
    "fault",
    [
        PushFault(to_everybody=True),
        PushFault(to_everybody=True, shuffled=4),
        PushFault(to_everybody=True, replay=True),
        PushFault(to_everybody=True, shuffled=3, replay=True, before=PushFault.nonsense().before[:3]),
    ],
    ids=["to everybody", "in any order", "again", "all at once"],
)
async def test_nobody_gets_the_figures_of_another_wallet(fault: PushFault, venue: Venue, watching: Any) -> None:
    """Both wallets are on one socket, and every message reaches both users' connection."""
    amounts = {ALICE: {"5230.118264", "0.25"}, BOB: {"0.0", "0.75"}}
    last = {ALICE: "0.25", BOB: "0.75"}
    seen: dict[str, set[str]] = {ALICE: set(), BOB: set()}
    watches = {address: await watching(address) for address in (ALICE, BOB)}

    async def follow(address: str, watched: Watched) -> None:
        while last[address] not in seen[address]:
            seen[address].add(str(usdc(await watched.balance())))

    for watched in watches.values():
        await watched.begin()
    venue.push.fail(fault)
    following = [asyncio.create_task(follow(*item)) for item in watches.items()]
    for number in range(300):
        address = (ALICE, BOB)[number % 3 == 0]
        amounts[address].add(f"{1000 + number}.25")
        spend(venue, address, f"{1000 + number}.25")
        if number % 20 == 0:
            # Both read what has come by now.
            await asyncio.sleep(0.005)
    venue.push.recover()
    for address in last:
        spend(venue, address, last[address])
    await asyncio.gather(*following)
    assert len(venue.push.clients) == 1
    for address in (ALICE, BOB):
        assert len(seen[address]) > 5
        assert seen[address] <= amounts[address]


async def test_nonsense_and_unknown_messages_are_passed_over(venue: Venue, watching: Any) -> None:
    watched = await watching()
    await watched.begin()
    unknown = ('{"channel":"webData9","data":{"user":1}}', '{"channel":"spotState"}', '{"channel":"error","data":7}')
    venue.push.fail(replace(PushFault.nonsense(), before=(*PushFault.nonsense().before, *unknown)))
    spend(venue, ALICE, "99.5")
    assert await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))


@pytest.mark.parametrize(
    ("breaks", "error"),
    [
        (PushFault(silent=True), VenueTimeout),
        (PushFault(half_open=True), VenueTimeout),
        (PushFault.oversized(), VenueMalformed),
        ("dropped", VenueUnavailable),
    ],
    ids=["silence", "half-open", "oversized", "drop"],
)
async def test_a_push_that_breaks_says_so_in_time(
    breaks: PushFault | str, error: type[VenueError], venue: Venue, watching: Any, impatient: None
) -> None:
    watched = await watching()
    await watched.begin()
    if isinstance(breaks, PushFault):
        venue.push.fail(breaks)
        spend(venue, ALICE, "99.5")
    else:
        venue.push.drop_all()
    assert type(await watched.error()) is error


async def test_a_connection_stays_open_by_its_keep_alive(venue: Venue, watching: Any, impatient: None) -> None:
    venue.idle_limit = 0.3
    watched = await watching()
    await watched.begin()
    await asyncio.sleep(0.6)
    spend(venue, ALICE, "99.5")
    assert await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))
    assert venue.push.opened == 1


async def test_a_refused_connection_says_why(venue: Venue, watching: Any) -> None:
    venue.push.fail(PushFault(refused=503))
    assert type(await (await watching()).error()) is VenueUnavailable


@pytest.mark.parametrize(
    "data",
    [{}, {"spotState": None}, {"spotState": []}, {"spotState": {"balances": [{"coin": "USDC", "hold": "0.0"}]}}],
)
async def test_a_malformed_state_ends_the_push_of_its_own_wallet_alone(data: Any, venue: Venue, watching: Any) -> None:
    alice, bob = await watching(ALICE), await watching(BOB)
    await alice.begin()
    await bob.begin()
    venue.push.publish(("spotState", ALICE, ""), {"channel": "spotState", "data": {"user": ALICE, **data}})
    assert type(await alice.error()) is VenueMalformed
    spend(venue, BOB, "99.5")
    assert await bob.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))


async def test_the_eleventh_address_is_refused_until_one_of_the_ten_goes(venue: Venue, watching: Any) -> None:
    addresses = [f"0x{number:040x}" for number in range(11)]
    for address in addresses:
        venue.add_wallet(address, unified_wallet())
    *ten, eleventh = [await watching(address) for address in addresses]
    for watched in ten:
        await watched.begin()
    refused = await eleventh.error()
    assert type(refused) is VenueRateLimited
    assert refused.given_delay == 60.0
    assert venue.followed() == set(addresses[:10])
    # The others on the connection have not noticed.
    spend(venue, addresses[0], "99.5")
    assert await ten[0].balance_where(lambda balance: usdc(balance) == Decimal("99.5"))
    await ten[3].watch.aclose()
    assert await (await watching(addresses[10])).begin()
    assert venue.followed() == {*addresses} - {addresses[3]}


async def test_what_another_program_follows_counts_too(venue: Venue, watching: Any) -> None:
    venue.users_of_others = 10
    assert type(await (await watching()).error()) is VenueRateLimited
    venue.users_of_others = 9
    assert await (await watching()).begin()


@pytest.mark.parametrize(
    ("account_type", "metadata"),
    [
        ("", {"sub_accounts": True}),
        ("", {"vaults": True}),
        ("", {"staking": True}),
        ("all", {}),
        ("vault", {}),
        ("staking", {}),
    ],
)
async def test_an_account_with_parts_that_are_not_pushed_is_polled(
    account_type: str, metadata: Any, venue: Venue, watching: Any
) -> None:
    error = await (await watching(account_type=account_type, **metadata)).error()
    assert type(error) is NotSupported
    assert error.message.endswith("is polled.")
    assert venue.push.opened == 0


@pytest.mark.parametrize("account_type", ["spot", "perpetual"])
async def test_a_type_that_is_asked_for_alone_is_pushed_alone(account_type: str, venue: Venue, watching: Any) -> None:
    watched = await watching(BOB, account_type=account_type)
    await watched.begin()
    venue.announce(BOB)
    balance = await watched.balance()
    assert {account.type for account in balance.venue_accounts} == {account_type}


async def test_of_an_api_wallet_the_main_wallet_is_pushed(venue: Venue, watching: Any) -> None:
    venue.add_agent(AGENT, ALICE)
    watched = await watching(AGENT)
    await watched.begin()
    # It follows the other address now, and what came before is not known: read again.
    assert await watched.next() == Changed()
    assert venue.followed() == {ALICE}
    spend(venue, ALICE, "99.5")
    balance = await watched.balance_where(lambda balance: usdc(balance) == Decimal("99.5"))
    assert balance == await watched.read()
    assert any("API wallet" in note for note in balance.notes)


async def test_a_change_of_mode_is_for_a_read_to_explain(venue: Venue, watching: Any) -> None:
    watched = await watching()
    await watched.begin()
    venue.wallets[ALICE].mode = "default"
    venue.announce(ALICE)
    while await watched.next() != Changed():
        pass
    read = await watched.read()
    venue.announce(ALICE)
    assert {account.type for account in read.venue_accounts} == {"perpetual", "spot"}
    assert replace(await watched.balance(), venue_time=None).summary == read.summary


async def test_an_emptied_wallet_is_for_a_read_to_explain(venue: Venue, watching: Any) -> None:
    """The venue shows an address that it does not know as an empty one."""
    watched = await watching()
    await watched.begin()
    venue.wallets[ALICE].perps, venue.wallets[ALICE].spot = {}, []
    venue.announce(ALICE)
    while await watched.next() != Changed():
        pass
    read = await watched.read()
    venue.announce(ALICE)
    assert (await watched.balance()).venue_accounts == read.venue_accounts


async def test_an_account_with_an_unreadable_part_is_polled(venue: Venue, watching: Any) -> None:
    assert type(await (await watching(BOB, dexs="gone")).error()) is RequestRefused
    watched = await watching(BOB)
    venue.wallets[BOB].answers["clearinghouseState"] = {}
    await watched.begin()
    assert type(await watched.error()) is VenueUnavailable


class TestLanguage:
    """How the venue's messages are read."""

    def test_silence_is_noticed_before_the_venue_closes_an_idle_connection_and_within_two_polls(self) -> None:
        assert 0 < 2 * HyperliquidLanguage.keep_alive_every < HyperliquidLanguage.silence < 20 < 50

    def language(self, *followed: Any) -> HyperliquidLanguage:
        language = HyperliquidLanguage("wss://venue.example/ws")
        list(language.subscribe(followed))
        return language

    def read(self, language: HyperliquidLanguage, message: Any) -> list[tuple[Any, Any]]:
        return list(language.read(parse_json(json.dumps(message).encode())))

    def test_a_message_is_sorted_by_the_address_and_the_dex_that_it_names(self) -> None:
        language = self.language()
        for name, topic in {
            "push_spot_state": ("spotState", ALICE, ""),
            "push_clearinghouse_state": ("clearinghouseState", ALICE, "xyz"),
        }.items():
            message = parse_json(read_payload(PAYLOADS / f"{name}.json"))
            assert list(language.read(message)) == [(topic, message["data"][topic[0]])]

    def test_an_acknowledgement_is_for_the_topic_that_it_quotes(self) -> None:
        language = self.language()
        assert list(language.read(parse_json(read_payload(PAYLOADS / "push_acknowledgement.json")))) == [
            (("spotState", ALICE, ""), None)
        ]
        subscription = {"type": "clearinghouseState", "user": ALICE.upper().replace("X", "x"), "dex": "xyz"}
        data = {"method": "subscribe", "subscription": subscription}
        assert self.read(language, {"channel": "subscriptionResponse", "data": data}) == [
            (("clearinghouseState", ALICE, "xyz"), None)
        ]

    def test_the_end_of_a_subscription_acknowledges_nothing(self) -> None:
        data = {"method": "unsubscribe", "subscription": {"type": "spotState", "user": ALICE}}
        assert self.read(self.language(), {"channel": "subscriptionResponse", "data": data}) == []

    @pytest.mark.parametrize(
        ("told", "number", "error"),
        [
            ("Cannot track more than 10 total users.", 0, VenueRateLimited),
            ("Cannot track more than 15 total users.", 0, VenueRateLimited),
            ("Cannot subscribe to more than 1000 channels.", 0, VenueRateLimited),
            (f'Invalid subscription {{"type":"spotState","user":"{BOB}"}}', 2, RequestRefused),
            (
                "Error parsing JSON into valid websocket request: "
                f'{{"method":"subscribe","subscription":{{"type":"clearinghouseState","user":"{ALICE}","dex":""}}}}',
                1,
                RequestRefused,
            ),
            ("Something that is not known yet", 0, RequestRefused),
            ("Something {that is} not known yet", 0, RequestRefused),
            (f'Already subscribed: {{"type":"spotState","user":"{BOB}"}}', 2, type(None)),
        ],
    )
    def test_an_error_is_for_the_subscription_that_it_quotes_or_for_the_oldest_one(
        self, told: str, number: int, error: type[VenueError]
    ) -> None:
        followed = (*topics(ALICE, ()), ("spotState", BOB, ""))
        ((topic, part),) = self.read(self.language(*followed), {"channel": "error", "data": told})
        assert (topic, type(part)) == (followed[number], error)

    def test_an_answered_subscription_gets_no_error_of_another(self) -> None:
        language = self.language(("spotState", ALICE, ""), ("spotState", BOB, ""))
        data = {"method": "subscribe", "subscription": {"type": "spotState", "user": ALICE}}
        self.read(language, {"channel": "subscriptionResponse", "data": data})
        full = {"channel": "error", "data": "Cannot track more than 10 total users."}
        assert [topic for topic, _ in self.read(language, full)] == [("spotState", BOB, "")]
        assert self.read(language, full) == []

    def test_the_error_of_an_unsubscription_refuses_nothing(self) -> None:
        told = f'Already unsubscribed: {{"type":"spotState","user":"{ALICE}"}}'
        assert self.read(self.language(("spotState", ALICE, "")), {"channel": "error", "data": told}) == []

    def test_too_many_messages_end_the_connection(self) -> None:
        with pytest.raises(VenueRateLimited):
            self.read(self.language(), {"channel": "error", "data": "Cannot send more than 2000 messages per minute."})

    async def test_an_older_state_of_a_dex_is_passed_over(self) -> None:
        language, topic = self.language(), ("clearinghouseState", ALICE, "")
        newest = language.state(topic, None, {"time": 7})
        assert language.state(topic, newest, {"time": 6}) is newest
        assert language.state(topic, newest, {"time": 8}).payload == {"time": 8}
        # States of spot name no time.
        assert language.state(topic, newest, {"balances": []}).payload == {"balances": []}
