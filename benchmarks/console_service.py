"""A service with the console and moving accounts, in a process of its own: `python -m benchmarks.console_service FOLDER
ACCOUNTS`.

It prints the address of a page that is signed in, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import random
import sys
from decimal import Decimal
from pathlib import Path

from exchange_service.gc_tuning import tune_gc
from exchange_service.observability.logs import configure_logging
from exchange_service.plugin_api import AssetBalance, Balance, Summary, VenueAccount, VenueCall, hookimpl
from tests.browser.consoles import serving_console
from tests.harness import ScriptedPlugin, listing, registry_of

USER = "watcher"
_ASSETS = ("BTC", "ETH", "USD", "USDC", "SOL")
# Seconds between two readings of each account.
_EVERY = 1.0


class MovingVenues(ScriptedPlugin):
    """Keeps no record of its calls, which would grow with the time."""

    @hookimpl
    async def fetch_balance(self, call: VenueCall) -> Balance:
        balance: Balance = await self.answer(call)
        return balance


def moving_venues(count: int) -> MovingVenues:
    """A plugin with so many listings, whose accounts change with each reading."""
    chance = random.Random(12)

    async def answer(_: VenueCall) -> Balance:
        amounts = [Decimal(chance.randint(1, 10**9)).scaleb(-4) for _ in _ASSETS]
        rows = tuple(
            AssetBalance(asset, total=amount, free=amount) for asset, amount in zip(_ASSETS, amounts, strict=True)
        )
        account = VenueAccount(id="1", type="spot", assets=rows)
        return Balance((account,), summary=Summary("USD", total=sum(amounts), equity=sum(amounts)))

    return MovingVenues(*(listing(f"venue{number:03}") for number in range(count)), answer=answer)


async def main(folder: Path, accounts: int) -> None:
    """See the module."""
    configure_logging("error")
    plugin = moving_venues(accounts)
    async with serving_console(
        folder, registry=registry_of(plugin), poll_interval=_EVERY, poll_interval_still=_EVERY, max_age=_EVERY
    ) as console:
        for entry in plugin.manifest.exchanges:
            await console.store(entry.id, user=USER)
        tune_gc()
        sys.stdout.write(console.sign_in_url(USER) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
