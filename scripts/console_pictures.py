"""Writes docs/images/console-*.png, pictures of the console's pages (`make docs`), if this machine has a browser.

The demo is shown with venues that stand still. A picture is replaced only if it has changed by more than a few figures,
such as ages, so that two runs give the same files.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import itertools
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

from exchange_service.cli import demo
from exchange_service.observability.logs import configure_logging

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

IMAGES = Path(__file__).parent.parent / "docs" / "images"
# The part of a picture's pixels that may differ before it is replaced.
_TOLERATED = 0.02
_COLOURS = 64
# By how much of 255 a pixel has to differ to count.
_VISIBLE = 25

Prepare = Callable[["Page"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture: the page, what is done on it first, and the size of the window."""

    name: str
    address: str
    prepare: Prepare
    size: tuple[int, int] = (1200, 800)


async def _as_it_is(page: Page) -> None:
    await page.get_by_role("heading", level=1).wait_for()


async def _live(page: Page) -> None:
    """Every account has been read, and each push stands."""
    await page.locator(".loading").first.wait_for(state="detached")
    await page.wait_for_timeout(4000)


async def _open_sheet(page: Page) -> None:
    await page.get_by_role("link", name="Add exchange").first.click()
    await page.get_by_role("dialog").get_by_role("searchbox").wait_for()


async def _open_form(page: Page) -> None:
    await _open_sheet(page)
    await page.get_by_role("dialog").get_by_role("link", name="OANDA", exact=True).click()
    await page.get_by_role("dialog").get_by_role("button", name="Connect").wait_for()


async def _see_refusal(page: Page) -> None:
    await _open_form(page)
    dialog = page.get_by_role("dialog")
    await dialog.locator("input[type=password]").first.fill("0123456789abcdef-a-wrong-token")
    await dialog.get_by_role("button", name="Connect").click()
    await dialog.locator("#sheet-refusal").wait_for()


SHOTS = (
    Shot("accounts", "/accounts?user=demo", _live),
    Shot("phone", "/accounts?user=demo", _live, (360, 740)),
    Shot("trouble", "/accounts?user=demo-refused", _live),
    Shot("add-exchange", "/accounts?user=demo-new", _open_sheet),
    Shot("form", "/accounts?user=demo-new", _open_form),
    Shot("refused", "/accounts?user=demo-new", _see_refusal),
    Shot("exchanges", "/exchanges?user=demo", _as_it_is),
    Shot("plugins", "/plugins?user=demo", _as_it_is),
)


async def take_pictures(folder: Path) -> list[str]:
    """Take each picture, light and dark. Returns the names of the files that changed."""
    from tests.browser.chromium import chromium
    from tests.browser.consoles import SETTINGS, sign_in_url, url_of
    from tests.harness import settings_for

    # The venues stand still.
    demo._MOVE_INTERVAL = 1e6
    changed = []
    with tempfile.TemporaryDirectory() as temporary:
        settings = settings_for(Path(temporary), **SETTINGS)
        async with demo.running_demo(settings) as running, chromium("--hide-scrollbars") as browser:
            for scheme, shot in itertools.product(("light", "dark"), SHOTS):
                taken = await _take(browser, sign_in_url(running.service), url_of(running.service), scheme, shot)
                changed += _keep(folder / f"console-{shot.name}-{scheme}.png", taken)
    return changed


async def _take(browser: Browser, sign_in: str, url: str, scheme: str, shot: Shot) -> Image.Image:
    width, height = shot.size
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = await context.new_page()
    await page.goto(sign_in)
    await page.wait_for_url("**/accounts*")
    await page.goto(url + shot.address)
    await shot.prepare(page)
    taken = Image.open(io.BytesIO(await page.screenshot(animations="disabled", caret="hide")))
    await context.close()
    return taken.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)


def _keep(path: Path, taken: Image.Image) -> list[str]:
    """Write the picture unless the file's is nearly the same."""
    if path.exists() and difference(Image.open(path), taken) <= _TOLERATED:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    taken.save(path, optimize=True)
    return [path.name]


def difference(one: Image.Image, other: Image.Image) -> float:
    """The part of the pixels that differ visibly, 0 to 1; 1 if the sizes do."""
    if one.size != other.size:
        return 1.0
    grey = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).convert("L")
    differing = sum(grey.histogram()[_VISIBLE:])
    return differing / (one.width * one.height)


def main() -> None:
    """See the module."""
    if importlib.util.find_spec("playwright") is None:
        sys.stderr.write(
            "The console's pictures stay as they are: run make test-browser once, which installs a browser.\n"
        )
        return
    configure_logging(level="error")
    try:
        changed = asyncio.run(take_pictures(IMAGES))
    except LookupError as error:
        sys.stderr.write(f"The console's pictures stay as they are. {error}\n")
        return
    sys.stderr.write(f"pictures of the console: {', '.join(changed) or 'none has changed'}\n")


if __name__ == "__main__":
    main()
