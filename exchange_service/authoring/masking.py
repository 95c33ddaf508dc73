"""Hides a credential's secrets in what a plugin sends and receives, whatever their encoding, and finds those left.

Hiding and finding are two ways on purpose: hiding looks for the encoded forms, finding decodes the text. What is found
after hiding is hidden as a whole.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

from exchange_service.model import SECRET_FIELDS, Credential, ExchangeMetadata
from exchange_service.observability.redaction import HIDDEN, is_secret_name, redact_text

# A shorter text is in every answer by chance: it is a secret only where it stands alone.
SHORTEST = 4
# So many characters of a text and more are compared without regard to case and line breaks.
_LONG = 8
# A longer secret is one of several lines, such as a private key, and each of its lines is hidden.
_SHORTEST_LINE = 16
# How often a text is decoded again.
_DEEPEST = 3
# Of one text; a decoded run may hold more runs.
_MOST_RUNS = 2000
# A value under a secret's name, such as "token", is one only if it is as long as this: venues call assets so too.
_SHORTEST_OPAQUE = 16
_PLAIN_SECRET = re.compile(
    r"secret|passw|passphrase|signature|mnemonic|private|api[_-]?key|jwt|cookie"
    r"|(?:access|refresh|session|auth|sso|csrf|bearer)[_-]?token",
    re.IGNORECASE,
)
# What is signed and sent, such as a challenge of the venue.
_SIGNED = re.compile(r"signed|challenge", re.IGNORECASE)
_RUN = re.compile(r"[A-Za-z0-9+/_-]{6,}={0,2}")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2}){4,}")
_OF_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]")
_UNICODE = re.compile(r"\\+u([0-9A-Fa-f]{4})")
_ESCAPE = re.compile(r"\\+([\"'\\/bfnrt])")
_ONE_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|[\"'\\/bfnrt])")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# Characters of one line that are searched, and that are shown.
_LONGEST_LINE, _WIDEST = 64 * 1024, 400


class Secrets:
    """Texts that are to be shown nowhere, each by the name of what it is, such as "api_secret"."""

    def __init__(self, texts: Iterable[tuple[str, str]] = ()) -> None:
        self._texts: dict[str, str] = {}
        for name, text in texts:
            self.add(name, text)

    def __repr__(self) -> str:
        return f"Secrets({len(self._texts)} held)"

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, text: object) -> bool:
        return text in self._texts

    def add(self, name: str, text: str) -> None:
        """Hold one more; an empty text is left out."""
        for part in _parts(text):
            if part not in self._texts:
                self._texts[part] = name
                self.__dict__.pop("_pattern", None)
                self.__dict__.pop("_cores", None)

    def texts(self) -> Mapping[str, str]:
        """The names of the secrets, by their texts."""
        return self._texts

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        """Any spelling of a secret: as it is, in a URL, in JSON, in HTML, in hexadecimal."""
        forms = []
        for text in sorted(self._texts, key=len, reverse=True):
            plain = "".join(map(_spellings, text))
            forms.append(plain if len(text) >= SHORTEST else rf"(?<![0-9A-Za-z]){plain}(?![0-9A-Za-z])")
            if len(text) >= SHORTEST:
                forms.append(rf"(?i:{text.encode().hex()})")
        return re.compile("|".join(forms)) if forms else None

    @cached_property
    def _cores(self) -> re.Pattern[str] | None:
        """What each Base64 that holds a secret has in it, wherever the secret begins."""
        cores = {core for text in self._texts if len(text) >= SHORTEST for core in _base64_cores(text)}
        forms = ["".join(map(_spellings, core)) for core in sorted(cores, key=len, reverse=True)]
        return re.compile("|".join(forms)) if forms else None

    def hide_in(self, text: str) -> str:
        """The text without the secrets."""
        if not self._texts:
            return text
        hidden = self.replaced_in(text, lambda _: self._mark)
        return hidden if not self.found_in(hidden) else self._mark

    def replaced_in(self, text: str, make: Callable[[str], str]) -> str:
        """The text with what `make` makes of each spelling of a secret in its place. A secret in an encoding that is
        not known here stays: `found_in` tells."""
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: make(match[0]), text)
        return text if self._cores is None else _without_runs(text, self._cores, make)

    @cached_property
    def _mark(self) -> str:
        """What stands in a secret's place; a secret may be a part of the usual mark."""
        marks = (HIDDEN, "[***]", "***")
        return next((mark for mark in marks if not any(text in mark for text in self._texts)), "")

    def found_in(self, text: str) -> str:
        """The name of a secret that the text holds in any encoding; empty if it holds none."""
        for variant in _variants(text, 0):
            folded = squeezed = ""
            for secret, name in self._texts.items():
                if len(secret) < SHORTEST:
                    if re.search(rf"(?<![0-9A-Za-z]){re.escape(secret)}(?![0-9A-Za-z])", variant):
                        return name
                    continue
                if secret in variant:
                    return name
                if len(secret) >= _LONG:
                    folded = folded or variant.casefold()
                    squeezed = squeezed or re.sub(r"\s+", "", folded)
                    if secret.casefold() in folded or re.sub(r"\s+", "", secret.casefold()) in squeezed:
                        return name
        return ""


def _parts(text: str) -> Iterator[str]:
    """What is to be hidden of a secret: all of it, and each long line."""
    if not text.strip():
        return
    yield text
    if text.strip() != text:
        yield text.strip()
    lines = text.splitlines()
    if len(lines) > 1:
        yield from (
            line.strip() for line in lines if len(line.strip()) >= _SHORTEST_LINE and not line.startswith("-----")
        )


def _spellings(character: str) -> str:
    """A pattern for all the ways in which a character is written."""
    percent = "".join(rf"%(?:25)*{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
    units = character.encode("utf-16-be", "surrogatepass")
    escaped = "".join(rf"\\+u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
    forms = [re.escape(character), rf"(?i:{percent})", rf"(?i:{escaped})"]
    if not character.isalnum():
        forms.append(rf"(?i:&#0*{ord(character)};|&#x0*{ord(character):x};)")
        short = {value: key for key, value in _ESCAPED.items()}.get(character, character)
        forms.append(rf"\\+{re.escape(short)}")
        forms.extend(re.escape(name) for name in (html.escape(character),) if name != character)
    if character == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def _base64_cores(text: str) -> Iterator[str]:
    """The characters that a Base64 of anything with this text in it has for sure, for each of the three places where
    the text may begin, in both alphabets."""
    data = text.encode("utf-8", "surrogatepass")
    for offset in range(3):
        whole = base64.b64encode(b"\0" * offset + data).decode()
        first, last = (0, 2, 3)[offset], (offset + len(data)) * 8 // 6
        core = whole[first:last]
        if len(core) >= SHORTEST:
            yield core
            yield core.translate(str.maketrans("+/", "-_"))


def _without_runs(text: str, cores: re.Pattern[str], make: Callable[[str], str]) -> str:
    """The text with what `make` makes of each run of Base64 that one of these is a part of."""
    parts, done = [], 0
    for match in cores.finditer(text):
        begin, end = match.span()
        if begin < done:
            continue
        while begin > done and _OF_BASE64.match(text[begin - 1]):
            begin -= 1
        while end < len(text) and _OF_BASE64.match(text[end]):
            end += 1
        parts += [text[done:begin], make(text[begin:end])]
        done = end
    return "".join((*parts, text[done:]))


def _variants(text: str, depth: int) -> Iterator[str]:
    """The text, and what it is when it is decoded in every way, again and again."""
    seen = {text}
    yield text
    fresh = [text]
    for _ in range(_DEEPEST):
        fresh = [new for old in fresh for new in _unescaped(old) if new not in seen and not seen.add(new)]  # type: ignore[func-returns-value]
        yield from fresh
    if depth < _DEEPEST:
        for variant in tuple(seen):
            for run in _decoded_runs(variant):
                yield from _variants(run, depth + 1)


def _unescaped(text: str) -> Iterator[str]:
    if "%" in text or "+" in text:
        yield unquote(text, errors="replace")
        yield unquote_plus(text, errors="replace")
    if "\\" in text:
        plain = _UNICODE.sub(lambda match: chr(int(match[1], 16)), text)
        plain = plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield plain
        # One level of escapes, as a reader of JSON takes it; then all levels at once.
        yield _ONE_ESCAPE.sub(lambda match: _unescape(match[1]), text)
        yield _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), plain)
    if "&" in text:
        yield html.unescape(text)


def _unescape(escape: str) -> str:
    """The character of an escape, without its backslash; half of a pair becomes a mark."""
    if len(escape) == 1:
        return _ESCAPED.get(escape, escape)
    return chr(int(escape[1:], 16)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decoded_runs(text: str) -> Iterator[str]:
    """What the runs of Base64 and of hexadecimal in a text hold, joined: few texts, however many runs."""
    if "\n" in text or "\r" in text:
        # Base64 may be broken into lines.
        yield from _decoded_runs(re.sub(r"[\r\n]+", "", text))
    pieces: list[str] = []
    for number, match in enumerate(_RUN.finditer(text)):
        if number >= _MOST_RUNS:
            break
        run = match[0].rstrip("=").translate(str.maketrans("-_", "+/"))
        for offset in range(4):
            part = run[offset:]
            part = part[: len(part) - 1] if len(part) % 4 == 1 else part
            try:
                data = base64.b64decode(part + "=" * (-len(part) % 4))
            except (binascii.Error, ValueError):
                continue
            pieces.append(data.decode("utf-8", "replace"))
    for number, match in enumerate(_HEX.finditer(text)):
        if number >= _MOST_RUNS:
            break
        pieces.append(bytes.fromhex(match[0]).decode("utf-8", "replace"))
    readable = [piece for piece in pieces if _is_readable(piece)]
    if readable:
        # A line break between two cannot make one secret of them.
        yield "\n\0".join(readable)


def _is_readable(text: str) -> bool:
    """Whether enough of it is text that it may hold some: most runs that look like Base64 are words or numbers."""
    return len(text) >= SHORTEST and text.count("\ufffd") * 3 < len(text) * 2


def credential_texts(credential: Credential, metadata: ExchangeMetadata) -> tuple[Secrets, dict[str, str]]:
    """The secrets of a credential, and its other texts, such as an account's number, by their fields' names.

    A field that the listing does not declare is a secret unless its name says otherwise.
    """
    declared = {field.name: field.secret for field in metadata.credential_fields}
    secrets, others = Secrets(), {}
    values: dict[str, Any] = {name: getattr(credential, name).reveal() for name in SECRET_FIELDS}
    for name, value in [*values.items(), *credential.metadata.items()]:
        hidden = declared.get(name, name in SECRET_FIELDS or is_secret_name(name))
        for text in texts_in(value):
            if hidden:
                secrets.add(name, text)
            elif text:
                others[name] = text
    return secrets, others


def texts_in(value: object) -> Iterator[str]:
    """Every text within a JSON value, however deep."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            left.extend(item.values())
        elif isinstance(item, list | tuple):
            left.extend(item)


def is_secret_value(name: str, value: object) -> bool:
    """Whether an answer's value under this name is a secret: under "token" only a long text, because some venues call
    an asset so."""
    if not is_secret_name(name) or isinstance(value, bool) or value is None:
        return False
    text = str(value)
    return bool(text) and (bool(_PLAIN_SECRET.search(name)) or len(text) >= _SHORTEST_OPAQUE)


def secrets_given(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """The secrets within an answer's JSON value, such as an access token, each with its field's name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from secrets_given(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from secrets_given(item, name)
    elif isinstance(value, str) and len(value) >= _LONG and is_secret_value(name, value):
        yield name, value


class Masker:
    """Makes what a plugin sends and receives fit to be shown."""

    def __init__(self, secrets: Secrets) -> None:
        self.secrets = secrets

    def text(self, text: str) -> str:
        """A text without the credential's secrets."""
        return self.secrets.hide_in(text)

    def url(self, url: str) -> str:
        """A URL with its secrets, signatures and tokens hidden."""
        parts = urlsplit(url)
        path = "/".join(self._opaque(segment) for segment in parts.path.split("/"))
        query = "&".join(self._parameter(pair) for pair in parts.query.split("&")) if parts.query else ""
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else ""
        return self.text(f"{place}{path}{'?' if query else ''}{query}")

    def _parameter(self, pair: str) -> str:
        name, equals, value = pair.partition("=")
        if equals and is_secret_name(unquote_plus(name)):
            return f"{name}={HIDDEN}"
        return f"{name}{equals}{self._opaque(value)}"

    def _opaque(self, text: str) -> str:
        """A part of a request, hidden if it looks like a key: what is sent may be a token that no name tells of."""
        return redact_text(self.text(text), held=False) if len(text) >= _SHORTEST_OPAQUE else text

    def headers(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """The headers of a request or an answer."""
        return [
            (name, HIDDEN if is_secret_name(name) and value else self.text(self._opaque(value)))
            for name, value in headers
        ]

    def request_body(self, body: bytes) -> str:
        """The body of a request: JSON or a form, else as text."""
        text = body.decode("utf-8", "replace")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            if re.fullmatch(r"[\w.%~+-]+=[^\s]*", text):
                return self.text("&".join(self._parameter(pair) for pair in text.split("&")))
            return self.text(redact_text(text, held=False))
        return self.text(json.dumps(self._value(value, "", sent=True), ensure_ascii=False))

    def answer(self, body: bytes, most: int) -> Sequence[str]:
        """The first `most` lines of an answer's body, or all if it is 0: JSON on several lines, else text."""
        text = body.decode("utf-8", "replace")
        try:
            # Numbers stay as the venue has written them.
            value = json.loads(text, parse_float=_Digits, parse_int=_Digits)
            text = _written(self._value(value, "", sent=False))
        except (ValueError, RecursionError):
            pass
        return self.lines(text, most)

    def message(self, text: str) -> str:
        """A message of a push, on one line."""
        try:
            value = json.loads(text, parse_float=_Digits, parse_int=_Digits)
            text = _written(self._value(value, "", sent=False), width=_LONGEST_LINE)
        except (ValueError, RecursionError):
            pass
        return " ".join(self.lines(text, 1))

    def lines(self, text: str, most: int) -> Sequence[str]:
        """The first `most` lines of a text, or all if it is 0, without secrets, and a note if that is not all."""
        lines = text.rstrip().split("\n")
        kept = lines[:most] if most else lines
        # Cut far behind what is shown, so that a secret at the end of that is a whole one.
        shown = self.text("\n".join(line[:_LONGEST_LINE] for line in kept)).split("\n")
        shown = [
            line if len(line) <= _WIDEST else f"{line[:_WIDEST]}… ({max(len(line), len(whole))} characters)"
            for line, whole in zip_longest(shown, kept, fillvalue="")
        ]
        return [*shown, f"… ({len(lines) - len(kept)} more lines)"] if len(lines) > len(kept) else shown

    def _value(self, value: Any, name: str, *, sent: bool) -> Any:
        if isinstance(value, Mapping):
            return {key: self._value(item, key, sent=sent) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, name, sent=sent) for item in value]
        if value is None or isinstance(value, bool) or value == "":
            return value
        if _SIGNED.search(name):
            return HIDDEN
        return HIDDEN if (is_secret_name(name) if sent else is_secret_value(name, value)) else value


class _Digits(float):
    """A number of a JSON text with its digits."""

    digits: str

    def __new__(cls, text: str) -> _Digits:
        made = super().__new__(cls, text)
        made.digits = text
        return made

    def __repr__(self) -> str:
        return self.digits

    __str__ = __repr__


def _written(value: Any, indent: str = "", *, width: int = 100) -> str:
    """A JSON value on several lines; what has at most `width` characters stays on one."""
    if isinstance(value, _Digits):
        return value.digits
    if not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + "  "
    if isinstance(value, dict):
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {_written(item, inner, width=width)}"
            for key, item in value.items()
        ]
        opening, closing = "{}"
    else:
        items = [_written(item, inner, width=width) for item in value]
        opening, closing = "[]"
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) + len(indent) <= width and "\n" not in line:
        return line
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{closing}"
