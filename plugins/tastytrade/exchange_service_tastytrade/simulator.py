"""A simulator of tastytrade: grants, access tokens, balances, their pushes, and errors. It shares no code with the
client."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, bearer_token, json_object, show_situation
from exchange_service.testing.push import PushClient

_GRANT_FIELDS = {"grant_type", "client_secret", "refresh_token"}
_ZERO = Decimal("0.0")
# witness: vendor: https://developer.tastytrade.com/faq
_GATEWAY_PAGE = (
    "<html>\r\n<head><title>401 Authorization Required</title></head>\r\n<body>\r\n"
    "<center><h1>401 Authorization Required</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


# What tastytrade says when it refuses a request: the status, and `code` and `message` of `error`.
_ERRORS: Mapping[str, tuple[type[web.HTTPError], str, str]] = {
    # witness: test data: laustindasauce/tasty-go tasty_test.go
    "token": (
        web.HTTPUnauthorized,
        "unauthorized",
        "Unauthorized. Unique customer support identifier: 0a1b2c3d",
    ),
    # witness: vendor: https://developer.tastytrade.com/api-overview (code and message, without a status)
    "forbidden": (web.HTTPForbidden, "not_permitted", "User not permitted access"),
    # witness: unproven: the answer to a token request of another form was looked for
    "grant form": (web.HTTPBadRequest, "validation_error", "Request validation failed"),
}
# Of a refused grant. Its status is unproven: the report has none.
# witness: report: https://github.com/tastyware/tastytrade/issues/281
_REFUSED_GRANT = {"error_code": "invalid_grant", "error_description": "Invalid JWT"}
# What the account streamer says when it refuses a message: `message` of the answer.
_STREAMER_REFUSALS: Mapping[str, str] = {
    # witness: vendor: https://developer.tastytrade.com/docs/guides/stream-account-updates/
    "too early": "connect-not-completed",
    # witness: report: https://github.com/tastytrade/tastytrade-api-js/issues/36
    "unknown": "not-implemented",
    # witness: unproven: the answer to a token that has expired, or to another login's account, was looked for
    "token": "failed",
    "account": "failed",
}
# The least and the most seconds between two heartbeats. That the streamer ends the connection then is unproven.
# witness: vendor: https://developer.tastytrade.com/docs/guides/stream-account-updates/
_BETWEEN_HEARTBEATS = (2.0, 60.0)


@dataclass(slots=True)
class SimulatedAccount:
    """One brokerage account; amounts in its currency. The figures are those of the worked example."""

    number: str
    nickname: str = "Individual"
    type_name: str = "Individual"
    margin_or_cash: str = "Margin"
    currency: str = "USD"
    cash: Decimal = Decimal("12875.412")
    long_equity: Decimal = Decimal("31240.0")
    long_derivative: Decimal = Decimal("1860.0")
    short_derivative: Decimal = Decimal("745.0")
    maintenance: Decimal = Decimal("24380.0")
    closed: bool = False
    # Listed, but its balances are refused, as for an account that the login has no authority over.
    refused: bool = False
    moving: bool = False

    @property
    def net_liquidating_value(self) -> Decimal:
        return self.cash + self.long_equity + self.long_derivative - self.short_derivative

    @property
    def margin_equity(self) -> Decimal:
        return _ZERO if self.margin_or_cash == "Cash" else self.cash + self.long_equity

    @property
    def requirement(self) -> Decimal:
        return _ZERO if self.margin_or_cash == "Cash" else self.maintenance

    @property
    def derivative_buying_power(self) -> Decimal:
        return self.cash if self.margin_or_cash == "Cash" else self.margin_equity - self.maintenance

    @property
    def equity_buying_power(self) -> Decimal:
        return self.derivative_buying_power * (1 if self.margin_or_cash == "Cash" else 2)


@dataclass(slots=True)
class SimulatedGrant:
    """What belongs to a refresh token: the application's secret and scopes, and the login's accounts."""

    client_secret: str
    accounts: dict[str, SimulatedAccount] = field(default_factory=dict)
    scopes: tuple[str, ...] = ("read",)


class TastytradeSimulator(DemoVenue):
    """Simulates api.tastyworks.com, which does not know the grants of the sandbox."""

    exchange_id = "tastytrade"
    named_by = "`account-number` of the balances, and of each account of the list"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong key": "report: https://github.com/tastyware/tastytrade/issues/281",
        "missing right": "vendor: https://developer.tastytrade.com/reference/errors/",
        "wrong environment": "unproven: the answer of one host to a grant of the other was looked for",
        "unknown account": "vendor: https://developer.tastytrade.com/api-guides/customer-account-info",
        "rate limit": "vendor: https://developer.tastytrade.com/reference/errors/",
        "outage": "unproven: an answer of tastytrade during an outage was looked for",
    }

    def __init__(self) -> None:
        super().__init__()
        self.grants: dict[str, SimulatedGrant] = {}
        # The life of access tokens in seconds, and the life that the answer states; None: the true one.
        self.token_life: float = 900
        self.stated_life: float | None = None
        # By access token: its refresh token, and when it ends in the event loop's time.
        self._tokens: dict[str, tuple[str, float]] = {}
        self._issued = 0
        self._random = random.Random(7)
        self.heartbeat_limit = _BETWEEN_HEARTBEATS[1]
        # The time and the number of the last message that was pushed.
        self._pushed_at = 0
        self._pushes = 0

    def add_grant(
        self,
        refresh_token: str,
        client_secret: str,
        *accounts: SimulatedAccount,
        scopes: tuple[str, ...] = ("read",),
    ) -> SimulatedGrant:
        """Let `refresh_token`, with the application's secret, read these accounts."""
        grant = SimulatedGrant(client_secret, {account.number: account for account in accounts}, scopes)
        self.grants[refresh_token] = grant
        return grant

    @property
    def token_requests(self) -> int:
        """How many requests for an access token were sent so far."""
        return sum(request.path == "/oauth/token" for request in self.requests)

    def end_tokens(self) -> None:
        """Invalidate every access token that was issued so far. Grants stay valid."""
        self._tokens.clear()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/oauth/token", _behind_gateway(self._token)),
            web.get("/customers/me/accounts", _behind_gateway(self._list)),
            web.get("/accounts/{number}/balances", _behind_gateway(self._balances)),
            web.get("/", _behind_gateway(self._streamer)),
        ]

    def account_of(self, request: web.Request, body: bytes) -> str:
        """The refresh token: of the body, or the one that the header's access token was issued for."""
        if request.path == "/oauth/token":
            refresh_token = json_object(body).get("refresh_token", "")
            return refresh_token if isinstance(refresh_token, str) else ""
        return self._bearer(request)[0]

    def _bearer(self, request: web.Request) -> tuple[str, float]:
        return self._tokens.get(bearer_token(request), ("", 0.0))

    async def _token(self, request: web.Request) -> web.Response:
        body = json_object(await request.read())
        well_formed = request.content_type == "application/json" and set(body) == _GRANT_FIELDS
        if not well_formed or body["grant_type"] != "refresh_token" or "Authorization" in request.headers:
            raise _error("grant form")
        grant = self.grants.get(str(body["refresh_token"]))
        if grant is None or grant.client_secret != body["client_secret"]:
            return web.json_response(_REFUSED_GRANT, status=400)
        self._issued += 1
        token = f"simulated.access-token.{self._issued:08}"
        self._tokens[token] = (body["refresh_token"], asyncio.get_running_loop().time() + self.token_life)
        stated = self.token_life if self.stated_life is None else self.stated_life
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": stated})

    def _reader(self, request: web.Request) -> SimulatedGrant:
        """The grant of the request's access token. Raises what refuses the request."""
        grant = self.grants.get(self._login_of(bearer_token(request)))
        if grant is None:
            raise _error("token")
        if "read" not in grant.scopes:
            raise _error("forbidden")
        return grant

    def _login_of(self, token: str) -> str:
        """The refresh token that a valid access token was issued for; empty if it is not valid."""
        refresh_token, ends = self._tokens.get(token, ("", 0.0))
        return refresh_token if asyncio.get_running_loop().time() < ends else ""

    async def _streamer(self, request: web.Request) -> web.StreamResponse:
        def greet(client: PushClient) -> None:
            self._expect_a_message(client)

        return await self.push.serve(request, self._answer_streamer, greet=greet)

    def _expect_a_message(self, client: PushClient) -> None:
        """End the connection if its next message takes too long."""
        if "deadline" in client.notes:
            client.notes["deadline"].cancel()
        client.notes["deadline"] = asyncio.get_running_loop().call_later(self.heartbeat_limit, client.close)

    def _answer_streamer(self, client: PushClient, message: Any) -> None:
        self._expect_a_message(client)
        action = message.get("action")
        answer = {"status": "ok", "action": action, "web-socket-session-id": "5b6e2799"}
        refusal = self._refusal(client, message)
        if refusal:
            answer |= {"status": "error", "message": _STREAMER_REFUSALS[refusal]}
        elif action == "connect":
            answer["value"] = message["value"]
        client.send(answer | ({"request-id": message["request-id"]} if "request-id" in message else {}))

    def _refusal(self, client: PushClient, message: Any) -> str:
        """Why a message is refused, a key of the table above; empty if it is not."""
        kind, _, token = str(message.get("auth-token", "")).partition(" ")
        login = self._login_of(token) if kind == "Bearer" else ""
        if message.get("action") not in ("connect", "heartbeat"):
            return "unknown" if client.topics else "too early"
        if message["action"] == "heartbeat" and not client.topics:
            return "too early"
        if not login or login not in self.grants or (client.account and client.account != login):
            return "token"
        return self._connect(client, login, message.get("value")) if message["action"] == "connect" else ""

    def _connect(self, client: PushClient, login: str, numbers: Any) -> str:
        """Follow these accounts of a login from now on. Returns why they are refused, if they are."""
        numbers = [numbers] if isinstance(numbers, str) else numbers
        grant = self.grants[login]
        if "read" not in grant.scopes or not isinstance(numbers, list) or not numbers:
            return "account"
        if not all(number in grant.accounts and not grant.accounts[number].refused for number in numbers):
            return "account"
        client.account = login
        client.topics.update((login, number) for number in numbers)
        return ""

    def change(self, refresh_token: str, number: str, **figures: Decimal) -> None:
        """Change an account's figures, by their names in `SimulatedAccount`, and push it."""
        account = self.grants[refresh_token].accounts[number]
        for name, value in figures.items():
            setattr(account, name, value)
        self._push_account(refresh_token, account)

    def _push_account(self, refresh_token: str, account: SimulatedAccount) -> None:
        """Push what a trade changes: the position, then the balances."""
        position = {"account-number": account.number, "symbol": "SPY", "quantity": "100"}
        for kind, data in (("CurrentPosition", position), ("AccountBalance", _balances(account))):
            self._pushed_at = max(self._pushed_at + 1, int(time.time() * 1000))
            self._pushes += 1
            message = {"type": kind, "data": data, "timestamp": self._pushed_at, "ws-sequence": self._pushes}
            self.push.publish((refresh_token, account.number), message)

    async def _list(self, request: web.Request) -> web.Response:
        items = [
            {"account": _account_entry(account), "authority-level": "owner"}
            for account in self._reader(request).accounts.values()
        ]
        return web.json_response({"data": {"items": items}, "context": request.path})

    async def _balances(self, request: web.Request) -> web.Response:
        account = self._reader(request).accounts.get(request.match_info["number"])
        if account is None or account.refused:
            raise _error("forbidden")
        return web.json_response({"data": _balances(account), "context": request.path})

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        refresh_token, client_secret = f"demo-{situation}-refresh-token", "demo-client-secret"
        first = SimulatedAccount("5WX00000", moving=situation == "moving")
        if situation == "empty":
            empty = SimulatedAccount("5WX00009", "Empty", cash=_ZERO, long_equity=_ZERO, maintenance=_ZERO)
            empty.long_derivative = empty.short_derivative = _ZERO
            self.add_grant(refresh_token, client_secret, empty)
        elif situation == "partly":
            retirement = SimulatedAccount("5WX00001", "Retirement", "Roth IRA", "Cash", cash=Decimal("912.5"))
            refused = SimulatedAccount("5WX00002", "Joint", "Joint Tenants with Rights of Survivorship", refused=True)
            closed = SimulatedAccount("5WX00003", "Former", closed=True)
            self.add_grant(refresh_token, client_secret, first, retirement, refused, closed)
        elif situation != "refused":
            self.add_grant(refresh_token, client_secret, first)
        # A balance needs three answers: the token, the list of accounts, and the balances of one.
        show_situation(self, situation, refresh_token, answers=3, delay=1.0)
        return {"api_secret": client_secret, "passphrase": refresh_token}

    def revoke_demo_key(self) -> bool:
        return self.grants.pop("demo-moving-refresh-token", None) is not None

    def other_credential(self) -> Mapping[str, Any]:
        self.add_grant("other-refresh-token", "other-client-secret", SimulatedAccount("5WX77777", cash=Decimal("77.7")))
        return {"api_secret": "other-client-secret", "passphrase": "other-refresh-token"}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        refresh_token = f"troubled-{trouble.replace(' ', '-')}-refresh-token"
        row: dict[str, Any] = {"api_secret": "troubled-client-secret", "passphrase": refresh_token}
        if trouble == "wrong environment":
            # The grant is not added: only the sandbox knows it.
            return row
        scopes = ("openid",) if trouble == "missing right" else ("read",)
        self.add_grant(refresh_token, row["api_secret"], SimulatedAccount("5WX00000"), scopes=scopes)
        if trouble == "wrong key":
            row["api_secret"] = "another-client-secret"
        elif trouble == "unknown account":
            row["extra_metadata"] = {"account_id": "5WX99999"}
        else:
            # The venue publishes no header for how long to wait.
            show_situation(self, trouble, refresh_token, limit=Fault(status=429))
        return row

    def move(self) -> None:
        for refresh_token, grant in self.grants.items():
            for account in grant.accounts.values():
                if account.moving:
                    account.long_equity += Decimal(self._random.randint(-4000, 4200)).scaleb(-2)
                    self._push_account(refresh_token, account)


def _behind_gateway(handler: Any) -> Any:
    """The handler behind the venue's gateway, which refuses every request without a User-Agent."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not request.headers.get("User-Agent"):
            return web.Response(status=401, text=_GATEWAY_PAGE, content_type="text/html")
        answer: web.StreamResponse = await handler(request)
        return answer

    return handle


def _error(what: str) -> web.HTTPError:
    kind, code, message = _ERRORS[what]
    return kind(text=json.dumps({"error": {"code": code, "message": message}}), content_type="application/json")


def _account_entry(account: SimulatedAccount) -> dict[str, Any]:
    return {
        "account-number": account.number,
        "external-id": "A1b2",
        "opened-at": "2023-03-02T15:04:05.000+00:00",
        "nickname": account.nickname,
        "account-type-name": account.type_name,
        "day-trader-status": False,
        "is-closed": account.closed,
        "is-firm-error": False,
        "is-firm-proprietary": False,
        "is-futures-approved": account.margin_or_cash == "Margin",
        "is-test-drive": False,
        "is-foreign": False,
        "margin-or-cash": account.margin_or_cash,
        "funding-date": "2023-03-08",
        "investment-objective": "SPECULATION",
        "suitable-options-level": "No Restrictions",
        "created-at": "2023-03-02T15:04:05.000+00:00",
    }


def _balances(account: SimulatedAccount) -> dict[str, Any]:
    return {
        "account-number": account.number,
        "currency": account.currency,
        "cash-balance": str(account.cash),
        "net-liquidating-value": str(account.net_liquidating_value),
        "long-equity-value": str(account.long_equity),
        "short-equity-value": "0.0",
        "long-derivative-value": str(account.long_derivative),
        "short-derivative-value": str(account.short_derivative),
        "margin-equity": str(account.margin_equity),
        "equity-buying-power": str(account.equity_buying_power),
        "derivative-buying-power": str(account.derivative_buying_power),
        "day-trading-buying-power": "0.0",
        "used-derivative-buying-power": "25495.0",
        "maintenance-requirement": str(account.requirement),
        "maintenance-excess": str(account.derivative_buying_power),
        "reg-t-margin-requirement": str(account.requirement),
        "futures-margin-requirement": "0.0",
        "cash-available-to-withdraw": "11020.4",
        "pending-cash": "125.0",
        "pending-cash-effect": "Debit",
        "buying-power-adjustment": "0.0",
        "buying-power-adjustment-effect": "None",
        "snapshot-date": "2026-11-20",
        "updated-at": "2026-11-20T21:00:05.123+00:00",
    }
