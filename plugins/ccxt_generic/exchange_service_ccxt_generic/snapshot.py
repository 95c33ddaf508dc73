"""Build the snapshot of the installed CCXT: `python -m exchange_service_ccxt_generic.snapshot [--write]`.

It imports CCXT, so it runs in a process of its own. Without `--write` the snapshot goes to standard output. With it the
list of retired exchanges is renewed too: what the new snapshot lacks is added with today's day.
"""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from exchange_service_ccxt_generic.catalogue import Snapshot
from exchange_service_ccxt_generic.describe import entry, environment_urls, socket_urls
from exchange_service_ccxt_generic.pushed import PUSHED, named_by_venue
from exchange_service_ccxt_generic.retired import read_retired, renewed, write_retired

# Poloniex's test addresses lack a section that CCXT needs first. WEEX's sandbox has only another account.
_BROKEN_SANDBOX = frozenset({"poloniex", "weex"})


def build() -> Snapshot:
    """Every exchange of the installed CCXT; an alias of another one is left out."""
    import ccxt.async_support as ccxt
    from ccxt import pro

    entries = []
    for exchange_id in ccxt.exchanges:
        exchange = getattr(ccxt, exchange_id)()
        if not exchange.alias:
            entries.append(_entry(exchange, getattr(pro, exchange_id)() if exchange_id in PUSHED else None))
    return Snapshot(ccxt.__version__, tuple(entries))


def _entry(exchange: Any, with_sockets: Any) -> dict[str, Any]:
    """An exchange of the snapshot; `with_sockets` is an instance of CCXT's class for sockets if it is pushed."""
    described = {
        "id": exchange.id,
        "name": exchange.name,
        "urls": exchange.urls,
        "has": exchange.has,
        "requiredCredentials": exchange.requiredCredentials,
        "countries": exchange.countries,
        "rateLimit": exchange.rateLimit,
    }
    production = environment_urls(exchange.urls, exchange.hostname)
    sandbox = _sandbox_urls(exchange)
    if with_sockets is not None:
        production |= {**socket_urls(with_sockets.urls, with_sockets.hostname), **named_by_venue(exchange.id)}
        if sandbox is not None:
            with_sockets.set_sandbox_mode(True)
            sandbox |= socket_urls(with_sockets.urls, with_sockets.hostname)
    return entry(described, production, sandbox)


def _sandbox_urls(exchange: Any) -> dict[str, str] | None:
    """The addresses after CCXT's own switch to the test hosts; None if it has no test hosts."""
    if not exchange.urls.get("test") or exchange.id in _BROKEN_SANDBOX:
        return None
    exchange.set_sandbox_mode(True)
    urls = {name: value for name, value in exchange.urls.items() if name != "hostnames"}
    return environment_urls(urls, exchange.hostname)


def write(folder: Path, built: Snapshot, day: date) -> None:
    """Replace the snapshot and the list of retired exchanges in a folder that has both."""
    listings, list_of_retired = folder / "snapshot.json", folder / "retired.json"
    before = Snapshot.from_json(listings.read_bytes())
    versions = (before.ccxt_version, built.ccxt_version)
    retired = renewed(read_retired(list_of_retired.read_bytes()), before.exchanges, built.exchanges, versions, day)
    list_of_retired.write_text(write_retired(retired), encoding="utf-8")
    listings.write_text(built.to_json(), encoding="utf-8")


def main() -> None:
    """Write the snapshot into the package, or print it."""
    built = build()
    if "--write" in sys.argv[1:]:
        write(Path(__file__).parent, built, datetime.now(UTC).date())
    else:
        sys.stdout.buffer.write(built.to_json().encode())


if __name__ == "__main__":
    main()
