"""The clients, in a process of their own: `python -m tests.chaos.clients FILE SEED EXCHANGE ADDRESS ADDRESS`.

Twenty callers and fifty subscribers at all replicas write what they see to FILE, as lines of `history`. They take lines
of JSON on their standard input, and end with it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import grpc
from google.rpc import error_details_pb2, status_pb2

from exchange_service.client import ExchangeServiceClient, ServiceUnreachable
from exchange_service.errors import ServiceError
from exchange_service.v1 import balance_pb2, error_reason_pb2, exchange_service_pb2_grpc
from exchange_service.v1.exchange_service_pb2 import AccountSelector, GetBalanceRequest, StreamBalancesResponse
from tests.chaos.accounts import REGULAR, read_amount, user_name
from tests.chaos.history import Event, Lag, Record, Reply, as_line

DEADLINE = 2.0
# A replica that was away is found again soon.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 400),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_BOTH = (("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),)
# Kinds of callers with how many there are, and the seconds between two calls of one.
CALLERS = {
    "plain": (8, 0.15),
    "hot": (2, 0.06),
    "named": (4, 0.15),
    "forced": (2, 0.8),
    "young": (2, 0.3),
    "new": (2, 0.5),
}
SUBSCRIBERS = {"fixed": 16, "both": 14, "hopping": 14, "slow": 3, "interval": 3}
_HOT_SHARE = 0.3
# Seconds: between two looks at how late the loop is, and the least lateness that is written.
_TICK, _LATE = 0.02, 0.02
_CODE = re.compile(r"\(([A-Z_]+):")


class Clients:
    """All clients. `out` takes what they see."""

    def __init__(self, out: TextIO, seed: int, exchange: str, addresses: Sequence[str]) -> None:
        self._out = out
        self._random = random.Random(seed)
        self._exchange = exchange
        self._addresses = addresses
        self._stubs: list[Any] = []
        # How many new accounts there are, and how many were asked for.
        self._new, self._used = 0, 0

    def write(self, record: Record) -> None:
        """Write what was seen."""
        self._out.write(f"{as_line(record)}\n")

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Be there until there are no more commands."""
        channels = [grpc.aio.insecure_channel(address, options=OPTIONS) for address in self._addresses]
        make: Any = exchange_service_pb2_grpc.ExchangeServiceStub
        self._stubs = [make(channel) for channel in channels]
        works = [self._caller(kind, number) for kind, (count, _) in CALLERS.items() for number in range(count)]
        works += [self._subscriber(kind, number) for kind, count in SUBSCRIBERS.items() for number in range(count)]
        tasks = [asyncio.create_task(work) for work in (*works, self._watch_loop(), self._flush())]
        listening = asyncio.create_task(self._obey(commands))
        done, _ = await asyncio.wait({listening, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, listening):
            task.cancel()
        for task in done:
            task.result()
        await asyncio.wait(tasks, timeout=2)
        self._out.flush()
        for channel in channels:
            await channel.close()

    async def _obey(self, commands: asyncio.StreamReader) -> None:
        while line := await commands.readline():
            self._new = int(json.loads(line)["new"])

    async def _watch_loop(self) -> None:
        while True:
            wanted = time.monotonic() + _TICK
            await asyncio.sleep(_TICK)
            late = time.monotonic() - wanted
            if late > _LATE:
                self.write(Lag(time.monotonic(), round(late, 3), "clients"))

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self._out.flush()

    async def _caller(self, kind: str, number: int) -> None:
        _, pause = CALLERS[kind]
        name = f"{kind}-{number}"
        versions: dict[int, int] = {}
        while True:
            await asyncio.sleep(pause * self._random.uniform(0.5, 1.5))
            user = self._user(kind)
            if user is None:
                continue
            request = GetBalanceRequest(user_id=user_name(user), exchange_id=self._exchange)
            if kind in ("forced", "young"):
                request.max_age.FromMilliseconds(0 if kind == "forced" else 1000)
            if kind == "named":
                request.known_version = versions.get(user, 0)
            # Every replica is asked for a new account at the same time: the venue must be asked once even so.
            everywhere = range(len(self._stubs))
            replicas = everywhere if kind == "new" else (self._random.choice(everywhere),)
            calls = [self._call(name, replica, request, kind == "new") for replica in replicas]
            for reply in await asyncio.gather(*calls):
                self.write(reply)
                versions[user] = max(versions.get(user, 0), reply.version)

    def _user(self, kind: str) -> int | None:
        if kind == "new":
            if self._used >= self._new:
                return None
            self._used += 1
            return REGULAR + self._used - 1
        if kind == "hot" or self._random.random() < _HOT_SHARE:
            return 0
        return self._random.randrange(REGULAR)

    async def _call(self, caller: str, replica: int, request: GetBalanceRequest, new: bool) -> Reply:
        fields: dict[str, Any] = {
            "caller": caller,
            "replica": replica,
            "user": request.user_id,
            "account": self._exchange,
            "deadline": DEADLINE,
            "max_age": request.max_age.ToMilliseconds() / 1000 if request.HasField("max_age") else None,
            "known_version": request.known_version,
            "new": new,
            "begin": time.monotonic(),
        }
        try:
            reply = await self._stubs[replica].GetBalance(request, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            end = time.monotonic()
            text = f"{error.details()} {error.trailing_metadata()}"
            return Reply(**fields, end=end, code=error.code().name, reason=_reason(error), message=text[:600])
        end = time.monotonic()
        return Reply(**fields, end=end, code="OK", **_value(reply.balance, reply.freshness))

    async def _subscriber(self, kind: str, number: int) -> None:
        await asyncio.sleep(self._random.uniform(0, 0.5))
        replica = number % len(self._addresses)
        follower = Follower(self, f"{kind}-{number}", number % REGULAR, self._exchange, kind == "slow")
        # Some follow all accounts of their user, others name the one.
        follower.named = number % 3 > 0 or kind == "hopping"
        if kind == "hopping":
            await self._hop(follower, replica)
        target = f"ipv4:{','.join(self._addresses)}" if kind == "both" else self._addresses[replica]
        options = (*OPTIONS, *(_BOTH if kind == "both" else ()))
        follower.replica = -1 if kind == "both" else replica
        async with ExchangeServiceClient(target, options=options) as client:
            while True:
                await follower.follow(client, resume=True, min_interval=1.5 if kind == "interval" else 0.0)

    async def _hop(self, follower: Follower, replica: int) -> None:
        """Follow at one replica for some seconds, then go on at the next one with the versions that are known."""
        clients = [ExchangeServiceClient(address, options=OPTIONS) for address in self._addresses]
        while True:
            follower.replica = replica
            with suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(1.0, 3.0)):
                    await follower.follow(clients[replica], resume=False)
            follower.attempt += 1
            replica = (replica + 1) % len(clients)


class Follower:
    """One subscriber, over all of its streams."""

    def __init__(self, clients: Clients, name: str, user: int, exchange: str, slow: bool) -> None:
        self._clients = clients
        self._name = name
        self._user = user_name(user)
        self._exchange = exchange
        self._slow = slow
        self.named = True
        self.replica = -1
        self.attempt = 0
        self.version = 0

    async def follow(self, client: ExchangeServiceClient, *, resume: bool, min_interval: float = 0.0) -> None:
        """Read events until the stream ends, and wait a little if it ends with an error."""
        selector = AccountSelector(exchange_id=self._exchange, known_version=self.version)
        accounts = [selector] if self.named else []
        stream = client.stream_balances(
            self._user, accounts, min_interval=min_interval, resume=resume, on_interruption=self._interrupted
        )
        try:
            async for event in stream:
                for record in self._records(event):
                    self._clients.write(record)
                if self._slow:
                    await asyncio.sleep(0.7)
        except ServiceError as error:
            self._interrupted(error)
            await asyncio.sleep(0.2)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def _interrupted(self, error: ServiceError) -> None:
        code = match[1] if isinstance(error, ServiceUnreachable) and (match := _CODE.search(str(error))) else ""
        reason = "" if isinstance(error, ServiceUnreachable) else error.reason
        self._clients.write(self._event("end", reason=reason, code=code, message=str(error)[:300]))
        self.attempt += 1

    def _records(self, event: StreamBalancesResponse) -> Iterable[Event]:
        kind = event.WhichOneof("event")
        if kind == "balance":
            value = _value(event.balance.balance, event.balance.freshness)
            self.version = max(self.version, value["version"])
            yield self._event("balance", **value)
        elif kind == "account_error":
            error = event.account_error
            reason = _reason_name(error.error.reason)
            yield self._event("error", version=error.last_version, reason=reason, message=error.error.message[:200])
        elif kind == "heartbeat":
            for account in event.heartbeat.accounts:
                age = account.age.ToTimedelta().total_seconds() if account.HasField("age") else None
                reason = _reason_name(account.error.reason) if account.HasField("error") else ""
                yield self._event("heartbeat", version=account.version, age=age, reason=reason)

    def _event(self, kind: Any, **fields: Any) -> Event:
        fields["message"] = fields.get("message", "")
        return Event(
            self._name,
            self.attempt,
            self.replica,
            self._user,
            self._exchange,
            time.monotonic(),
            kind,
            slow=self._slow,
            **fields,
        )


def _reason(error: grpc.aio.AioRpcError) -> str:
    trailers = dict(tuple(error.trailing_metadata() or ()))
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            return str(error_details_pb2.ErrorInfo.FromString(detail.value).reason)
    return ""


def _reason_name(number: int) -> str:
    name: str = error_reason_pb2.ErrorReason.Name(number)  # type: ignore[arg-type]
    return name.removeprefix("ERROR_REASON_")


def _value(balance: balance_pb2.Balance, freshness: balance_pb2.Freshness) -> dict[str, Any]:
    """The fields of a Reply or an Event that a balance fills."""
    totals = [row.total for account in balance.venue_accounts for row in account.assets]
    made = {read_amount(total) for total in totals} or {(-1, 0)}
    number, seq = made.pop() if len(made) == 1 else (-1, 0)
    return {
        "version": balance.version,
        "value_user": user_name(number) if number >= 0 else "",
        "seq": seq,
        "age": freshness.age.ToTimedelta().total_seconds(),
        "source": balance_pb2.BalanceSource.Name(freshness.source).removeprefix("BALANCE_SOURCE_"),
        "stale": _reason_name(freshness.stale.reason) if freshness.HasField("stale") else "",
        "fetch_time": balance.fetch_time.ToNanoseconds() / 1e9,
        "message": "" if number >= 0 else f"amounts {totals}"[:200],
    }


async def main(out: TextIO, arguments: Sequence[str]) -> None:
    """Be the clients, and write to `out`."""
    seed, exchange, *addresses = arguments
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await Clients(out, int(seed), exchange, addresses).run(commands)


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a") as file:
        asyncio.run(main(file, sys.argv[2:]))
