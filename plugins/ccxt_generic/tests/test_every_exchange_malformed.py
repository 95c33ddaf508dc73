"""Every exchange that CCXT lists, through its real class: nonsense is never a balance, nor a verdict on the account."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.account_types import UNIFIED
from exchange_service_ccxt_generic.kinds import KINDS
from exchange_service_ccxt_generic.refusals import SIGN_INS, is_read

from exchange_service.plugin_api import Balance, ExchangeMetadata, RequestRefused, VenueCall, VenueError
from exchange_service.pytest_plugin import MALFORMED
from exchange_service.testing import Fault
from plugins.ccxt_generic.tests.every_exchange.corpus import (
    CORPUS,
    JSON_BODIES,
    NAMES_AN_ERROR,
    TOLD_BEFORE,
    TRUE_EMPTY,
    TRUE_EMPTY_TYPES,
)
from plugins.ccxt_generic.tests.every_exchange.credentials import traces
from plugins.ccxt_generic.tests.every_exchange.venue import ScriptedVenue, opened, read, shown_by
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, Account, as_json, meant, rows

Property = Callable[[str, object], None]
LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [listing.id for listing in LISTINGS.values() if listing.capabilities.balance]
SEVERAL_TYPES = [exchange_id for exchange_id in SERVED if len(LISTINGS[exchange_id].account_types) > 1]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One malformed answer: in place of every answer of the exchange, or of one with good ones for the others."""

    name: str
    position: str = ""


@dataclass(slots=True)
class Tried:
    """What came of the attempts."""

    number: int = 0
    # Nonsense that became a balance; errors that judge the account; attempts that no request was sent for.
    false: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)
    # The requests that show the credential.
    signed: set[str] = field(default_factory=set)


def attempts(account: Account) -> Iterator[Attempt]:
    """Each body for every answer; where there are several, also for each of them alone."""
    positions = ["", *account.before, account.request] if account.before else [""]
    for position in positions:
        for name in CORPUS:
            yield Attempt(name, position)


def misbehave(venue: ScriptedVenue, account: Account, attempt: Attempt) -> None:
    venue.requests.clear()
    venue.answers.clear()
    venue.default = CORPUS[attempt.name]
    if not account.request:
        # The account of another type: the exchange is good up to its balance.
        venue.answers = {request: Fault(body=as_json(answer)) for request, answer in account.before.items()}
    elif attempt.position:
        good = {**account.before, account.request: account.answer}
        venue.answers = {request: Fault(body=as_json(answer)) for request, answer in good.items()}
        venue.answers[attempt.position] = CORPUS[attempt.name]


async def outcome(call: VenueCall) -> Balance | VenueError:
    """What a call comes to. Any other exception is the plugin's failure, and so the test's."""
    try:
        return await read(call)
    except VenueError as error:
        return error


def is_false(result: Balance | VenueError, exchange_id: str, account: Account, attempt: Attempt) -> bool:
    """Whether nonsense has become a balance. Where a body is the exchange's own answer for an empty account, it has to
    be taken for one; and where only a public list is broken, the account's own answer still tells the truth."""
    whole = not attempt.position and not account.before
    if exchange_id in TRUE_EMPTY.get(attempt.name, {}) and (whole or attempt.position == account.request):
        return not is_empty(result)
    if not isinstance(result, Balance):
        return False
    if exchange_id in TOLD_BEFORE and attempt == Attempt("an empty list", account.request):
        return not rows(result).items() < meant(account).items()
    return attempt.position not in account.lists or rows(result) != meant(account)


def is_empty(result: Balance | VenueError) -> bool:
    return isinstance(result, Balance) and not list(result.rows())


def is_fair(error: VenueError, attempt: Attempt) -> bool:
    """Whether an error says nothing about the account. Only words of an error may become a refused request."""
    return error.transient or (attempt.name in NAMES_AN_ERROR and type(error) is RequestRefused)


async def tried(
    exchange_id: str,
    account: Account,
    chosen: Iterable[Attempt],
    false: Callable[[Balance | VenueError, Attempt], bool],
    account_type: str = "",
) -> Tried:
    """Try one malformed answer after another with an account."""
    listing, result = LISTINGS[exchange_id], Tried()
    async with opened(listing, account.assets, account_type) as (venue, call):
        for attempt in chosen:
            misbehave(venue, account, attempt)
            came = await outcome(call)
            where = f"{account_type} {attempt.name} {attempt.position}: {came!r}"
            result.number += 1
            result.requests |= venue.seen()
            if false(came, attempt):
                result.false.append(where)
            if isinstance(came, VenueError) and not is_fair(came, attempt):
                result.verdicts.append(where)
            if not venue.requests:
                result.silent.append(where)
            result.signed |= {
                f"{request.method} {request.path}"
                for request in venue.requests
                if any(trace.lower() in shown_by(request).lower() for trace in traces(listing))
            }
    return result


@pytest.mark.parametrize("exchange_id", SERVED)
async def test_nonsense_is_never_a_balance_nor_a_verdict_on_the_account(
    exchange_id: str, record_property: Property
) -> None:
    account = ACCOUNTS[exchange_id]
    result = await tried(
        exchange_id,
        account,
        attempts(account),
        lambda came, attempt: is_false(came, exchange_id, account, attempt),
    )
    record_property(MALFORMED, [exchange_id, result.number, len(result.false)])
    assert result.false == []
    assert result.verdicts == []
    assert result.silent == [], "no request was sent, so nothing was tried"
    assert account.request in result.signed, "the signed request for the balance has not reached the exchange"
    assert result.requests <= {account.request, *account.before, *account.otherwise}


@pytest.mark.parametrize("exchange_id", SEVERAL_TYPES)
async def test_nonsense_is_not_a_balance_of_any_type_of_account(exchange_id: str, record_property: Property) -> None:
    known = ACCOUNTS[exchange_id]
    before = known.before if exchange_id in KINDS else {}
    account = Account("", {}, assets=known.assets, before=before)
    # The good answers tell of a plain account, which has no unified wallet, and at Bitget none for funding.
    not_there = {UNIFIED, "funding"} if exchange_id == "bitget" else {UNIFIED}
    for account_type in (name for name in LISTINGS[exchange_id].account_types[1:] if name not in not_there):
        empty = account_type in TRUE_EMPTY_TYPES.get(exchange_id, {})

        def false(came: Balance | VenueError, attempt: Attempt, empty: bool = empty) -> bool:
            if empty and attempt.name == "an empty list":
                return not is_empty(came)
            return isinstance(came, Balance)

        chosen = [Attempt(name) for name in JSON_BODIES]
        result = await tried(exchange_id, account, chosen, false, account_type)
        record_property(MALFORMED, [exchange_id, result.number, len(result.false)])
        assert result.false == []
        assert result.verdicts == []
        assert result.silent == []


def test_the_corpus_is_large_and_each_exception_from_it_has_its_reason() -> None:
    assert len(CORPUS) >= 30
    assert {"a page for people", "an empty list", "an empty object", "null", "NaN", "a gzip bomb"} <= set(CORPUS)
    assert all(reason for reasons in TRUE_EMPTY.values() for reason in reasons.values())
    assert all(reason for reasons in TRUE_EMPTY_TYPES.values() for reason in reasons.values())
    assert all(TOLD_BEFORE.values())


def test_every_request_only_reads() -> None:
    words = ("order", "withdraw", "transfer/", "session", "approve", "login", "sign")
    for account in ACCOUNTS.values():
        for request in (account.request, *account.before, *account.otherwise):
            method, _, path = request.partition(" ")
            assert method in ("GET", "POST")
            assert not any(word in path.lower() for word in words)
    for name in SIGN_INS:
        assert not is_read("binance", "POST", name)
