"""AccountService: read the request, count it, call the use case, fill the reply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from exchange_service.accounts.replies import check_reply, connect_reply, list_reply
from exchange_service.accounts.service import AccountQuery, Accounts, ConnectQuery
from exchange_service.accounts.v1 import account_service_pb2 as messages
from exchange_service.errors import NotSupported
from exchange_service.grpc_server.authentication import current_caller
from exchange_service.grpc_server.handler_wrapper import Context
from exchange_service.grpc_server.methods import ServiceMethods
from exchange_service.grpc_server.requests import parse, required_text, text
from exchange_service.identity import Caller
from exchange_service.identity.authenticator import Authenticator
from exchange_service.model import Secret
from exchange_service.venues.egress import Egress

_DESCRIPTOR = messages.DESCRIPTOR.services_by_name["AccountService"]
SERVICE = _DESCRIPTOR.full_name
# Bytes: several private keys.
_LARGEST_CONNECT = 64 * 1024


@dataclass(frozen=True, slots=True)
class AccountServicer:
    """Translates between the wire and the use case. `accounts` is None unless the operator allows to manage them."""

    accounts: Accounts | None
    authenticator: Authenticator
    egress: Egress = field(default_factory=Egress)

    async def list_accounts(self, data: bytes, context: Context) -> bytes:
        """ListAccounts."""
        accounts, caller = self._allowed(), current_caller()
        user_id = _listed_user(parse(messages.ListAccountsRequest, data), caller)
        return list_reply(user_id, await accounts.list_stored(user_id, caller), self.egress)

    async def connect_account(self, data: bytes, context: Context) -> bytes:
        """ConnectAccount."""
        accounts, caller = self._allowed(), current_caller()
        query = read_connect(data)
        await self.authenticator.take_change(caller)
        return connect_reply(await accounts.connect(query, caller))

    async def check_account(self, data: bytes, context: Context) -> bytes:
        """CheckAccount."""
        accounts, caller = self._allowed(), current_caller()
        query = _read_account(parse(messages.CheckAccountRequest, data))
        await self.authenticator.take_change(caller)
        return check_reply(await accounts.check(query, caller))

    async def remove_account(self, data: bytes, context: Context) -> bytes:
        """RemoveAccount."""
        accounts, caller = self._allowed(), current_caller()
        query = _read_account(parse(messages.RemoveAccountRequest, data))
        await self.authenticator.take_change(caller)
        await accounts.remove(query, caller)
        return messages.RemoveAccountResponse().SerializeToString()

    def methods(self) -> ServiceMethods:
        """The handlers for the server."""
        return ServiceMethods(
            _DESCRIPTOR,
            {
                "ListAccounts": self.list_accounts,
                "ConnectAccount": self.connect_account,
                "CheckAccount": self.check_account,
                "RemoveAccount": self.remove_account,
            },
        )

    def _allowed(self) -> Accounts:
        if self.accounts is None:
            raise NotSupported(
                "This service does not let callers manage accounts.",
                advice="Ask its operator for the setting manage_accounts=true.",
            )
        return self.accounts


def _listed_user(request: messages.ListAccountsRequest, caller: Caller) -> str:
    """The user of the request, or else the caller's only one."""
    if not request.user_id and (only := caller.only_user()):
        return only
    return required_text(request, "user_id")


def _read_account(request: Any) -> AccountQuery:
    """The account that a request names. Raises FieldInvalid."""
    user_id, exchange_id = required_text(request, "user_id"), required_text(request, "exchange_id")
    return AccountQuery(user_id, exchange_id, text(request, "environment"))


def read_connect(data: bytes) -> ConnectQuery:
    """As `_read_account`. The values leave the message at once, and print nowhere from then on."""
    request = parse(messages.ConnectAccountRequest, data, limit=_LARGEST_CONNECT)
    query = _read_account(request)
    fields = {name: Secret(value) for name, value in request.fields.items()}
    return ConnectQuery(query.user_id, query.exchange_id, query.environment, fields, request.skip_check)
