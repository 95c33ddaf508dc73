"""The venues' own codes that CCXT does not know, classifies wrongly, or does not distinguish.

Of every other code CCXT's class decides. The reason for most rows is CCXT's comment beside the code, which tells more
than its class: Bitget's 40018 is a missing right by its class, and "Invalid IP" by its comment.
"""

from __future__ import annotations

from collections.abc import Mapping

from exchange_service_ccxt_generic.meanings import (
    ADDRESS,
    BANNED_ADDRESS,
    CLOCK,
    FEATURE,
    KEY,
    KEY_ADDRESS_OR_RIGHT,
    KEY_ELSEWHERE,
    KEY_EXPIRED,
    KEY_FROZEN,
    LIMIT,
    MAINTENANCE,
    NONCE,
    NONCE_OR_KEY,
    OUTAGE,
    REGION,
    RIGHT,
    Meaning,
)

# witness: CCXT: alpaca.exceptions
_ALPACA: Mapping[str, Meaning] = {"40110000": KEY}

# CCXT knows the code but compares it with the HTTP status.
# witness: CCXT: apex.exceptions
_APEX: Mapping[str, Meaning] = {"20006": KEY}

# witness: CCXT: backpack.exceptions
_BACKPACK: Mapping[str, Meaning] = {"FORBIDDEN": RIGHT, "MAINTENANCE": MAINTENANCE}

# witness: CCXT: binance.exceptions
_BINANCE: Mapping[str, Meaning] = {
    "-1002": RIGHT,
    "-1003": LIMIT,
    "-1005": ADDRESS,
    "-1011": ADDRESS,
    "-1021": CLOCK,
    "-1022": KEY,
    "-1131": CLOCK,
    "-2008": KEY,
    "-2014": KEY,
    # CCXT takes this for a ban once a key has worked, so a revoked key would be sent again and again.
    "-2015": KEY_ADDRESS_OR_RIGHT,
    "-2017": KEY_FROZEN,
    "-3003": FEATURE,
    "-4044": REGION,
    "-4056": KEY,
    "-4057": KEY,
    "-4188": CLOCK,
    "-4402": REGION,
    "-5028": CLOCK,
    "-10001": MAINTENANCE,
    "-10047": REGION,
    "400002": KEY,
}

# witness: CCXT: bingx.exceptions
_BINGX: Mapping[str, Meaning] = {"100419": ADDRESS}

# CCXT compares the number with texts, and so never finds it.
# witness: CCXT: bitflyer.exceptions
_BITFLYER: Mapping[str, Meaning] = {"-2": MAINTENANCE}

# CCXT has sentences for some of these, but a class for none.
# witness: vendor: https://github.com/bitbankinc/bitbank-api-docs/blob/master/errors.md
_BITBANK: Mapping[str, Meaning] = {
    "10001": OUTAGE,
    "10003": OUTAGE,
    "10005": OUTAGE,
    "70001": OUTAGE,
    "70002": OUTAGE,
    "70003": OUTAGE,
    "70011": OUTAGE,
    "70012": OUTAGE,
}

# witness: CCXT: bitget.exceptions
_BITGET: Mapping[str, Meaning] = {
    "30008": CLOCK,
    "30011": ADDRESS,
    "30016": KEY,
    "30017": KEY_ELSEWHERE,
    "30018": KEY_ELSEWHERE,
    "32022": REGION,
    "40018": ADDRESS,
    "40099": KEY_ELSEWHERE,  # witness: report: ccxt/ccxt#26125
}

# witness: CCXT: bithumb.exceptions
_BITHUMB: Mapping[str, Meaning] = {"Method Not Allowed.(Access IP)": ADDRESS}

# witness: CCXT: bitrue.exceptions
_BITRUE: Mapping[str, Meaning] = {
    "-1002": RIGHT,
    "-1131": CLOCK,
    "-2015": KEY_ADDRESS_OR_RIGHT,
}

# witness: vendor: https://docs.bitso.com/bitso-api/docs/authentication-error-02-http-401
_BITSO: Mapping[str, Meaning] = {
    "0201": NONCE_OR_KEY,  # witness: CCXT: bitso.exceptions
    "0202": RIGHT,
    "0203": KEY,
    "0206": NONCE,
    "0207": NONCE,
    "0211": ADDRESS,
    "0213": ADDRESS,
    "0215": KEY,
}

# witness: CCXT: bitstamp.exceptions
_BITSTAMP: Mapping[str, Meaning] = {"IP address not allowed": ADDRESS}

# witness: CCXT: bitvavo.exceptions
_BITVAVO: Mapping[str, Meaning] = {"302": CLOCK, "304": CLOCK, "307": ADDRESS}

# witness: CCXT: blofin.exceptions
_BLOFIN: Mapping[str, Meaning] = {"152402": KEY_EXPIRED, "152406": ADDRESS, "152429": CLOCK}

# witness: CCXT: bybit.exceptions
_BYBIT: Mapping[str, Meaning] = {
    "-1021": CLOCK,
    "-2015": KEY_ADDRESS_OR_RIGHT,
    "10009": BANNED_ADDRESS,
    "10010": ADDRESS,
    "10016": OUTAGE,
    "10020": FEATURE,
    "10024": REGION,
    "10028": FEATURE,
    "33004": KEY_EXPIRED,
}

# witness: CCXT: bydfi.exceptions
_BYDFI: Mapping[str, Meaning] = {"101103": KEY_ADDRESS_OR_RIGHT, "511": RIGHT}

# witness: CCXT: coinsph.exceptions
_COINSPH: Mapping[str, Meaning] = {
    "-1021": CLOCK,
    "-1022": KEY,
    "-1023": ADDRESS,
    "-1024": CLOCK,
    "-1025": CLOCK,
    "-2014": KEY,
    "-2015": KEY_ADDRESS_OR_RIGHT,
}

# witness: CCXT: cryptocom.exceptions
_CRYPTOCOM: Mapping[str, Meaning] = {
    # CCXT takes it for a missing right. It was the code of the older interface for a wrong key or signature.
    "10002": KEY,  # witness: report: a Go client's table of codes, from exchange-docs.crypto.com/spot
    "40103": ADDRESS,
}

# witness: CCXT: deribit.exceptions
_DERIBIT: Mapping[str, Meaning] = {
    "12005": REGION,
    "13028": OUTAGE,  # witness: report: TundraSoft/tundra-connect, wiki, Deribit-Errors
}

# witness: CCXT: derive.exceptions
_DERIVE: Mapping[str, Meaning] = {
    "14014": KEY,
    "14026": KEY,
    "14029": ADDRESS,
    "14030": KEY_EXPIRED,
    "14031": RIGHT,
    "16000": REGION,
}

# witness: CCXT: digifinex.exceptions
_DIGIFINEX: Mapping[str, Meaning] = {"10007": ADDRESS, "10011": KEY_EXPIRED}

# witness: CCXT: extended.exceptions
_EXTENDED: Mapping[str, Meaning] = {"1010": MAINTENANCE}

# witness: CCXT: foxbit.exceptions
_FOXBIT: Mapping[str, Meaning] = {"2004": CLOCK, "2005": ADDRESS}

# witness: CCXT: gate.exceptions
_GATE: Mapping[str, Meaning] = {"IP_FORBIDDEN": ADDRESS, "REQUEST_EXPIRED": CLOCK}

# witness: CCXT: gemini.exceptions
_GEMINI: Mapping[str, Meaning] = {"InvalidTimestampInPayload": CLOCK, "MissingRole": RIGHT}

# witness: CCXT: hashkey.exceptions
_HASHKEY: Mapping[str, Meaning] = {"0103": KEY_EXPIRED, "0202": ADDRESS}

# witness: CCXT: hibachi.exceptions
_HIBACHI: Mapping[str, Meaning] = {"2": KEY}

# witness: CCXT: kraken.exceptions
_KRAKEN: Mapping[str, Meaning] = {
    "EAPI:Invalid nonce": NONCE,
    "EAPI:Invalid signature": KEY,  # witness: vendor: https://docs.kraken.com/exchange/guides/general/errors
    # witness: report: https://docs.rs/kraapi (KError: FeatureDisabled)
    "EAPI:Feature disabled": FEATURE,
    # witness: report: ccxt/ccxt, python/ccxt/pro/kraken.py, describe
    "EAuth:Rate limit exceeded": LIMIT,
    "EAuth:Too many requests": LIMIT,
}

# witness: CCXT: kucoin.exceptions
_KUCOIN: Mapping[str, Meaning] = {
    "126021": REGION,
    "126037": REGION,
    "126041": CLOCK,
    "126045": REGION,
    "126046": REGION,
    "130315": REGION,
    "400006": ADDRESS,  # witness: report: Kucoin/kucoin-api-docs#395
}

# witness: CCXT: latoken.exceptions
_LATOKEN: Mapping[str, Meaning] = {"CREDENTIALS_EXPIRED": KEY_EXPIRED}

# witness: CCXT: lbank.handle_errors
_LBANK: Mapping[str, Meaning] = {"10600": CLOCK}

# witness: CCXT: lighter.exceptions
_LIGHTER: Mapping[str, Meaning] = {"21504": KEY}

# witness: CCXT: mexc.exceptions
_MEXC: Mapping[str, Meaning] = {
    "402": KEY_EXPIRED,
    "406": ADDRESS,
    "10072": KEY,
    "10073": CLOCK,
    "140002": RIGHT,
    "700006": ADDRESS,
    "700007": RIGHT,
    "730706": KEY,
}

# witness: CCXT: okx.exceptions
_OKX: Mapping[str, Meaning] = {
    "50061": LIMIT,
    "50100": KEY_FROZEN,
    "50101": KEY_ELSEWHERE,
    "50110": ADDRESS,
    "50112": CLOCK,
    "50119": KEY,  # witness: report: nkujvu13/okx-api-key-fixes, README
    "51734": REGION,
    "51773": REGION,
    "59505": KEY,
    "59500": RIGHT,
    "59506": KEY,
    "60004": CLOCK,
    "64008": MAINTENANCE,
    "70010": CLOCK,
    # witness: unproven: looked for on OKX's pages, of which the search has no list of codes
    "50030": RIGHT,
    "50120": RIGHT,
    "50121": ADDRESS,
}

# witness: CCXT: onetrading.exceptions
_ONETRADING: Mapping[str, Meaning] = {
    "CLIENT_IP_BLOCKED": ADDRESS,
    "INVALID_IP_RESTRICTION": ADDRESS,
    "INVALID_SCOPES": RIGHT,
    "APIKEY_EXPIRED": KEY_EXPIRED,
    # CCXT takes this failure of the venue for a refused key.
    "INTERNAL_ERROR": OUTAGE,
}

# witness: CCXT: p2b.exceptions
_P2B: Mapping[str, Meaning] = {"1012": NONCE, "1016": NONCE}

# The venue has the same number for a wrong right of a signer. CCXT's comment names the region first.
# witness: CCXT: pacifica.exceptions
_PACIFICA: Mapping[str, Meaning] = {"403": REGION}

# witness: CCXT: poloniex.exceptions
_POLONIEX: Mapping[str, Meaning] = {"21353": REGION}

# witness: CCXT: tokocrypto.exceptions
_TOKOCRYPTO: Mapping[str, Meaning] = {
    "-1002": RIGHT,
    "-1005": ADDRESS,
    "-1011": ADDRESS,
    "-1131": CLOCK,
    "-2015": KEY_ADDRESS_OR_RIGHT,
    "-4044": REGION,
}

# witness: CCXT: toobit.exceptions
_TOOBIT: Mapping[str, Meaning] = {
    "-1021": CLOCK,
    "-1022": KEY,
    "-1023": ADDRESS,
    "-1107": KEY,
    "-2014": KEY,
    "-2015": KEY_ADDRESS_OR_RIGHT,
    "-2017": KEY_EXPIRED,
}

# witness: CCXT: weex.exceptions
_WEEX: Mapping[str, Meaning] = {"-1042": CLOCK, "-1043": CLOCK, "-1046": CLOCK, "-1056": ADDRESS}

# witness: CCXT: woo.exceptions
_WOO: Mapping[str, Meaning] = {"317179": CLOCK}

# witness: CCXT: woofipro.exceptions
_WOOFIPRO: Mapping[str, Meaning] = {"2": CLOCK}

# witness: CCXT: xt.exceptions
_XT: Mapping[str, Meaning] = {
    "AUTH_002": CLOCK,
    "AUTH_003": CLOCK,
    "AUTH_004": CLOCK,
    "AUTH_104": ADDRESS,
    "AUTH_105": CLOCK,
}

# witness: CCXT: zebpay.exceptions
_ZEBPAY: Mapping[str, Meaning] = {"403": RIGHT, "503": MAINTENANCE}

# By exchange and code.
CODES: Mapping[str, Mapping[str, Meaning]] = {
    "alpaca": _ALPACA,
    "apex": _APEX,
    "backpack": _BACKPACK,
    **dict.fromkeys(("binance", "binancecoinm", "binanceus", "binanceusdm"), _BINANCE),
    "bingx": _BINGX,
    "bitflyer": _BITFLYER,
    "bitbank": _BITBANK,
    "bitget": _BITGET,
    "bithumb": _BITHUMB,
    "bitrue": _BITRUE,
    "bitso": _BITSO,
    "bitstamp": _BITSTAMP,
    "bitvavo": _BITVAVO,
    "blofin": _BLOFIN,
    **dict.fromkeys(("bybit", "bybiteu", "bybitid"), _BYBIT),
    "bydfi": _BYDFI,
    "coinsph": _COINSPH,
    "cryptocom": _CRYPTOCOM,
    "deribit": _DERIBIT,
    "derive": _DERIVE,
    "digifinex": _DIGIFINEX,
    "extended": _EXTENDED,
    "foxbit": _FOXBIT,
    **dict.fromkeys(("gate", "gateeu"), _GATE),
    "gemini": _GEMINI,
    "hashkey": _HASHKEY,
    "hibachi": _HIBACHI,
    "kraken": _KRAKEN,
    **dict.fromkeys(("kucoin", "kucoinfutures"), _KUCOIN),
    "latoken": _LATOKEN,
    "lbank": _LBANK,
    "lighter": _LIGHTER,
    "mexc": _MEXC,
    **dict.fromkeys(("okx", "okxus", "myokx"), _OKX),
    "onetrading": _ONETRADING,
    "p2b": _P2B,
    "pacifica": _PACIFICA,
    "poloniex": _POLONIEX,
    "tokocrypto": _TOKOCRYPTO,
    "toobit": _TOOBIT,
    "weex": _WEEX,
    "woo": _WOO,
    **dict.fromkeys(("modetrade", "woofipro"), _WOOFIPRO),
    "xt": _XT,
    "zebpay": _ZEBPAY,
}

# Each nonce must be greater than the one before with the same key, or was used once already. So a refused nonce means
# that another program uses the key. At the other exchanges it means the clock.
# witness: CCXT: kraken.sign
GROWING_NONCES = frozenset(
    {
        "kraken",
        "bit2c",  # witness: CCXT: bit2c.sign
        "bitfinex",  # witness: CCXT: bitfinex.sign
        "bitso",  # witness: CCXT: bitso.sign
        "bitstamp",  # witness: CCXT: bitstamp (handle_errors: the reuse of a nonce)
        "btse",  # witness: CCXT: btse (describe: clock drift or nonce reuse)
        "coinmate",  # witness: CCXT: coinmate.sign
        "coinspot",  # witness: CCXT: coinspot.sign
        "gemini",  # witness: CCXT: gemini.sign
        "independentreserve",  # witness: CCXT: independentreserve.sign
        "krakenfutures",  # witness: CCXT: krakenfutures (describe: nonceBelowThreshold, nonceDuplicate)
        "mercado",  # witness: CCXT: mercado (sign: incrementing_nonce)
        "p2b",  # witness: CCXT: p2b.sign
        "paymium",  # witness: CCXT: paymium.sign
        "whitebit",  # witness: CCXT: whitebit.sign
    }
)

# Exchanges of one brand, each with accounts and keys of its own: a good key of one is unknown to the others.
# witness: CCXT: okxus (class okxus(okx))
SISTERS: Mapping[str, tuple[str, ...]] = {
    "okx": ("okxus", "myokx"),
    "okxus": ("okx", "myokx"),
    "myokx": ("okx", "okxus"),  # witness: CCXT: myokx (class myokx(okx))
    "bybit": ("bybiteu", "bybitid"),  # witness: CCXT: bybit
    "bybiteu": ("bybit", "bybitid"),  # witness: CCXT: bybiteu (class bybiteu(bybit))
    "bybitid": ("bybit", "bybiteu"),  # witness: CCXT: bybitid (class bybitid(bybit))
    "gate": ("gateeu",),  # witness: CCXT: gate
    "gateeu": ("gate",),  # witness: CCXT: gateeu (class gateeu(gate))
    "binance": ("binanceus",),  # witness: CCXT: binance
    "binanceus": ("binance",),  # witness: CCXT: binanceus (class binanceus(binance))
}
