"""One balance of Hyperliquid: which requests it takes, and what a failed request means for the rest.

The main dex, spot and mode of an address are needed together: one of them alone does not say what the wallet holds.
The list of sub-accounts is needed too, because without it a missing one goes unnoticed. If any of these requests fails,
the balance fails. If an answer for the main dex or for spot has another shape, that account has the error, and
the other one is shown. A builder dex, a sub-account, a vault or the staking account fails alone, and is in the balance
with its error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    AccountUnknown,
    Balance,
    FeatureNotEnabled,
    KeyRights,
    VenueAccount,
    VenueCall,
    VenueError,
    VenueMalformed,
)
from exchange_service_hyperliquid import parse
from exchange_service_hyperliquid.client import HyperliquidClient
from exchange_service_hyperliquid.last_read import LastRead, last_reads

_AGENT = (
    "The stored address belongs to an API wallet, which holds nothing itself: its main wallet is shown. "
    "Store the main wallet's address."
)
_ALL_ON_SPOT = (
    "A unified wallet has no perpetual account of its own: its perpetuals are in the spot wallet's USDC. "
    "Request the account type spot, or none."
)
_DEXS_NOT_READ = (
    "Of the perpetuals only the main dex was read. Store the names of builder dexs in extra_metadata.dexs to read them."
)
_SUB_ACCOUNTS_NOT_READ = "Sub-accounts were not read. Store extra_metadata.sub_accounts as true to read them too."
# Each takes three requests and one for each builder dex, and one wallet must not take every connection.
_CONCURRENT_SUB_ACCOUNTS = 4


async def read_balance(call: VenueCall) -> Balance:
    """The requested accounts of the stored address, with notes and the oldest time that the venue states.

    What was read is left for `push.watch_wallet`, which replaces the parts that the venue pushes.
    """
    client = HyperliquidClient(call)
    began = asyncio.get_running_loop().time()
    wallets, notes = await _wallets(client)
    if client.unpushed is None:
        assert wallets[0].answers is not None
        reads = await last_reads(call)
        reads.leave(LastRead(wallets[0].answers, notes, began))
    return await make_balance(client, wallets, notes)


async def make_balance(client: HyperliquidClient, wallets: Sequence[parse.Wallet], notes: tuple[str, ...]) -> Balance:
    """The balance of these wallets, with further notes. Raises FeatureNotEnabled if they lack what was requested."""
    # An account without a type could not be read, so its type is not known.
    accounts = tuple(
        account for wallet in wallets for account in wallet.accounts if not account.type or client.wants(account.type)
    )
    if not client.wants("spot") and any(wallet.is_unified for wallet in wallets):
        if not accounts:
            raise FeatureNotEnabled(_ALL_ON_SPOT)
        notes = (*notes, _ALL_ON_SPOT)
    summary, more = await client.compute(parse.overall_summary, accounts)
    if client.account_type == ALL_ACCOUNT_TYPES:
        more = (*more, *_left_out(client))
    notes = (*notes, *(note for wallet in wallets for note in wallet.notes), *more)
    times = [time for wallet in wallets for time in wallet.venue_times]
    return Balance(accounts, summary, venue_time=min(times, default=None), notes=tuple(dict.fromkeys(notes)))


def key_rights(call: VenueCall) -> KeyRights:
    """Neither trading nor withdrawing, because nothing stored can sign; a note for each secret to remove."""
    return KeyRights(trade=False, withdraw=False, notes=HyperliquidClient(call).needless_secrets())


def _left_out(client: HyperliquidClient) -> tuple[str, ...]:
    """What a request for everything does not read: each part costs requests, so the user names it."""
    dexs = () if client.dexs else (_DEXS_NOT_READ,)
    return dexs if client.with_sub_accounts else (*dexs, _SUB_ACCOUNTS_NOT_READ)


async def _wallets(client: HyperliquidClient) -> tuple[list[parse.Wallet], tuple[str, ...]]:
    """The wallets of the stored address, or of the main wallet if it is an API wallet's, and notes.

    The venue answers for a wrong address as for an empty wallet. The role tells them apart. It weighs much, so it is
    read only if all wallets are empty. A wallet whose tokens wait in escrow is missing too: it is not activated.
    """
    wallets = await _read_wallets(client, client.address)
    if not all(wallet.is_empty for wallet in wallets):
        return wallets, ()
    role = await client.role(client.address)
    if role.name == "missing" and not any(wallet.has_escrows for wallet in wallets):
        raise AccountUnknown(
            "Hyperliquid does not know the stored wallet_address in this environment.",
            advice="Check for a typing error, and that it is the main wallet's address, not that of another chain or "
            "of the other network.",
        )
    if role.name == "agent":
        return await _read_wallets(client, role.master), (_AGENT,)
    return wallets, ()


async def _read_wallets(client: HyperliquidClient, address: str) -> list[parse.Wallet]:
    """The wallets of an address and its sub-accounts, the vaults and the staking account, as far as requested.

    Raises the first error if not one account could be read.
    """
    reads: list[Coroutine[Any, Any, parse.Wallet]] = []
    if client.wants("perpetual") or client.wants("spot"):
        # Both states are read in any case, because one cannot be understood without the other.
        sub_accounts = await client.sub_accounts(address) if client.with_sub_accounts else []
        slots = asyncio.Semaphore(_CONCURRENT_SUB_ACCOUNTS)
        reads.append(_wallet(client, address))
        for sub in sub_accounts:
            unread_account = VenueAccount(id=sub.address, sub_account=sub.name)
            reads.append(_or_unread(_sub_account(client, sub, slots), unread_account))
    if client.wants("vault"):
        reads.append(_or_unread(_vaults(client, address), VenueAccount(id=address, type="vault")))
    if client.wants("staking"):
        reads.append(_or_unread(_staking(client, address), VenueAccount(id=address, type="staking")))
    wallets: list[parse.Wallet] = await _gather(*reads)
    errors = [account.error for wallet in wallets for account in wallet.accounts]
    if errors and errors[0] and all(errors):
        raise errors[0]
    return wallets


async def _sub_account(client: HyperliquidClient, sub: parse.SubAccount, slots: asyncio.Semaphore) -> parse.Wallet:
    if sub.error is not None:
        raise sub.error
    async with slots:
        return await _wallet(client, sub.address, sub.name)


async def _wallet(client: HyperliquidClient, address: str, name: str = "") -> parse.Wallet:
    mode, spot, main, *dexs = await _gather(
        client.mode(address),
        _or_malformed(client.spot_state(address)),
        _or_malformed(client.perp_state(address)),
        *(_builder_dex(client, address, name, dex) for dex in client.dexs),
    )
    perps = [state for state in (main, *dexs) if isinstance(state, parse.PerpState)]
    unread = tuple(dex for dex in dexs if isinstance(dex, VenueAccount))
    if isinstance(main, VenueMalformed):
        unread = (VenueAccount(id=address, type="perpetual", sub_account=name, error=main), *unread)
    if isinstance(spot, VenueMalformed) and (isinstance(main, VenueMalformed) or mode in parse.UNIFIED_MODES):
        raise spot
    answers = parse.WalletAnswers(address, mode, spot, tuple(perps), unread, name)
    if answers.is_contradictory:
        # Nearly always the wallet has changed its mode since it was read. With the old mode money may count twice.
        answers = replace(answers, mode=await client.reread_mode(address))
    return await client.compute(answers.wallet)


async def _or_malformed(read: Coroutine[Any, Any, Any]) -> Any:
    """The state that `read` returns, or the error of an answer with another shape."""
    try:
        return await read
    except VenueMalformed as error:
        return error


async def _builder_dex(client: HyperliquidClient, address: str, name: str, dex: str) -> parse.PerpState | VenueAccount:
    try:
        return await client.perp_state(address, dex)
    except VenueError as error:
        section = parse.dex_account_name(name, dex)
        return VenueAccount(id=address, type="perpetual", sub_account=section, error=error)


async def _vaults(client: HyperliquidClient, address: str) -> parse.Wallet:
    accounts = await client.compute(parse.vault_accounts, await client.vault_equities(address), address)
    return parse.Wallet(accounts, is_empty=not accounts)


async def _staking(client: HyperliquidClient, address: str) -> parse.Wallet:
    account = await client.compute(parse.staking_account, await client.staking(address), address)
    return parse.Wallet((account,), is_empty=all(row.is_zero() for row in account.assets))


async def _or_unread(read: Awaitable[parse.Wallet], unread_account: VenueAccount) -> parse.Wallet:
    try:
        return await read
    except VenueError as error:
        return parse.Wallet((replace(unread_account, error=error),), is_empty=True)


async def _gather(*reads: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all. The first failure cancels the others and is raised by itself, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read) for read in reads]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
