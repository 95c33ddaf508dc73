"""Which tables hold facts about venues, and where the payload files are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CCXT = "plugins/ccxt_generic/exchange_service_ccxt_generic"

# By file: the names of its tables whose rows are facts about venues.
TABLES: Mapping[str, tuple[str, ...]] = {
    "exchange_service/plugin_kit/gateways.py": ("_AMAZONS_REFUSALS",),
    f"{_CCXT}/key_forms.py": ("KEYS_IN_LINES",),
    f"{_CCXT}/codes.py": (
        "GROWING_NONCES",
        "SISTERS",
        "_ALPACA",
        "_APEX",
        "_BACKPACK",
        "_BINANCE",
        "_BINGX",
        "_BITBANK",
        "_BITFLYER",
        "_BITGET",
        "_BITHUMB",
        "_BITRUE",
        "_BITSO",
        "_BITSTAMP",
        "_BITVAVO",
        "_BLOFIN",
        "_BYBIT",
        "_BYDFI",
        "_COINSPH",
        "_CRYPTOCOM",
        "_DERIBIT",
        "_DERIVE",
        "_DIGIFINEX",
        "_EXTENDED",
        "_FOXBIT",
        "_GATE",
        "_GEMINI",
        "_HASHKEY",
        "_HIBACHI",
        "_KRAKEN",
        "_KUCOIN",
        "_LATOKEN",
        "_LBANK",
        "_LIGHTER",
        "_MEXC",
        "_OKX",
        "_ONETRADING",
        "_P2B",
        "_PACIFICA",
        "_POLONIEX",
        "_TOKOCRYPTO",
        "_TOOBIT",
        "_WEEX",
        "_WOO",
        "_WOOFIPRO",
        "_XT",
        "_ZEBPAY",
    ),
    f"{_CCXT}/failures.py": ("_FIREWALLS_LIMIT",),
    f"{_CCXT}/simulator/apex.py": ("_SIGNATURE_REFUSED",),
    f"{_CCXT}/simulator/binance.py": ("_REFUSED",),
    f"{_CCXT}/simulator/coinbase.py": ("_MISSING_SCOPES",),
    "exchange_service/testing/malformed.py": ("_CLOUDFLARE_JSON",),
    f"{_CCXT}/account_names.py": ("NAMES", "_SEVERAL"),
    f"{_CCXT}/account_types.py": (
        "_BY_EXCHANGE",
        "_SYNONYMS",
        "_SINGLE",
        "_REASONS",
        "_UNREAD",
        "_SUMS",
        "_UNIFIED",
        "_PARAMETERS",
        "_BY_SETTLEMENT",
        "_FURTHER",
        "_ALWAYS",
    ),
    f"{_CCXT}/instances.py": ("_KEY_FOR_MARKETS",),
    f"{_CCXT}/answer_shapes.py": ("_SHAPES",),
    f"{_CCXT}/balance.py": ("_TIME_OF_LAST_CHANGE",),
    f"{_CCXT}/kinds.py": ("KINDS",),
    f"{_CCXT}/limits.py": (
        "_BY_KEY",
        "_WINDOWS",
        "_COSTS",
        "_DEARER_REQUESTS",
        "_DEARER_TYPES",
        "_KIND_COSTS",
        "_LONG_ANSWERS",
        "_PUSH_LIMITS",
    ),
    f"{_CCXT}/rights.py": ("_BINANCE_TRADES", "_BINANCE_MOVES", "_BYBIT_OTHERS", "QUESTIONS"),
    f"{_CCXT}/pushed.py": ("PUSHED", "_LISTENS", "UNANSWERED", "WITHOUT_SANDBOX", "_NAMED_BY_VENUE", "_NOT_PUSHED"),
    f"{_CCXT}/refusals.py": ("_CHANGES_SOMETHING", "_READS_BY_POST", "SIGN_INS"),
    "plugins/aster/exchange_service_aster/__init__.py": ("_LIMITS",),
    "plugins/aster/exchange_service_aster/client.py": ("_BY_CODE", "_BY_WORD", "_REGION_WORDS"),
    "plugins/aster/exchange_service_aster/parse.py": ("_CHANGES", "_KEY_EXPIRED"),
    "plugins/aster/exchange_service_aster/simulator.py": ("_REFUSALS",),
    "plugins/aster/tests/test_aster_signing.py": ("HMAC_EXAMPLES", "SIGNATURES", "ADDRESSES"),
    "plugins/hyperliquid/exchange_service_hyperliquid/__init__.py": ("_LIMITS", "_PUSH"),
    "plugins/hyperliquid/exchange_service_hyperliquid/client.py": ("_REJECTED", "_WEIGHTS"),
    "plugins/hyperliquid/exchange_service_hyperliquid/parse.py": ("STANDARD_MODES", "UNIFIED_MODES"),
    "plugins/hyperliquid/exchange_service_hyperliquid/push.py": ("_ERRORS",),
    "plugins/hyperliquid/exchange_service_hyperliquid/simulator.py": ("_REFUSALS", "_PUSH_ERRORS", "_WEIGHTS"),
    "plugins/krakenfutures/exchange_service_krakenfutures/__init__.py": ("LIMITS", "PUSH_LIMITS"),
    "plugins/krakenfutures/exchange_service_krakenfutures/client.py": ("_ERRORS",),
    "plugins/krakenfutures/exchange_service_krakenfutures/parse.py": ("TYPES", "_NAMED", "_CODES", "_LEVELS"),
    "plugins/krakenfutures/exchange_service_krakenfutures/push.py": ("_FEEDS",),
    "plugins/krakenfutures/exchange_service_krakenfutures/simulator.py": (
        "_REFUSALS",
        "_LIMITED",
        "_SOCKET_REFUSAL",
        "_NONCE_TOLERANCE",
    ),
    "plugins/krakenfutures/tests/test_krakenfutures_signing.py": ("CHALLENGES", "REQUESTS"),
    "plugins/lighter/exchange_service_lighter/__init__.py": ("_LIMITS", "_PUSH_LIMITS"),
    "plugins/lighter/exchange_service_lighter/client.py": ("_DEPLOYMENTS", "_BY_CODE"),
    "plugins/lighter/exchange_service_lighter/parse.py": ("_POOLS", "_SYMBOLS", "_ASSETS_OF_POOLS"),
    "plugins/lighter/exchange_service_lighter/push.py": ("_BY_CODE",),
    "plugins/lighter/exchange_service_lighter/simulator/push.py": ("_PUBLIC", "_PRIVATE", "_REFUSALS"),
    "plugins/lighter/exchange_service_lighter/simulator/__init__.py": ("_ERRORS",),
    "plugins/oanda/exchange_service_oanda/__init__.py": ("LIMITS", "PUSH_LIMITS"),
    "plugins/oanda/exchange_service_oanda/simulator.py": ("_REFUSALS",),
    "plugins/tastytrade/exchange_service_tastytrade/__init__.py": ("LIMITS",),
    "plugins/tastytrade/exchange_service_tastytrade/client.py": ("_REFUSED_GRANTS",),
    "plugins/tastytrade/exchange_service_tastytrade/parse.py": ("_FIGURES", "_TYPES"),
    "plugins/tastytrade/exchange_service_tastytrade/push.py": ("_BETWEEN_HEARTBEATS",),
    "plugins/tastytrade/exchange_service_tastytrade/simulator.py": (
        "_BETWEEN_HEARTBEATS",
        "_ERRORS",
        "_GATEWAY_PAGE",
        "_REFUSED_GRANT",
        "_STREAMER_REFUSALS",
    ),
    "plugins/tradier/exchange_service_tradier/__init__.py": ("LIMITS",),
    "plugins/tradier/exchange_service_tradier/parse.py": ("SESSIONS_LIMITED", "_CALLS", "_OPTION_FIELDS", "_TYPES"),
    "plugins/tradier/exchange_service_tradier/simulator.py": (
        "_FAULTS",
        "_SESSION_ERRORS",
        "_UNAUTHORIZED_ACCOUNT",
    ),
    "plugins/tradier/tests/test_tradier_client.py": ("BODIES",),
}
OWN = (
    "account_names",
    "account_types",
    "answer_shapes",
    "balance",
    "instances",
    "kinds",
    "limits",
    "pushed",
    "refusals",
    "rights",
)
# Files whose rows begin with ids and words of ours. CCXT's member that a row cites exists, but has other words.
OWN_WORDS = frozenset(f"{_CCXT}/{name}.py" for name in OWN)

# By id, members of rows in the table of shapes that CCXT's class does not mention, with where they are known from.
_HUOBI = "unproven: a copy of Huobi's document lists it, of which only the text was found and not the address"
BEYOND_CCXT: Mapping[str, Mapping[str, str]] = {
    "bittrade": dict.fromkeys(
        ("lock", "bank", "loan", "interest", "loan-available", "transfer-out-available"),
        "unproven: the interface is Huobi's, whose class in CCXT has most of them",
    ),
    "coincheck": {"_debt": "test data: nao1215/coincheck balance_test.go"},
    "delta": {
        "blocked_margin": "vendor: https://github.com/delta-exchange/slate/blob/master/source/includes/_websocket_api.md"
    },
    "htx": {"bank": _HUOBI},
    "kraken": dict.fromkeys(
        ("credit", "credit_used"),
        "vendor: https://docs.kraken.com/api-reference/account-data/get-extended-balance.md",
    ),
}


def payload_files() -> Iterator[Path]:
    """Every file with a recorded answer."""
    yield from sorted(ROOT.glob("plugins/*/payloads/**/*.json"))
