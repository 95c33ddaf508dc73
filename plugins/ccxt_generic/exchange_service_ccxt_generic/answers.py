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

# Characters. What is made of a longer body is made in a thread: the other exchanges share the event loop. Binance's
# list of all assets has 60,000.
_LARGE = 100_000


async def in_turn(size: int, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What `work` makes of bodies with so many characters: in a thread if they are large, otherwise at once."""
    if size > _LARGE:
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
        """The characters of all bodies."""
        return sum(len(answer.body) for answer in self.answers)

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
