"""Output and arguments in any encoding of the terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys


def use_any_encoding() -> None:
    """Let output in an encoding that lacks a letter, such as that of LANG=C, have it as JSON writes it: \\u5e01."""
    codecs.register_error(_ESCAPED, _escape_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)
    # What such a locale could not read of the arguments was UTF-8.
    sys.argv[1:] = [os.fsencode(argument).decode("utf-8", "replace") for argument in sys.argv[1:]]


_ESCAPED = "exchange-service"


def _escape_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
