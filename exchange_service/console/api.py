"""The service's calls with messages in and messages out, and their failures as one error with what a page shows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from exchange_service.accounts.v1 import account_service_pb2 as account_messages
from exchange_service.grpc_server.direct import CallEnded, DirectCalls
from exchange_service.grpc_server.status import DETAILS_KEY, CallStatus
from exchange_service.operator.v1.plugin_service_pb2 import ListPluginsRequest, ListPluginsResponse
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.v1.exchange_pb2 import Exchange

_Reply = TypeVar("_Reply", bound=Message)

_EXCHANGES = "/exchange_service.v1.ExchangeService/"
_ACCOUNTS = "/exchange_service.accounts.v1.AccountService/"
_PLUGINS = "/exchange_service.operator.v1.PluginService/"
# A venue may take most of this to answer a check; a page does not wait longer.
_CHECK_TIMEOUT = 30.0
_HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


@dataclass(eq=False)
class ApiError(Exception):
    """A call that failed: its reason, the sentence with the next step, and the delay to wait in seconds if any.

    `fields` has what is wrong with each field of the request. `http_status` is the status of a page that shows it.
    """

    reason: str
    message: str
    http_status: int = 500
    retry_delay: float | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON pages give it."""
        shown: dict[str, Any] = {"reason": self.reason, "message": self.message}
        if self.retry_delay is not None:
            shown["retry_delay"] = self.retry_delay
        if self.fields:
            shown["fields"] = dict(self.fields)
        return shown


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON values, with the field names of the protos."""
    return MessageToDict(message, preserving_proto_field_name=True)


def _api_error(end: CallStatus) -> ApiError:
    error = ApiError(end.reason, end.message.removeprefix(f"{end.reason}: "), _HTTP_STATUS.get(end.code.name, 500))
    for detail in _details(dict(end.trailers).get(DETAILS_KEY, b"")):
        if isinstance(detail, error_details_pb2.RetryInfo):
            error.retry_delay = detail.retry_delay.ToTimedelta().total_seconds()
        elif isinstance(detail, error_details_pb2.BadRequest):
            error.fields = {item.field: item.description for item in detail.field_violations}
    return error


def _details(data: str | bytes) -> list[Message]:
    try:
        status = status_pb2.Status.FromString(data if isinstance(data, bytes) else b"")
    except DecodeError:
        return []
    kinds = (error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    return [kind.FromString(packed.value) for packed in status.details for kind in kinds if packed.Is(kind.DESCRIPTOR)]


class Api:
    """The calls of one person: each carries the person's token. All of them raise ApiError."""

    def __init__(self, calls: DirectCalls, token: str = "") -> None:
        self._calls = calls
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    async def list_exchanges(self, **filters: Any) -> messages.ListExchangesResponse:
        """One page of the catalogue; `filters` are the fields of ListExchangesRequest."""
        request = messages.ListExchangesRequest(**filters)
        return await self._unary(_EXCHANGES + "ListExchanges", request, messages.ListExchangesResponse)

    async def all_exchanges(self, **filters: Any) -> list[Exchange]:
        """Every entry of the catalogue that the filters select."""
        entries: list[Exchange] = []
        token = ""
        while True:
            page = await self.list_exchanges(page_token=token, **filters)
            entries.extend(page.exchanges)
            token = page.next_page_token
            if not token:
                return entries

    async def get_balance(self, user_id: str, exchange_id: str, **options: Any) -> messages.GetBalanceResponse:
        """One account's balance; `options` are the other fields of GetBalanceRequest."""
        request = messages.GetBalanceRequest(user_id=user_id, exchange_id=exchange_id, **options)
        return await self._unary(_EXCHANGES + "GetBalance", request, messages.GetBalanceResponse)

    async def stream_balances(
        self, request: messages.StreamBalancesRequest
    ) -> AsyncGenerator[messages.StreamBalancesResponse, None]:
        """The events of a user's accounts. Closing the generator ends the call."""
        path, data = _EXCHANGES + "StreamBalances", request.SerializeToString()
        try:
            async with aclosing(self._calls.stream(path, data, self._metadata_of(request))) as events:
                async for data in events:
                    yield messages.StreamBalancesResponse.FromString(data)
        except CallEnded as ended:
            raise _api_error(ended.status) from None

    async def list_accounts(self, user_id: str = "") -> account_messages.ListAccountsResponse:
        """The user's stored accounts; without a user, those of the only one that the caller may read."""
        request = account_messages.ListAccountsRequest(user_id=user_id)
        return await self._unary(_ACCOUNTS + "ListAccounts", request, account_messages.ListAccountsResponse)

    async def connect_account(
        self, request: account_messages.ConnectAccountRequest
    ) -> account_messages.ConnectAccountResponse:
        """Store a credential after it was tried at the venue."""
        kind = account_messages.ConnectAccountResponse
        return await self._unary(_ACCOUNTS + "ConnectAccount", request, kind, timeout=_CHECK_TIMEOUT)

    async def check_account(
        self, user_id: str, exchange_id: str, environment: str = ""
    ) -> account_messages.CheckAccountResponse:
        """Try a stored credential at the venue."""
        request = account_messages.CheckAccountRequest(
            user_id=user_id, exchange_id=exchange_id, environment=environment
        )
        kind = account_messages.CheckAccountResponse
        return await self._unary(_ACCOUNTS + "CheckAccount", request, kind, timeout=_CHECK_TIMEOUT)

    async def remove_account(
        self, user_id: str, exchange_id: str, environment: str = ""
    ) -> account_messages.RemoveAccountResponse:
        """Remove a stored credential."""
        request = account_messages.RemoveAccountRequest(
            user_id=user_id, exchange_id=exchange_id, environment=environment
        )
        return await self._unary(_ACCOUNTS + "RemoveAccount", request, account_messages.RemoveAccountResponse)

    async def list_plugins(self) -> ListPluginsResponse:
        """The plugins of the service, and their processes. For operators."""
        return await self._unary(_PLUGINS + "ListPlugins", ListPluginsRequest(), ListPluginsResponse)

    def _metadata_of(self, request: Message) -> Sequence[tuple[str, str]]:
        """The token, and the user of the request: a caller that acts for users has to name it, and others may."""
        user = getattr(request, "user_id", "")
        return (*self._metadata, ("x-act-as", user)) if user else self._metadata

    async def _unary(self, path: str, request: Message, kind: type[_Reply], *, timeout: float | None = None) -> _Reply:
        data, metadata = request.SerializeToString(), self._metadata_of(request)
        try:
            return kind.FromString(await self._calls.unary(path, data, metadata, timeout=timeout))
        except CallEnded as ended:
            raise _api_error(ended.status) from None
        except KeyError:
            # The service was built without this method.
            raise ApiError("NOT_SUPPORTED", "This service does not offer that.", 501) from None
