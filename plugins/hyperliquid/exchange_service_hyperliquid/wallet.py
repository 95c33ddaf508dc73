"""Reading a wallet: which questions, in which order, and what a failed one means for the rest.

An address's main dex, spot and mode stand or fall together, because none of them says what the wallet holds without
the others; so does the list of sub-accounts, without which nobody knows what is missing. Every builder dex,
sub-account and extra fails on its own and stands in the balance with its error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any

from exchange_service.plugin_api import AccountUnknown, Balance, FeatureNotEnabled, VenueAccount, VenueError
from exchange_service_hyperliquid import parse
from exchange_service_hyperliquid.client import HyperliquidClient

_AGENT = (
    "The stored address is an API wallet's and holds nothing itself: its main wallet is shown. "
    "Store the main wallet's address."
)
_ALL_ON_SPOT = "A unified wallet has no perpetual account of its own: its perpetuals are in the spot wallet's USDC."
# Each of them asks three questions, and one for each builder dex: a wallet of many must not take every connection.
_SUB_ACCOUNTS_AT_ONCE = 4


async def read_balance(client: HyperliquidClient) -> Balance:
    """Everything that is asked for of the stored address."""
    wallets, notes = await _wallets(client)
    # An account of no type is one that could not be read: what it would have shown is not known.
    accounts = tuple(
        account for wallet in wallets for account in wallet.accounts if not account.type or client.wants(account.type)
    )
    if not client.wants("spot") and any(wallet.is_unified for wallet in wallets):
        if not accounts:
            raise FeatureNotEnabled(_ALL_ON_SPOT, advice="Ask for the account type spot, or for none.")
        notes = (*notes, _ALL_ON_SPOT)
    summary, remarks = parse.overall_summary(accounts)
    notes = (*notes, *(note for wallet in wallets for note in wallet.notes), *remarks)
    times = [time for wallet in wallets for time in wallet.venue_times]
    # The oldest that the venue states: no figure that has a time is older.
    return Balance(accounts, summary, venue_time=min(times, default=None), notes=tuple(dict.fromkeys(notes)))


async def _wallets(client: HyperliquidClient) -> tuple[list[parse.Wallet], tuple[str, ...]]:
    """What the address that counts shows, and remarks.

    A wrong address answers like an empty wallet. Only the role tells them apart, and it is dear, so it is asked for
    only where nothing was found.
    """
    wallets = await _shown_by(client, client.address)
    if not all(wallet.is_empty for wallet in wallets):
        return wallets, ()
    role = await client.role(client.address)
    if role.name == "missing":
        raise AccountUnknown(
            "Hyperliquid has never seen the stored wallet_address in this environment.",
            advice="Check for a typing error, and that it is the main wallet's address "
            "and not one of another chain or of the other network.",
        )
    if role.name == "agent":
        return await _shown_by(client, role.master), (_AGENT,)
    return wallets, ()


async def _shown_by(client: HyperliquidClient, address: str) -> list[parse.Wallet]:
    """The wallet of an address, those of its sub-accounts, and its extras, as far as they are asked for.

    Where nothing could be read the first error is raised, because then nothing is known.
    """
    reads: list[Coroutine[Any, Any, parse.Wallet]] = []
    if client.wants("perpetual") or client.wants("spot"):
        # Both in any case: a state can be understood only with the other.
        sub_accounts = await client.sub_accounts(address) if client.with_sub_accounts else []
        turn = asyncio.Semaphore(_SUB_ACCOUNTS_AT_ONCE)
        reads.append(_wallet(client, address))
        for sub in sub_accounts:
            shell = VenueAccount(id=sub.address, sub_account=sub.name)
            reads.append(_or_error(_sub_account(client, sub, turn), shell))
    if client.wants("vault"):
        reads.append(_or_error(_vaults(client, address), VenueAccount(id=address, type="vault")))
    if client.wants("staking"):
        reads.append(_or_error(_staking(client, address), VenueAccount(id=address, type="staking")))
    wallets: list[parse.Wallet] = await _together(*reads)
    errors = [account.error for wallet in wallets for account in wallet.accounts]
    if errors and errors[0] and all(errors):
        raise errors[0]
    return wallets


async def _sub_account(client: HyperliquidClient, sub: parse.SubAccount, turn: asyncio.Semaphore) -> parse.Wallet:
    async with turn:
        return await _wallet(client, sub.address, sub.name)


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


async def _vaults(client: HyperliquidClient, address: str) -> parse.Wallet:
    accounts = parse.vault_accounts(await client.vault_equities(address))
    return parse.Wallet(accounts, is_empty=not accounts)


async def _staking(client: HyperliquidClient, address: str) -> parse.Wallet:
    account = parse.staking_account(await client.staking(address), address)
    return parse.Wallet((account,), is_empty=all(row.is_zero() for row in account.assets))


async def _or_error(read: Awaitable[parse.Wallet], shell: VenueAccount) -> parse.Wallet:
    try:
        return await read
    except VenueError as error:
        return parse.Wallet((replace(shell, error=error),), is_empty=True)


async def _together(*reads: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all; the first failure ends the others and is raised as itself, not as a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
