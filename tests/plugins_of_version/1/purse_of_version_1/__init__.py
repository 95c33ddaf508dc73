"""A venue of wallets that pushes, as plugins were written for version 1. Never edit it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    Capabilities,
    Changed,
    CredentialField,
    Environment,
    ExchangeMetadata,
    Manifest,
    PushLanguage,
    PushLimits,
    Socket,
    Subscription,
    VenueAccount,
    VenueCall,
    as_list,
    as_object,
    hookimpl,
    read_metadata,
    require_account,
    required_amount,
    split_accounts,
    subscribed,
    text,
    wallet_address,
)

PURSE = ExchangeMetadata(
    id="purse_of_version_1",
    name="Purse of Version One",
    asset_class="Crypto",
    asset_types="Crypto Spot",
    market_hours="24/7 Trading",
    environments=(
        Environment("production", {"api": "https://purse-one.example", "push": "wss://push.purse-one.example/v1"}),
    ),
    credential_fields=(CredentialField("wallet_address", "Wallet address", secret=False),),
    instructions="Copy the address of your wallet.",
    account_types=("spot",),
    push=PushLimits(subscriptions=500, messages=600, connects=30),
    capabilities=Capabilities(push=True, read_without_secret=True),
)


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(api_version=1, exchanges=(PURSE,))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    read_metadata(call.credential, wallet_address=str)
    wallet = wallet_address(call.credential)
    response = await call.http.get(f"{call.url()}/v1/wallets", params={"wallet": wallet})
    response.raise_for_status()
    entries = as_list(as_object(response.json(), "the answer").get("wallets"), "wallets")
    accounts = split_accounts(entries, name_of, parse, type="spot")
    for account in accounts:
        require_account(wallet, account.id, "Purse")
    return Balance(accounts)


@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Balance | Changed]:
    wallet = wallet_address(call.credential)
    subscription: Subscription
    async with subscribed(call, PurseLanguage(call.url("push")), [wallet]) as subscription:
        async for states in subscription:
            yield Balance((states[wallet],)) if states[wallet].assets else Changed()


class PurseLanguage(PushLanguage):
    keep_alive_every = 20.0

    async def open(self, socket: Socket) -> None:
        await socket.send(json.dumps({"op": "hello"}))

    def keep_alive(self) -> str:
        return '{"op": "ping"}'

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"op": "follow", "wallet": wallet}) for wallet in topics]

    def unsubscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        return [json.dumps({"op": "leave", "wallet": wallet}) for wallet in topics]

    def read(self, message: Any) -> Iterable[tuple[Any, Any]]:
        if "holdings" in as_object(message, "message"):
            yield text(message, "wallet", "message"), message

    def state(self, topic: Any, before: Any, part: Any) -> Any:
        return parse(part)


def name_of(entry: Mapping[str, Any]) -> str:
    return text(entry, "wallet", "wallets[]")


def parse(entry: Mapping[str, Any]) -> VenueAccount:
    rows = [as_object(row, "holdings[]") for row in as_list(entry.get("holdings"), "holdings")]
    return VenueAccount(
        name_of(entry),
        "spot",
        assets=tuple(
            AssetBalance(text(row, "code", "holdings[]"), total=required_amount(row, "quantity", "holdings[]"))
            for row in rows
        ),
    )
