"""How each exchange speaks on its socket, as CCXT's classes read it: the answers of a venue on loopback.

The forms are those in CCXT's sources; the values are invented. "$id" stands for the id of the message that is answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from exchange_service.plugin_api import CredentialRejected, RequestRefused, VenueError


@dataclass(frozen=True, slots=True)
class Script:
    """What the venue says on one account type's way to a push, and how it refuses the key."""

    # A balance that has changed; bytes are sent as they are.
    push: Any
    # The answers to messages of ours that hold a word, in the order of our messages; the last one may be unanswered.
    answers: tuple[tuple[str, Any], ...] = ()
    # Answers to requests over HTTP, by method and path.
    requests: Mapping[str, Any] = field(default_factory=dict)
    # What the venue says first.
    greeting: Any = None
    # The refusal of the first message, if there is one, or of the first request, with its status; or the status of a
    # refused handshake.
    refused: Any = None
    refused_request: tuple[int, Any] | None = None
    refused_handshake: int = 0
    error: type[VenueError] = CredentialRejected
    # Whether messages are packed.
    packed: bool = False


def _okx_like(login: Any, subscribed: Any, push: Any, refused: Any) -> Script:
    return Script(push, (("login", login), ("subscribe", subscribed)), refused=refused)


_LISTEN_KEY = {"listenKey": "kkkkkkkk"}
_REFUSED_BY_BINANCE = {"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}
_CHANGED_CONTRACTS = {
    "e": "ACCOUNT_UPDATE",
    "E": 1,
    "T": 1,
    "a": {"m": "ORDER", "B": [{"a": "USDT", "wb": "7.5", "cw": "7.5", "bc": "0"}], "P": []},
}
_BINANCE = Script(
    {
        "subscriptionId": 0,
        "event": {"e": "outboundAccountPosition", "E": 1, "u": 1, "B": [{"a": "BTC", "f": "1.5", "l": "0.5"}]},
    },
    (("userDataStream.subscribe.signature", {"id": "$id", "status": 200, "result": {"subscriptionId": 0}}),),
    refused={"id": "$id", "status": 400, "error": _REFUSED_BY_BINANCE},
)


def _by_listen_key(request: str, push: Any, refused: Any, **more: Any) -> Script:
    return Script(push, requests={request: _LISTEN_KEY}, refused_request=(401, refused), **more)


_LINEAR = _by_listen_key("POST /fapi/v1/listenKey", _CHANGED_CONTRACTS, _REFUSED_BY_BINANCE)
_INVERSE = _by_listen_key("POST /dapi/v1/listenKey", _CHANGED_CONTRACTS, _REFUSED_BY_BINANCE)

_OKX = _okx_like(
    {"event": "login", "code": "0", "msg": "", "connId": "a1"},
    {"event": "subscribe", "arg": {"channel": "account"}, "connId": "a1"},
    {
        "arg": {"channel": "account", "uid": "1"},
        "data": [{"uTime": "1", "details": [{"ccy": "USDT", "eq": "7.5", "cashBal": "7.5", "availBal": "7.5"}]}],
    },
    {"event": "error", "code": "60009", "msg": "Login failed.", "connId": "a1"},
)

_BYBIT = Script(
    {
        "id": "1",
        "topic": "wallet",
        "creationTime": 1,
        "data": [{"accountType": "UNIFIED", "coin": [{"coin": "USDT", "walletBalance": "7.5", "locked": "0"}]}],
    },
    (
        ('"op":"auth"', {"success": True, "ret_msg": "", "op": "auth", "conn_id": "a1"}),
        ("subscribe", {"success": True, "ret_msg": "", "op": "subscribe", "conn_id": "a1"}),
    ),
    {
        "GET /v5/user/query-api": {"retCode": 0, "retMsg": "", "result": {"uta": 1}},
        "GET /v5/account/info": {"retCode": 0, "retMsg": "", "result": {"unifiedMarginStatus": 5}},
    },
    refused={"success": False, "ret_msg": "error:USVC1111", "conn_id": "a1", "request": {"op": "auth", "args": []}},
)

_BITGET_PUSH = {"action": "snapshot", "ts": 1}
_BITGET_CLASSIC = {"GET /api/v3/account/settings": {"code": "40084", "msg": "not a unified account", "data": None}}


def _bitget(arg: Mapping[str, str], row: Mapping[str, Any], requests: Mapping[str, Any]) -> Script:
    push = {**_BITGET_PUSH, "arg": arg, "data": [row]}
    script = _okx_like(
        {"event": "login", "code": 0},
        {"event": "subscribe", "arg": arg},
        push,
        {"event": "error", "code": 30005, "msg": "error"},
    )
    return replace(script, requests=requests)


def _kucoin_token(host: str) -> dict[str, Any]:
    server = {"endpoint": f"wss://{host}/", "protocol": "websocket", "pingInterval": 18000, "pingTimeout": 10000}
    return {"code": "200000", "data": {"token": "tttt", "instanceServers": [server]}}


_KUCOIN_KIND = {
    "GET /api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}},
    "GET /api/v1/hf/accounts/opened": {"code": "200000", "data": True},
}
_KUCOIN_REFUSED = (400, {"code": "400005", "msg": "Invalid KC-API-SIGN"})
_KUCOIN = Script(
    {
        "type": "message",
        "topic": "/account/balance",
        "subject": "account.balance",
        "data": {"currency": "USDT", "total": "7.5", "available": "7.5", "hold": "0", "relationEvent": "trade.setted"},
    },
    (("/account/balance", {"id": "$id", "type": "ack"}),),
    {"POST /api/v1/bullet-private": _kucoin_token("ws-api-spot.kucoin.com"), **_KUCOIN_KIND},
    {"id": "1", "type": "welcome"},
    refused_request=_KUCOIN_REFUSED,
)


def _hitbtc(method: str) -> Script:
    return Script(
        {"jsonrpc": "2.0", "method": method, "params": [{"currency": "USDT", "available": "7.5", "reserved": "0"}]},
        (
            ("login", {"jsonrpc": "2.0", "result": True}),
            ("_subscribe", {"jsonrpc": "2.0", "result": True, "id": "$id"}),
        ),
        refused={"jsonrpc": "2.0", "error": {"code": 1002, "message": "Authorization failed", "description": "bad"}},
    )


_GATE = Script(
    {
        "time": 1,
        "channel": "spot.balances",
        "event": "update",
        "result": [{"currency": "USDT", "total": "7.5", "available": "7.5", "freeze": "0", "timestamp_ms": "1"}],
    },
    (("spot.balances", {"time": 1, "id": "$id", "channel": "spot.balances", "event": "subscribe", "error": None}),),
    {"GET /api/v4/account/detail": {"user_id": 1, "key": {"mode": 1}}},
    refused={
        "time": 1,
        "id": "$id",
        "channel": "spot.balances",
        "event": "subscribe",
        "error": {"code": 4, "message": '{"label":"INVALID_KEY","message":"Invalid key provided"}\n'},
    },
)


def _outbound(event: str) -> dict[str, Any]:
    return {"e": event, "E": "1", "T": True, "W": True, "D": True, "B": [{"a": "USDT", "f": "7.5", "l": "0"}]}


def _orderly() -> Script:
    return Script(
        {"topic": "balance", "ts": 1, "data": {"balances": {"USDC": {"holding": 7.5, "frozen": 0}}}},
        (
            ('"auth"', {"event": "auth", "success": True, "ts": 1}),
            ("subscribe", {"id": "$id", "event": "subscribe", "success": True, "ts": 1}),
        ),
        refused={"event": "auth", "success": False, "ts": 1, "errorMsg": "Auth is needed."},
    )


def _bingx(event: Any, answers: tuple[tuple[str, Any], ...] = ()) -> Script:
    request = "POST /openApi/user/auth/userDataStream"
    refused = {"code": 100413, "msg": "Incorrect apiKey", "timestamp": 1}
    return Script(event, answers, {request: _LISTEN_KEY}, refused_request=(200, refused), packed=True)


def _phemex(member: str, row: Mapping[str, Any]) -> Script:
    return Script(
        {member: [row], "sequence": 1, "timestamp": 1, "type": "incremental"},
        (
            ("user.auth", {"error": None, "id": "$id", "result": {"status": "success"}}),
            (".subscribe", {"error": None, "id": "$id", "result": {"status": "success"}}),
        ),
        refused={"error": {"code": 6012, "message": "invalid login token"}, "id": "$id", "result": None},
    )


def _weex(row: Mapping[str, Any]) -> Script:
    return Script(
        {"e": "account", "E": 1, "v": 1, "msgEvent": "DepositUpdate", "d": [row]},
        (("SUBSCRIBE", {"result": True, "id": "$id"}),),
        refused_handshake=401,
    )


def _whitebit(method: str, row: Any) -> Script:
    return Script(
        {"method": method, "params": [row], "id": None},
        (
            ("authorize", {"id": "$id", "result": {"status": "success"}, "error": None}),
            ("_subscribe", {"id": "$id", "result": {"status": "success"}, "error": None}),
        ),
        {"POST /api/v4/profile/websocket_token": {"websocket_token": "tttt"}},
        refused_request=(401, {"code": 10, "message": "Unauthorized request."}),
    )


def _htx(login: Any, subscribed: Any, push: Any, refused: Any) -> Script:
    return Script(push, (('auth"', login), ('"sub"', subscribed)), refused=refused, packed=True)


_HTX_SPOT = replace(
    _htx(
        {"action": "req", "code": 200, "ch": "auth", "data": {}},
        {"action": "sub", "code": 200, "ch": "accounts.update#2", "data": {}},
        {
            "action": "push",
            "ch": "accounts.update#2",
            "data": {"currency": "usdt", "accountId": 1, "balance": "7.5", "available": "7.5", "changeTime": 1},
        },
        {"action": "req", "code": 2002, "ch": "auth", "message": "auth.fail"},
    ),
    packed=False,
)

SCRIPTS: Mapping[str, Script] = {
    "backpack spot": Script(
        {"data": {"e": "balanceUpdate", "E": 1, "a": "USDC", "A": "7.5", "L": "0", "S": "0"}, "stream": "account"},
        refused={"id": None, "error": {"code": 4006, "message": "Invalid signature"}},
    ),
    "bequant spot": _hitbtc("spot_balance"),
    "binance spot": _BINANCE,
    "binance future": _LINEAR,
    "binance swap": _LINEAR,
    "binance delivery": _INVERSE,
    "binancecoinm delivery": _INVERSE,
    "binanceusdm swap": _LINEAR,
    "binanceusdm future": _LINEAR,
    "bingx spot": _bingx(_CHANGED_CONTRACTS, (("ACCOUNT_UPDATE", {"id": "$id", "code": 0, "msg": ""}),)),
    "bingx swap": _bingx(_CHANGED_CONTRACTS),
    "bitfinex spot": Script(
        [0, "wu", ["exchange", "LTC", 0.5, 0, 0.5, "", None]],
        (('"auth"', {"event": "auth", "status": "OK", "chanId": 0, "userId": 1}),),
        greeting={"event": "info", "version": 2, "platform": {"status": 1}},
        refused={"event": "auth", "status": "FAILED", "chanId": 0, "code": 10100, "msg": "apikey: invalid"},
    ),
    "bitget spot": _bitget(
        {"instType": "SPOT", "channel": "account", "coin": "default"},
        {"coin": "USDT", "available": "7.5", "frozen": "0", "locked": "0"},
        _BITGET_CLASSIC,
    ),
    "bitget swap": _bitget(
        {"instType": "USDT-FUTURES", "channel": "account", "coin": "default"},
        {"marginCoin": "USDT", "available": "7.5", "frozen": "0", "equity": "7.5"},
        _BITGET_CLASSIC,
    ),
    "bitget unified": _bitget(
        {"instType": "UTA", "topic": "account"},
        {"coin": [{"coin": "USDT", "available": "7.5", "locked": "0", "balance": "7.5"}]},
        {"GET /api/v3/account/settings": {"code": "00000", "msg": "", "data": {"accountMode": "unified"}}},
    ),
    "bithumb spot": Script(
        {"type": "myAsset", "assets": [{"currency": "USDT", "balance": "7.5", "locked": "0"}], "timestamp": 1},
        refused={"error": {"name": "INVALID_AUTH", "message": "invalid token"}},
        error=RequestRefused,
    ),
    "bitrue spot": Script(
        {"e": "BALANCE", "x": "OutboundAccountPositionOrderEvent", "E": 1, "B": [{"a": "usdt", "F": "7.5", "T": 1}]},
        (("user_balance_update", {"channel": "user_balance_update", "event_rep": "subed", "status": "ok"}),),
        {"POST /poseidon/api/v1/listenKey": {"msg": "succ", "code": 200, "data": _LISTEN_KEY}},
        refused_request=(401, _REFUSED_BY_BINANCE),
        packed=True,
    ),
    "blockchaincom spot": Script(
        {"seqnum": 2, "event": "snapshot", "channel": "balances", "balances": [{"currency": "USDT", "balance": 7.5}]},
        (
            ('"auth"', {"seqnum": 0, "event": "subscribed", "channel": "auth", "readOnly": False}),
            ('"balances"', {"seqnum": 1, "event": "subscribed", "channel": "balances"}),
        ),
        refused={"seqnum": 0, "event": "rejected", "channel": "auth", "text": "Authentication Failed"},
    ),
    "bybit unified": _BYBIT,
    "bybiteu unified": _BYBIT,
    "bybitid unified": _BYBIT,
    "bydfi swap": Script(
        {"e": "ACCOUNT_UPDATE", "E": 1, "T": 1, "a": {"m": "ORDER", "B": [{"a": "USDT", "wb": "7.5"}], "p": []}},
        (("LOGIN", {"id": "$id", "result": "success"}),),
        refused={"id": "$id", "code": 101107, "msg": "invalid sign"},
    ),
    "cryptocom spot": Script(
        {
            "id": -1,
            "method": "subscribe",
            "code": 0,
            "result": {
                "subscription": "user.balance",
                "channel": "user.balance",
                "data": [{"position_balances": [{"instrument_name": "USDT", "quantity": "7.5", "reserved_qty": "0"}]}],
            },
        },
        (
            ("public/auth", {"id": "$id", "method": "public/auth", "code": 0}),
            ("user.balance", {"id": 1, "method": "subscribe", "code": 0, "channel": "user.balance"}),
        ),
        refused={"id": "$id", "method": "public/auth", "code": 40101, "message": "Authentication failure"},
    ),
    "deribit trading": Script(
        {
            "jsonrpc": "2.0",
            "method": "subscription",
            "params": {"channel": "user.portfolio.btc", "data": {"currency": "BTC", "balance": 7.5, "equity": 7.5}},
        },
        (
            ("public/auth", {"jsonrpc": "2.0", "id": "$id", "result": {"access_token": "aaaa", "token_type": "b"}}),
            ("private/subscribe", {"jsonrpc": "2.0", "id": "$id", "result": ["user.portfolio.btc"]}),
        ),
        refused={"jsonrpc": "2.0", "id": "$id", "error": {"message": "invalid_credentials", "code": 13004}},
    ),
    "extended swap": Script(
        {"type": "BALANCE", "data": {"balance": {"collateralName": "USD", "balance": "7.5", "equity": "7.5"}}, "ts": 1},
        refused_handshake=401,
    ),
    "gate spot": _GATE,
    "gateeu spot": _GATE,
    "hashkey spot": _by_listen_key(
        "POST /api/v1/userDataStream", [_outbound("outboundAccountInfo")], {"code": "0002", "msg": "Unauthorized"}
    ),
    "hashkey swap": _by_listen_key(
        "POST /api/v1/userDataStream",
        [_outbound("outboundContractAccountInfo")],
        {"code": "0002", "msg": "Unauthorized"},
    ),
    "hitbtc spot": _hitbtc("spot_balance"),
    "hitbtc swap": _hitbtc("futures_balance"),
    "hollaex spot": Script(
        {"topic": "wallet", "action": "partial", "data": {"usdt_balance": 7.5, "usdt_available": 7.5}, "time": 1},
        (("wallet", {"topic": "wallet", "action": "partial", "data": {}, "time": 1}),),
        refused={"error": "Bearer or HMAC authentication required"},
    ),
    "htx spot": _HTX_SPOT,
    "htx swap": _htx(
        {"op": "auth", "type": "api", "err-code": 0, "ts": 1, "data": {"user-id": "1"}},
        {"op": "sub", "cid": "$id", "topic": "account", "err-code": 0, "ts": 1},
        {
            "op": "notify",
            "topic": "account",
            "ts": 1,
            "data": {"details": [{"currency": "USDT", "equity": "7.5", "withdraw_available": "7.5"}]},
        },
        {"op": "auth", "type": "api", "err-code": 2002, "err-msg": "auth.fail", "ts": 1},
    ),
    "kraken spot": Script(
        {"channel": "balances", "type": "update", "sequence": 2, "data": [{"asset": "BTC", "balance": 1.2}]},
        (("balances", {"method": "subscribe", "req_id": "$id", "success": True, "result": {"channel": "balances"}}),),
        {"POST /0/private/GetWebSocketsToken": {"error": [], "result": {"token": "tttt", "expires": 900}}},
        {"channel": "status", "type": "update", "data": [{"system": "online"}]},
        refused_request=(200, {"error": ["EAPI:Invalid key"]}),
    ),
    **dict.fromkeys(
        ("krakenfutures flex", "krakenfutures cash"),
        Script(
            {"feed": "balances", "account": "a", "holding": {"USD": 7.5}, "timestamp": 1, "seq": 1},
            (
                ("challenge", {"event": "challenge", "message": "cccc"}),
                ("subscribe", {"event": "subscribed", "feed": "balances"}),
            ),
            greeting={"event": "info", "version": 1},
            refused={"event": "alert", "message": "Invalid api key"},
        ),
    ),
    "kucoin spot": _KUCOIN,
    "kucoin funding": _KUCOIN,
    "kucoinfutures swap": Script(
        {
            "type": "message",
            "topic": "/contractAccount/wallet",
            "subject": "walletBalance.change",
            "data": {"currency": "USDT", "availableBalance": "7.5", "holdBalance": "0", "timestamp": "1"},
        },
        (("/contractAccount/wallet", {"id": "$id", "type": "ack"}),),
        {"POST /api/v1/bullet-private": _kucoin_token("ws-api-futures.kucoin.com"), **_KUCOIN_KIND},
        {"id": "1", "type": "welcome"},
        refused_request=_KUCOIN_REFUSED,
    ),
    "lbank spot": Script(
        {"data": {"asset": "7.5", "assetCode": "usdt", "free": "7.5", "freeze": "0"}, "type": "assetUpdate"},
        requests={"POST /v2/subscribe/get_key.do": {"result": True, "data": "kkkk", "error_code": 0, "ts": 1}},
        refused_request=(200, {"result": "false", "error_code": 10007, "ts": 1}),
    ),
    "mexc spot": Script(
        {
            "channel": "private.account.v3.api",
            "c": "spot@private.account.v3.api",
            "data": {"vcoinName": "USDT", "balanceAmount": "7.5", "frozenAmount": "0", "time": "1"},
        },
        (("SUBSCRIPTION", {"id": 0, "code": 0, "msg": "spot@private.account.v3.api.pb"}),),
        {"POST /api/v3/userDataStream": _LISTEN_KEY},
        refused_request=(400, {"code": 10072, "msg": "Api key info invalid"}),
    ),
    "modetrade swap": _orderly(),
    "myokx trading": _OKX,
    "okx trading": _OKX,
    "okxus trading": _OKX,
    "onetrading spot": Script(
        {
            "type": "BALANCES_SNAPSHOT",
            "channel_name": "ACCOUNT_HISTORY",
            "balances": [{"currency_code": "EUR", "available": "7.5", "locked": "0"}],
        },
        (
            ("AUTHENTICATE", {"type": "AUTHENTICATED", "user_id": "a"}),
            ("ACCOUNT_HISTORY", {"type": "SUBSCRIPTIONS", "channels": [{"name": "ACCOUNT_HISTORY"}]}),
        ),
        refused={"type": "ERROR", "error": "INVALID_API_TOKEN", "channel_name": "SYSTEM"},
        error=RequestRefused,
    ),
    "phemex spot": _phemex("wallets", {"currency": "USDT", "balanceEv": 750, "lockedTradingBalanceEv": 0}),
    "phemex swap": _phemex("accounts", {"currency": "BTC", "accountBalanceEv": 750, "totalUsedBalanceEv": 0}),
    "poloniex spot": Script(
        {"channel": "balances", "data": [{"currency": "USDT", "available": "7.5", "hold": "0", "ts": 1}]},
        (
            ('"auth"', {"data": {"success": True, "ts": 1}, "channel": "auth"}),
            ('"balances"', {"event": "subscribe", "channel": "balances"}),
        ),
        refused={"data": {"success": False, "message": "Authentication failed!", "ts": 1}, "channel": "auth"},
    ),
    "toobit spot": _by_listen_key(
        "POST /api/v1/userDataStream", [_outbound("outboundAccountInfo")], _REFUSED_BY_BINANCE
    ),
    "toobit swap": _by_listen_key(
        "POST /api/v1/userDataStream", [_outbound("outboundContractAccountInfo")], _REFUSED_BY_BINANCE
    ),
    "upbit spot": Script(
        {"type": "myAsset", "assets": [{"currency": "USDT", "balance": 7.5, "locked": 0}], "timestamp": 1},
        refused_handshake=401,
    ),
    "weex spot": _weex({"coin": "USDT", "equity": "7.5", "available": "7.5", "frozen": "0"}),
    "weex swap": _weex({"coin": "USDT", "amount": "7.5", "legacyAmount": "7.5"}),
    "whitebit spot": _whitebit("balanceSpot_update", {"USDT": {"available": "7.5", "freeze": "0"}}),
    "whitebit swap": _whitebit("balanceMargin_update", {"a": "USDT", "B": "7.5", "b": "0", "av": "7.5"}),
    "woofipro swap": _orderly(),
    "xt spot": Script(
        {"topic": "balance", "event": "balance", "data": {"a": 1, "t": 1, "c": "usdt", "b": "7.5", "f": "0"}},
        (("subscribe", {"id": "$id", "code": 0, "msg": ""}),),
        {"POST /v4/ws-token": {"rc": 0, "mc": "SUCCESS", "ma": [], "result": {"accessToken": "tttt"}}},
        refused_request=(200, {"rc": 1, "mc": "AUTH_103", "ma": [], "result": None}),
    ),
}
