"""Every exchange and account type: which figure of a row is shown, and that none is invented."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import ccxt.async_support as ccxt
import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.answer_shapes import Rows, shapes
from exchange_service_ccxt_generic.figures import Codes, read_rows
from exchange_service_ccxt_generic.formulas import Term, alternatives

from exchange_service.plugin_api import AssetBalance, ExchangeMetadata, VenueError
from exchange_service.pytest_plugin import SWEEP
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, FREE, USED, Account, meant, rows
from plugins.ccxt_generic.tests.test_every_exchange_rows import at, is_figure, replaced, rows_of

Property = Callable[[str, object], None]
LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [listing.id for listing in LISTINGS.values() if listing.capabilities.balance]
FIGURES = ("total", "free", "used", "debt")
CODES = Codes({}, SimpleNamespace(currencies={}, options={}, safe_currency_code=lambda name: name))

# What CCXT's code for balances mentions of debts without being one of an asset.
NO_DEBT_OF_AN_ASSET: Mapping[str, str] = {
    "binancecoinm": "of margin accounts, which are no account type here",
    "binanceus": "of margin accounts, which are no account type here",
    "binanceusdm": "of margin accounts, which are no account type here",
    "cryptocom": "the whole account's, in dollars",
    "delta": "interest that is credited",
    "derive": "interest that was paid, not what is owed",
    "mexc": "of isolated margin alone, which is no account type here",
    "pacifica": "interest of the whole account, not yet booked",
    "woo": "interest alone, of an unknown sign",
}
_DEBT = re.compile(r"['\"](\w*(?:borrowed|borrowamount|liab|debt|loan|interest))['\"]?\s*[:,)]", re.IGNORECASE)


def named_shapes() -> Iterator[tuple[str, str, Rows]]:
    for exchange_id in SERVED:
        for account_type in LISTINGS[exchange_id].account_types:
            for shape in shapes(exchange_id, account_type):
                yield exchange_id, account_type, shape


def put(row: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for step in above:
        row = row.setdefault(step, {})
    row[last] = value


def amount_of(terms: tuple[Term, ...], values: Mapping[str, Decimal]) -> Decimal:
    return sum((-values[term.path] if term.negative else values[term.path] for term in terms), Decimal(0))


def built(shape: Rows) -> tuple[Any, dict[str, Decimal]]:
    """A row with another amount in each of its members, and the figures that it means."""
    assert shape.figures is not None
    paths = [path for path in shape.amount_paths if path]
    # The greatest first, so that no difference of members is negative.
    values = {path: Decimal(1000 - 17 * place) + Decimal("0.25") for place, path in enumerate(dict.fromkeys(paths))}
    row: Any = {}
    for path, value in values.items():
        put(row, path, str(value))
    if "." in (shape.figures.total, shape.figures.free):
        row, values = "1000.25", {".": Decimal("1000.25")}
    elif all(path.isdigit() for path in values):
        row = [str(values.get(str(place), "")) for place in range(6)]
    means = {
        name: amount_of(alternatives(formula)[0], values)
        for name in FIGURES
        if (formula := getattr(shape.figures, name))
    }
    return row, means


def test_each_member_that_the_table_names_is_the_figure_shown(record_property: Property) -> None:
    tried, wrong, ids = 0, [], set()
    for exchange_id, account_type, shape in named_shapes():
        if shape.figures is None:
            continue
        row, means = built(shape)
        if shape.apart:
            row = [{shape.apart: part, shape.amounts[0]: amount} for part, amount in row.items()]
        rows_there = [("BTC", one) for one in (row if shape.apart else [row])]
        (shown,) = read_rows(Rows(**_without_filter(shape)), rows_there, CODES)[""]
        ids.add(exchange_id)
        tried += len(means)
        wrong += [
            f"{exchange_id} {account_type}: {name} is {value}, not {getattr(shown, name)}"
            for name, value in means.items()
            if getattr(shown, name) != value
        ]
    record_property(SWEEP, ["members that are figures", sorted(ids), tried, 0, len(wrong)])
    assert wrong == []
    assert tried > 400


def _without_filter(shape: Rows) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in Rows.__slots__} | {"taken": None}


def test_each_shape_names_its_figures_or_says_why_ccxts_are_shown(record_property: Property) -> None:
    unnamed = [
        f"{exchange_id} {account_type}"
        for exchange_id, account_type, shape in named_shapes()
        if sum((shape.figures is not None, shape.fields is not None, bool(shape.by_ccxt))) != 1
    ]
    tried = len(list(named_shapes()))
    record_property(SWEEP, ["shapes that name their figures", SERVED, tried, 0, len(unnamed)])
    assert unnamed == []


def test_each_exchange_whose_code_mentions_debts_has_a_debt_or_a_reason(record_property: Property) -> None:
    without, tried = [], []
    for exchange_id in SERVED:
        kind = getattr(ccxt, exchange_id)
        methods = [name for name in dir(kind) if "balance" in name and name == name.lower() and name[0] != "_"]
        code = "".join(
            inspect.getsource(method)
            for name in methods
            if callable(method := getattr(kind, name)) and "/base/" not in str(inspect.getsourcefile(method))
        )
        if not _DEBT.search(code):
            continue
        tried.append(exchange_id)
        known = [shape for one, _, shape in named_shapes() if one == exchange_id]
        if exchange_id not in NO_DEBT_OF_AN_ASSET and not any(shape.figures and shape.figures.debt for shape in known):
            without.append(exchange_id)
    record_property(SWEEP, ["debts that CCXT's code mentions", tried, len(tried), 0, len(without)])
    assert without == []
    assert {"okx", "bybit", "gate", "htx", "bitget", "kucoin", "binance", "bybiteu"} <= set(tried)


def negative_parts(found: Iterator[AssetBalance]) -> list[str]:
    return [str(row) for row in found if any(part is not None and part < 0 for part in (row.free, row.used))]


@pytest.mark.parametrize("exchange_id", SERVED)
async def test_no_part_is_negative_that_the_venue_does_not_send_so(exchange_id: str, record_property: Property) -> None:
    """More free than there is, and then more in use, as margin accounts and wrong answers have it."""
    account, wrong = ACCOUNTS[exchange_id], []
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        for figure in (FREE, USED):

            def much(value: Any, figure: str = figure) -> bool:
                return isinstance(value, str) and figure in value

            answer = replaced(account.answer, much, "975.5")
            before = {request: replaced(body, much, "975.5") for request, body in account.before.items()}
            venue.tell(Account(account.request, answer, before=before), answer)
            wrong += negative_parts(row for _, row in (await read(call)).rows())
    record_property(SWEEP, ["parts greater than the total", [exchange_id], 2, 0, len(wrong)])
    assert wrong == []


def is_amount(value: Any) -> bool:
    return is_figure(value) or value in ("0", "0.00") or (type(value) is int and value == 0)


def with_blank_row(account: Account) -> Any:
    """The answer with another row whose every amount is an empty text."""
    answer = copy.deepcopy(account.answer)
    if account.rows_at is not None:
        holder = at(answer, account.rows_at)
        holder["ZZZ"] = replaced(next(row for row in holder.values() if isinstance(row, dict)), is_amount, "")
        return answer
    entries = rows_of(answer)
    assert entries is not None
    names = {*account.rows, *account.assets.values(), *(row[3] for row in account.rows.values() if len(row) > 3)}
    known = {str(name).upper() for name in names} | {"BTCUSD"}

    def is_name(value: Any) -> bool:
        # Nado's first product is 0.
        whole = type(value) is int and (value > 0 or "product_id" in entries[0])
        return (whole or isinstance(value, str)) and (str(value).upper() in known or value == 0)

    def renamed(value: Any) -> Any:
        return replaced(replaced(value, lambda one: is_name(one) and isinstance(one, int), 99), is_name, "ZZZUSD")

    entries.append(replaced(renamed(copy.deepcopy(entries[0])), is_amount, ""))
    return answer


# The account is one object with its figures, or some fields among others: there is no other row.
ONE_ROW = {"apex", "bit2c", "bitbns", "btcbox", "coincheck", "dydx", "hibachi", "hollaex", "kucoinfutures", "lighter"}
ONE_ROW |= {"mudrex", "paymium"}
# The row is an amount or a list, not an object with amounts.
PLAIN_ROWS = {"bitfinex", "bitteam", "indodax", "zaif"}


@pytest.mark.parametrize("exchange_id", [name for name in SERVED if name not in ONE_ROW | PLAIN_ROWS])
async def test_a_row_with_an_empty_text_for_each_amount_does_not_refuse_the_account(
    exchange_id: str, record_property: Property
) -> None:
    account = ACCOUNTS[exchange_id]
    answer = with_blank_row(account)
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        venue.tell(account, answer)
        try:
            found: Any = rows(await read(call))
        except VenueError as error:
            found = error
    record_property(SWEEP, ["rows of empty texts", [exchange_id], 1, 0, int(found != meant(account))])
    assert found == meant(account)
