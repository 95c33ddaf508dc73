"""Prints the balance of one account: its summary, then a line for each asset. Without asyncio."""

import argparse
import os
import sys

from exchange_service.client import Client
from exchange_service.errors import ServiceError
from exchange_service.v1.balance_pb2 import Balance


def main(address: str, tls_ca: str | None, user: str, exchange: str) -> None:
    with Client(address, token=os.environ.get("EXCHANGE_SERVICE_TOKEN", ""), tls_ca=tls_ca) as client:
        reply = client.get_balance(user, exchange)
        if reply.freshness.HasField("stale"):
            print(f"an older balance: {reply.freshness.stale.message}", file=sys.stderr)
        show(reply.balance)


def show(balance: Balance) -> None:
    if balance.HasField("summary"):
        print(balance.summary.currency, balance.summary.total)
    for account in balance.venue_accounts:
        for row in account.assets:
            # What the venue does not say is absent, which is not the same as "0".
            free = row.free if row.HasField("free") else "unknown"
            print(account.id, account.type, row.asset, row.total, f"free {free}", sep="\t")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--address", default="127.0.0.1:50051", help="host:port, several with commas between them")
parser.add_argument("--tls-ca", help="the PEM file of the authority to trust")
parser.add_argument("user")
parser.add_argument("exchange")
given = parser.parse_args()
try:
    main(given.address, given.tls_ca, given.user, given.exchange)
except ServiceError as error:
    sys.exit(str(error))
