"""One balance of Aster: the futures and the spot account of a wallet."""

from __future__ import annotations

from exchange_service.plugin_api import Balance, KeyRights, VenueAccount, VenueCall, gather_accounts
from exchange_service_aster import parse
from exchange_service_aster.client import AsterClient
from exchange_service_aster.scheme import AgentScheme


async def read_balance(call: VenueCall) -> Balance:
    """The requested accounts, with a summary if the futures account's covers everything that is held."""
    client = await AsterClient.open(call)
    account_id = client.scheme.account_id
    prices, lent = await client.prices(), False

    async def read(account_type: str) -> VenueAccount:
        nonlocal lent
        if account_type == parse.SPOT:
            account = await call.compute(parse.spot_account, await client.spot_account(), account_id)
            if not call.wants(parse.FUTURES):
                prices.may_move = False
            return account
        payload = await client.futures_account()
        account = await call.compute(parse.futures_account, payload, account_id)
        lent = await call.compute(parse.lends, payload)
        prices.may_move = await call.compute(parse.moves_with_prices, payload, account)
        return account

    def unread(account_type: str) -> VenueAccount:
        return VenueAccount(id=account_id, type=account_type)

    requested = [account_type for account_type in call.exchange.account_types if call.wants(account_type)]
    accounts = await gather_accounts(requested, read, unread=unread)
    summary = await call.compute(parse.overall_summary, accounts)
    return Balance(accounts, summary, notes=await call.compute(parse.notes, accounts, lent=lent))


async def read_key_rights(call: VenueCall) -> KeyRights:
    """What the agent may do, and when it expires. Of an HMAC key the venue says nothing."""
    client = await AsterClient.open(call)
    if not isinstance(client.scheme, AgentScheme):
        return KeyRights(notes=(parse.HMAC_RIGHTS,))
    return await call.compute(parse.key_rights, await client.agents(), client.scheme.agent)
