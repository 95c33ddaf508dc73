"""A broken answer is never a balance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from exchange_service_ccxt_generic.emptiness import proves_empty
from exchange_service_ccxt_generic.simulator import BinanceSimulator

from exchange_service.plugin_api import Balance, VenueMalformed
from exchange_service.testing import Fault

Read = Callable[..., Awaitable[Balance]]
ACCOUNT = "/api/v3/account"
MIB = 1024 * 1024

_BESIDE_BTC = b'{"canTrade":true,"accountType":"SPOT","balances":[{"asset":"BTC","free":"1","locked":"0"},%s]}'

BROKEN = {
    "a page": Fault.html(),
    "a list": Fault(body=b"[]"),
    "an object": Fault(body=b"{}"),
    "null": Fault(body=b"null"),
    "a text": Fault(body=b'"ok"'),
    "a number": Fault(body=b"0"),
    "nothing": Fault(body=b""),
    "half an answer": Fault(body=b'{"canTrade":true,"accountType":"SPOT","balances":[{"asset":"BTC","free":"1'),
    "NaN": Fault(body=b'{"canTrade":true,"balances":[{"asset":"BTC","free":NaN,"locked":"0"}]}'),
    "Infinity": Fault(body=b'{"canTrade":true,"balances":[{"asset":"BTC","free":Infinity,"locked":"0"}]}'),
    "NaN as text": Fault(body=b'{"canTrade":true,"balances":[{"asset":"BTC","free":"NaN","locked":"0"}]}'),
    "words for amounts": Fault(body=b'{"canTrade":true,"balances":[{"asset":"BTC","free":"much","locked":"0"}]}'),
    "a huge exponent": Fault(body=b'{"canTrade":true,"balances":[{"asset":"BTC","free":"1e999999999","locked":"1"}]}'),
    "a field twice": Fault(body=b'{"canTrade":true,"balances":[],"balances":[]}'),
    "no balances": Fault(body=b'{"canTrade":true,"accountType":"SPOT"}'),
    "null in place of balances": Fault(body=b'{"canTrade":true,"accountType":"SPOT","balances":null}'),
    "entries that are no balances": Fault(body=b'{"canTrade":true,"accountType":"SPOT","balances":[null,{}]}'),
    "a row without amounts": Fault(body=_BESIDE_BTC % b'{"asset":"ETH"}'),
    "a row with null amounts": Fault(body=_BESIDE_BTC % b'{"asset":"ETH","free":null,"locked":null}'),
    "a row without an asset": Fault(body=_BESIDE_BTC % b'{"free":"5","locked":"0"}'),
    "a row that is a list": Fault(body=_BESIDE_BTC % b"[]"),
    "a row that is a text": Fault(body=_BESIDE_BTC % b'"x"'),
    "an asset twice": Fault(body=_BESIDE_BTC % b'{"asset":"BTC","free":"2","locked":"0"}'),
    "an asset twice, once in lower case": Fault(body=_BESIDE_BTC % b'{"asset":"btc","free":"0","locked":"0"}'),
    "a truth value for an amount": Fault(body=_BESIDE_BTC % b'{"asset":"ETH","free":true,"locked":"0"}'),
    "an empty amount": Fault(body=_BESIDE_BTC % b'{"asset":"ETH","free":"","locked":"0"}'),
    "a redirect": Fault.redirect("https://example.org/"),
    "plain text": Fault(body=b"OK", content_type="text/plain"),
    "bytes": Fault(body=b"\xff\xfe\x00", content_type="application/octet-stream"),
    "more than 8 MiB": Fault(body=b'{"balances":[' + b" " * (8 * MIB) + b"]}"),
    "a gzip bomb": Fault.gzip_bomb(64 * MIB),
    "broken gzip": Fault(body=b"no gzip", headers={"Content-Encoding": "gzip"}),
    "another account's form": Fault(body=b'{"assets":[],"positions":[]}'),
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_answer_of_binance_is_malformed(read: Read, binance: BinanceSimulator, fault: Fault) -> None:
    fault.path = ACCOUNT
    binance.fail(fault)
    with pytest.raises(VenueMalformed) as caught:
        await read()
    assert str(caught.value).count("Binance") == 1
    assert "alice" not in str(caught.value)
    assert "http" not in str(caught.value)


async def test_a_true_answer_under_a_wrong_content_type_is_still_read(read: Read, binance: BinanceSimulator) -> None:
    body = b'{"canTrade":true,"accountType":"SPOT","balances":[{"asset":"BTC","free":"1","locked":"0"}]}'
    binance.fail(Fault(body=body, content_type="text/html", path=ACCOUNT))
    assert [entry.asset for _, entry in (await read()).rows()] == ["BTC"]


@pytest.mark.parametrize("fault", [Fault.html(), Fault(body=b"{}"), Fault(body=b"[]"), Fault(body=b"")])
async def test_with_a_broken_list_of_markets_no_balance_is_believed(
    read: Read, binance: BinanceSimulator, fault: Fault
) -> None:
    for path in ("/api/v3/exchangeInfo", "/fapi/v1/exchangeInfo", "/dapi/v1/exchangeInfo"):
        binance.fail(Fault(body=fault.body, content_type=fault.content_type, path=path))
    with pytest.raises(VenueMalformed):
        await read()


def test_an_empty_form_is_only_believed_of_its_exchange_and_account() -> None:
    assert proves_empty("bitvavo", "spot", [])
    assert not proves_empty("binance", "spot", [])
    assert proves_empty("binance", "funding", [])
    assert not proves_empty("backpack", "spot", {})
    assert not proves_empty("okx", "trading", {"code": "0", "data": []})
    assert proves_empty("okx", "funding", {"code": "0", "data": []})
    assert not proves_empty("kraken", "spot", {"error": ["EService:Busy"], "result": {}})
    assert not proves_empty("bitso", "spot", {"success": 1, "payload": {"balances": []}})
    assert not proves_empty("poloniex", "spot", [])
