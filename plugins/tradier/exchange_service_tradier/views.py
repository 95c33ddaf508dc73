"""Which accounts are read, and as what: the account as a whole, or with its options' figures first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from exchange_service.plugin_api import Balance, VenueAccount, VenueCall, combined_summary, gather_accounts
from exchange_service_tradier import parse
from exchange_service_tradier.client import TradierClient

_OPTION_ROWS = (
    f"{parse.OPTION_LONG}, {parse.OPTION_SHORT} and {parse.OPTION_NET} are values in {parse.USD} at market prices. "
    f"{parse.OPTION_NET} is the sum of the other two: do not add it to them."
)


async def account_view(call: VenueCall) -> Balance:
    """Every account of the token, or the stored one, as a whole."""
    client = TradierClient(call)
    if client.account_id:
        listed = [parse.ListedAccount(client.account_id)]
    else:
        listed = [found for found in await client.open_accounts() if not found.type or call.wants(found.type)]
    return await _read(client, listed, parse.account)


async def options_view(call: VenueCall) -> Balance:
    """The same accounts with their options' figures first."""
    client = TradierClient(call)
    if client.account_id:
        # Only the profile tells the option level. An account that it does not list is Tradier's to refuse.
        stored = [found for found in await client.profile() if found.number == client.account_id]
        listed = stored or [parse.ListedAccount(client.account_id)]
    else:
        listed = await client.open_accounts()
    balance = await _read(client, [replace(found, type=parse.OPTIONS) for found in listed], parse.options_account)
    return replace(balance, notes=(_OPTION_ROWS, *balance.notes))


async def _read(
    client: TradierClient, listed: Sequence[parse.ListedAccount], view: Callable[[Any, str], VenueAccount]
) -> Balance:
    """The balance of the listed accounts; one that fails among several stands in it with its error."""
    by_number = {found.number: found for found in listed}
    calls: dict[str, tuple[str, ...]] = {}

    async def read(number: str) -> VenueAccount:
        found = by_number[number]
        if found.type == parse.OPTIONS and found.option_level == 0:
            raise parse.options_not_enabled(number)
        payload = await client.balances(number)
        account = view(payload, number)
        calls[number] = parse.open_calls(payload, number)
        return account

    def unread(number: str) -> VenueAccount:
        return VenueAccount(number, by_number[number].type)

    accounts = await gather_accounts(list(by_number), read, unread=unread)
    notes = tuple(note for number in by_number for note in calls.get(number, ()))
    return Balance(accounts, combined_summary(accounts), notes=notes)
