"""Calling a plugin without a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

from exchange_service.plugin_api import Account, Credential, ExchangeMetadata, Secret, State, VenueCall
from exchange_service.venues.http_pool import VenueHttpPool


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
) -> AsyncIterator[VenueCall]:
    """The call that the service would make for this credential, with a real guarded session.

    Its many parameters are keywords that tests choose from. `override` is the simulator's URL, `timeout` the seconds
    until the deadline. `settings` are the values of the operator's settings as the plugin gets them: a secret is a
    `Secret`. State and sessions are closed at the end, but not a `plugin_state` or `key_state` that is given. Raises
    ValueError if the listing has no such environment.
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
    try:
        yield VenueCall(
            exchange=exchange,
            account=Account("somebody", exchange.id, venue_environment.name, account_type),
            environment=venue_environment,
            credential=Credential(Secret(api_key), Secret(api_secret), Secret(passphrase), dict(metadata or {})),
            http=pool.http(*target).for_call(deadline),
            public_http=pool.http(*target, public=True).for_call(deadline),
            deadline=deadline,
            plugin_state=own_plugin_state,
            account_state=account_state,
            key_state=own_key_state,
            settings=MappingProxyType(dict(settings or {})),
            override=override,
        )
    finally:
        await account_state.close()
        if key_state is None:
            await own_key_state.close()
        if plugin_state is None:
            await own_plugin_state.close()
        await pool.close()
