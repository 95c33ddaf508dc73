"""The record of the answers that one call has received. CCXT keeps none, and its errors do not hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from exchange_service.plugin_api import VenueMalformed, beside_the_loop
from exchange_service_ccxt_generic.exact_json import exact_json, reread_json

T = TypeVar("T")
P = ParamSpec("P")

# What is made of a larger body is made in a thread: the other exchanges share the event loop. Binance's list of all
# assets has 60,000 characters, with a value for each twelve of them.
_LARGE = 100_000
# No venue's error is longer. Longer bodies are not read as errors, which would stop the other exchanges.
_LONGEST_ERROR = 100_000
# As many characters as cost the same as one value. CCXT takes at most four microseconds for a value.
_CHARACTERS_OF_A_VALUE = 16
# What opens and separates the values of JSON.
_MARKS = (",", ":", "[", "{")


def size_of(body: str) -> int:
    """The size of a body: its characters, or what its values cost if that is more."""
    if len(body) > _LARGE:
        return len(body)
    return max(len(body), _CHARACTERS_OF_A_VALUE * sum(map(body.count, _MARKS)))


def is_large(size: int) -> bool:
    """Whether what is made of bodies of this size is made in a thread."""
    return size > _LARGE


def may_be_error(size: int) -> bool:
    """Whether a body of this size is read as a venue's error."""
    return size <= _LONGEST_ERROR


async def in_turn(size: int, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What `work` makes of bodies of this size: in a thread if they are large, otherwise at once."""
    if is_large(size):
        return await beside_the_loop(work, *arguments, **options)
    return work(*arguments, **options)


@dataclass(slots=True)
class Answer:
    """The answer to one request, as far as it was received, and the error that CCXT made of it.

    CCXT's errors hold the signed address, so `repr` shows neither the error nor the body.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: str = field(default="", repr=False)
    # See `size_of`.
    size: int = 0
    is_json: bool = False
    error: Exception | None = field(default=None, repr=False)

    def value(self) -> Any:
        """The JSON value as the venue sent it. It is read again, because CCXT's classes change the value they get."""
        if not self.is_json:
            return exact_json(self.body)
        return reread_json(self.body)


@dataclass(slots=True)
class Record:
    """Every answer of one call, in the order of the requests. Tasks that CCXT starts in the call share it."""

    answers: list[Answer] = field(default_factory=list)
    # The venue's own codes of the assets that CCXT has named, by CCXT's code.
    venue_codes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The size of all bodies, see `size_of`."""
        return sum(answer.size for answer in self.answers)

    def of(self, error: BaseException) -> Answer:
        """The answer that led to `error`; an empty one if there is none."""
        return next((answer for answer in self.answers if answer.error is error), Answer())

    def arose_in_reading(self, error: BaseException) -> bool:
        """Whether CCXT raised `error` while reading answers that it had accepted."""
        return bool(self.answers) and all(answer.error is not error for answer in self.answers)

    def json_values(self) -> list[Any]:
        """The values of the accepted answers, in order. Raises VenueMalformed if there is no such answer in JSON."""
        values = [answer.value() for answer in self.answers if answer.is_json and answer.error is None]
        if not values:
            raise VenueMalformed("The venue sent no answer that could be read.")
        return values


# Context variables, because several calls share an instance. A context belongs to one call and its tasks.
RECORD: ContextVar[Record] = ContextVar("ccxt_record")
ANSWER: ContextVar[Answer] = ContextVar("ccxt_answer")
