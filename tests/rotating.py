"""A venue whose refresh token changes at each use, and a plugin for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

from exchange_service.testing import LoopbackVenue

# Installed by `install` for a process of its own, and run in the service's process too.
PLUGIN = '''
import asyncio
from contextlib import suppress
from decimal import Decimal

from exchange_service.plugin_api import *

FIELDS = (
    CredentialField("api_key", "Client id", secret=False),
    CredentialField("passphrase", "Refresh token", rotates=True),
    CredentialField("device_token", "Device token", required=False, rotates=True),
    CredentialField("account_id", "Account", required=False, secret=False),
)
LISTINGS = tuple(
    ExchangeMetadata(
        id=name, name=name.title(), asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
        environments=(Environment("production", {"api": "https://rota.example"}),),
        credential_fields=FIELDS, capabilities=Capabilities(push=True),
    )
    for name in ("rota",)
)


@hookimpl
def exchange_manifest():
    return Manifest(1, LISTINGS)


async def refresh(call):
    """Spend the refresh token, and store the next one before the access token is used."""
    spent = call.credential.passphrase.reveal()
    answer = await call.http.post(call.url() + "/token", json={"refresh_token": spent})
    if answer.status == 400:
        raise CredentialRejected("Rota refuses the refresh token.")
    answer.raise_for_status()
    tokens = answer.json()
    with suppress(VenueUnavailable):
        await call.replace_credential(passphrase=tokens["refresh_token"], metadata={"device_token": "device " + spent})
    return tokens["access_token"]


@hookimpl
async def fetch_balance(call):
    token = await call.account_state.get("token", lambda: refresh(call))
    for attempt in range(2):
        answer = await call.http.get(call.url() + "/balance", headers={"Authorization": token})
        if answer.status != 401 or attempt:
            break
        call.account_state.forget("token")
        token = await call.account_state.get("token", lambda: refresh(call))
    answer.raise_for_status()
    rows = (AssetBalance("BTC", total=Decimal(answer.json()["total"])),)
    return Balance((VenueAccount(id=answer.json()["account"], type="spot", assets=rows),))


@hookimpl
async def watch_balance(call):
    while True:
        yield Changed()
        await asyncio.sleep(3600)
'''


class RotatingVenue(LoopbackVenue):
    """Gives two new tokens for each refresh token, which it then refuses for ever. `valid` are the accounts that a
    refresh token opens, `refreshes` counts the uses by account."""

    def __init__(self) -> None:
        super().__init__()
        self.valid: dict[str, str] = {}
        self.access: dict[str, str] = {}
        self.refreshes: Counter[str] = Counter()
        self.refused = 0
        self.reads = 0
        # Tokens are given only while it is set.
        self.open = asyncio.Event()
        self.open.set()
        # Set while a request for tokens waits or has been answered.
        self.asked = asyncio.Event()

    def grant(self, account: str) -> str:
        """A refresh token for the account."""
        token = f"refresh-{account}-{self.refreshes[account]:04d}-{len(self.valid):04d}"
        self.valid[token] = account
        return token

    def expire_access(self) -> None:
        """Refuse every access token from now on."""
        self.access.clear()

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/token", self._token), web.get("/balance", self._balance)]

    async def _token(self, request: web.Request) -> web.Response:
        account = self.valid.pop((await request.json())["refresh_token"], "")
        self.asked.set()
        if not account:
            self.refused += 1
            return web.json_response({"error": "invalid_grant"}, status=400)
        self.refreshes[account] += 1
        access = f"access-{account}-{self.refreshes[account]}"
        self.access[access] = account
        refresh = self.grant(account)
        await self.open.wait()
        return web.json_response({"access_token": access, "refresh_token": refresh})

    async def _balance(self, request: web.Request) -> web.Response:
        account = self.access.get(request.headers.get("Authorization", ""))
        if account is None:
            return web.json_response({}, status=401)
        self.reads += 1
        return web.json_response({"account": account, "total": str(self.reads)})


def install(folder: Path) -> None:
    """The plugin as an installed distribution, which the operator may run in the service's process."""
    (folder / "rota_plugin.py").write_text(PLUGIN)
    meta = folder / "acme_rota-1.2.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-rota\nVersion: 1.2\n")
    (meta / "entry_points.txt").write_text("[exchange_service]\nrota = rota_plugin\n")


def values_of(row: Any) -> tuple[str, ...]:
    """The secrets of a credential as plain texts."""
    return tuple(getattr(row, name).reveal() for name in ("api_key", "api_secret", "passphrase"))
