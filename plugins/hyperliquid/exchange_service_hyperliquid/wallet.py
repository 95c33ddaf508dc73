"""Reading a wallet: which questions, in which order, and what a failed one means for the rest.

An address's main dex, spot and mode stand or fall together, because none of them says what the wallet holds without
the others. What the user asked for beyond that fails on its own and stands in the balance with its error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any

from exchange_service.plugin_api import AccountUnknown, Balance, VenueAccount, VenueError
from exchange_service_hyperliquid import parse
from exchange_service_hyperliquid.client import HyperliquidClient

_AGENT = (
    "The stored address is an API wallet's and holds nothing itself: its main wallet is shown. "
    "Store the main wallet's address."
)


async def read_balance(client: HyperliquidClient) -> Balance:
    """Everything that the stored address shows, and what the user asked for besides."""
    address, main, notes = await _main_wallet(client)
    wallets = [main, *await _together(*await _extras(client, address))]
    accounts = tuple(account for wallet in wallets for account in wallet.accounts)
    summary, remarks = parse.overall_summary(accounts)
    notes = (*notes, *(note for wallet in wallets for note in wallet.notes), *remarks)
    times = [time for wallet in wallets for time in wallet.venue_times]
    # The oldest that the venue states: no figure that has a time is older.
    return Balance(accounts, summary, venue_time=min(times, default=None), notes=tuple(dict.fromkeys(notes)))


async def _main_wallet(client: HyperliquidClient) -> tuple[str, parse.Wallet, tuple[str, ...]]:
    """The address that counts, its wallet, and remarks.

    A wrong address answers like an empty wallet. Only the role tells them apart, and it is dear, so it is asked for
    only where nothing was found.
    """
    wallet = await _wallet(client, client.address)
    if not wallet.is_empty:
        return client.address, wallet, ()
    role = await client.role(client.address)
    if role.name == "missing":
        raise AccountUnknown(
            "Hyperliquid has never seen the stored wallet_address in this environment. Check for a typing error, "
            "and that it is the main wallet's address and not one of another chain or of the test network."
        )
    if role.name == "agent":
        return role.master, await _wallet(client, role.master), (_AGENT,)
    return client.address, wallet, ()


async def _wallet(client: HyperliquidClient, address: str, name: str = "") -> parse.Wallet:
    mode, spot, main, *dexs = await _together(
        client.mode(address),
        client.spot_state(address),
        client.perp_state(address),
        *(_builder_dex(client, address, name, dex) for dex in client.dexs),
    )
    if parse.contradicts(mode, spot):
        # Nearly always the wallet changed its mode since it was asked for. By the old one, money may count twice.
        mode = await client.mode_anew(address)
    perps = [main, *(dex for dex in dexs if isinstance(dex, parse.PerpState))]
    unread = tuple(dex for dex in dexs if isinstance(dex, VenueAccount))
    return parse.wallet(address, mode, spot, perps, name=name, unread=unread)


async def _builder_dex(client: HyperliquidClient, address: str, name: str, dex: str) -> parse.PerpState | VenueAccount:
    try:
        return await client.perp_state(address, dex)
    except VenueError as error:
        section = parse.dex_account_name(name, dex)
        return VenueAccount(id=address, type="perpetual", sub_account=section, error=error)


async def _extras(client: HyperliquidClient, address: str) -> list[Coroutine[Any, Any, parse.Wallet]]:
    """What the user asked for besides the wallet itself, each to be read on its own."""
    reads = []
    for sub in await client.sub_accounts(address) if client.with_sub_accounts else ():
        shell = VenueAccount(id=sub.address, sub_account=sub.name)
        reads.append(_or_error(_wallet(client, sub.address, sub.name), shell))
    if client.with_vaults:
        reads.append(_or_error(_vaults(client, address), VenueAccount(id=address, type="vault")))
    if client.with_staking:
        reads.append(_or_error(_staking(client, address), VenueAccount(id=address, type="staking")))
    return reads


async def _vaults(client: HyperliquidClient, address: str) -> parse.Wallet:
    return parse.Wallet(parse.vault_accounts(await client.vault_equities(address)))


async def _staking(client: HyperliquidClient, address: str) -> parse.Wallet:
    return parse.Wallet((parse.staking_account(await client.staking(address), address),))


async def _or_error(read: Awaitable[parse.Wallet], shell: VenueAccount) -> parse.Wallet:
    try:
        return await read
    except VenueError as error:
        return parse.Wallet((replace(shell, error=error),))


async def _together(*reads: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all; the first failure ends the others and is raised as itself, not as a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
