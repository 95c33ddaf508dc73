"""One balance of Tradier in each of its two listings: accounts as a whole, or their options' figures first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    VenueAccount,
    VenueCall,
    VenueMalformed,
    combined_summary,
    gather_accounts,
)
from exchange_service_tradier import parse
from exchange_service_tradier.client import Profile, TradierClient

_OPTION_ROWS = (
    f"{parse.OPTION_LONG}, {parse.OPTION_SHORT} and {parse.OPTION_NET} are values in {parse.USD} at market prices. "
    f"{parse.OPTION_NET} is the sum of the other two: do not add it to them."
)


async def read_balance(call: VenueCall) -> Balance:
    """Every open account of the token as a whole, or the stored account alone."""
    client = TradierClient(call)
    if client.account_id:
        return await _read_accounts(client, _alone(client.account_id), parse.account)
    profile = await client.profile()
    requested = {number: listed for number, listed in _open_accounts(profile).items() if _is_requested(listed, call)}
    balance = await _read_accounts(client, requested, parse.account)
    return replace(balance, notes=(*balance.notes, *_closed_notes(profile)))


async def read_options_balance(call: VenueCall) -> Balance:
    """The same accounts with their options' figures first. An account without options has FeatureNotEnabled."""
    client = TradierClient(call)
    # Only the profile has the option level.
    profile = await client.profile()
    listed: Profile = _stored(profile, client.account_id) if client.account_id else _open_accounts(profile)
    closed = () if client.account_id else _closed_notes(profile)
    as_options = {number: _as_options(account) for number, account in listed.items()}
    balance = await _read_accounts(client, as_options, parse.options_account)
    return replace(balance, notes=(_OPTION_ROWS, *balance.notes, *closed))


async def _read_accounts(
    client: TradierClient, listed: Profile, parse_account: Callable[[Any, str], VenueAccount]
) -> Balance:
    """The balance of the listed accounts. If one of several fails, it is in the balance with its error."""
    margin_calls: dict[str, tuple[str, ...]] = {}
    held: dict[str, bool] = {}

    async def read(number: str) -> VenueAccount:
        entry = listed[number]
        if isinstance(entry, VenueMalformed):
            raise entry
        if entry.type == parse.OPTIONS and entry.option_level == 0:
            raise parse.options_not_enabled(number)
        payload = await client.balances(number)
        account = await client.compute(parse_account, payload, number)
        margin_calls[number] = await client.compute(parse.open_calls, payload, number)
        held[number] = parse.holds_positions(payload, number)
        return account

    def unread(number: str) -> VenueAccount:
        entry = listed[number]
        return VenueAccount(number, entry.type if isinstance(entry, parse.ListedAccount) else "")

    accounts = await gather_accounts(list(listed), read, unread=unread)
    (await client.positions()).note(held)
    notes = tuple(note for number in listed for note in margin_calls.get(number, ()))
    return Balance(accounts, combined_summary(accounts), notes=notes)


def _alone(number: str) -> Profile:
    return {number: parse.ListedAccount(number)}


def _stored(profile: Profile, number: str) -> Profile:
    """The stored account. If the profile does not show it, it is read all the same, and Tradier may refuse it."""
    entry = profile.get(number)
    return {number: entry} if isinstance(entry, parse.ListedAccount) else _alone(number)


def _open_accounts(profile: Profile) -> Profile:
    """The accounts that may be open. Raises AccountUnknown if there is none."""
    accounts = {number: listed for number, listed in profile.items() if parse.is_open(listed)}
    if not accounts:
        raise AccountUnknown("Tradier: the token is valid but has no open account.")
    return accounts


def _is_requested(listed: parse.ListedAccount | VenueMalformed, call: VenueCall) -> bool:
    """Whether the call asks for the account's type. An account whose type is not known is read."""
    return isinstance(listed, VenueMalformed) or not listed.type or call.wants(listed.type)


def _as_options(listed: parse.ListedAccount | VenueMalformed) -> parse.ListedAccount | VenueMalformed:
    return listed if isinstance(listed, VenueMalformed) else replace(listed, type=parse.OPTIONS)


def _closed_notes(profile: Profile) -> tuple[str, ...]:
    """A sentence that names the accounts that are left out because they are closed; none if there is none."""
    closed = [number for number, listed in profile.items() if not parse.is_open(listed)]
    return (f"Closed at Tradier, and left out: {', '.join(closed)}.",) if closed else ()
