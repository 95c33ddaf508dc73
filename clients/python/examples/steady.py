"""Makes so many calls a second, for example while replicas are restarted. Its last line is "calls N failed M"; its exit
code is 1 if any failed."""

import argparse
import asyncio
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

from exchange_service.client import AsyncClient, Client
from exchange_service.errors import ServiceError


def report(error: ServiceError) -> None:
    print(error, file=sys.stderr, flush=True)


async def call_steadily(client: AsyncClient, user: str, exchange: str, seconds: float, rate: float) -> list[bool]:
    """Call at this rate, each call on time though others last; returns for each whether it went well."""

    async def call() -> bool:
        try:
            await client.get_balance(user, exchange)
        except ServiceError as error:
            report(error)
            return False
        return True

    begun, calls = time.monotonic(), list[asyncio.Task[bool]]()
    while (due := len(calls) / rate) < seconds:
        await asyncio.sleep(begun + due - time.monotonic())
        calls.append(asyncio.create_task(call()))
    return list(await asyncio.gather(*calls))


def call_steadily_in_threads(client: Client, user: str, exchange: str, seconds: float, rate: float) -> list[bool]:
    """The same with the client for programs without asyncio, which threads may share."""

    def call() -> bool:
        try:
            client.get_balance(user, exchange)
        except ServiceError as error:
            report(error)
            return False
        return True

    begun = time.monotonic()
    with ThreadPoolExecutor(64) as threads:
        calls = list[Future[bool]]()
        while (due := len(calls) / rate) < seconds:
            time.sleep(max(begun + due - time.monotonic(), 0.0))
            calls.append(threads.submit(call))
        return [one.result() for one in calls]


async def main(given: argparse.Namespace, token: str) -> list[bool]:
    async with AsyncClient(given.addresses, token=token, tls_ca=given.tls_ca) as client:
        return await call_steadily(client, given.user, given.exchange, given.seconds, given.rate)


def main_sync(given: argparse.Namespace, token: str) -> list[bool]:
    with Client(given.addresses, token=token, tls_ca=given.tls_ca) as client:
        return call_steadily_in_threads(client, given.user, given.exchange, given.seconds, given.rate)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("addresses", help="host:port, several with commas between them")
parser.add_argument("seconds", type=float)
parser.add_argument("--rate", type=float, default=20.0, help="calls a second")
parser.add_argument("--user", default="demo")
parser.add_argument("--exchange", default="oanda")
parser.add_argument("--tls-ca", help="the PEM file of the authority to trust")
parser.add_argument("--sync", action="store_true", help="without asyncio")
arguments = parser.parse_args()
bearer = os.environ.get("EXCHANGE_SERVICE_TOKEN", "")
results = main_sync(arguments, bearer) if arguments.sync else asyncio.run(main(arguments, bearer))
print(f"calls {len(results)} failed {results.count(False)}")
sys.exit(1 if False in results else 0)
