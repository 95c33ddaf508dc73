"""One balance of Tradier in each of its two listings: accounts as a whole, or their options' figures first."""

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


async def read_balance(call: VenueCall) -> Balance:
    """Every open account of the token as a whole, or the stored account alone."""
    client = TradierClient(call)
    if client.account_id:
        listed = [parse.ListedAccount(client.account_id)]
    else:
        listed = [account for account in await client.open_accounts() if not account.type or call.wants(account.type)]
    return await _read_accounts(client, listed, parse.account)


async def read_options_balance(call: VenueCall) -> Balance:
    """The same accounts with their options' figures first. An account without options has FeatureNotEnabled."""
    client = TradierClient(call)
    if client.account_id:
        # Only the profile has the option level. If it does not list the stored account, Tradier refuses the account.
        stored = [account for account in await client.profile() if account.number == client.account_id]
        listed = stored or [parse.ListedAccount(client.account_id)]
    else:
        listed = await client.open_accounts()
    as_options = [replace(account, type=parse.OPTIONS) for account in listed]
    balance = await _read_accounts(client, as_options, parse.options_account)
    return replace(balance, notes=(_OPTION_ROWS, *balance.notes))


async def _read_accounts(
    client: TradierClient, listed: Sequence[parse.ListedAccount], parse_account: Callable[[Any, str], VenueAccount]
) -> Balance:
    """The balance of the listed accounts. If one of several fails, it is in the balance with its error."""
    by_number = {account.number: account for account in listed}
    margin_calls: dict[str, tuple[str, ...]] = {}

    async def read(number: str) -> VenueAccount:
        if by_number[number].type == parse.OPTIONS and by_number[number].option_level == 0:
            raise parse.options_not_enabled(number)
        payload = await client.balances(number)
        account = parse_account(payload, number)
        margin_calls[number] = parse.open_calls(payload, number)
        return account

    def unread(number: str) -> VenueAccount:
        return VenueAccount(number, by_number[number].type)

    accounts = await gather_accounts(list(by_number), read, unread=unread)
    notes = tuple(note for number in by_number for note in margin_calls.get(number, ()))
    return Balance(accounts, combined_summary(accounts), notes=notes)
