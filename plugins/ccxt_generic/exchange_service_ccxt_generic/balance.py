"""One balance through CCXT: one account, or each of the user's wallets, checked against the venue's raw answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    AssetBalance,
    Balance,
    CredentialRejected,
    FeatureNotEnabled,
    KeyRights,
    NotSupported,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
)
from exchange_service_ccxt_generic import parse
from exchange_service_ccxt_generic.account_names import require_own_answers
from exchange_service_ccxt_generic.account_types import (
    left_out,
    settlement_currencies,
    sum_of,
    unread,
    wallets,
)
from exchange_service_ccxt_generic.answer_shapes import Rows, shapes
from exchange_service_ccxt_generic.answers import in_turn
from exchange_service_ccxt_generic.client import CcxtClient, Fetched
from exchange_service_ccxt_generic.credentials import Wish
from exchange_service_ccxt_generic.emptiness import find_problem, proves_empty
from exchange_service_ccxt_generic.figures import Codes, overlay, read_rows
from exchange_service_ccxt_generic.headline import with_headline
from exchange_service_ccxt_generic.instances import Opened
from exchange_service_ccxt_generic.matching import Named, match
from exchange_service_ccxt_generic.rights import QUESTIONS, unknown_rights

_KIND = "{venue} also lists an account of the type {kind}, which is shown beside the requested one."
# Seconds before the deadline at which one wallet of several is given up, so that the others are still returned.
_RESERVE = 0.5

# CCXT's time of the balance is here the time when the account last changed, which may be years ago.
_TIME_OF_LAST_CHANGE = frozenset(
    {
        # witness: CCXT: binance.parse_balance_custom
        "binance",
        "binancecoinm",
        "binanceus",
        "binanceusdm",
        "bitrue",  # witness: CCXT: bitrue.parse_balance
        "hollaex",  # witness: CCXT: hollaex.parse_balance
        "latoken",  # witness: CCXT: latoken.fetch_balance
        "pacifica",  # witness: CCXT: pacifica.fetch_balance
        "phemex",  # witness: CCXT: phemex.parse_spot_balance
        "tokocrypto",  # witness: CCXT: tokocrypto.parse_balance_custom
    }
)


async def read_balance(call: VenueCall) -> Balance:
    """The account's balance. An answer that proves nothing is VenueMalformed and never zero."""
    client = CcxtClient(call)
    balance = await client.by_deadline(call.deadline, _read(call, client))
    # A row comes from a hundred characters or so.
    size = 100 * sum(len(account.assets) for account in balance.venue_accounts)
    return await in_turn(size, with_headline, balance)


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
    """The balance. It is read again if it is empty or refused and the user has changed the kind of the account."""
    opened = await client.instances.open()
    try:
        balance = await _read_requested(call, client, opened)
    except VenueError as error:
        if error.transient or not await _kind_has_changed(client, opened):
            raise
    else:
        if not _is_doubtful(balance) or not await client.instances.kind_has_changed(opened):
            return balance
    return await _read_requested(call, client, await client.instances.open())


def _is_doubtful(balance: Balance) -> bool:
    """Whether nothing is held in the balance, or an account in it is refused."""
    if any(
        isinstance(error := account.error, VenueError) and not error.transient for account in balance.venue_accounts
    ):
        return True
    return not any(amount for _, row in balance.rows() for amount in (row.total, row.free, row.used, row.debt))


async def _kind_has_changed(client: CcxtClient, opened: Opened) -> bool:
    """Whether the account is of another kind now. If the venue does not say, it is believed to be of the same."""
    try:
        return await client.instances.kind_has_changed(opened)
    except VenueError:
        return False


async def _read_requested(call: VenueCall, client: CcxtClient, opened: Opened) -> Balance:
    requested = call.account.account_type
    if requested == ALL_ACCOUNT_TYPES:
        return await _read_every_wallet(call, client, opened)
    wish = opened.stored.wish_for(requested) if requested else opened.stored.wish
    return await _read_account(call, client, opened, wish)


async def _read_every_wallet(call: VenueCall, client: CcxtClient, opened: Opened) -> Balance:
    """Each wallet as an account of its own; a wallet that cannot be read has its error. The notes have the types that
    are left out.

    The first is read alone, so that a refused key is sent only once.
    """
    exchange, options = call.exchange, opened.instance.options
    reasons = dict(left_out(exchange.id, exchange.account_types, options))
    types = []
    for name in wallets(exchange.id, exchange.account_types, options):
        if _settled(call, opened, name) == ():
            reasons[name] = "no contracts are settled in a coin"
        else:
            types.append(name)
    first, *others = (opened.stored.wish_beside_others(account_type) for account_type in types)
    result = await _read_or_error(call, client, opened, first)
    if isinstance(result, (CredentialRejected, VenueRateLimited)):
        raise result
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_read_or_error(call, client, opened, wish)) for wish in others]
    results = dict(zip(types, (result, *(task.result() for task in tasks)), strict=True))
    await _read_sum(call, client, opened, results, reasons)
    gathered = parse.gather(exchange.name, results)
    return replace(gathered, notes=(*gathered.notes, *_notes_of_all(exchange.id, reasons)))


async def _read_sum(
    call: VenueCall,
    client: CcxtClient,
    opened: Opened,
    results: dict[str, Balance | VenueError],
    reasons: dict[str, str],
) -> None:
    """Read the type that adds up others, if the exchange has one and refuses one of these; it then stands for them."""
    added_up = sum_of(call.exchange.id)
    if added_up is None:
        return
    name = added_up.account_type
    errors = [result for one in added_up.of if isinstance(result := results.get(one), VenueError)]
    if all(error.transient or isinstance(error, FeatureNotEnabled) for error in errors):
        reasons[name] = f"it adds up {', '.join(added_up.of)}"
        return
    result = await _read_or_error(call, client, opened, opened.stored.wish_beside_others(name))
    if isinstance(result, VenueError):
        reasons[name] = "only some accounts have it, and the venue does not show it for this one"
        return
    for one in added_up.of:
        results.pop(one, None)
        reasons[one] = f"a part of {name}"
    results[name] = result


def _notes_of_all(exchange_id: str, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for the types that are left out, and one for the wallets that no type reads."""
    left = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
    return tuple(note for note in (f"Left out: {left}." if left else "", unread(exchange_id)) if note)


async def _read_or_error(call: VenueCall, client: CcxtClient, opened: Opened, wish: Wish) -> Balance | VenueError:
    try:
        return await client.by_deadline(call.deadline - _RESERVE, _read_account(call, client, opened, wish))
    except VenueError as error:
        return error


async def _read_account(call: VenueCall, client: CcxtClient, opened: Opened, wish: Wish) -> Balance:
    codes = _settled(call, opened, wish.account_type)
    if codes is None:
        return await _read_wallet(call, client, opened, wish)
    return await _read_settled(call, client, opened, wish, codes)


def _settled(call: VenueCall, opened: Opened, account_type: str) -> tuple[str, ...] | None:
    """The currencies that each have a wallet of this type; None for a type of one wallet."""
    instance = opened.instance
    return settlement_currencies(call.exchange.id, account_type, instance.markets or {}, instance.options)


async def _read_settled(
    call: VenueCall, client: CcxtClient, opened: Opened, wish: Wish, codes: tuple[str, ...]
) -> Balance:
    """The account whose wallets are one for each of these currencies. Those that are refused are named in the notes,
    unless all are.
    """
    venue = call.exchange.name
    if not codes:
        raise NotSupported(f"{venue} lists no contracts that are settled in a coin.")
    results: dict[str, Balance | VenueError] = {}
    for code in codes:
        asked = replace(wish, parameters={**wish.parameters, "code": code})
        try:
            results[code] = await _read_wallet(call, client, opened, asked)
        except VenueError as error:
            # A key that has just read another wallet is not refused as such.
            if error.transient or (isinstance(error, CredentialRejected) and not results):
                raise
            results[code] = error
    return parse.joined(venue, wish.account_type, results)


async def _read_wallet(call: VenueCall, client: CcxtClient, opened: Opened, wish: Wish) -> Balance:
    try:
        fetched = await client.fetch(opened, wish)
        balance = await in_turn(fetched.size, _check, call, client, fetched)
        # Afterwards, because an answer that is not a balance teaches no names.
        await require_own_answers(call, fetched.account_type, fetched.answers)
        return balance
    except VenueError as error:
        if error.transient:
            # While the venue has trouble CCXT may have found out something wrong about the account.
            client.instances.forget()
        raise


def _check(call: VenueCall, client: CcxtClient, fetched: Fetched) -> Balance:
    """The balance. Raises VenueMalformed if CCXT lost a row, or found none and the answer does not prove it."""
    exchange_id, venue = call.exchange.id, call.exchange.name
    shape, rows = match(exchange_id, fetched.account_type, fetched.answers)
    try:
        shown = parse.shown(fetched.result)
        if shapes(exchange_id, fetched.account_type):
            problem = find_problem(shape, rows, fetched.answers, fetched.venue_codes, shown)
            if problem:
                raise VenueMalformed(f"{venue} answered with {problem}.")
        kinds = _rows_by_kind(shape, rows, fetched)
    except VenueMalformed as malformed:
        raise client.recorder.with_venue(malformed) from None
    assets = kinds.pop("", ())
    if not assets and not kinds and not proves_empty(exchange_id, fetched.account_type, fetched.answers[-1]):
        raise VenueMalformed(f"{venue} answered without a balance, and not as it answers for an empty account.")
    notes = parse.collision_notes(assets, fetched.venue_codes)
    notes += tuple(_KIND.format(venue=venue, kind=kind) for kind in kinds)
    venue_time = None if exchange_id in _TIME_OF_LAST_CHANGE else parse.venue_time(fetched.result)
    return parse.balance(assets, fetched.account_type, venue_time, notes, kinds)


def _rows_by_kind(shape: Rows | None, rows: Sequence[Named], fetched: Fetched) -> dict[str, tuple[AssetBalance, ...]]:
    """The rows of the requested account at "", and those of others that hold something by the venue's name of them.

    Raises VenueMalformed for a figure that is not an amount.
    """
    codes = Codes(fetched.venue_codes, fetched.instance)
    if shape is None or shape.figures is None:
        assets = parse.rows(fetched.result, fetched.venue_codes)
        if shape is not None and shape.fields is not None:
            assets = overlay(shape, fetched.answers[-1], rows, assets, codes)
        return {"": assets}
    kinds = read_rows(shape, rows, codes)
    if shape.beside_rows or shape.before:
        read = {row.asset for row in kinds[""]}
        kinds[""] += tuple(row for row in parse.rows(fetched.result, fetched.venue_codes) if row.asset not in read)
    return {kind: assets for kind, assets in kinds.items() if not kind or not all(row.is_zero() for row in assets)}
