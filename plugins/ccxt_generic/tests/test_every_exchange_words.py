"""What a user is told of a refusal, through each exchange's real class: the reason, the address, and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ccxt.async_support as ccxt
import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.answers import Answer
from exchange_service_ccxt_generic.codes import GROWING_NONCES, SISTERS
from exchange_service_ccxt_generic.failures import translate

from exchange_service.plugin_api import CredentialInvalid, ExchangeMetadata, VenueError
from exchange_service.testing import Fault, venue_call
from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.every_exchange.refusals import answer_of
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS

LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}


async def refusal(exchange_id: str, status: int, body: bytes, content_type: str = "application/json") -> VenueError:
    """What a read comes to if every path answers so."""
    async with opened(LISTINGS[exchange_id], ACCOUNTS[exchange_id].assets) as (venue, call):
        venue.default = Fault(status=status, body=body, content_type=content_type)
        with pytest.raises(VenueError) as caught:
            await read(call)
        assert venue.requests
    return caught.value


@pytest.mark.parametrize(
    ("exchange_id", "status", "body", "reason"),
    [
        (
            "gate",
            401,
            b'{"label":"IP_FORBIDDEN","message":"Request IP not in whitelist: 203.0.113.9"}',
            "ADDRESS_NOT_ALLOWED",
        ),
        ("mexc", 400, b'{"code":700006,"msg":"IP [203.0.113.9] not in the ip white list"}', "ADDRESS_NOT_ALLOWED"),
        ("mexc", 400, b'{"code":10072,"msg":"Api key info invalid"}', "CREDENTIAL_REJECTED"),
        (
            "bingx",
            200,
            b'{"code":100419,"msg":"your request IP does not match IP whitelist"}',
            "ADDRESS_NOT_ALLOWED",
        ),
        ("bitget", 400, b'{"code":"40018","msg":"Invalid IP","data":null}', "ADDRESS_NOT_ALLOWED"),
        ("kucoin", 403, b'{"code":"400006","msg":"Invalid request ip"}', "ADDRESS_NOT_ALLOWED"),
        ("binance", 400, b'{"code":-1011,"msg":"This IP cannot access this route."}', "ADDRESS_NOT_ALLOWED"),
        (
            "bitvavo",
            403,
            b'{"errorCode":307,"error":"This key does not allow access from this IP."}',
            "ADDRESS_NOT_ALLOWED",
        ),
        ("upbit", 401, b'{"error":{"name":"no_authorization_i_p","message":"x"}}', "ADDRESS_NOT_ALLOWED"),
        ("bitvavo", 403, b'{"errorCode":304,"error":"x"}', "CLOCK_SKEW"),
        ("foxbit", 401, b'{"error":{"message":"x","code":2004,"details":[]}}', "CLOCK_SKEW"),
        ("lbank", 200, b'{"result":"false","error_code":10600,"ts":1}', "CLOCK_SKEW"),
        (
            "deribit",
            400,
            b'{"error":{"code":12005,"message":"country_is_banned"}}',
            "REGION_RESTRICTED",
        ),
        ("extended", 400, b'{"status":"ERROR","error":{"code":1010,"message":"x"}}', "VENUE_MAINTENANCE"),
        ("alpaca", 401, b'{"code":40110000,"message":"request is not authorized"}', "CREDENTIAL_REJECTED"),
        (
            "coinbase",
            403,
            b'{"error":"unknown","error_details":"missing required scopes","message":"missing required scopes"}',
            "PERMISSION_MISSING",
        ),
        ("bitso", 401, b'{"success":false,"error":{"code":"0213","message":"x"}}', "ADDRESS_NOT_ALLOWED"),
        ("digifinex", 200, b'{"code":10007}', "ADDRESS_NOT_ALLOWED"),
        (
            "delta",
            401,
            b'{"success":false,"error":{"code":"ip_not_whitelisted_for_api_key","context":{"client_ip":"203.0.113.9"}}}',
            "ADDRESS_NOT_ALLOWED",
        ),
        ("delta", 401, b'{"success":false,"error":{"code":"expired_signature"}}', "CLOCK_SKEW"),
        (
            "htx",
            200,
            b'{"status":"error","err-code":"api-signature-not-valid","err-msg":'
            b'"Signature not valid: Incorrect IP address [x]:203.0.113.9","data":null}',
            "ADDRESS_NOT_ALLOWED",
        ),
        (
            "htx",
            200,
            b'{"status":"error","err-code":"api-signature-not-valid","err-msg":'
            b'"Signature not valid: Invalid submission time or incorrect time format","data":null}',
            "CLOCK_SKEW",
        ),
        ("kucoin", 403, b'{"code":"400007","msg":"Access denied-->Require more permission"}', "PERMISSION_MISSING"),
        ("phemex", 401, b'{"code":"401","msg":"401 Insufficient privilege."}', "PERMISSION_MISSING"),
        (
            "bitget",
            400,
            b'{"code":"40099","msg":"exchange environment is incorrect","data":null}',
            "CREDENTIAL_REJECTED",
        ),
        ("bitget", 200, b'{"code":"40015","msg":"System is abnormal, please try again later"}', "VENUE_UNAVAILABLE"),
        ("kraken", 200, b'{"error":["EService:Deadline elapsed"]}', "VENUE_UNAVAILABLE"),
        ("krakenfutures", 200, b'{"result":"error","error":"permissionDenied"}', "PERMISSION_MISSING"),
        (
            "htx",
            200,
            b'{"status":"error","err-code":"invalid-client-address","err-msg":"Invalid client address"}',
            "ADDRESS_NOT_ALLOWED",
        ),
        ("bitbank", 200, b'{"success":0,"data":{"code":70011}}', "VENUE_UNAVAILABLE"),
        ("deribit", 400, b'{"error":{"code":13028,"message":"x"}}', "VENUE_UNAVAILABLE"),
        (
            "whitebit",
            422,
            b'{"code":0,"message":"Validation failed","errors":{"nonce":["Your nonce is less than the one before"]}}',
            "CLOCK_SKEW",
        ),
        ("coinspot", 400, b'{"status":"error","message":"invalid/no apikey"}', "CREDENTIAL_REJECTED"),
        ("independentreserve", 400, b'{"Message":"Invalid signature"}', "CREDENTIAL_REJECTED"),
    ],
)
async def test_the_venues_own_word_decides(exchange_id: str, status: int, body: bytes, reason: str) -> None:
    error = await refusal(exchange_id, status, body)
    assert error.reason == reason
    assert not error.transient or reason.startswith("VENUE_")


@pytest.mark.parametrize("exchange_id", ["gate", "mexc", "okx"])
@pytest.mark.parametrize("address", ["203.0.113.9", "8.8.4.4", "2001:db8:1::9"])
def test_a_refused_address_is_named_if_the_venue_names_it(exchange_id: str, address: str) -> None:
    answer = answer_of(
        401, {"code": "1", "label": "x", "msg": f"IP [{address}] is not in the whitelist", "message": ""}
    )
    error = translate(ccxt.AuthenticationError("x"), answer, exchange_id, "Acme")
    assert error.reason == "ADDRESS_NOT_ALLOWED"
    assert f"the address of this service, {address}." in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": "ip_not_whitelisted_for_api_key", "context": {"client_ip": "203.0.113.9"}}},
        {"err-code": "x", "err-msg": "Incorrect IP address [x]:203.0.113.9"},
    ],
)
def test_a_refused_address_is_named_beside_the_sentence_too(body: Mapping[str, Any]) -> None:
    error = translate(ccxt.AuthenticationError("x"), answer_of(401, body), "delta", "Acme")
    assert "the address of this service, 203.0.113.9." in error.message


@pytest.mark.parametrize(
    "text", ["IP 10.1.2.3 is not allowed", "IP ::1 is not allowed", "the IP is not allowed at 12:30:45"]
)
def test_an_address_inside_a_network_is_not_told(text: str) -> None:
    error = translate(ccxt.PermissionDenied("x"), answer_of(403, {"msg": text}), "okx", "OKX")
    assert error.message == "OKX refuses the address of this service."


@pytest.mark.parametrize(
    "body", ['{"code":0,"msg":"success","timestamp":1,"ip":"1.1.1.1"}', '{"data":[{"ip":"expired"}]}']
)
def test_names_of_members_say_nothing(body: str) -> None:
    error = translate(ccxt.ExchangeError("x"), Answer(status=400, body=body, is_json=True), "okx", "OKX")
    assert error.reason == "REQUEST_REFUSED"


@pytest.mark.parametrize("exchange_id", ["binance", "binanceusdm", "bitrue", "coinsph", "tokocrypto", "toobit"])
def test_one_code_for_three_causes_names_all_three_and_which_to_look_at_first(exchange_id: str) -> None:
    body = {"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}
    error = translate(ccxt.AuthenticationError("x"), answer_of(401, body), exchange_id, "Acme")
    assert error.reason == "CREDENTIAL_REJECTED"
    for words in ("the key", "the address of this service", "rights"):
        assert words in error.message
    assert (error.advice or "").startswith(
        "Check first that the key exists in this environment, then its IP allow-list"
    )


@pytest.mark.parametrize("exchange_id", sorted(GROWING_NONCES))
def test_a_refused_nonce_that_must_grow_means_another_program(exchange_id: str) -> None:
    error = translate(ccxt.InvalidNonce("x"), answer_of(400, {"error": "x"}), exchange_id, "Acme")
    assert "another program uses this key" in error.message
    assert "clock" not in error.text


@pytest.mark.parametrize("exchange_id", sorted({"okx", "binance", "bitvavo", "bybit", "kucoin"} - GROWING_NONCES))
def test_a_refused_time_means_the_clock(exchange_id: str) -> None:
    error = translate(ccxt.InvalidNonce("x"), answer_of(400, {"error": "x"}), exchange_id, "Acme")
    assert "clock" in error.text


@pytest.mark.parametrize("exchange_id", sorted(SISTERS))
def test_a_refused_key_may_be_one_of_a_sister(exchange_id: str) -> None:
    error = translate(ccxt.AuthenticationError("x"), answer_of(401, {"msg": "x"}), exchange_id, "Acme")
    assert all(sister in (error.advice or "") for sister in SISTERS[exchange_id])


@pytest.mark.parametrize(
    ("exchange_id", "changes", "field"),
    [
        ("gemini", {"api_key": "master-abcdefgh"}, "api_key"),
        ("coinbase", {"api_key": "-----BEGIN PUBLIC KEY-----"}, "api_key"),
        ("coinbaseexchange", {"api_secret": "not base64!"}, "api_secret"),
    ],
)
async def test_what_ccxt_refuses_before_it_sends_anything_is_the_stored_credential(
    exchange_id: str, changes: Mapping[str, Any], field: str
) -> None:
    listing = LISTINGS[exchange_id]
    async with opened(listing, {}) as (venue, call):
        given = {**credential(listing), **changes}
        async with venue_call(
            listing, override=venue.url, plugin_state=call.plugin_state, timeout=100.0, **given
        ) as wrong:
            with pytest.raises(CredentialInvalid, match=field) as caught:
                await read(wrong)
        assert venue.requests == []
    assert all(str(value) not in caught.value.text for value in changes.values())
