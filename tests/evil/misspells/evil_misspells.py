"""Has a hook with other arguments than the plugin API says."""

from evil_common import WELL, listing

from exchange_service.plugin_api import Balance, Manifest, hookimpl


@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(1, (listing("evil-misspells"),))


@hookimpl
async def fetch_balance(account: str, password: str) -> Balance:
    return WELL
