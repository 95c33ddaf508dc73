"""Recorded answers of a venue for tests: as payloads, and as a venue on loopback that gives them.

`exchange-service plugins try --record DIR` writes them, with every secret, id and amount replaced.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from exchange_service.plugin_api import ExchangeMetadata, VenueCall, parse_json
from exchange_service.testing.calls import venue_call
from exchange_service.testing.venue import LoopbackVenue
from exchange_service.testing.witnesses import read_payload

# The file that says which answer belongs to which request, and the number of its form.
INDEX = "index.jsonl"
FORMAT = 1


def read_index(folder: Path) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The index of a recording: its first line is of the whole, each other one of an answer. Raises OSError or
    ValueError."""
    head, *answers = map(json.loads, (folder / INDEX).read_text(encoding="utf-8").splitlines())
    return head, answers


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """One answer and the request that it is of.

    `name` is the file's without its ending. `method` and `path` are the request's, `query` are its pairs without
    secrets and signatures. `body` is the request's JSON value, its pairs or None. `status` is the HTTP status.
    `headers` are those of the answer about its type and the venue's limits. `form` is "json" or "text". `content` is
    the body.
    """

    name: str
    # The request's, in capitals.
    method: str
    # The request's, without the query.
    path: str
    query: tuple[tuple[str, str], ...]
    body: Any
    # The HTTP status of the answer.
    status: int
    # The answer's headers that were kept.
    headers: Mapping[str, str]
    form: str
    # The answer's body as it is in the file.
    content: bytes = field(repr=False)

    @property
    def payload(self) -> Any:
        """The answer's JSON value with exact numbers as `parse_json` reads it, or its text."""
        return json.loads(self.content) if self.form == "text" else parse_json(self.content)


class Recording:
    """The answers in a folder that `plugins try --record` has written. Raises ValueError for another folder.

    `folder` is its path. `exchange_id` is the listing's id, `environment` and `account_type` are those of the call that
    was recorded. `answers` are all of them, in the order in which they came.
    """

    def __init__(self, folder: str | Path) -> None:
        # Where it is.
        self.folder = Path(folder)
        try:
            head, answers = read_index(self.folder)
            if head["format"] != FORMAT:
                raise ValueError(f"{self.folder} is a recording of another form: record it again")
            # The listing that was read.
            self.exchange_id: str = head["exchange"]
            # The environment that was read.
            self.environment: str = head["environment"]
            # The account type that was asked for; empty: the listing's default.
            self.account_type: str = head["account_type"]
            self._row: Mapping[str, Any] = head["credential"]
            # The answers, in the order of the requests.
            self.answers = tuple(self._answer(entry) for entry in answers)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{self.folder} is not a recording: {type(error).__name__}") from error

    def _answer(self, entry: Mapping[str, Any]) -> RecordedAnswer:
        return RecordedAnswer(
            entry["file"].removesuffix(".json"),
            entry["method"],
            entry["path"],
            tuple((name, value) for name, value in entry["query"]),
            entry["body"],
            entry["status"],
            entry["headers"],
            entry["form"],
            read_payload(self.folder / entry["file"]),
        )

    @property
    def credential(self) -> Mapping[str, Any]:
        """The invented credential that belongs to the answers, as the contract suite takes it: any of `api_key`,
        `api_secret`, `passphrase` and `extra_metadata`."""
        return self._row

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the answers, in the order in which they came."""
        return tuple(answer.name for answer in self.answers)

    def answer(self, name: str) -> RecordedAnswer:
        """The answer of this name, with its number or without, or whose name ends so. Raises LookupError if there is
        none, or more than one."""
        found = [one for one in self.answers if name in (one.name, one.name.partition("-")[2])]
        found = found or [one for one in self.answers if one.name.endswith(f"-{name}")]
        if len(found) != 1:
            raise LookupError(f"{len(found) or 'no'} answers in {self.folder} are called {name!r}: {self.names}")
        return found[0]

    def payload(self, name: str) -> Any:
        """The JSON value of an answer with exact numbers, or its text. Raises LookupError as `answer` does."""
        return self.answer(name).payload

    def venue(self) -> RecordedVenue:
        """A venue on loopback that answers with the recording; use it with `async with`."""
        return RecordedVenue(self)

    @asynccontextmanager
    async def call(self, exchange: ExchangeMetadata, *, timeout: float = 5.0) -> AsyncIterator[VenueCall]:
        """A call of a plugin with the invented credential, of a venue that answers with the recording.

        `timeout` are the seconds until its deadline. Raises ValueError if the listing lacks the environment.
        """
        row = dict(self._row)
        async with (
            self.venue() as venue,
            venue_call(
                exchange,
                override=venue.url,
                environment=self.environment,
                metadata=row.pop("extra_metadata", None),
                account_type=self.account_type,
                timeout=timeout,
                **row,
            ) as call,
        ):
            yield call


def recorded(folder: str | Path, name: str) -> Any:
    """The JSON value of the answer `name` in a recording, with exact numbers, or its text.

    `name` is a file's, with its number and ending or without, such as "get-v1-holdings". Raises LookupError if there is
    no such answer, or more than one, and ValueError if the folder is not a recording.
    """
    return Recording(folder).payload(name.removesuffix(".json"))


class RecordedVenue(LoopbackVenue):
    """Gives a recording's answers to the requests that are most like those that were recorded.

    If one request was sent several times, its answers come in their order, and the last one again and again. A request
    that was never recorded gets the status 501, and stands in `missing`, as "GET /v1/holdings".
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.missing: list[str] = []
        self._recording = recording
        self._given: set[str] = set()

    def routes(self) -> list[web.RouteDef]:
        """Every path."""
        return [web.route("*", "/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        body = _read_body(await request.read())
        likely = [one for one in self._recording.answers if (one.method, one.path) == (request.method, request.path)]
        if not likely:
            self.missing.append(f"{request.method} {request.path}")
            raise web.HTTPNotImplemented(text=f"The recording has no answer to {request.method} {request.path}.")
        scores = [_likeness(one, tuple(request.query.items()), body) for one in likely]
        best = [one for one, score in zip(likely, scores, strict=True) if score == max(scores)]
        chosen = next((one for one in best if one.name not in self._given), best[-1])
        self._given.add(chosen.name)
        content = str(chosen.payload).encode() if chosen.form == "text" else chosen.content
        return web.Response(status=chosen.status, body=content, headers=chosen.headers)


def _likeness(answer: RecordedAnswer, query: Sequence[tuple[str, str]], body: Any) -> int:
    """How like its request another one is, by their pairs and values: nonces and times differ each time."""
    asked = {*query, *_flat(body, "")}
    known = [*answer.query, *_flat(answer.body, "")]
    return sum(1 if pair in asked else -1 for pair in known) - len(asked.difference(known))


def _read_body(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return [list(pair) for pair in parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)]


def _flat(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """The texts and numbers within a JSON value, each with its place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _flat(item, f"{place}[]")
    elif value is not None:
        yield place, str(value)
