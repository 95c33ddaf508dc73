"""A running service with authentication, and what tests of it share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from exchange_service.identity import Scope
from exchange_service.plugin_api import Balance, VenueCall
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.commands import run_command
from tests.harness import (
    Running,
    ScriptedPlugin,
    Stream,
    balance_request,
    holding,
    listing,
    registry_of,
    serving,
)
from tests.identities import SECRET, Authority

USERS = ("alice", "bob", "carol", "dave")
EXCHANGES = ("fakex", "other_venue")
# The stored credentials: dave has none, and bob and carol have one each.
STORED = {("alice", "fakex"), ("alice", "other_venue"), ("bob", "fakex"), ("carol", "other_venue")}
EVERYBODY = Scope(everybody=True)
ACTS_FOR_ALL = Scope(everybody=True, requires_act_as=True)
OUTSIDE = "USER_FORBIDDEN: This user's accounts are outside the caller's scope."


def amount(user: str, exchange_id: str) -> str:
    """The amount that the venue reports for this account, and for no other."""
    return f"{USERS.index(user) + 1}{EXCHANGES.index(exchange_id) + 1}.5"


async def _fetch(call: VenueCall) -> Balance:
    return holding(("BTC", amount(call.account.user_id, call.exchange.id)))


def make_plugin() -> ScriptedPlugin:
    return ScriptedPlugin(*map(listing, EXCHANGES), answer=_fetch)


@asynccontextmanager
async def authenticated_service(
    folder: Path, *, plugin: ScriptedPlugin | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """A service that accepts JWTs of the shared secret and service tokens, with the credentials in STORED."""
    options = {"jwt_secret": SECRET, "service_tokens": True} | changes
    async with serving(folder, registry=registry_of(plugin or make_plugin()), **options) as running:
        for user, exchange_id in STORED:
            await running.store(exchange_id, user=user)
        yield running


def open_stream(running: Running, metadata: Sequence[tuple[str, str]], user: str = "alice", *exchanges: str) -> Stream:
    accounts = [messages.AccountSelector(exchange_id=exchange_id) for exchange_id in exchanges]
    request = messages.StreamBalancesRequest(user_id=user, accounts=accounts)
    return Stream(running.stub.StreamBalances(request, metadata=metadata))


def read_balance(running: Running, metadata: Sequence[tuple[str, str]], user: str = "alice", **changes: Any) -> Any:
    return running.stub.GetBalance(balance_request(user_id=user, **changes), metadata=metadata)


def tls_settings(authority: Authority, **changes: Any) -> dict[str, Any]:
    """Settings of a service that others can reach, with TLS."""
    certificate, key = authority.sign("exchange-service")
    return {"address": "0.0.0.0:0", "tls_certificate": certificate, "tls_key": key, "jwt_secret": None} | changes


def run_in(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """A command with the database of this folder."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{folder / 'credentials.db'}",
        **extra,
    }
    return run_command(arguments, environment)
