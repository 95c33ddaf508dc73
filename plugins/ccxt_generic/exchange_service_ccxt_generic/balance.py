"""One balance through CCXT: one account, or each of the user's wallets, checked against the venue's raw answers."""

from __future__ import annotations

import asyncio

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    Balance,
    CredentialRejected,
    KeyRights,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
)
from exchange_service_ccxt_generic import parse
from exchange_service_ccxt_generic.account_types import wallets
from exchange_service_ccxt_generic.client import CcxtClient, Fetched
from exchange_service_ccxt_generic.credentials import Wish
from exchange_service_ccxt_generic.emptiness import find_problem, proves_empty
from exchange_service_ccxt_generic.headline import with_headline
from exchange_service_ccxt_generic.instances import Opened
from exchange_service_ccxt_generic.rights import QUESTIONS, unknown_rights

# Seconds before the deadline at which one wallet of several is given up, so that the others are still returned.
_RESERVE = 0.5

# CCXT's time of the balance is here the time when the account last changed, which may be years ago.
_TIME_OF_LAST_CHANGE = frozenset(
    {
        "binance",
        "binancecoinm",
        "binanceus",
        "binanceusdm",
        "bitrue",
        "hollaex",
        "latoken",
        "pacifica",
        "phemex",
        "tokocrypto",
    }
)


async def read_balance(call: VenueCall) -> Balance:
    """The account's balance. An answer that proves nothing is VenueMalformed and never zero."""
    client = CcxtClient(call)
    return with_headline(await client.by_deadline(call.deadline, _read(call, client)))


async def read_key_rights(call: VenueCall) -> KeyRights:
    """What the key may do besides reading, as far as the exchange tells."""
    client = CcxtClient(call)
    question = QUESTIONS.get(call.exchange.id)
    if question is None:
        return unknown_rights(call.exchange.name)

    async def ask() -> KeyRights:
        return await client.key_rights(await client.instances.open(), question)

    return await client.by_deadline(call.deadline, ask())


async def _read(call: VenueCall, client: CcxtClient) -> Balance:
    opened = await client.instances.open()
    requested = call.account.account_type
    if requested == ALL_ACCOUNT_TYPES:
        return await _read_every_wallet(call, client, opened)
    wish = opened.stored.wish_for(requested) if requested else opened.stored.wish
    return await _read_account(call, client, opened, wish)


async def _read_every_wallet(call: VenueCall, client: CcxtClient, opened: Opened) -> Balance:
    """Each wallet as an account of its own; a wallet that cannot be read has its error.

    The first is read alone, so that a refused key is sent only once.
    """
    types = wallets(call.exchange.id, call.exchange.account_types, opened.instance.options)
    first, *others = (opened.stored.wish_beside_others(account_type) for account_type in types)
    result = await _read_or_error(call, client, opened, first)
    if isinstance(result, (CredentialRejected, VenueRateLimited)):
        raise result
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_read_or_error(call, client, opened, wish)) for wish in others]
    results = (result, *(task.result() for task in tasks))
    return parse.gather(call.exchange.name, dict(zip(types, results, strict=True)))


async def _read_or_error(call: VenueCall, client: CcxtClient, opened: Opened, wish: Wish) -> Balance | VenueError:
    try:
        return await client.by_deadline(call.deadline - _RESERVE, _read_account(call, client, opened, wish))
    except VenueError as error:
        return error


async def _read_account(call: VenueCall, client: CcxtClient, opened: Opened, wish: Wish) -> Balance:
    try:
        return _check(call, client, await client.fetch(opened, wish))
    except VenueError as error:
        if error.transient:
            # While the venue has trouble CCXT may have found out something wrong about the account.
            client.instances.forget()
        raise


def _check(call: VenueCall, client: CcxtClient, fetched: Fetched) -> Balance:
    """The balance. Raises VenueMalformed if CCXT lost a row, or found none and the answer does not prove it."""
    exchange_id, venue = call.exchange.id, call.exchange.name
    try:
        assets = parse.rows(fetched.result, fetched.venue_codes)
    except VenueMalformed as malformed:
        raise client.recorder.with_venue(malformed) from None
    shown = {row.asset for row in assets}
    problem = find_problem(exchange_id, fetched.account_type, fetched.answers, fetched.venue_codes, shown)
    if problem:
        raise VenueMalformed(f"{venue} answered with {problem}.")
    if not assets and not proves_empty(exchange_id, fetched.account_type, fetched.answers[-1]):
        raise VenueMalformed(f"{venue} answered without a balance, and not as it answers for an empty account.")
    notes = parse.collision_notes(assets, fetched.venue_codes)
    venue_time = None if exchange_id in _TIME_OF_LAST_CHANGE else parse.venue_time(fetched.result)
    return parse.balance(assets, fetched.account_type, venue_time, notes)
