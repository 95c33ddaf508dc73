"""Every exchange that CCXT serves, with a gateway's page in its place: never a balance, never a word on the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import exchange_service_ccxt_generic as plugin
import pytest

from exchange_service.plugin_api import Balance, ExchangeMetadata, RegionRestricted, VenueError, VenueUnavailable
from exchange_service.pytest_plugin import MALFORMED, SWEEP
from exchange_service.testing import Fault
from exchange_service.testing.malformed import gateway_answers
from plugins.ccxt_generic.tests.every_exchange.venue import ScriptedVenue, opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, Account, as_json

Property = Callable[[str, object], None]
LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [listing.id for listing in LISTINGS.values() if listing.capabilities.balance]
REGION = (
    b"<html><body>The Amazon CloudFront distribution is configured to block access from your country.</body></html>"
)


def stand_before(venue: ScriptedVenue, account: Account, page: Fault, position: str) -> None:
    """Answer everything with the page, or only the request at `position`."""
    venue.requests.clear()
    venue.answers.clear()
    venue.default = page
    if position:
        good = {**account.before, account.request: account.answer}
        venue.answers = {request: Fault(body=as_json(answer)) for request, answer in good.items()}
        venue.answers[position] = page


@pytest.mark.parametrize("exchange_id", SERVED)
async def test_a_gateways_page_says_nothing_about_the_key(exchange_id: str, record_property: Property) -> None:
    account, tried, wrong, believed = ACCOUNTS[exchange_id], 0, [], 0
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        for name, page in gateway_answers():
            for position in ("", account.request) if account.before else ("",):
                stand_before(venue, account, page, position)
                tried += 1
                try:
                    balance: Balance | VenueError = await read(call)
                except VenueError as error:
                    balance = error
                believed += isinstance(balance, Balance)
                if isinstance(balance, Balance) or not balance.transient:
                    wrong.append(f"{name} at {position or 'every path'}: {balance!r}")
                assert venue.requests
        stand_before(venue, account, Fault(status=403, body=REGION, content_type="text/html"), "")
        with pytest.raises(RegionRestricted):
            await read(call)
    record_property(MALFORMED, [exchange_id, tried, believed])
    record_property(SWEEP, ["gateways' pages", [exchange_id], tried, 0, len(wrong)])
    assert wrong == []


@pytest.mark.parametrize("title", ["Attention Required! | Cloudflare", "Just a moment..."])
async def test_after_a_good_balance_a_page_is_a_passing_trouble(title: str) -> None:
    account = ACCOUNTS["btcmarkets"]
    async with opened(LISTINGS["btcmarkets"], account.assets) as (venue, call):
        venue.tell(account, account.answer)
        await read(call)
        page = f"<!DOCTYPE html><html><head><title>{title}</title></head></html>".encode()
        venue.answers[account.request] = Fault(
            status=403, body=page, content_type="text/html", headers={"Server": "cloudflare"}
        )
        with pytest.raises(VenueUnavailable, match="gateway") as caught:
            await read(call)
    assert "key" not in caught.value.text
