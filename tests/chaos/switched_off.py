"""Mechanisms of the service switched off, so that each invariant is seen to fail: `python -m tests.chaos.switched_off`.

Each function is called in the replicas before they serve, see `serve`. The table names a fault that shows the lack.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.chaos.run import run
from tests.chaos.serve import PATCH


def users_in_keys() -> None:
    """All users share the keys of the cache, and the fetches that are joined by them."""
    from exchange_service.balances.keys import BalanceKeys

    BalanceKeys.key = lambda self, account, reference: "one for all"  # type: ignore[method-assign]


def seal() -> None:
    """What is kept in Redis has no MAC."""
    from exchange_service.cache import sealed_redis
    from tests.faults.test_redis_attacks import Unsealed

    sealed_redis.CacheSeal = Unsealed  # type: ignore[assignment, misc]


def ages() -> None:
    """Every balance is of this moment, though what is fresh is known."""
    from exchange_service.balances.freshness import Freshness

    Freshness.age = lambda self, stored: 0.0  # type: ignore[method-assign]


def stale_marks() -> None:
    """The last good balance is given without a word."""
    from exchange_service.balances.service import Balances

    true_result = Balances._result

    def result(self: Any, key: str, stored: Any, source: Any, stale: Any = None) -> Any:
        return true_result(self, key, stored, source, None)

    Balances._result = result  # type: ignore[method-assign]


def older_balances() -> None:
    """A feed hands out whatever it reads."""
    from exchange_service.streams.feed import Feed

    Feed._is_older = lambda self, stored, current: False  # type: ignore[method-assign]


def leases() -> None:
    """No replica waits for another one's fetch."""
    from exchange_service.balances.leases import Leased

    async def fetch(self: Any, target: Any, deadline: float, priority: Any) -> Any:
        return await self._fetch_as_holder(target, deadline, priority)

    Leased.fetch = fetch  # type: ignore[method-assign]


def reasons() -> None:
    """Failed calls carry no details."""
    from exchange_service.grpc_server import handler_wrapper

    true_status = handler_wrapper.find_status
    handler_wrapper.find_status = lambda error: replace(true_status(error), trailers=())


def references() -> None:
    """Every call looks its credential up."""
    from exchange_service.credentials.references import CachedReferences

    true_find = CachedReferences.find

    async def find(self: Any, account: Any, **options: Any) -> Any:
        return await true_find(self, account, **(options | {"now": True}))

    CachedReferences.find = find  # type: ignore[method-assign]


def last_good() -> None:
    """No last good balance is given."""
    from exchange_service.balances.freshness import Freshness

    Freshness.within_grace = lambda self, stored: False  # type: ignore[method-assign]


def errors_in_heartbeats() -> None:
    """Heartbeats do not know what is wrong."""
    from exchange_service.streams import feed

    true_state = feed.account_state
    feed.account_state = lambda state: true_state(replace(state, error=None))  # type: ignore[attr-defined]


def secrecy() -> None:
    """A plugin prints the token that it was given."""
    from exchange_service_oanda import client

    true_text = client.clean_text

    def text(token: str, field: str) -> str:
        sys.stderr.write(f"{token}\n")
        return true_text(token, field)

    client.clean_text = text  # type: ignore[attr-defined]


def probes() -> None:
    """A venue that has failed is left alone for minutes."""
    from exchange_service.venue_gate import breaker

    breaker.FIRST_PAUSE = breaker.LONGEST_PAUSE = 300.0


def closing() -> None:
    """Each fetch leaves a file open."""
    from exchange_service.balances.single_flight import SingleFlight

    true_begin = SingleFlight._begin

    def begin(self: Any, target: Any, priority: Any) -> Any:
        os.open(os.devnull, os.O_RDONLY)
        return true_begin(self, target, priority)

    SingleFlight._begin = begin  # type: ignore[method-assign]


# Each invariant with the mechanism without which it fails, and the fault that shows it. What gRPC itself keeps, the end
# of calls in time, has no such mechanism.
SHOWN = {
    "own_user": (users_in_keys, "nothing"),
    "really_emitted": (seal, "redis-bits-flipped"),
    "true_age": (ages, "nothing"),
    "staleness_told": (stale_marks, "venue-500"),
    "versions_rise": (older_balances, "redis-freeze"),
    "asked_once": (leases, "nothing"),
    "reasons_given": (reasons, "venue-500"),
    "no_call_lost": (references, "postgres-restart"),
    "last_good_kept": (last_good, "venue-500"),
    "well_after_balance": (errors_in_heartbeats, "venue-500"),
    "secrets_kept": (secrecy, "nothing"),
    "recovers": (probes, "venue-500"),
    "nothing_left": (closing, "nothing"),
}


def main(names: Sequence[str]) -> int:
    """Returns 1 if an invariant held without its mechanism, else 0."""
    held = []
    for name in names or SHOWN:
        mechanism, fault = SHOWN[name]
        os.environ[PATCH] = f"{__spec__.name}:{mechanism.__name__}"
        (outcome,) = asyncio.run(run([fault], 5.0, 1))
        count = sum(violation.invariant == name for violation in outcome.violations)
        print(f"without {mechanism.__name__}: {name} was broken {count} times\n", flush=True)
        if not count:
            held.append(name)
    print(f"held: {', '.join(held)}" if held else "Each was seen to fail.")
    return 1 if held else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
