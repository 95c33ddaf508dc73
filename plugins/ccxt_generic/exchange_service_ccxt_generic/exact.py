"""What is laid over a CCXT class: every digit is kept, every answer is looked at, and nothing but reads is sent.

`Guarded` serves the instance that loads markets, `Exact` the ones that read accounts. Both are put before CCXT's class
in a new type of the same name, and use only CCXT's own seams. What CCXT does for every exchange alike (sending a
request, looking for options, the sums of a balance's rows) is done here for less; what it does for one exchange stays
CCXT's. This module does not import CCXT.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import cache, lru_cache
from typing import Any, NoReturn

import aiohttp
from yarl import URL

from exchange_service.plugin_api import CredentialInvalid, NotSupported, VenueError, VenueMalformed, parse_amount
from exchange_service_ccxt_generic.refusals import SIGN_INS, is_read

_MAX_DIGITS = 100
# CCXT reckons with texts, and 1e999999999 as a text would have it build a number of that many digits.
# It never goes back in the text, which may be megabytes of digits.
_HUGE_EXPONENT = re.compile(r"\s*+[+-]?[\d.]++[eE][+-]?\d{3,}+\s*+\Z")
# One of these stands in every body that holds such a text, unless in letters that it spells by their numbers. Two
# patterns, because one that begins with a letter is found many times faster than one that begins with a choice.
_SMALL_E, _LARGE_E = re.compile(r"e[+-]?[0-9]{3}"), re.compile(r"E[+-]?[0-9]{3}")
# Names in which such a text is a number of another kind: hexadecimal digits.
_NAMES = ("id", "hash", "address", "key", "nonce", "code")
# Gemini's list of assets is read from its web page.
_PAGES_ARE_DATA = frozenset({"gemini"})
# How JSON is sent as a rule; for other types aiohttp finds out the encoding.
_IN_UTF8 = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8"})
# What nearly every amount looks like; a sum of two is exact within these bounds.
PLAIN_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?\Z")
_EXACT_SUMS = Context(prec=100)
# Most rows are those of the call before, or hold nothing as most people's do.
_FIGURES_KEPT = 4096
# What stands beside the rows in CCXT's balance.
_NO_ROWS = frozenset({"info", "timestamp", "datetime", "free", "used", "total"})


@dataclass(slots=True)
class Answer:
    """One request's outcome: the answer as far as it came, and the error that was made of it.

    CCXT's errors hold the signed address, so that neither they nor the answer itself show.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: str = field(default="", repr=False)
    is_json: bool = False
    error: Exception | None = field(default=None, repr=False)

    def value(self) -> Any:
        """The body's JSON value as the venue sent it: read anew, as CCXT's classes write into the one they get."""
        if not self.is_json:
            return exact_json(self.body)
        try:
            # It is known for exact JSON, and need not be looked at twice.
            return _decoded(_KNOWN, self.body)
        except (ValueError, RecursionError):
            raise VenueMalformed("The answer is not JSON.") from None


@dataclass(slots=True)
class Record:
    """Every answer of one call, in the order of the requests. Tasks that CCXT starts in the call share it."""

    answers: list[Answer] = field(default_factory=list)
    # The venue's own codes of the assets that CCXT has named, by CCXT's code.
    venue_codes: dict[str, list[str]] = field(default_factory=dict)

    def of(self, error: BaseException) -> Answer:
        """The answer that led to `error`; an empty one where it came before any."""
        return next((answer for answer in self.answers if answer.error is error), Answer())

    def arose_in_reading(self, error: BaseException) -> bool:
        """Whether `error` is of what CCXT made of answers that it had taken for good ones."""
        return bool(self.answers) and all(answer.error is not error for answer in self.answers)

    def json_values(self) -> list[Any]:
        """What the venue sent in its good answers, in order; VenueMalformed where none of them was JSON."""
        values = [answer.value() for answer in self.answers if answer.is_json and answer.error is None]
        if not values:
            raise VenueMalformed("The venue sent no answer that could be read.")
        return values


# Not on the instance, which several calls share: a context belongs to one call and the tasks it starts.
RECORD: ContextVar[Record] = ContextVar("ccxt_record")
_ANSWER: ContextVar[Answer] = ContextVar("ccxt_answer")


def _exact_fraction(text: str) -> str:
    parse_amount(text, "a number")
    return text.lower()


def _exact_integer(text: str) -> int:
    # An integer keeps its digits as such, and CCXT's classes compare codes with plain numbers.
    if len(text) > _MAX_DIGITS:
        raise VenueMalformed("The answer holds a number that is too long.")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise VenueMalformed(f"The answer holds {name}, which is no number.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise VenueMalformed("The answer names a field twice.")
    return result


def _unique_keys_of_sizes(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The same, without a huge number in any of the fields."""
    for name, value in pairs:
        if _is_huge(value) and not name.lower().endswith(_NAMES):
            raise VenueMalformed("The answer holds a number that is too large.")
    return _unique_keys(pairs)


def _is_huge(value: Any) -> bool:
    """Whether it is such a text, or a list that holds one; objects are looked at by themselves."""
    if type(value) is list:
        return any(map(_is_huge, value))
    return type(value) is str and _HUGE_EXPONENT.match(value) is not None


def _decoder(unique_keys: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_float=_exact_fraction,
        parse_int=_exact_integer,
        parse_constant=_refuse_constant,
        object_pairs_hook=unique_keys,
    )


_BEGINNINGS = ("{", "[")
# For bodies in which no text is a huge number, for every other body, and for those that one of them has read before.
_PLAIN, _THOROUGH = _decoder(_unique_keys), _decoder(_unique_keys_of_sizes)
_KNOWN = json.JSONDecoder(parse_float=str.lower)


def _decoded(decoder: json.JSONDecoder, body: str) -> Any:
    if body[:1] in _BEGINNINGS:
        # Without a look for space around the value, of which there is none as a rule.
        value, end = decoder.raw_decode(body)
        if end == len(body):
            return value
    return decoder.decode(body)


def exact_json(body: str) -> Any:
    """The JSON value of a body with a text for each number with a point or exponent, so that no digit is lost.

    VenueMalformed for what is no JSON, for NaN and infinities, a repeated field, and numbers beyond any amount.
    """
    try:
        if body.isascii() and "\\" not in body and not _SMALL_E.search(body) and not _LARGE_E.search(body):
            return _decoded(_PLAIN, body)
        value = _THOROUGH.decode(body)
        huge = _is_huge(value)
    except (ValueError, RecursionError):
        raise VenueMalformed("The answer is not JSON.") from None
    if huge:
        raise VenueMalformed("The answer holds a number that is too large.")
    return value


@cache
def _limit(milliseconds: int) -> aiohttp.ClientTimeout:
    """For one request as a whole. It begins before any part of it, so that the parts need none of their own."""
    return aiohttp.ClientTimeout(total=milliseconds / 1000)


def _ccxt_error(name: str) -> type[Exception]:
    """CCXT's class of errors of this name; CCXT is there whenever one is raised."""
    kind: type[Exception] = getattr(importlib.import_module("ccxt.base.errors"), name)
    return kind


def _figures_of(row: Any) -> tuple[str | None, str | None, str | None] | None:
    """What is free, used and the total of a row, the third reckoned where there are two; None for an unusual row."""
    try:
        return _figures(row.get("free"), row.get("used"), row.get("total"), row.get("debt"))
    except (AttributeError, TypeError):
        # It is no row, or it holds what is no figure.
        return None


@lru_cache(maxsize=_FIGURES_KEPT)
def _figures(free: Any, used: Any, total: Any, debt: Any) -> tuple[str | None, str | None, str | None] | None:
    for figure in (free, used, total, debt):
        if figure is not None and (type(figure) is not str or PLAIN_NUMBER.match(figure) is None):
            return None
    if total is None:
        if free is not None and used is not None:
            total = _reckoned(_EXACT_SUMS.add, free, used)
    elif free is None:
        if used is not None:
            free = _reckoned(_EXACT_SUMS.subtract, total, used)
    elif used is None:
        used = _reckoned(_EXACT_SUMS.subtract, total, free)
    return free, used, total


def _reckoned(operation: Callable[[Decimal, Decimal], Decimal], one: str, other: str) -> str:
    """The sum or difference of two plain numbers, written as CCXT does: without zeros at the end."""
    result = operation(Decimal(one), Decimal(other))
    return format(_EXACT_SUMS.normalize(result), "f") if result else "0"


@cache
def _by_default(option: str) -> str:
    """CCXT's other name of an option."""
    return "default" + option[:1].upper() + option[1:]


def _option(options: Any, name: str) -> Any:
    """The option as CCXT finds it among options: by either name, and not an empty text; None where there is none."""
    value = options.get(name)
    if value is None or value == "":
        value = options.get(_by_default(name))
    return None if value == "" else value


class Guarded:
    """Over a CCXT class: it owns no socket, and each answer is recorded for the call that it belongs to."""

    id: str
    session: Any
    throttler: Any
    asyncio_loop: Any
    timeout: int
    options: dict[str, Any]
    # Milliseconds that the exchange wants between two requests of weight one.
    rateLimit: float  # noqa: N815 - CCXT's name
    # When the next request may be sent, in the event loop's time.
    free_at: float = 0.0
    # CCXT's own methods, which the classes of the exchanges override.
    calculate_rate_limiter_cost: Callable[..., Any]
    sign: Callable[..., Any]
    prepare_request_headers: Callable[[Any], Any]
    parse_json: Callable[[str], Any]
    handle_errors: Callable[..., Any]
    handle_http_status_code: Callable[..., Any]

    def open(self, lazy: bool = False) -> None:
        """Nothing to open: the session is the host's. CCXT's own would build a TLS context for each instance."""
        if self.asyncio_loop is None:
            self.asyncio_loop = asyncio.get_running_loop()
            self.throttler.loop = self.asyncio_loop

    async def close(self, clean_instance_data: bool = False) -> None:
        """Let go of the host's session. CCXT's own waits a quarter second for sockets that are not there."""
        self.session = None

    def __del__(self) -> None:
        """Nothing is owned, so there is nothing to warn of."""

    async def throttle(self, cost: float | None = None) -> None:
        """Leave the pause that the exchange wants. CCXT's own counts no time in which nothing was asked, so that each
        balance would wait for the one before, however long ago that was; and it wakes every millisecond meanwhile."""
        now = asyncio.get_running_loop().time()
        begins = max(now, self.free_at)
        self.free_at = begins + (1.0 if cost is None else float(cost)) * self.rateLimit / 1000
        if begins > now:
            await asyncio.sleep(begins - now)

    def log(self, *_: Any) -> None:
        """CCXT prints requests with keys and signatures when it is verbose."""

    def handle_option_and_params(
        self, params: Any, method_name: str, option_name: str, default_value: Any = None
    ) -> list[Any]:
        """CCXT's search for an option, which it makes several times for each request, without parameters the short
        way."""
        if params:
            found: list[Any] = super().handle_option_and_params(  # type: ignore[misc]
                params, method_name, option_name, default_value
            )
            return found
        of_method = self.options.get(method_name)
        value = _option(of_method, option_name) if type(of_method) is dict else None
        if value is None:
            value = _option(self.options, option_name)
        return [default_value if value is None else value, params]

    async def fetch2(
        self, path: str, api: Any = "public", method: str = "GET", params: Any = None, config: Any = None
    ) -> Any:
        """CCXT's signing and sending of one request, at its pace; its own repeats some, which is the caller's to do."""
        params, config = {} if params is None else params, {} if config is None else config
        await self.throttle(self.calculate_rate_limiter_cost(api, method, path, params, config))
        request = self.sign(path, api, method, params)
        return await self.fetch(request["url"], request["method"], request["headers"], request["body"])

    async def fetch(self, url: str, method: str = "GET", headers: Any = None, body: str | None = None) -> Any:
        """CCXT's one way to the venue, with its outcome recorded. In the place of CCXT's own, which looks for proxies,
        writes log lines with keys and keeps the last request; errors are of its classes, without the address."""
        answer = Answer()
        if (record := RECORD.get(None)) is not None:
            record.answers.append(answer)
        token = _ANSWER.set(answer)
        try:
            sent = self.prepare_request_headers(headers)
            reason = await self._ask(answer, url, method, sent, body)
            value = self.parse_json(answer.body)
            said = (answer.status, reason, url, method, answer.headers, answer.body, value, sent, body)
            self.handle_errors(*said)
            self.handle_http_status_code(answer.status, reason, url, method, answer.body)
        except Exception as error:
            answer.error = error
            raise
        finally:
            _ANSWER.reset(token)
        return answer.body if value is None else value

    async def _ask(self, answer: Answer, url: str, method: str, headers: Any, body: str | None) -> str:
        """Send the request and fill in the answer; the status's words."""
        if self.asyncio_loop is None:
            self.open()
        data = body.encode() if body else None
        limit = _limit(self.timeout)
        try:
            async with self.session.request(
                method, URL(url, encoded=True), data=data, headers=headers, timeout=limit
            ) as response:
                content = await response.read()
                plain = response.headers.get("Content-Type") in _IN_UTF8
                text = content.decode("utf-8" if plain else response.get_encoding(), "replace").strip()
        except TimeoutError as error:
            raise _ccxt_error("RequestTimeout")(self.id) from error
        except (aiohttp.ClientConnectionError, socket.gaierror) as error:
            raise _ccxt_error("ExchangeNotAvailable")(self.id) from error
        except aiohttp.ClientError as error:
            raise _ccxt_error("ExchangeError")(self.id) from error
        answer.status, answer.headers, answer.body = response.status, dict(response.headers), text
        if 200 <= response.status < 300 and not self._readable(text):
            raise VenueMalformed("The venue answered with something that is not JSON.")
        return response.reason or ""

    def _readable(self, text: str) -> bool:
        return self.id in _PAGES_ARE_DATA or (bool(text) and not text.startswith("<"))


class Exact(Guarded):
    """Over a CCXT class that reads an account: exact numbers, JSON and nothing else, reads and nothing else."""

    number = str
    currencies: Mapping[str, Any]
    # Whether CCXT has found everything that it needs of the credential, which nobody changes afterwards.
    credential_is_complete = False

    def _readable(self, text: str) -> bool:
        # The same test as CCXT's own, which takes everything else for "no answer" and goes on.
        return len(text) > 1 and text[0] in "{["

    def on_json_response(self, body: str) -> Any:
        """CCXT's seam for the body of an answer."""
        answer = _ANSWER.get(Answer())
        try:
            value = exact_json(body)
        except VenueMalformed:
            if answer.status >= 400:
                # CCXT then goes by the status, which says more.
                raise ValueError from None
            raise
        # CCXT's classes read texts within an answer by this way too.
        answer.is_json = answer.is_json or body == answer.body
        return value

    async def request(self, path: str, api: Any = "public", method: str = "GET", *more: Any, **named: Any) -> Any:
        """CCXT's way of every endpoint, closed for what is not known to only read."""
        if not is_read(self.id, method, path):
            raise NotSupported(
                f"CCXT's {self.id} wants to send a request that may change something; this service only reads."
            )
        return await super().request(path, api, method, *more, **named)  # type: ignore[misc]

    def check_required_credentials(self, error: bool = True) -> bool:
        """CCXT's look at the credential, before each request the same."""
        if not self.credential_is_complete:
            self.credential_is_complete = super().check_required_credentials(error)  # type: ignore[misc]
        return self.credential_is_complete

    def safe_currency_code(self, currency_id: Any, *more: Any) -> Any:
        """CCXT's naming of assets; what the venue calls them is kept for the row."""
        code = super().safe_currency_code(currency_id, *more)  # type: ignore[misc]
        record = RECORD.get(None)
        if record is not None and isinstance(code, str) and isinstance(currency_id, str):
            # Some classes change the case on the way; the list of assets has the venue's own.
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
        """CCXT's columns and third figures for the rows that a class has read; its own where one looks unusual."""
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

    def calculate_rate_limiter_cost(self, *arguments: Any) -> Any:
        """CCXT's cost of a request; a class that compares it with a number trips over our texts for numbers."""
        try:
            return super().calculate_rate_limiter_cost(*arguments)
        except TypeError:
            return 1

    def sign(self, *arguments: Any, **named: Any) -> Any:
        """CCXT's signing; a key that cannot sign is the user's to correct."""
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
                # A class may swallow it, as it does trouble of the venue.
                record.answers.append(Answer(error=unusable))
            raise unusable from None


def _refusal(name: str) -> Callable[..., Awaitable[Any]]:
    async def refuse(self: Exact, *_: Any, **__: Any) -> NoReturn:
        raise NotSupported(f"CCXT's {self.id} signs in or approves something first; this service only reads.")

    refuse.__name__ = name
    return refuse


for _name in SIGN_INS:
    setattr(Exact, _name, _refusal(_name))


def laid_over(layer: type[Guarded], ccxt_class: type) -> type:
    """A class like `ccxt_class`, of the same name, with `layer` before it."""
    return type(ccxt_class.__name__, (layer, ccxt_class), {})
