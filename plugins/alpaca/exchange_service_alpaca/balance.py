"""One balance of Alpaca: joins the requests of `client` and the reading of `parse`."""

from __future__ import annotations

from typing import Any

from exchange_service.plugin_api import Balance, VenueCall, VenueMalformed, require_same_accounts
from exchange_service_alpaca import parse
from exchange_service_alpaca.client import AlpacaClient

_REQUESTS_OF_A_READ = 2


async def read_balance(call: VenueCall) -> Balance:
    """The account of the key, its money and its positions. Raises FeatureNotEnabled while it is not open."""
    client = AlpacaClient(call)
    answer, positions = await _read(call, client)
    if not await call.compute(parse.fits, answer, positions):
        # An order was filled between the two answers, or one of them is not of this account. Reading again tells.
        call.report_cost(2 * _REQUESTS_OF_A_READ)
        answer, positions = await _read(call, client)
        if not await call.compute(parse.fits, answer, positions):
            raise VenueMalformed("Alpaca's positions are not worth what its account says that they are.")
    account = await call.compute(parse.account, answer, positions)
    return Balance((account,), account.summary, notes=parse.notes(answer))


async def _read(call: VenueCall, client: AlpacaClient) -> tuple[Any, Any]:
    """The answers about the account and about its positions."""
    answer = await client.account()
    # A key belongs to one account, whose name is not known before. A venue, or a cache before it, can mix up two users.
    await require_same_accounts(call.account_state, [parse.account_id(answer)], "Alpaca")
    parse.require_open(answer)
    return answer, await client.positions()
