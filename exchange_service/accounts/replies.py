"""What the use case returns, as messages."""

from __future__ import annotations

from collections.abc import Sequence

from exchange_service.accounts.service import Checked, Connected
from exchange_service.accounts.stored import StoredAccount
from exchange_service.accounts.v1 import account_service_pb2 as messages
from exchange_service.model import ALL_ACCOUNT_TYPES, Account, KeyRights
from exchange_service.venues.egress import DIRECT, Egress
from exchange_service.wire.balances import fault_message
from exchange_service.wire.protobuf import from_datetime, to_timestamp
from exchange_service.wire.stored import store_balance


def list_reply(user_id: str, accounts: Sequence[StoredAccount], egress: Egress) -> bytes:
    """A serialised ListAccountsResponse."""
    entries = [_account_message(account) for account in accounts]
    for entry, account in zip(entries, accounts, strict=True):
        entry.outgoing_address = egress.of_account(account.account).address
    reply = messages.ListAccountsResponse(
        user_id=user_id, accounts=entries, outgoing_address=egress.ways[DIRECT].address
    )
    return reply.SerializeToString()


def connect_reply(connected: Connected) -> bytes:
    """A serialised ConnectAccountResponse."""
    reply = messages.ConnectAccountResponse(account=_account_message(connected.account), replaced=connected.replaced)
    if connected.check is not None:
        reply.check.CopyFrom(_check_message(connected.check))
    return reply.SerializeToString()


def check_reply(checked: Checked) -> bytes:
    """A serialised CheckAccountResponse."""
    return messages.CheckAccountResponse(check=_check_message(checked)).SerializeToString()


def _account_message(stored: StoredAccount) -> messages.StoredAccount:
    account, known = stored.account, stored.known
    message = messages.StoredAccount(
        exchange_id=account.exchange_id, environment=account.environment, sealed=stored.sealed
    )
    if stored.stored_time is not None:
        message.stored_time.CopyFrom(to_timestamp(stored.stored_time))
    if known.last_fetch_time is not None:
        message.last_fetch_time.CopyFrom(to_timestamp(known.last_fetch_time))
    if known.error is not None:
        message.error.CopyFrom(fault_message(known.error))
    if known.delivery is not None:
        message.delivery.CopyFrom(known.delivery.message())
    return message


def _check_message(checked: Checked) -> messages.AccountCheck:
    account = checked.account
    everything = Account(account.user_id, account.exchange_id, account.environment, ALL_ACCOUNT_TYPES)
    message = messages.AccountCheck(warnings=checked.result.warnings)
    message.balance.ParseFromString(store_balance(everything, checked.result.fetched, checked.at, None).compact)
    if checked.result.rights is not None:
        message.rights.CopyFrom(_rights_message(checked.result.rights))
    return message


def _rights_message(rights: KeyRights) -> messages.KeyRights:
    message = messages.KeyRights(trade=rights.trade, withdraw=rights.withdraw, notes=rights.notes)
    if rights.expires is not None:
        message.expire_time.CopyFrom(from_datetime(rights.expires))
    return message
