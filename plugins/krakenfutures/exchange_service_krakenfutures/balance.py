"""One balance of Kraken Futures: joins the requests of `client` and the reading of `parse`."""

from __future__ import annotations

from exchange_service.plugin_api import Balance, KeyRights, VenueCall, combined_summary, iso_time
from exchange_service_krakenfutures import parse
from exchange_service_krakenfutures.client import KrakenfuturesClient


class Exposure:
    """Whether an account had open positions when it was last read: prices move its figures."""

    def __init__(self) -> None:
        self.open = False

    @classmethod
    async def new(cls) -> Exposure:
        """What is known before the first read, as a value of a State."""
        return cls()


async def read_balance(call: VenueCall) -> Balance:
    """The accounts of the key that the call wants, with the time that the venue gives them."""
    payload = await KrakenfuturesClient(call).accounts()
    accounts = await call.compute(parse.accounts, payload, call.wants)
    summaries = [account.summary for account in accounts if account.summary is not None]
    exposure = await call.account_state.get(f"exposure {call.account.account_type}", Exposure.new)
    exposure.open = any(summary.margin_used for summary in summaries)
    return Balance(accounts, combined_summary(accounts), iso_time(payload, "serverTime", "the answer"))


async def read_rights(call: VenueCall) -> KeyRights:
    """What the key may do besides reading."""
    return parse.key_rights(await KrakenfuturesClient(call).key_details())
