"""The layers over a CCXT class: they keep every digit, record every answer, and send nothing but reads.

`Guarded` is for the instance that loads markets, `Exact` for the instances that read accounts. Each comes before CCXT's
class in a new type of the same name, and overrides only CCXT's own seams. What CCXT does alike for every exchange
(sending a request, finding options, summing the figures of a row) is done here in less time. What it does for one
exchange stays CCXT's. This module does not import CCXT.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from decimal import Context, Decimal
from functools import cache, lru_cache
from typing import Any, NoReturn

import aiohttp
from yarl import URL

from exchange_service.plugin_api import CredentialInvalid, NotSupported, VenueError, VenueMalformed
from exchange_service_ccxt_generic.allowance import Allowance
from exchange_service_ccxt_generic.answers import ANSWER, RECORD, Answer, in_turn, is_large, size_of
from exchange_service_ccxt_generic.aside import step_aside, step_back
from exchange_service_ccxt_generic.exact_json import exact_json
from exchange_service_ccxt_generic.limits import least_cost
from exchange_service_ccxt_generic.nonces import Nonces
from exchange_service_ccxt_generic.refusals import SIGN_INS, is_read

# CCXT reads Gemini's list of assets from its web page.
_PAGES_ARE_DATA = frozenset({"gemini"})
# The usual content types of JSON. For any other aiohttp detects the encoding.
_IN_UTF8 = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8"})
# Any other is read as UTF-8: a venue's answer names the encoding, and Python takes minutes for a mebibyte of some.
_ENCODINGS = frozenset({"utf-8", "iso8859-1"})
# Nearly every amount. Within these bounds the sum of two is exact.
PLAIN_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?\Z")
# Digits of an exponent, and of a precision.
_LONGEST_EXPONENT = 4
_HUGE_EXPONENT = re.compile(rf"[eE][+-]?\d{{{_LONGEST_EXPONENT + 1},}}")
_EXACT_SUMS = Context(prec=100)
# Most rows are the same as in the call before, or are all zero.
_FIGURES_KEPT = 4096
# The names in CCXT's balance that are not rows.
_NO_ROWS = frozenset({"info", "timestamp", "datetime", "free", "used", "total"})


@cache
def _request_timeout(milliseconds: int) -> aiohttp.ClientTimeout:
    """The timeout for a whole request. Its parts, such as connecting, need no timeouts of their own."""
    return aiohttp.ClientTimeout(total=milliseconds / 1000)


def ccxt_error(name: str) -> type[Exception]:
    """CCXT's class of errors with this name. CCXT is already imported when an error is raised."""
    kind: type[Exception] = getattr(importlib.import_module("ccxt.base.errors"), name)
    return kind


def _figures_of(row: Any) -> tuple[str | None, str | None, str | None] | None:
    """Free, used and total of a row; the third is computed if two are stated. None for an unusual row."""
    try:
        return _figures(row.get("free"), row.get("used"), row.get("total"), row.get("debt"))
    except (AttributeError, TypeError):
        # It is not a row, or holds something that is not a figure.
        return None


@lru_cache(maxsize=_FIGURES_KEPT)
def _figures(free: Any, used: Any, total: Any, debt: Any) -> tuple[str | None, str | None, str | None] | None:
    for figure in (free, used, total, debt):
        if figure is not None and (type(figure) is not str or PLAIN_NUMBER.match(figure) is None):
            return None
    if total is None:
        if free is not None and used is not None:
            total = _compute(_EXACT_SUMS.add, free, used)
    elif free is None:
        if used is not None:
            free = _compute(_EXACT_SUMS.subtract, total, used)
    elif used is None:
        used = _compute(_EXACT_SUMS.subtract, total, free)
    return free, used, total


def _compute(operation: Callable[[Decimal, Decimal], Decimal], one: str, other: str) -> str:
    """The sum or difference of two plain numbers, as text without zeros at the end, as CCXT writes it."""
    result = operation(Decimal(one), Decimal(other))
    return format(_EXACT_SUMS.normalize(result), "f") if result else "0"


@cache
def bound_exponents() -> None:
    """Let CCXT's numbers refuse an exponent of more digits than `_LONGEST_EXPONENT`, wherever it stands in an answer:
    CCXT would build a number with that many digits."""
    precise = importlib.import_module("ccxt.base.precise").Precise
    make = precise.__init__

    def make_bounded(self: Any, number: Any, decimals: Any = None) -> None:
        if decimals is None and _HUGE_EXPONENT.search(number) is not None:
            raise VenueMalformed("The answer holds a number that is too large.")
        make(self, number, decimals)

    precise.__init__ = make_bounded


@cache
def _default_name(option: str) -> str:
    """CCXT's other name of an option."""
    return "default" + option[:1].upper() + option[1:]


def _option(options: Any, name: str) -> Any:
    """The option as CCXT finds it: by either of its names; None if it is missing or an empty text."""
    value = options.get(name)
    if value is None or value == "":
        value = options.get(_default_name(name))
    return None if value == "" else value


class Guarded:
    """A layer over a CCXT class: it uses the host's session and records each answer for the call."""

    id: str
    session: Any
    throttler: Any
    asyncio_loop: Any
    timeout: int
    options: dict[str, Any]
    # Milliseconds between two requests of cost one.
    rateLimit: float  # noqa: N815 - CCXT's name
    # What all requests to the venue are counted by; None if CCXT's pauses between two requests are kept instead.
    allowance: Allowance | None = None
    # When the next request may be sent, in the event loop's time.
    free_at: float = 0.0
    # What all instances with one key take their nonces from; an instance without a key needs none.
    nonces: Nonces | None = None
    nonce: Callable[[], float]
    # CCXT's own methods, which the classes of the exchanges override.
    calculate_rate_limiter_cost: Callable[..., Any]
    sign: Callable[..., Any]
    prepare_request_headers: Callable[[Any], Any]
    parse_json: Callable[[str], Any]
    handle_errors: Callable[..., Any]
    handle_http_status_code: Callable[..., Any]

    def open(self, lazy: bool = False) -> None:
        """Open nothing, because the session is the host's. CCXT itself would build a TLS context for each instance."""
        if self.asyncio_loop is None:
            self.asyncio_loop = asyncio.get_running_loop()
            self.throttler.loop = self.asyncio_loop

    async def close(self, clean_instance_data: bool = False) -> None:
        """Drop the host's session. CCXT itself would wait a quarter of a second for its own sockets."""
        self.session = None

    def __del__(self) -> None:
        """CCXT warns here of an unclosed session. This class owns none."""

    def incrementing_nonce(self) -> int:
        """The key's next nonce. CCXT itself counts in each instance, and so two accounts with one key would disturb
        each other."""
        if self.nonces is None:
            self.nonces = Nonces()
        return self.nonces.after(int(self.nonce()))

    async def throttle(self, cost: float | None = None) -> None:
        """Wait until the exchange allows the next request, which has this cost: as `allowance` counts, or with a pause.

        CCXT itself does not count idle time, so each balance would wait for the one before, however old. It also wakes
        up every millisecond while it waits.
        """
        cost = 1.0 if cost is None else float(cost)
        if self.allowance is not None:
            await self._take(self.allowance, cost)
            return
        now = asyncio.get_running_loop().time()
        begins = max(now, self.free_at)
        self.free_at = begins + cost * self.rateLimit / 1000
        if begins > now:
            await asyncio.sleep(begins - now)

    async def _take(self, allowance: Allowance, cost: float) -> None:
        try:
            await allowance.take(cost)
        except VenueError as error:
            if (record := RECORD.get(None)) is not None:
                # Recorded, because a class may catch it, as it catches errors of the venue.
                record.answers.append(Answer(error=error))
            raise

    def parse_precision(self, precision: Any) -> Any:
        """CCXT's step for a number of decimals. CCXT itself would write as many zeros as a venue's list says."""
        if precision is not None and len(str(precision)) > _LONGEST_EXPONENT:
            raise VenueMalformed("The list of markets holds a precision that is too large.")
        return super().parse_precision(precision)  # type: ignore[misc]

    def log(self, *_: Any) -> None:
        """Print nothing. CCXT itself prints requests with keys and signatures if it is verbose."""

    def handle_option_and_params(
        self, params: Any, method_name: str, option_name: str, default_value: Any = None
    ) -> list[Any]:
        """CCXT's search for an option, which it repeats for each request. Without parameters this is faster."""
        if params:
            result: list[Any] = super().handle_option_and_params(  # type: ignore[misc]
                params, method_name, option_name, default_value
            )
            return result
        of_method = self.options.get(method_name)
        value = _option(of_method, option_name) if type(of_method) is dict else None
        if value is None:
            value = _option(self.options, option_name)
        return [default_value if value is None else value, params]

    async def fetch2(
        self, path: str, api: Any = "public", method: str = "GET", params: Any = None, config: Any = None
    ) -> Any:
        """Sign and send one request, at the exchange's pace. CCXT itself repeats some requests; the host does that."""
        params, config = {} if params is None else params, {} if config is None else config
        await step_back()
        await self.throttle(self.calculate_rate_limiter_cost(api, method, path, params, config))
        request = self.sign(path, api, method, params)
        return await self.fetch(request["url"], request["method"], request["headers"], request["body"])

    async def fetch(self, url: str, method: str = "GET", headers: Any = None, body: str | None = None) -> Any:
        """Send one request and record its answer. Errors are of CCXT's classes, but without the address.

        CCXT itself looks for proxies, logs keys and keeps the last request.
        """
        await step_back()
        answer = Answer()
        if (record := RECORD.get(None)) is not None:
            record.answers.append(answer)
        token = ANSWER.set(answer)
        try:
            sent = self.prepare_request_headers(headers)
            reason = await self._send(answer, url, method, sent, body)
            value = await in_turn(answer.size, self._accept, answer, reason, (url, method), (sent, body))
        except Exception as error:
            answer.error = error
            raise
        finally:
            ANSWER.reset(token)
        if is_large(answer.size):
            await step_aside()
        return answer.body if value is None else value

    def _accept(self, answer: Answer, reason: str, target: tuple[str, str], sent: tuple[Any, Any]) -> Any:
        """The JSON value of an answer, or None. Raises CCXT's error for an answer that is one."""
        value = self.parse_json(answer.body)
        self.handle_errors(answer.status, reason, *target, answer.headers, answer.body, value, *sent)
        self.handle_http_status_code(answer.status, reason, *target, answer.body)
        return value

    async def _send(self, answer: Answer, url: str, method: str, headers: Any, body: str | None) -> str:
        """Send the request and fill in the answer. Returns the reason phrase of the status."""
        if self.asyncio_loop is None:
            self.open()
        data = body.encode() if body else None
        limit = _request_timeout(self.timeout)
        try:
            async with self.session.request(
                method, URL(url, encoded=True), data=data, headers=headers, timeout=limit
            ) as response:
                content = await response.read()
                plain = response.headers.get("Content-Type") in _IN_UTF8
                encoding = "utf-8" if plain else response.get_encoding()
                text = content.decode(encoding if encoding in _ENCODINGS else "utf-8", "replace").strip()
        except TimeoutError as error:
            raise ccxt_error("RequestTimeout")(self.id) from error
        except (aiohttp.ClientConnectionError, socket.gaierror) as error:
            raise ccxt_error("ExchangeNotAvailable")(self.id) from error
        except aiohttp.ClientError as error:
            raise ccxt_error("ExchangeError")(self.id) from error
        answer.status, answer.headers, answer.body = response.status, dict(response.headers), text
        answer.size = size_of(text)
        if 200 <= response.status < 300 and not self._is_readable(text):
            raise VenueMalformed("The venue answered with something that is not JSON.")
        return response.reason or ""

    def _is_readable(self, text: str) -> bool:
        return self.id in _PAGES_ARE_DATA or (bool(text) and not text.startswith("<"))


class Exact(Guarded):
    """A layer over a CCXT class that reads an account: exact numbers, no body but JSON, no request but reads."""

    number = str
    currencies: Mapping[str, Any]
    # Whether CCXT has checked the credential, which does not change afterwards.
    credential_is_complete = False

    def _is_readable(self, text: str) -> bool:
        # CCXT has the same test, but takes any other body for "no answer" and goes on.
        return len(text) > 1 and text[0] in "{["

    def on_json_response(self, body: str) -> Any:
        """Parse the body of an answer, with exact numbers."""
        answer = ANSWER.get(Answer())
        try:
            value = exact_json(body)
        except VenueMalformed:
            if answer.status >= 400:
                # CCXT then decides by the status, which says more.
                raise ValueError from None
            raise
        # CCXT's classes also parse texts within an answer by this method.
        answer.is_json = answer.is_json or body == answer.body
        return value

    async def request(self, path: str, api: Any = "public", method: str = "GET", *more: Any, **named: Any) -> Any:
        """Send a request to an endpoint; NotSupported unless it is known to only read."""
        if not is_read(self.id, method, path):
            raise NotSupported(
                f"CCXT's {self.id} wants to send a request that may change something, but this service only reads."
            )
        return await super().request(path, api, method, *more, **named)  # type: ignore[misc]

    def check_required_credentials(self, error: bool = True) -> bool:
        """CCXT's check of the credential, which is the same before each request and so is made once."""
        if not self.credential_is_complete:
            self.credential_is_complete = super().check_required_credentials(error)  # type: ignore[misc]
        return self.credential_is_complete

    def safe_currency_code(self, currency_id: Any, *more: Any) -> Any:
        """CCXT's code of an asset. The venue's own code is recorded for the row."""
        code = super().safe_currency_code(currency_id, *more)  # type: ignore[misc]
        record = RECORD.get(None)
        if record is not None and isinstance(code, str) and isinstance(currency_id, str):
            # Some classes change the case of the code. The list of assets has the venue's own.
            listed = str((self.currencies or {}).get(code, {}).get("id") or "")
            same = listed == currency_id or listed.upper() == currency_id.upper()
            name = listed if same else currency_id
            codes = record.venue_codes.get(code)
            if codes is None:
                record.venue_codes[code] = [name]
            elif name not in codes:
                codes.append(name)
        return code

    def safe_balance(self, balance: dict[str, Any]) -> Any:
        """CCXT's columns, and the third figure of each row. CCXT's own method is used if a row is unusual."""
        frees: dict[str, Any] = {}
        useds: dict[str, Any] = {}
        totals: dict[str, Any] = {}
        debts: dict[str, Any] = {}
        for code, row in balance.items():
            if code in _NO_ROWS:
                continue
            figures = _figures_of(row)
            if figures is None:
                return super().safe_balance(balance)  # type: ignore[misc]
            row["free"], row["used"], row["total"] = frees[code], useds[code], totals[code] = figures
            if (debt := row.get("debt")) is not None:
                debts[code] = debt
        balance["free"], balance["used"], balance["total"] = frees, useds, totals
        if debts:
            balance["debt"] = debts
        return balance

    def calculate_rate_limiter_cost(self, api: Any, method: Any, path: str, *arguments: Any) -> Any:
        """CCXT's cost of a request, or what the venue counts if that is known to be more; one if a class fails, because
        numbers are texts here."""
        try:
            cost = super().calculate_rate_limiter_cost(api, method, path, *arguments)
        except TypeError:
            return 1
        least = least_cost(self.id, api, path)
        return max(float(cost), least) if least else cost

    def sign(self, *arguments: Any, **named: Any) -> Any:
        """CCXT's signing. Raises CredentialInvalid for a key that cannot sign, so that the user can correct it."""
        try:
            return super().sign(*arguments, **named)
        except VenueError:
            raise
        except Exception as error:
            if any(base.__module__.startswith("ccxt.") for base in type(error).__mro__):
                raise
            unusable = CredentialInvalid(
                "api_secret cannot be used to sign.", advice="Check that it was copied whole, with all its lines."
            )
            if (record := RECORD.get(None)) is not None:
                # Recorded too, because a class may catch it, as it catches errors of the venue.
                record.answers.append(Answer(error=unusable))
            raise unusable from None


def _refusal(name: str) -> Callable[..., Awaitable[Any]]:
    async def refuse(self: Exact, *_: Any, **__: Any) -> NoReturn:
        raise NotSupported(f"CCXT's {self.id} signs in or approves something first, but this service only reads.")

    refuse.__name__ = name
    return refuse


for _name in SIGN_INS:
    setattr(Exact, _name, _refusal(_name))


def make_layered_class(layer: type[Guarded], ccxt_class: type) -> type:
    """A class with the name of `ccxt_class` that has `layer` before it."""
    return type(ccxt_class.__name__, (layer, ccxt_class), {})
