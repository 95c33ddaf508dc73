"""What is laid over a CCXT class: every digit is kept, every answer is looked at, and nothing but reads is sent.

`Guarded` serves the instance that loads markets, `Exact` the ones that read accounts. Both are put before CCXT's class
in a new type of the same name, and use only CCXT's own seams. This module does not import CCXT.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

from exchange_service.plugin_api import CredentialInvalid, NotSupported, VenueError, VenueMalformed, parse_amount
from exchange_service_ccxt_generic.refusals import SIGN_INS, is_read

_MAX_DIGITS = 100
# CCXT reckons with texts, and 1e999999999 as a text would have it build a number of that many digits.
# It never goes back in the text, which may be megabytes of digits.
_HUGE_EXPONENT = re.compile(r"\s*+[+-]?[\d.]++[eE][+-]?\d{3,}+\s*+\Z")
# Names in which such a text is a number of another kind: hexadecimal digits.
_NAMES = ("id", "hash", "address", "key", "nonce", "code")
# Gemini's list of assets is read from its web page.
_PAGES_ARE_DATA = frozenset({"gemini"})


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
        return exact_json(self.body)


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
    for name, value in pairs:
        if _is_huge(value) and not name.lower().endswith(_NAMES):
            raise VenueMalformed("The answer holds a number that is too large.")
    return result


def _is_huge(value: Any) -> bool:
    """Whether it is such a text, or a list that holds one; objects are looked at by themselves."""
    if type(value) is list:
        return any(map(_is_huge, value))
    return type(value) is str and _HUGE_EXPONENT.match(value) is not None


def exact_json(body: str) -> Any:
    """The JSON value of a body with a text for each number with a point or exponent, so that no digit is lost.

    VenueMalformed for what is no JSON, for NaN and infinities, a repeated field, and numbers beyond any amount.
    """
    try:
        value = json.loads(
            body,
            parse_float=_exact_fraction,
            parse_int=_exact_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique_keys,
        )
        huge = _is_huge(value)
    except (ValueError, RecursionError):
        raise VenueMalformed("The answer is not JSON.") from None
    if huge:
        raise VenueMalformed("The answer holds a number that is too large.")
    return value


class Guarded:
    """Over a CCXT class: it owns no socket, and each answer is recorded for the call that it belongs to."""

    id: str
    session: Any
    throttler: Any
    asyncio_loop: Any

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

    def log(self, *_: Any) -> None:
        """CCXT prints requests with keys and signatures when it is verbose."""

    async def fetch(self, *arguments: Any, **named: Any) -> Any:
        """CCXT's one way to the venue, with its outcome recorded."""
        answer = Answer()
        if (record := RECORD.get(None)) is not None:
            record.answers.append(answer)
        token = _ANSWER.set(answer)
        try:
            return await super().fetch(*arguments, **named)  # type: ignore[misc]
        except Exception as error:
            answer.error = error
            raise
        finally:
            _ANSWER.reset(token)

    def on_rest_response(
        self, code: int, reason: str, url: str, method: str, headers: Mapping[str, str], body: str, *more: Any
    ) -> str:
        """CCXT's seam for an answer that has just come; it runs in the task of its request."""
        answer = _ANSWER.get(Answer())
        answer.status, answer.headers, answer.body = code, headers, body
        text: str = super().on_rest_response(code, reason, url, method, headers, body, *more)  # type: ignore[misc]
        if 200 <= code < 300 and not self._readable(text):
            raise VenueMalformed("The venue answered with something that is not JSON.")
        return text

    def _readable(self, text: str) -> bool:
        return self.id in _PAGES_ARE_DATA or (bool(text) and not text.startswith("<"))


class Exact(Guarded):
    """Over a CCXT class that reads an account: exact numbers, JSON and nothing else, reads and nothing else."""

    number = str
    currencies: Mapping[str, Any]

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
        answer.is_json = True
        return value

    async def request(self, path: str, api: Any = "public", method: str = "GET", *more: Any, **named: Any) -> Any:
        """CCXT's way of every endpoint, closed for what is not known to only read."""
        if not is_read(self.id, method, path):
            raise NotSupported(
                f"CCXT's {self.id} wants to send a request that may change something; this service only reads."
            )
        return await super().request(path, api, method, *more, **named)  # type: ignore[misc]

    def safe_currency_code(self, currency_id: Any, *more: Any) -> Any:
        """CCXT's naming of assets; what the venue calls them is kept for the row."""
        code = super().safe_currency_code(currency_id, *more)  # type: ignore[misc]
        record = RECORD.get(None)
        if record is not None and isinstance(code, str) and isinstance(currency_id, str):
            # Some classes change the case on the way; the list of assets has the venue's own.
            listed = str((self.currencies or {}).get(code, {}).get("id") or "")
            name = listed if listed.upper() == currency_id.upper() else currency_id
            codes = record.venue_codes.setdefault(code, [])
            if name not in codes:
                codes.append(name)
        return code

    def calculate_rate_limiter_cost(self, *arguments: Any) -> Any:
        """CCXT's cost of a request; a class that compares it with a number trips over our texts for numbers."""
        try:
            return super().calculate_rate_limiter_cost(*arguments)  # type: ignore[misc]
        except TypeError:
            return 1

    def sign(self, *arguments: Any, **named: Any) -> Any:
        """CCXT's signing; a key that cannot sign is the user's to correct."""
        try:
            return super().sign(*arguments, **named)  # type: ignore[misc]
        except VenueError:
            raise
        except Exception as error:
            if any(base.__module__.startswith("ccxt.") for base in type(error).__mro__):
                raise
            unusable = CredentialInvalid(
                "api_secret cannot be used to sign. Check that it was copied whole, with all its lines."
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
