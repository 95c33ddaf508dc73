"""Keeps the answers of a trial as payload files, with secrets, ids and amounts replaced by invented ones.

Replacing and checking are two ways on purpose, as in `masking`: a recording in which a secret of the credential is
found, in any encoding, is not written.
"""

from __future__ import annotations

import json
import os
import re
import secrets as random_bytes
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from exchange_service.authoring import exact_json
from exchange_service.authoring.exact_json import Members, Number
from exchange_service.authoring.fields import (
    SHORTEST_ID,
    Kind,
    is_account_number,
    kind_of_key,
    kind_of_number,
    kind_of_text,
    plain_name,
)
from exchange_service.authoring.inventing import Inventor
from exchange_service.authoring.masking import Secrets, credential_texts
from exchange_service.authoring.trying import Trial
from exchange_service.model import SECRET_FIELDS, Credential
from exchange_service.observability.redaction import is_secret_name
from exchange_service.testing.recordings import FORMAT, INDEX, read_index
from exchange_service.venues.tap import SeenRequest

# Random keys that are tried: an invented number may hold a short secret by chance.
_TRIES = 20
# Part of a longer text an id is replaced from this length on.
_SHORTEST_PART = 5
# The host reads these of the stored metadata; they name no account.
_HOST_KEYS = ("sandbox", "environment")
_KEPT_HEADERS = re.compile(r"content-type|retry-after|limit|remaining|reset|used|weight", re.IGNORECASE)
_BETWEEN = re.compile(r"[^\w-]+")
_PLAIN_HEADER = re.compile(r"[\w./;=, +:-]{1,80}\Z")
_IN_TEXT = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.-]+\w"
    r"|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    r"|0x[0-9a-fA-F]{16,}"
    r"|(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"
)
_DECIMAL = re.compile(r"(?<![\w.-])\d+\.\d+(?![\w.:])")
_LONG_DIGITS = re.compile(r"(?<![\w.-])\d{5,}(?![\w.:])")
# A number of such a name beside a list of so many entries is their count.
_OF_A_LIST = re.compile(r"(?:^|_)(?:total|size|length|number|records|results|entries|rows|items)$")
_NO_SUMS = (
    "Each amount was replaced by itself, so what is a sum or a product of others is not one any more. If your plugin "
    "compares them, put the figures right by hand."
)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9]+")
_LONGEST_NAME = 80


class RecordingRefused(Exception):
    """The recording was not written; the text says why, and names fields and files without their values."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """What was done with the values of a field: its place in the answers, its kind, and how many of them."""

    place: str
    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class Written:
    """A recording that was written: its folder and files, what was replaced, which fields were kept as they are, and
    what the author should know, a sentence each."""

    folder: Path
    files: tuple[str, ...]
    replaced: tuple[Replaced, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Draft:
    """A recording that is not written yet: the texts of its files by their names."""

    files: dict[str, str] = field(default_factory=dict)
    counts: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def check_target(folder: Path, *, force: bool) -> None:
    """Raise RecordingRefused if the folder may not be written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not force:
        raise RecordingRefused(f"{folder} is there already. Choose another folder, or replace it with --force.")
    if not _is_recording(folder):
        raise RecordingRefused(f"{folder} holds other files than a recording, so it is not replaced.")


def _is_recording(folder: Path) -> bool:
    try:
        head, answers = read_index(folder)
        named = {INDEX, *(answer["file"] for answer in answers)}
        return head["format"] == FORMAT and {path.name for path in folder.iterdir()} <= named
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_recording(trial: Trial, folder: Path, *, force: bool = False) -> Written:
    """Write the answers of the trial's requests, or nothing: RecordingRefused says why not."""
    check_target(folder, force=force)
    found = ""
    for _ in range(_TRIES):
        draft = _Writer(trial, Inventor(random_bytes.token_bytes(32))).draft()
        found = _find_secret(draft.files, trial.masker.secrets)
        if not found:
            break
    if found:
        raise RecordingRefused(
            f"Nothing was recorded: {found}. If it is a common word, make a credential whose secrets are in no answer."
        )
    _write(folder, draft.files)
    rows = sorted(draft.counts.items())
    amounts = sum(count for (_, kind), count in rows if kind is Kind.AMOUNT)
    changed = {place for (place, kind), _ in rows if kind is not Kind.KEPT}
    return Written(
        folder,
        tuple(name for name in draft.files if name != INDEX),
        tuple(Replaced(place, kind, count) for (place, kind), count in rows if kind is not Kind.KEPT),
        tuple(place for (place, kind), _ in rows if kind is Kind.KEPT and place not in changed),
        (*draft.notes, *([_NO_SUMS] if amounts > 1 else [])),
    )


def _find_secret(files: Mapping[str, str], secrets: Secrets) -> str:
    """Where a secret is found, as a sentence without it; empty if it is found nowhere."""
    for name, text in files.items():
        if found := secrets.found_in(name):
            return f"the name of a file would hold the secret {found} of the credential"
        if not (found := secrets.found_in(text)):
            continue
        for line in text.splitlines() if name == INDEX else (text,):
            for place, leaf in _leaves(exact_json.read(line), ""):
                if inner := secrets.found_in(leaf):
                    return f"the secret {inner} of the credential is found in {name} at {place}"
        return f"the secret {found} of the credential is found in {name}"
    return ""


def _leaves(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text and number with its place; the name of a field comes as "the name of a field of ..."."""
    if isinstance(value, Members):
        for key, item in value:
            yield f"the name of a field of {place or 'the answer'}", key
            yield from _leaves(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, f"{place}[]")
    elif isinstance(value, Number):
        yield place, value.text
    elif isinstance(value, str):
        yield place, value


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files, or none: into a folder beside, which then takes the place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, text in files.items():
            (fresh / name).write_text(text, encoding="utf-8")
        fresh.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old / "recording")
            os.replace(fresh, folder)
            shutil.rmtree(old)
        else:
            os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


class _Ids:
    """The true ids of the credential and of the answers, each with its invented one."""

    def __init__(self, inventor: Inventor) -> None:
        self._inventor = inventor
        self._made: dict[str, str] = {}
        # In lower case: an account's number and a wallet's address are the same in any case.
        self._folded: set[str] = set()
        self._invented: set[str] = set()
        # In lower case as well, the longest first, by their first characters: a text is searched once, however many ids
        # there are.
        self._by_start: dict[str, list[str]] = {}

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and text.lower() in self._folded

    def get(self, text: str) -> str:
        """The invented one, in the case of the text; empty if it is not known."""
        return self._invent(text) if text in self else ""

    def _invent(self, text: str) -> str:
        if text not in self._made:
            self._made[text] = made = self._inventor.name(text)
            self._invented.add(made)
        return self._made[text]

    def learn(self, text: str) -> None:
        """Replace this id from now on."""
        if text in self:
            return
        self._invent(text)
        folded = text.lower()
        self._folded.add(folded)
        if len(text) >= _SHORTEST_PART:
            several = self._by_start.setdefault(folded[:_SHORTEST_PART], [])
            several.append(folded)
            several.sort(key=len, reverse=True)

    def replaced_in(self, text: str) -> str:
        """A text with the ids within it replaced."""
        folded = text.lower()
        if len(folded) != len(text):
            # A few letters are two in lower case, and places would not be the same.
            folded = text
        parts, done, place = [], 0, 0
        while place <= len(text) - _SHORTEST_PART:
            known = self._by_start.get(folded[place : place + _SHORTEST_PART], ())
            found = next((one for one in known if folded.startswith(one, place)), "")
            if found:
                parts += [text[done:place], self._invent(text[place : place + len(found)])]
                done = place = place + len(found)
            else:
                place += 1
        return "".join((*parts, text[done:]))

    def invented_for(self, match: re.Match[str]) -> str:
        """What takes the place of a match, unless that is invented already."""
        return match[0] if match[0] in self._invented else self._inventor.name(match[0])


class _Writer:
    """Makes the texts of one recording with one inventor."""

    def __init__(self, trial: Trial, inventor: Inventor) -> None:
        self._trial = trial
        self._inventor = inventor
        self._secrets = trial.masker.secrets
        self._ids = _Ids(inventor)
        # The true amounts, which are replaced also where a field's name says nothing.
        self._amounts: set[str] = set()
        self._draft = _Draft()

    def draft(self) -> _Draft:
        credential = self._credential(self._trial.credential)
        answers = [(seen, self._read(seen)) for seen in self._trial.requests]
        for _, value in answers:
            # First all ids are learnt, so that each is replaced wherever it stands.
            self._learn(value, "", "")
        entries: list[dict[str, Any]] = []
        for seen, value in answers:
            if (problem := _not_kept(seen, value)) is not None:
                self._draft.notes.append(f"{seen.method} {self._path(seen)}: {problem}")
                continue
            entries.append(self._entry(seen, value, len(entries) + 1))
        metadata = self._trial.listing.metadata
        head = {
            "format": FORMAT,
            "exchange": metadata.id,
            "environment": self._trial.account.environment,
            "account_type": self._trial.account.account_type,
            "credential": credential,
        }
        self._draft.files[INDEX] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *entries))
        return self._draft

    def _credential(self, credential: Credential) -> dict[str, Any]:
        """An invented credential of the same shape, with which the recording can be played."""
        _, others = credential_texts(credential, self._trial.listing.metadata)
        for name, text in others.items():
            if len(text) >= SHORTEST_ID and name not in _HOST_KEYS:
                self._ids.learn(text)
        row: dict[str, Any] = {
            name: self._invented(text) for name in SECRET_FIELDS if (text := getattr(credential, name).reveal())
        }
        if credential.metadata:
            row["extra_metadata"] = {
                name: value if name in _HOST_KEYS else self._metadata(value)
                for name, value in credential.metadata.items()
            }
        return row

    def _metadata(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._metadata(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._metadata(item) for item in value]
        if isinstance(value, bool) or value is None:
            return value
        made = self._invented(str(value))
        return made if isinstance(value, str) else int(made) if made.isdigit() else made

    def _invented(self, text: str) -> str:
        if "-----BEGIN" in text:
            self._draft.notes.append("The private key is left out of the recording's credential: tests take their own.")
            return ""
        return self._ids.get(text) or self._inventor.name(text)

    def _read(self, seen: SeenRequest) -> Any:
        """The answer as a JSON value, else as a text; None for what is no text or was not read to its end."""
        if seen.status is None or seen.is_socket or seen.ended is None:
            return None
        try:
            text = bytes(seen.answer).decode()
        except UnicodeDecodeError:
            return None
        try:
            return exact_json.read(text)
        except (ValueError, RecursionError):
            return _Text(text)

    def _learn(self, value: Any, name: str, parent: str) -> None:
        if isinstance(value, Members):
            for key, item in value:
                if kind_of_key(key) is Kind.ID:
                    self._ids.learn(key)
                self._learn(item, key, name)
        elif isinstance(value, list):
            for item in value:
                self._learn(item, name, parent)
        else:
            text = value.text if isinstance(value, Number) else value if isinstance(value, str) else ""
            of_kind = kind_of_number if isinstance(value, Number) else kind_of_text
            kind = of_kind(name, parent, text)
            if kind is Kind.ID:
                self._ids.learn(text)
            elif kind is Kind.AMOUNT and len(text) >= _SHORTEST_PART:
                self._amounts.add(text)

    def _entry(self, seen: SeenRequest, value: Any, number: int) -> dict[str, Any]:
        path = self._path(seen)
        name = f"{number:02d}-{seen.method.lower()}-{self._file_part(seen)}"[:_LONGEST_NAME].rstrip("-") + ".json"
        if isinstance(value, _Text):
            self._draft.notes.append(f"{name} is not JSON, and kept as a text: read it before you commit it.")
            stored = json.dumps(self._free_text(value, name.removesuffix(".json"), whole=True), ensure_ascii=False)
        else:
            stored = exact_json.write(self._value(value, "", "", ""))
        witness = json.dumps(_witness(self._trial, seen))
        # `answer` is the last member, as every payload file has it.
        self._draft.files[name] = f'{{\n"witness": {witness},\n"answer":\n{stored}\n}}\n'
        return {
            "file": name,
            "method": seen.method,
            "path": path,
            "query": self._pairs(urlsplit(seen.url).query),
            "body": self._body(seen.body),
            "status": seen.status,
            "headers": {key: item for key, item in seen.answer_headers.items() if self._is_kept(key, item)},
            "form": "text" if isinstance(value, _Text) else "json",
        }

    def _is_kept(self, name: str, value: str) -> bool:
        """Whether a header is one of limits or of the answer's form, and names no account."""
        if not _KEPT_HEADERS.search(name) or is_secret_name(name) or not _PLAIN_HEADER.match(value):
            return False
        names_account = any(map(is_account_number, _BETWEEN.split(value)))
        return not names_account and self._free_text(value, "the path") == value

    def _path(self, seen: SeenRequest) -> str:
        segments = urlsplit(seen.url).path.split("/")
        return "/".join(self._segment(unquote(segment)) or segment for segment in segments)

    def _segment(self, segment: str) -> str:
        """An invented segment of a path; empty if it may stay."""
        made = self._ids.get(segment) or self._free_text(segment, "the path")
        if made == segment and kind_of_key(segment) is Kind.ID:
            made = self._inventor.name(segment)
        return "" if made == segment else made

    def _file_part(self, seen: SeenRequest) -> str:
        segments = [unquote(segment) for segment in urlsplit(seen.url).path.split("/")]
        return "-".join(
            "id" if self._segment(segment) else _NOT_IN_A_NAME.sub("-", segment) for segment in segments if segment
        )

    def _pairs(self, query: str) -> list[list[str]]:
        """The pairs of a query or form, without secrets, signatures and tokens."""
        pairs = parse_qsl(query, keep_blank_values=True)
        return [
            [name, self._text(value, name, "", f"request.{name}")] for name, value in pairs if not is_secret_name(name)
        ]

    def _body(self, body: bytes) -> Any:
        """The body of a request as JSON or pairs; None if there is none, or it is neither."""
        if not body:
            return None
        try:
            value = exact_json.read(body.decode())
        except (ValueError, RecursionError):
            pairs = self._pairs(body.decode("utf-8", "replace"))
            return pairs or None
        return json.loads(exact_json.write(self._value(_without_secrets(value), "", "", "request")))

    def _value(self, value: Any, name: str, parent: str, place: str) -> Any:
        if isinstance(value, Members):
            made = Members()
            lengths = {str(len(item)) for _, item in value if isinstance(item, list)}
            for key, item in value:
                new = self._key(key, place)
                # A name that was replaced must not be printed.
                inner = f"{place}.{key if new == key else '*'}".lstrip(".")
                if isinstance(item, Number) and item.text in lengths and _OF_A_LIST.search(plain_name(key)):
                    self._count(inner, Kind.KEPT)
                    made.append((new, item))
                    continue
                made.append((new, self._value(item, key, name, inner)))
            return made
        if isinstance(value, list):
            return [self._value(item, name, parent, f"{place}[]") for item in value]
        if isinstance(value, Number):
            return Number(self._number(value.text, name, parent, place))
        return self._text(value, name, parent, place) if isinstance(value, str) else value

    def _key(self, key: str, place: str) -> str:
        new = self._ids.get(key) or self._ids.replaced_in(key)
        if new != key:
            self._count(f"{place}.*".lstrip("."), Kind.ID)
        return new

    def _number(self, text: str, name: str, parent: str, place: str) -> str:
        kind = Kind.ID if text in self._ids else kind_of_number(name, parent, text)
        if kind is Kind.KEPT and text in self._amounts:
            kind = Kind.AMOUNT
        if self._secrets.found_in(text):
            self._count(place, Kind.SECRET)
            return self._inventor.amount(text)
        if kind is Kind.AMOUNT:
            made = self._inventor.amount(text)
        else:
            made = text if kind is Kind.KEPT else self._ids.get(text) or self._inventor.name(text)
        # Zero stays zero.
        self._count(place, kind if made != text else Kind.KEPT)
        return made

    def _text(self, text: str, name: str, parent: str, place: str) -> str:
        if not text:
            return text
        if self._secrets.found_in(text):
            self._count(place, Kind.SECRET)
            made = self._secrets.replaced_in(text, self._inventor.name)
            return made if not self._secrets.found_in(made) else self._inventor.name(text)
        kind = Kind.ID if text in self._ids else kind_of_text(name, parent, text)
        if kind is Kind.KEPT and text in self._amounts:
            kind = Kind.AMOUNT
        if kind is Kind.AMOUNT:
            made = self._inventor.amount(text)
        elif kind is Kind.KEPT:
            return self._free_text(text, place)
        else:
            made = self._ids.get(text) or self._inventor.name(text)
        self._count(place, kind if made != text else Kind.KEPT)
        return made

    def _free_text(self, text: str, place: str, *, whole: bool = False) -> str:
        """A text of words: ids, addresses and, in a sentence, numbers within it are replaced."""
        made = self._secrets.replaced_in(text, self._inventor.name)
        if made != text:
            self._count(place, Kind.SECRET)
        before = made
        made = _IN_TEXT.sub(self._ids.invented_for, self._ids.replaced_in(made))
        if whole:
            made = _LONG_DIGITS.sub(self._ids.invented_for, made)
        if made != before:
            self._count(place, Kind.ID)
        if whole or " " in text:
            before = made
            made = _DECIMAL.sub(lambda match: self._inventor.amount(match[0]), made)
            if made != before:
                self._count(place, Kind.AMOUNT)
        if made == text:
            self._count(place, Kind.KEPT)
        return made

    def _count(self, place: str, kind: Kind) -> None:
        if place != "the path":
            self._draft.counts[place or "the answer", kind] += 1


def _witness(trial: Trial, seen: SeenRequest) -> str:
    """Where the answer is known from; only the real venue proves anything."""
    if trial.live:
        return f"recorded: {urlsplit(seen.url).hostname}, {trial.environment}, {datetime.now(UTC):%Y-%m-%d}"
    return f"unproven: an answer of {trial.source}"


class _Text(str):
    """An answer that is not JSON."""


def _not_kept(seen: SeenRequest, value: Any) -> str | None:
    """Why an answer is not kept; None if it is."""
    if seen.is_socket:
        return "a WebSocket, whose messages are not recorded."
    if seen.status is None:
        return "it had no answer."
    if seen.ended is None:
        return "its answer was not read to its end."
    if value is None and bytes(seen.answer) != b"null":
        return "its answer is no text."
    return None


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Members):
        return Members((key, _without_secrets(item)) for key, item in value if not is_secret_name(key))
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value
