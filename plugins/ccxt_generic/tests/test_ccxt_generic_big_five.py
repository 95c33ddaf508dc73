"""What Binance, Bybit, Coinbase, Kraken and OKX say when they refuse, in their own words, as our reasons.

The bodies are the venues' own, from their references and from CCXT's notes of what it has seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest

from exchange_service.plugin_api import (
    AddressNotAllowed,
    ClockSkew,
    CredentialRejected,
    ExchangeMetadata,
    FeatureNotEnabled,
    PermissionMissing,
    RegionRestricted,
    VenueError,
    VenueMaintenance,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call

Listings = Mapping[str, ExchangeMetadata]
# Status, body, what it is.
Case = tuple[int, Any, type[VenueError]]

RESTRICTED = (
    "Service unavailable from a restricted location according to 'b. Eligibility' in "
    "https://www.binance.com/en/terms. Please contact customer service if you believe you received this in error."
)

SAID: Mapping[str, tuple[Case, ...]] = {
    "binance": (
        (401, {"code": -2014, "msg": "API-key format invalid."}, CredentialRejected),
        (401, {"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}, CredentialRejected),
        (400, {"code": -2008, "msg": "Invalid Api-Key ID."}, CredentialRejected),
        (400, {"code": -1022, "msg": "Signature for this request is not valid."}, CredentialRejected),
        (401, {"code": -1002, "msg": "You are not authorized to execute this request."}, PermissionMissing),
        (400, {"code": -1021, "msg": "Timestamp for this request is outside of the recvWindow."}, ClockSkew),
        (429, {"code": -1003, "msg": "Too many requests; current limit is 6000 per 1 MINUTE."}, VenueRateLimited),
        (418, {"code": -1003, "msg": "Way too many requests; IP banned until 1764000000000."}, VenueRateLimited),
        (451, {"code": 0, "msg": RESTRICTED}, RegionRestricted),
        (400, {"code": -3003, "msg": "Margin account does not exist."}, FeatureNotEnabled),
        (503, "<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>", VenueUnavailable),
        (500, {"code": -1000, "msg": "An unknown error occurred while processing the request."}, VenueUnavailable),
        (503, {"code": -1008, "msg": "Server is currently overloaded with other requests."}, VenueUnavailable),
    ),
    "bybit": (
        (200, {"retCode": 10003, "retMsg": "API key is invalid.", "result": {}}, CredentialRejected),
        (200, {"retCode": 10004, "retMsg": "error sign! origin_string[...]", "result": {}}, CredentialRejected),
        (200, {"retCode": 33004, "retMsg": "Your api key has expired.", "result": {}}, CredentialRejected),
        (200, {"retCode": 10005, "retMsg": "Permission denied, please check your API key."}, PermissionMissing),
        (200, {"retCode": 10010, "retMsg": "Unmatched IP, please check your API key's bound IP."}, AddressNotAllowed),
        (200, {"retCode": 10009, "retMsg": "IP has been banned."}, AddressNotAllowed),
        (200, {"retCode": 10002, "retMsg": "invalid request, please check your server timestamp"}, ClockSkew),
        (200, {"retCode": 10006, "retMsg": "Too many visits!"}, VenueRateLimited),
        (200, {"retCode": 10018, "retMsg": "Exceeded the IP Rate Limit."}, VenueRateLimited),
        (200, {"retCode": 10024, "retMsg": "Compliance rules triggered"}, RegionRestricted),
        (200, {"retCode": 10028, "retMsg": "The API can only be accessed by unified account"}, FeatureNotEnabled),
        (200, {"retCode": 10016, "retMsg": "System error. Please try again later."}, VenueUnavailable),
        (401, {"retCode": 10003, "retMsg": "API key is invalid."}, CredentialRejected),
        (
            403,
            "<html>The Amazon CloudFront distribution is configured to block access from your country.",
            RegionRestricted,
        ),
        (403, "access too frequent", VenueRateLimited),
        (502, "<html><body>Bad Gateway</body></html>", VenueUnavailable),
    ),
    "coinbase": (
        (401, "Unauthorized\n", CredentialRejected),
        (401, {"error": "unauthorized", "error_description": "Unauthorized"}, CredentialRejected),
        (401, {"errors": [{"id": "revoked_token", "message": "The access token was revoked"}]}, CredentialRejected),
        (403, {"error": "PERMISSION_DENIED", "message": "Missing required scopes"}, PermissionMissing),
        (403, {"error": "unknown", "message": "forbidden"}, PermissionMissing),
        (429, {"errors": [{"id": "rate_limit_exceeded", "message": "Too many requests"}]}, VenueRateLimited),
        (500, {"errors": [{"id": "internal_server_error", "message": "Internal server error"}]}, VenueUnavailable),
        (503, "Service Unavailable", VenueUnavailable),
        (503, "We are undergoing scheduled maintenance", VenueMaintenance),
    ),
    "kraken": (
        (200, {"error": ["EAPI:Invalid key"]}, CredentialRejected),
        (200, {"error": ["EAPI:Invalid signature"]}, CredentialRejected),
        (200, {"error": ["EGeneral:Permission denied"]}, PermissionMissing),
        (200, {"error": ["EAPI:Invalid nonce"]}, ClockSkew),
        (200, {"error": ["EAPI:Rate limit exceeded"]}, VenueRateLimited),
        (200, {"error": ["EGeneral:Temporary lockout"]}, VenueRateLimited),
        (200, {"error": ["EGeneral:Too many requests"]}, VenueRateLimited),
        (200, {"error": ["EService:Unavailable"]}, VenueUnavailable),
        (200, {"error": ["EService:Busy"]}, VenueUnavailable),
        (200, {"error": ["EGeneral:Internal error"]}, VenueUnavailable),
        (200, {"error": ["EService:Market in cancel_only mode"]}, VenueMaintenance),
        (520, "<html><body>Web server is returning an unknown error</body></html>", VenueUnavailable),
        (504, "<html><body>Gateway time-out</body></html>", VenueTimeout),
    ),
    "okx": (
        (401, {"msg": "Invalid OK-ACCESS-KEY", "code": "50111"}, CredentialRejected),
        (401, {"msg": "Invalid Sign", "code": "50113"}, CredentialRejected),
        (400, {"msg": "Request header OK-ACCESS-PASSPHRASE incorrect.", "code": "50105"}, CredentialRejected),
        (401, {"msg": "API key doesn't exist", "code": "50119"}, CredentialRejected),
        (401, {"msg": "APIKey does not match current environment.", "code": "50101"}, CredentialRejected),
        (400, {"msg": "API frozen, please contact customer service", "code": "50100"}, CredentialRejected),
        (401, {"msg": "Your IP is not included in your API key's IP whitelist.", "code": "50110"}, AddressNotAllowed),
        (401, {"msg": "This API key doesn't have permission to use this function", "code": "50120"}, PermissionMissing),
        (401, {"msg": "You don't have permission to use this API endpoint", "code": "50030"}, PermissionMissing),
        (401, {"msg": "Invalid OK-ACCESS-TIMESTAMP", "code": "50112"}, ClockSkew),
        (401, {"msg": "Timestamp request expired", "code": "50102"}, ClockSkew),
        (429, {"msg": "Too Many Requests", "code": "50011"}, VenueRateLimited),
        (200, {"msg": "Too Many Requests", "code": "50061", "data": []}, VenueRateLimited),
        (503, {"msg": "Service temporarily unavailable. Try again later", "code": "50001"}, VenueMaintenance),
        (400, {"msg": "API endpoint request timeout.", "code": "50004"}, VenueTimeout),
        (503, {"msg": "Systems are busy. Please try again later.", "code": "50013"}, VenueUnavailable),
        (500, {"msg": "System error. Try again later", "code": "50026"}, VenueUnavailable),
        (401, {"msg": "something new", "code": "50199"}, CredentialRejected),
    ),
}
CASES = [(name, *case) for name, cases in SAID.items() for case in cases]


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize(("exchange_id", "status", "answer", "expected"), CASES)
async def test_each_answer_of_a_venue_becomes_the_right_reason(
    listings: Listings, venue: Any, exchange_id: str, status: int, answer: Any, expected: type[VenueError]
) -> None:
    body = answer if isinstance(answer, str) else json.dumps(answer)
    kind = "text/html" if isinstance(answer, str) else "application/json"
    venue.fail(Fault(status=status, body=body.encode(), content_type=kind))
    options: dict[str, Any] = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0", "passphrase": "words"}
    async with venue_call(listings[exchange_id], override=venue.url, timeout=20.0, **options) as call:
        with pytest.raises(VenueError) as caught:
            await plugin.fetch_balance(call)
    assert type(caught.value) is expected
    assert "please" not in caught.value.message
    assert caught.value.message.startswith(listings[exchange_id].name)


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize("exchange_id", SAID)
async def test_the_delay_that_a_venue_names_is_passed_on(listings: Listings, venue: Any, exchange_id: str) -> None:
    venue.fail(Fault.rate_limited("7"))
    options: dict[str, Any] = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0", "passphrase": "words"}
    async with venue_call(listings[exchange_id], override=venue.url, timeout=20.0, **options) as call:
        with pytest.raises(VenueRateLimited) as caught:
            await plugin.fetch_balance(call)
    assert caught.value.retry_after == 7.0
