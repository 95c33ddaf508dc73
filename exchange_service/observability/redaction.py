"""The one place that hides secrets in log lines: by the name before them, by their form, and by their value.

The service's own lines should hold no secret. This is for mistakes: a library that quotes a request, an exception whose
text is a signed URL, a careless log line. It hides too much rather than too little.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import quote

HIDDEN = "[hidden]"

# A user stores these texts, and so decides what is searched for in everybody's lines: no more of them than an account
# needs, and none that is a word of ordinary lines. A PEM key has 50 lines. A password may be shorter than a word of
# ours, but then it has more than letters.
SHORTEST = 16
_SHORTEST_MIXED = 8
MOST_TEXTS = 32
_MOST_LINES = 64

# What our own code calls things. No text that a user has stored may hide it: an event's name would be gone from
# everybody's log. `tests/test_logs.py` sees to it that no line of ours has another event than such a name.
EVENT_NAME = re.compile(r"[a-z_]+(?:\.[a-z_]+)*\Z")
_FIELD_NAME = re.compile(r"[a-z_]{1,40}\Z")
_LETTERS = re.compile(r"[A-Za-z_]{1,80}\Z")
_WORD_OF_OURS = re.compile(r"[A-Za-z0-9_.:+ -]{1,80}\Z")
_OWN_WORDS = {
    "event": EVENT_NAME,
    **dict.fromkeys(("level", "reason", "error", "purpose", "answer"), _LETTERS),
    **dict.fromkeys(("timestamp", "exchange", "venue", "plugin", "user"), _WORD_OF_OURS),
}

# Characters of one line's text; a venue library can write 100 MB into a record.
_LONGEST = 16_384
_DEEPEST = 6
_OF_WORDS = f"{string.ascii_letters}{string.digits}+/=_-."

_NAMES_OF_SECRETS = (
    r"secret|passw(?:or)?d|passphrase|authori[sz]ation|signature|cookie|credentials?|mnemonic|api[_-]?key|jwt|bearer"
    r"|private|token|access[_-]?key|signed[_-]?challenge|authent\b|hmac"
)
# The last word of a name counts too: "hash_key" is a secret, "key_id" is not.
_SECRET_NAME = re.compile(rf"{_NAMES_OF_SECRETS}|(?:^|[_.-])(?:key|sign|sig|auth|pin|otp|seed)$", re.IGNORECASE)
_HARMLESS_NAME = re.compile(r"[_-](?:ids?|name|names|count|kind|type|hash|file|path|exchange)$|^key_id|^event$", re.I)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_WORD = re.compile(r"[\w.-]{0,18}\Z")
# Each of these is bounded, so that no text, even a hostile one, takes long to search.
_PEM = re.compile(r"-----BEGIN [A-Z ]{1,40}-----.*?(?:-----END [A-Z ]{1,40}-----|\Z)", re.DOTALL)
_USERINFO = re.compile(r"(?<![a-z0-9])([a-z][a-z0-9+.-]{0,20}://)[^\s/@'\"]{0,300}@", re.IGNORECASE)
_URL_QUERY = re.compile(r"(((?<![a-z0-9])[a-z][a-z0-9+.-]{0,20}:/|(?<![\w./]))/[^\s?'\"<>]{0,500}\?)[^\s'\"<>]+", re.I)
_SCHEME = re.compile(r"\b(bearer|basic|digest)\s{1,4}[\w.~+/=-]{6,}", re.IGNORECASE)
_SERVICE_TOKEN = re.compile(r"(?<![\w-])xst_[\w=-]+")
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*")
# name=value, "name": "value" and 'name': b'value', as in headers, forms, JSON and Python's `repr`; also encoded twice
# in a form, and as pairs.
_NAMED_BY = re.compile(
    r"(?:\\{0,2}[\"']|%2[27])?\s{0,4}(?:[:=]|%3[AD])>?\s{0,4}|[\"'],\s{0,4}(?=b?[\"'])", re.IGNORECASE
)
_NAME = re.compile(r"[\w.-]{1,80}\Z")
_VALUE = re.compile(
    r"\\{0,2}b?\"(?:[^\"\\]|\\.)*(?:\"|\Z)|b?'(?:[^'\\]|\\.)*(?:'|\Z)"
    # A list, a mapping or an object, to its first end.
    r"|[\w.]{0,80}[(\[{][^)\]}]*[)\]}]?"
    r"|\\{0,2}[\"']?[^\s,;&)}\]\"'\\]+",
    re.DOTALL,
)
# The values of these names are several words.
_LINE = re.compile(r"(?!b[\"'])[^\n\"']+")
_LONG_NAME = re.compile(r"authori[sz]ation|cookie|mnemonic|passphrase|seed", re.IGNORECASE)
_RUN = re.compile(r"(?<![\w+/=-])[\w+/=-]{32,}|(?<![\w+=-])[\w+=-]{20,}")
# A user's keyed hash in the audit lines is shorter than these.
_HEX = re.compile(r"(?:0x)?([0-9a-f-]{28,}|[0-9A-F-]{28,})\Z")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")


class LiveSecrets:
    """The secrets of open venue sessions, which are hidden in a line whatever they look like.

    A line is searched once, whatever their number: each position is looked up by its first characters.
    """

    shortest = SHORTEST

    def __init__(self, most: int = MOST_TEXTS) -> None:
        """`most`: how many texts one account may have hidden."""
        self._most = most
        self._texts: Counter[str] = Counter()
        self._by_start: dict[str, set[str]] = {}

    def __repr__(self) -> str:
        return f"LiveSecrets({len(self._texts)} held)"

    def __len__(self) -> int:
        return len(self._texts)

    def hold(self, texts: Iterable[str]) -> Held:
        """Hide these texts from now on, until the result's `release` is called: of one account, the first so many that
        are long enough."""
        chosen = islice(filter(self._is_findable, dict.fromkeys(texts)), self._most)
        forms = {form for text in chosen for form in _forms(text) if self._is_findable(form)}
        for form in forms:
            self._texts[form] += 1
            self._by_start.setdefault(self._start(form), set()).add(form)
        return Held(self, forms)

    def _is_findable(self, text: str) -> bool:
        return len(text) >= self.shortest or (len(text) >= _SHORTEST_MIXED and _is_mixed(text))

    def _start(self, form: str) -> str:
        return form[: self.shortest if len(form) >= self.shortest else _SHORTEST_MIXED]

    def _release(self, forms: Iterable[str]) -> None:
        for form in forms:
            self._texts[form] -= 1
            if self._texts[form] > 0:
                continue
            del self._texts[form]
            start = self._start(form)
            self._by_start[start].discard(form)
            if not self._by_start[start]:
                del self._by_start[start]

    def snapshot(self) -> dict[str, int]:
        """The number of texts, and of their different first characters."""
        return {"texts": len(self._texts), "starts": len(self._by_start)}

    def hide_in(self, text: str, end: int | None = None) -> str:
        """The text up to `end` without the held secrets, including one that goes on beyond `end`."""
        end = len(text) if end is None else end
        if not self._texts:
            return text[:end]
        parts, done, place, by_start = [], 0, 0, self._by_start
        while place < end and place <= len(text) - _SHORTEST_MIXED:
            candidates = (
                *by_start.get(text[place : place + self.shortest], ()),
                *by_start.get(text[place : place + _SHORTEST_MIXED], ()),
            )
            secret = max((held for held in candidates if text.startswith(held, place)), key=len, default="")
            if not secret:
                place += 1
                continue
            parts += [text[done:place], HIDDEN]
            done = place = place + len(secret)
        return "".join((*parts, text[done:end]))


class Held:
    """Secrets that are hidden until `release`. Its `repr` shows none of them."""

    __slots__ = ("_forms", "_owner")

    def __init__(self, owner: LiveSecrets, forms: set[str]) -> None:
        self._owner = owner
        self._forms = forms

    def release(self) -> None:
        """Stop hiding them. A second call does nothing."""
        forms, self._forms = self._forms, set()
        self._owner._release(forms)


# One for the whole process, as logging is.
LIVE = LiveSecrets()


def _is_mixed(text: str) -> bool:
    """Whether it has a letter, a digit, and either both kinds of letters or another character, as passwords have."""
    letters = any(letter.isalpha() for letter in text)
    both = text != text.lower() and text != text.upper()
    return letters and any(letter.isdigit() for letter in text) and (both or not text.isalnum())


def _forms(text: str) -> set[str]:
    """The forms in which a line may hold a secret: as it is, in a URL, in JSON, and each of its lines."""
    lines = [line.strip() for line in text.splitlines()[:_MOST_LINES]] if "\n" in text else []
    return {text, quote(text, safe=""), quote(text), json.dumps(text)[1:-1], *lines}


# There are few names, and each is checked for every line.
@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Whether a value of this name is a secret; true for "api_key", "X-MBX-APIKEY" and "refreshToken"."""
    plain = _CAMEL.sub("_", name)
    return bool(_SECRET_NAME.search(plain)) and not _HARMLESS_NAME.search(plain)


def is_own_name(name: str) -> bool:
    """Whether this is the name of a field as our own code gives it."""
    return _FIELD_NAME.match(name) is not None


def is_own_word(name: str, value: object) -> bool:
    """Whether a field of this name has a value that our code chose, such as an event's name or an error's reason."""
    form = _OWN_WORDS.get(name)
    return form is not None and isinstance(value, str) and form.match(value) is not None


def redact(value: Any, name: str = "") -> Any:
    """The value without secrets; `name` is its name in the log line.

    Texts, numbers, mappings and lists keep their type; any other object becomes its `repr`.
    """
    return _redact(value, name, 0)


def _redact(value: Any, name: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if name and is_secret_name(name):
        return HIDDEN
    if isinstance(value, int | float):
        return value
    if depth > _DEEPEST:
        return HIDDEN
    if isinstance(value, Mapping):
        return {redact_text(str(key)): _redact(item, str(key), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
        # A name and a value, as in a list of headers.
        first = value[0] if isinstance(value[0], str) else value[0].decode("utf-8", "replace")
        return [
            _redact(first, name, depth + 1),
            _redact(value[1], first if is_secret_name(first) else name, depth + 1),
        ]
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact(item, name, depth + 1) for item in value]
    if isinstance(value, bytes | bytearray):
        return redact_text(bytes(value).decode("utf-8", "backslashreplace"))
    hashed = name.endswith(("_hash", "_hashes"))
    return redact_text(value if isinstance(value, str) else _represent(value), runs=not hashed)


def _represent(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def redact_text(text: str, *, runs: bool = True, held: bool = True) -> str:
    """The text without secrets, found by their value, by the name before them, or by their form.

    `runs`: whether to hide long runs of random characters; not where a keyed hash is expected. `held`: whether to look
    for the secrets of open sessions; not in our own words.
    """
    if not held:
        text = text[:_LONGEST]
    elif len(text) > _LONGEST:
        # The last word may be the cut-off beginning of a secret, which could not be recognised.
        text = f"{LIVE.hide_in(text, _LONGEST).rstrip(_OF_WORDS)}… ({len(text)} characters)"
    else:
        text = LIVE.hide_in(text)
    if _WORD.match(text):
        # Most values of our own lines; too short for everything below.
        return text
    text = _PEM.sub(HIDDEN, text)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    text = _URL_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    text = _without_named_values(text)
    text = _JWT.sub(HIDDEN, text)
    text = _SERVICE_TOKEN.sub(HIDDEN, text)
    return _RUN.sub(_hide_run, text) if runs else text


def _without_named_values(text: str) -> str:
    """The text without the values that follow the name of a secret and a colon or equals sign."""
    parts, done, place = [], 0, 0
    while (mark := _NAMED_BY.search(text, place)) is not None:
        place = mark.end()
        name = _NAME.search(text[max(0, mark.start() - 80) : mark.start()])
        if name is None or not is_secret_name(name[0]):
            continue
        value = (_LINE if _LONG_NAME.search(name[0]) else _VALUE).match(text, place) or _VALUE.match(text, place)
        if value is not None:
            parts += [text[done:place], HIDDEN]
            done = place = value.end()
    return "".join((*parts, text[done:]))


def _hide_run(match: re.Match[str]) -> str:
    run = match[0]
    if _ADDRESS.match(run):
        # A wallet's address is public; a private key is longer.
        return run
    return HIDDEN if any(_looks_random(part) for part in (run, *run.split("/"))) else run


def _looks_random(run: str) -> bool:
    """Whether a run of characters looks like a key (hexadecimal, or letters and digits mixed), not a word or path."""
    if _HEX.match(run):
        return any(letter.isdigit() for letter in run)
    if len(run) < 20 or "/" in run[:1]:
        return False
    digits = sum(letter.isdigit() for letter in run)
    mixed = digits >= 2 and any(letter.isupper() for letter in run) and any(letter.islower() for letter in run)
    return mixed and _disorder(run) >= 3.6


def _disorder(run: str) -> float:
    """Shannon's entropy in bits per character; words have less than a key of the same length."""
    shares = [count / len(run) for count in Counter(run).values()]
    return -sum(share * math.log2(share) for share in shares)
