"""Prints every account of a user once, each with its balance or its error. Without asyncio."""

import argparse
import os
import sys

from exchange_service.client import Client
from exchange_service.errors import ServiceError
from exchange_service.v1.exchange_service_pb2 import AccountErrorEvent


def main(address: str, tls_ca: str | None, user: str, seconds: float) -> None:
    with Client(address, token=os.environ.get("EXCHANGE_SERVICE_TOKEN", ""), tls_ca=tls_ca) as client:
        for account in client.balances(user, timeout=seconds):
            if isinstance(account, AccountErrorEvent):
                print(account.exchange_id, account.environment, account.error.message, sep="\t")
                continue
            balance = account.balance
            total = balance.summary.total if balance.HasField("summary") else "no single figure"
            print(balance.exchange_id, balance.environment, total, balance.summary.currency, sep="\t")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--address", default="127.0.0.1:50051", help="host:port, several with commas between them")
parser.add_argument("--tls-ca", help="the PEM file of the authority to trust")
parser.add_argument("--timeout", type=float, default=20.0, help="seconds for all accounts together")
parser.add_argument("user")
given = parser.parse_args()
try:
    main(given.address, given.tls_ca, given.user, given.timeout)
except ServiceError as error:
    sys.exit(str(error))
