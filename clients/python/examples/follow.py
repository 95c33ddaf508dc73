"""Follows all accounts of a user through restarts of the service: a line of JSON for each event, until Ctrl-C."""

import argparse
import asyncio
import json
import os
import sys

from exchange_service.client import AsyncClient, Reconnecting
from exchange_service.errors import ServiceError
from exchange_service.v1.exchange_service_pb2 import StreamBalancesResponse


async def main(address: str, tls_ca: str | None, user: str, seconds: float | None) -> None:
    async with AsyncClient(address, token=os.environ.get("EXCHANGE_SERVICE_TOKEN", ""), tls_ca=tls_ca) as client:
        try:
            async with asyncio.timeout(seconds):
                async for event in client.stream_balances(user):
                    print(json.dumps(described(event)), flush=True)
        except TimeoutError:
            pass


def described(event: StreamBalancesResponse | Reconnecting) -> dict[str, object]:
    if isinstance(event, Reconnecting):
        # Until the next event what you have is not confirmed.
        return {"event": "reconnecting", "reason": event.error.reason, "attempt": event.attempt, "delay": event.delay}
    if event.HasField("balance"):
        # The account's whole state: there is nothing to merge.
        balance = event.balance.balance
        return {
            "event": "balance",
            "account": f"{balance.exchange_id}/{balance.environment}",
            "version": balance.version,
            "equity": balance.summary.equity,
        }
    if event.HasField("account_error"):
        fault = event.account_error
        account = f"{fault.exchange_id}/{fault.environment}"
        return {"event": "account_error", "account": account, "message": fault.error.message}
    return {"event": "heartbeat", "accounts": len(event.heartbeat.accounts)}


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--address", default="127.0.0.1:50051", help="host:port, several with commas between them")
parser.add_argument("--tls-ca", help="the PEM file of the authority to trust")
parser.add_argument("--seconds", type=float, help="end by itself after so many seconds")
parser.add_argument("user")
given = parser.parse_args()
try:
    asyncio.run(main(given.address, given.tls_ca, given.user, given.seconds))
except ServiceError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    pass
