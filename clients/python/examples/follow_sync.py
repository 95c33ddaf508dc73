"""Follows all accounts of a user through restarts of the service, without asyncio: a line of JSON for each event."""

import argparse
import json
import os
import sys
import time

from exchange_service.client import Client, Reconnecting
from exchange_service.errors import ServiceError
from exchange_service.v1.exchange_service_pb2 import StreamBalancesResponse


def main(address: str, tls_ca: str | None, user: str, seconds: float | None) -> None:
    with Client(address, token=os.environ.get("EXCHANGE_SERVICE_TOKEN", ""), tls_ca=tls_ca) as client:
        end = None if seconds is None else time.monotonic() + seconds
        for event in client.stream_balances(user):
            print(json.dumps(described(event)), flush=True)
            if end is not None and time.monotonic() >= end:
                break


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
parser.add_argument("--seconds", type=float, help="end at the first event after so many seconds")
parser.add_argument("user")
given = parser.parse_args()
try:
    main(given.address, given.tls_ca, given.user, given.seconds)
except ServiceError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    pass
