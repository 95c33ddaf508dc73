"""Every account type of every listing: a good answer is read, so that none is listed that could never be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import exchange_service_ccxt_generic as plugin

from exchange_service.plugin_api import ExchangeMetadata, VenueError
from exchange_service.pytest_plugin import SWEEP
from plugins.ccxt_generic.tests.every_exchange.further_types import FURTHER
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, Account, meant, rows

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
