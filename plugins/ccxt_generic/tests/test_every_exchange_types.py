"""Every account type of every listing: a good answer is read, so that none is listed that could never be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import exchange_service_ccxt_generic as plugin
from exchange_service_ccxt_generic.account_types import UNIFIED

from exchange_service.plugin_api import ALL_ACCOUNT_TYPES, ExchangeMetadata, VenueError
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.further_types import FURTHER
from plugins.ccxt_generic.tests.every_exchange.venue import ScriptedVenue, opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, Account, as_json, meant, rows

LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = {name: listing for name, listing in LISTINGS.items() if listing.capabilities.balance}
TYPES: Mapping[str, Account] = {
    **{f"{name} {listing.account_types[0]}": ACCOUNTS[name] for name, listing in SERVED.items()},
    **FURTHER,
}


def test_each_listed_type_has_a_good_answer_here() -> None:
    assert set(TYPES) == {f"{name} {kind}" for name, listing in SERVED.items() for kind in listing.account_types}


async def test_a_good_answer_for_every_listed_type_is_read_to_the_digit(
    record_property: Callable[[str, object], None],
) -> None:
    wrong: dict[str, tuple[object, object]] = {}
    for name, account in TYPES.items():
        exchange_id, account_type = name.split()
        async with opened(LISTINGS[exchange_id], account.assets, account_type) as (venue, call):
            venue.tell(account, account.answer)
            try:
                shown: object = rows(await read(call))
            except VenueError as error:
                shown = f"{type(error).__name__}: {error.message} {venue.requests[-1:]}"
            if shown != meant(account):
                wrong[name] = (shown, meant(account))
    record_property(SWEEP, ["account types that are read", sorted(SERVED), len(TYPES), 0, len(wrong)])
    assert "\n".join(f"{name}: shown {shown}, meant {right}" for name, (shown, right) in wrong.items()) == ""


# What differs between two requests for the same.
_VARYING = re.compile("timestamp|signature|nonce|tonce|requestid|recvwindow|time|sign", re.IGNORECASE)


def requests_for(venue: ScriptedVenue) -> set[str]:
    """What the venue was asked for, without what each request has of its own."""
    found = set()
    for request in venue.requests:
        query = {name: value for name, value in request.query.items() if not _VARYING.search(name)}
        found.add(f"{request.method} {request.path} {sorted(query.items())}")
    return found


async def request_of_type(exchange_id: str, account_type: str, answers: Mapping[str, Fault]) -> set[str]:
    """The requests for one account type, or for all, besides those about the kind of the account."""
    async with opened(LISTINGS[exchange_id], {"BTC": "BTC", "USDT": "USDT"}) as (venue, call):
        venue.answers = dict(answers)
        with suppress(VenueError):
            await read(replace(call, account=replace(call.account, account_type=account_type)))
        return requests_for(venue)


async def notes_of_all(exchange_id: str, answers: Mapping[str, Fault]) -> str:
    async with opened(LISTINGS[exchange_id], {"BTC": "BTC", "USDT": "USDT"}) as (venue, call):
        venue.answers = dict(answers)
        balance = await read(replace(call, account=replace(call.account, account_type=ALL_ACCOUNT_TYPES)))
        return " ".join(balance.notes)


def answers_of(exchange_id: str, unified: bool) -> dict[str, Fault]:
    """Good answers for every account type of an exchange, whose user has or has not a unified account."""
    types = LISTINGS[exchange_id].account_types
    accounts = [TYPES[f"{exchange_id} {name}"] for name in types]
    kind = TYPES[f"{exchange_id} {UNIFIED if unified else types[0]}"].before
    answers = {account.request: account.answer for account in accounts} | dict(accounts[0].before) | dict(kind)
    if unified and exchange_id.startswith("bybit"):
        answers |= dict(TYPES[f"{exchange_id} {UNIFIED}"].before)
    return {request: Fault(body=as_json(answer)) for request, answer in answers.items()}


SEVERAL = [
    (name, unified)
    for name, listing in SERVED.items()
    if len(listing.account_types) > 1
    for unified in ((False, True) if UNIFIED in listing.account_types else (False,))
]


async def test_all_reads_each_type_of_a_listing_or_says_that_it_does_not(
    record_property: Callable[[str, object], None],
) -> None:
    silent, tried = [], 0
    for exchange_id, unified in SEVERAL:
        answers = answers_of(exchange_id, unified)
        all_requests = await request_of_type(exchange_id, ALL_ACCOUNT_TYPES, answers)
        notes = await notes_of_all(exchange_id, answers)
        for account_type in LISTINGS[exchange_id].account_types:
            tried += 1
            needed = await request_of_type(exchange_id, account_type, answers)
            if not needed <= all_requests and f"{account_type} (" not in notes:
                silent.append((exchange_id, unified, account_type, needed - all_requests, notes))
    record_property(SWEEP, ["types that all reads or names", [name for name, _ in SEVERAL], tried, 0, len(silent)])
    assert silent == []
