"""Calling a plugin without a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from exchange_service.plugin_api import (
    Account,
    Credential,
    ExchangeMetadata,
    Secret,
    State,
    VenueCall,
    VenueUnavailable,
)
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.replacing import check_changes


@dataclass(slots=True)
class StoredRow:
    """The row behind a call, in which `replace_credential` stores what a test then reads.

    `credential` is what is stored, and `writes` counts how often it was replaced. A test sets `changed` for a user who
    has stored another credential meanwhile, `available` to False for a database that does not answer.
    """

    credential: Credential = field(default_factory=Credential)
    writes: int = 0
    changed: bool = False
    available: bool = True

    async def replace(self, call: VenueCall, changes: Mapping[str, str]) -> bool:
        """Store the new values, as the service does. Raises as `VenueCall.replace_credential`."""
        checked = check_changes(call.exchange, call.exchange.id, changes)
        # The call goes on with the new values in any case.
        object.__setattr__(call, "credential", call.credential.with_fields(checked))
        if not self.available:
            raise VenueUnavailable("The new credential is not stored yet.")
        if self.changed:
            return False
        self.credential = self.credential.with_fields(checked)
        self.writes += 1
        return True


@asynccontextmanager
async def venue_call(
    exchange: ExchangeMetadata,
    *,
    override: str = "",
    environment: str = "production",
    api_key: str = "",
    api_secret: str = "",
    passphrase: str = "",
    metadata: Mapping[str, Any] | None = None,
    account_type: str = "",
    timeout: float = 5.0,
    plugin_state: State | None = None,
    key_state: State | None = None,
    settings: Mapping[str, Any] | None = None,
    stored_row: StoredRow | None = None,
) -> AsyncIterator[VenueCall]:
    """The call that the service would make for this credential, with a real guarded session.

    Its many parameters are keywords that tests choose from. `override` is the simulator's URL, `timeout` the seconds
    until the deadline. `settings` are the values of the operator's settings as the plugin gets them: a secret is a
    `Secret`. `stored_row` becomes the row of this credential, in which the plugin replaces fields. State and sessions
    are closed at the end, but not a `plugin_state` or `key_state` that is given. Raises ValueError if the listing has
    no such environment.
    """
    venue_environment = exchange.environment(environment)
    if venue_environment is None:
        raise ValueError(f"{exchange.id} has no environment {environment!r}")
    pool = VenueHttpPool(timeout=timeout)
    account_state = State()
    own_plugin_state = plugin_state or State()
    own_key_state = key_state or State()
    deadline = asyncio.get_running_loop().time() + timeout
    target = (exchange, venue_environment, override)
    credential = Credential(Secret(api_key), Secret(api_secret), Secret(passphrase), dict(metadata or {}))
    row = stored_row or StoredRow()
    row.credential = credential
    try:
        call = VenueCall(
            exchange=exchange,
            account=Account("somebody", exchange.id, venue_environment.name, account_type),
            environment=venue_environment,
            credential=credential,
            http=pool.http(*target).for_call(deadline),
            public_http=pool.http(*target, public=True).for_call(deadline),
            deadline=deadline,
            plugin_state=own_plugin_state,
            account_state=account_state,
            key_state=own_key_state,
            settings=MappingProxyType(dict(settings or {})),
            override=override,
            replacing=lambda changes: row.replace(call, changes),
        )
        yield call
    finally:
        await account_state.close()
        if key_state is None:
            await own_key_state.close()
        if plugin_state is None:
            await own_plugin_state.close()
        await pool.close()
