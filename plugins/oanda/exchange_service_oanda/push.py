"""OANDA's transaction streams: one for each account of a token, and each transaction is a hint to read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from exchange_service.plugin_api import (
    AccountUnknown,
    Changed,
    CredentialRejected,
    NotSupported,
    PermissionMissing,
    VenueCall,
    VenueError,
    VenueMalformed,
    parse_json,
)
from exchange_service_oanda import parse
from exchange_service_oanda.client import OandaClient

# Streams of one watch. Six watches, as the manifest says, then keep within the twenty that OANDA allows an address,
# whichever replicas they are on.
MOST_STREAMS = 3
# Lines in a row that nobody can read, after which a stream is given up. Until then the next heartbeat's number tells
# whether one of them was a transaction.
_MOST_UNREADABLE = 20
# Lines after which others get their turn: what has arrived already is read without a pause.
_TURN = 20
# What refuses one account of a token whose other accounts are followed, for example one of another platform.
_ACCOUNT_REFUSED = (AccountUnknown, PermissionMissing, CredentialRejected)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds."""

    # Three heartbeats of five seconds and a little: a stream that is silent for so long has ended.
    silence: float = 16.0
    # Between two hints while trades are open.
    prices: float = 10.0
    # Between two new streams of this process. OANDA wants two new connections a second at most, polls among them.
    openings: float = 1.0


async def watch_transactions(call: VenueCall, times: Times = Times()) -> AsyncGenerator[Changed, None]:
    """A hint when the streams stand, after each transaction, and every ten seconds while trades are open: equity moves
    with prices, of which no stream tells. Raises a VenueError when one of the streams ends."""
    client = OandaClient(call)
    last = await client.last_read()
    while True:
        listed = await client.accounts()
        last.accounts = listed.keys()
        async with _open_streams(call, client, _followed(listed), times) as streams:
            # What came before, and while there was no stream, is read now.
            yield Changed()
            # A read finds an account that was opened later: it gets a stream too.
            while listed.keys() >= set(last.accounts):
                told = await streams.wait(times.prices)
                if told or any(last.holding.get(account, True) for account in streams.accounts):
                    yield Changed()


def _followed(listed: Mapping[str, str | VenueMalformed]) -> Sequence[str]:
    """The accounts that have streams. Raises NotSupported if there are too many."""
    accounts = [account for account, entry in listed.items() if isinstance(entry, str)]
    if not accounts:
        raise VenueMalformed("OANDA's list of accounts cannot be read.")
    if len(accounts) > MOST_STREAMS:
        raise NotSupported(
            f"The token shows {len(accounts)} accounts, and each needs a stream of its own, of which OANDA allows few.",
            advice="Store the account_id of the account to follow, to have it pushed.",
        )
    return accounts


class _Streams:
    """The open streams of a token, and whether one of them has told something."""

    def __init__(self) -> None:
        # Those whose streams stand.
        self.accounts: list[str] = []
        self._readers: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._error: Exception | None = None

    def follow(self, account: str, lines: AsyncIterator[bytes]) -> None:
        """Begin to read an account's stream."""
        self.accounts.append(account)
        reading = self._read(_Transactions(account), lines)
        self._readers.append(asyncio.get_running_loop().create_task(reading, name="transactions of OANDA"))

    async def wait(self, seconds: float) -> bool:
        """Whether a stream has told something within these seconds. Raises what ended one."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        if self._error is not None:
            raise self._error
        return True

    async def close(self) -> None:
        """Stop reading."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read(self, transactions: _Transactions, lines: AsyncIterator[bytes]) -> None:
        count = 0
        try:
            async for line in lines:
                if transactions.take(line):
                    self._news.set()
                count += 1
                if count % _TURN == 0:
                    await asyncio.sleep(0)
        except Exception as error:
            self._error = error
            self._news.set()


class _Transactions:
    """What one account's stream has told: the number of its newest transaction, and how much could not be read."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._newest: int | None = None
        self._unreadable = 0

    def take(self, line: bytes) -> bool:
        """Whether the line means a change: a transaction, or a heartbeat that knows of one that did not come."""
        try:
            message = parse.stream_message(parse_json(line), self._account)
        except VenueMalformed:
            self._unreadable += 1
            if self._unreadable >= _MOST_UNREADABLE:
                raise VenueMalformed("OANDA's stream sends lines that are not transactions.") from None
            return False
        self._unreadable = 0
        if message is None:
            return False
        before, self._newest = self._newest, message.newest
        return not message.heartbeat or before not in (None, message.newest)


@asynccontextmanager
async def _open_streams(
    call: VenueCall, client: OandaClient, accounts: Sequence[str], times: Times
) -> AsyncIterator[_Streams]:
    """The streams of these accounts without those that OANDA refuses. Raises the refusal if it refuses all of them."""
    openings = await call.plugin_state.get(f"stream openings {call.way}", _new_openings)
    refusal: VenueError | None = None
    async with AsyncExitStack() as stack:
        streams = _Streams()
        for account in accounts:
            await openings.wait(times.openings)
            try:
                lines = await stack.enter_async_context(client.transactions(account, silence=times.silence))
            except _ACCOUNT_REFUSED as error:
                # Its summary is refused as well, and is in the balance with that error.
                refusal = error
                continue
            # Before the connection closes, nothing may read from it.
            stack.push_async_callback(streams.close)
            streams.follow(account, lines)
        if refusal is not None and not streams.accounts:
            raise refusal
        yield streams


class _Openings:
    """Lets the streams of all accounts of this process begin one after the other."""

    def __init__(self) -> None:
        self._next = 0.0

    async def wait(self, pause: float) -> None:
        """Return when the next stream may begin."""
        now = asyncio.get_running_loop().time()
        begin = max(now, self._next)
        self._next = begin + pause
        await asyncio.sleep(begin - now)


async def _new_openings() -> _Openings:
    return _Openings()
