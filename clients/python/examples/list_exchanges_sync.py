"""Lists every exchange that the service can read, and asks first whether it is serving. Without asyncio."""

import argparse
import os
import sys

from exchange_service.client import Client
from exchange_service.errors import ServiceError


def main(address: str, tls_ca: str | None, search: str) -> None:
    with Client(address, token=os.environ.get("EXCHANGE_SERVICE_TOKEN", ""), tls_ca=tls_ca) as client:
        print(client.health(), file=sys.stderr)
        for exchange in client.all_exchanges(search=search):
            print(exchange.id, exchange.name, exchange.asset_class, sep="\t")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--address", default="127.0.0.1:50051", help="host:port, several with commas between them")
parser.add_argument("--tls-ca", help="the PEM file of the authority to trust")
parser.add_argument("--search", default="", help="a part of a name or an id")
given = parser.parse_args()
try:
    main(given.address, given.tls_ca, given.search)
except ServiceError as error:
    sys.exit(str(error))
