"""Logos of exchanges: a picture from the operator's folder, else two letters in the listing's colour.

Nothing is loaded from another host, so that none learns who looks at which exchange.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange_service.console.pages import open_visit, state_of
from exchange_service.v1.exchange_pb2 import Exchange

# A picture that is larger is no logo. All of them are held, so that no request waits for a disk.
_MAX_PICTURE_BYTES = 256 * 1024
_PICTURE_TYPES = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
_EXCHANGE_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
# The tones that the style sheet has. In a picture each has the colours of its letters and their ground, light and dark.
_TONES: Mapping[str, tuple[str, str, str, str]] = {
    "blue": ("#1e40af", "#dbeafe", "#93c5fd", "#1b2f52"),
    "cyan": ("#155e75", "#cffafe", "#67e8f9", "#12363f"),
    "gray": ("#374151", "#e9ebef", "#d1d5db", "#2d323b"),
    "green": ("#166534", "#dcfce7", "#86efac", "#163524"),
    "indigo": ("#3730a3", "#e0e7ff", "#a5b4fc", "#2a2b58"),
    "orange": ("#9a3412", "#ffedd5", "#fdba74", "#43261a"),
    "pink": ("#9d174d", "#fce7f3", "#f9a8d4", "#451f35"),
    "purple": ("#6b21a8", "#f3e8ff", "#d8b4fe", "#372250"),
    "red": ("#991b1b", "#fee2e2", "#fca5a5", "#45201f"),
    "teal": ("#115e59", "#ccfbf1", "#5eead4", "#123733"),
    "yellow": ("#713f12", "#fef3c7", "#fde68a", "#3d3116"),
}
_PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40" width="40" height="40">'
    "<style>rect{{fill:{ground}}}text{{fill:{ink};font:600 15px system-ui,sans-serif}}"
    "@media(prefers-color-scheme:dark){{rect{{fill:{dark_ground}}}text{{fill:{dark_ink}}}}}</style>"
    '<rect width="40" height="40" rx="10"/><text x="20" y="25.5" text-anchor="middle">{letters}</text></svg>'
)
# A picture may hold scripts and requests of its own, which a page that shows it does not need.
_PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


@dataclass(frozen=True, slots=True)
class Logo:
    """How a page shows an exchange: `picture` is a path of ours; if it is empty, `letters` on a ground of `tone`."""

    letters: str
    tone: str
    picture: str = ""

    def svg(self) -> str:
        """The letters as a picture of its own."""
        ink, ground, dark_ink, dark_ground = _TONES[self.tone]
        letters = escape(self.letters)
        return _PICTURE.format(letters=letters, ink=ink, ground=ground, dark_ink=dark_ink, dark_ground=dark_ground)


class Logos:
    """The pictures of the operator's folder, each named for its exchange (`oanda.svg`), and letters for the others."""

    def __init__(self, folder: Path | None = None) -> None:
        self._pictures = dict(_pictures_in(folder)) if folder else {}

    def of(self, exchange: Exchange) -> Logo:
        """The logo of a listing."""
        picture = f"/logos/{exchange.id}" if exchange.id in self._pictures else ""
        return Logo(_letters(exchange.name or exchange.id), _tone(exchange.color_class), picture)

    def picture(self, exchange_id: str) -> tuple[bytes, str] | None:
        """The operator's picture and its media type, or None."""
        return self._pictures.get(exchange_id)


def _pictures_in(folder: Path) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """The pictures and their media types, by the exchange's id."""
    for path in sorted(folder.iterdir()):
        exchange_id, kind = path.stem.lower(), _PICTURE_TYPES.get(path.suffix.lower())
        if kind is not None and _EXCHANGE_ID.fullmatch(exchange_id) and path.is_file():
            with suppress(OSError), path.open("rb") as file:
                content = file.read(_MAX_PICTURE_BYTES + 1)
                if len(content) <= _MAX_PICTURE_BYTES:
                    yield exchange_id, (content, kind)


def _letters(name: str) -> str:
    """Two letters of a name: of its first two words, or the first two."""
    words = re.findall(r"[^\W_]+", name)
    letters = words[0][0] + words[1][0] if len(words) > 1 else "".join(words)[:2]
    return letters.upper()[:2] or "?"


def _tone(color_class: str) -> str:
    """The colour that a listing's CSS classes name ("bg-green-500/20 text-green-500"); gray if we have no such tone."""
    match = re.search(r"\btext-([a-z]+)-\d", color_class)
    return match[1] if match and match[1] in _TONES else "gray"


@cache
def logos_in(folder: Path | None) -> Logos:
    """The logos with this folder's pictures, which is read once."""
    return Logos(folder)


async def show_logo(request: Request) -> Response:
    """The logo of an exchange as a picture: the operator's, else its letters."""
    visit, exchange_id = open_visit(request), request.path_params["exchange_id"]
    logos = logos_in(state_of(request).options.logos)
    picture = logos.picture(exchange_id)
    if picture is None:
        known = [item for item in await visit.api.all_exchanges(search=exchange_id) if item.id == exchange_id]
        logo = logos.of(known[0] if known else Exchange(id=exchange_id))
        picture = logo.svg().encode(), "image/svg+xml"
    headers = {"Cache-Control": "private, max-age=3600", "Content-Security-Policy": _PICTURE_POLICY}
    return Response(picture[0], media_type=picture[1], headers=headers)


routes: list[Route] = [Route("/logos/{exchange_id}", show_logo, methods=["GET"])]
