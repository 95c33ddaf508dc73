"""Takes the places of this machine out of texts that are committed, such as those of quality.toml."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path


def without_places(text: str, folder: Path | None) -> str:
    """A text in one line, in which files of the project in `folder` are named from there, and of all others of this
    machine's user and of its environment only the last part of the path stays."""
    text = " ".join(text.split())
    for own in _spellings(folder):
        text = re.sub(rf"{re.escape(own)}(?:/|(?![\w.-]))", "", text)
    for place in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(sys.base_prefix)):
        for known in _spellings(place):
            text = re.sub(rf"{re.escape(known)}/(?:[^\s'\":,()]*/)?", ".../", text)
    return text


def _spellings(place: Path | None) -> list[str]:
    """The place as it is named and as it is found, the longest first; not the root of all folders."""
    named = [] if place is None else {str(place), str(place.resolve())}
    return sorted((name for name in named if name not in ("/", ".")), key=len, reverse=True)
