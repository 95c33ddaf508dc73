"""Writes docs/images/console-*.png, pictures of the console's pages (`make docs`), if this machine has a browser.

The demo is shown with venues that stand still. A picture is replaced only if it has changed by more than a few figures,
such as ages, so that two runs give the same files.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import sys
import tempfile
from collections.abc import Awaitable, Callable
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
_WIDTH, _HEIGHT = 1200, 800
_NARROW, _TALL = 360, 740

Prepare = Callable[["Page"], Awaitable[None]]


async def _as_it_is(page: Page) -> None:
    await page.wait_for_load_state("load")


async def _live(page: Page) -> None:
    """Every account has been read, or says why not."""
    await page.locator("main").get_by_text("EUR").first.wait_for()
    await page.wait_for_timeout(3500)


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


# By the picture's name: the page, and what is done on it first.
PICTURES: dict[str, tuple[str, Prepare]] = {
    "accounts": ("/accounts?user=demo", _live),
    "trouble": ("/accounts?user=demo-partly", _live),
    "add-exchange": ("/accounts?user=demo-new", _open_sheet),
    "form": ("/accounts?user=demo-new", _open_form),
    "refused": ("/accounts?user=demo-new", _see_refusal),
    "exchanges": ("/exchanges?user=demo", _as_it_is),
    "plugins": ("/plugins?user=demo", _as_it_is),
}


async def take_pictures(folder: Path) -> list[str]:
    """Take each picture, light and dark, and the accounts on a phone. Returns the names of the files that changed."""
    from tests.browser.chromium import chromium
    from tests.browser.consoles import SETTINGS, sign_in_url, url_of
    from tests.harness import settings_for

    # The venues stand still.
    demo._MOVE_INTERVAL = 1e6
    changed = []
    with tempfile.TemporaryDirectory() as temporary:
        settings = settings_for(Path(temporary), **SETTINGS)
        async with demo.running_demo(settings) as running, chromium("--hide-scrollbars") as browser:
            for scheme in ("light", "dark"):
                sizes = dict.fromkeys(PICTURES, (_WIDTH, _HEIGHT)) | {"phone": (_NARROW, _TALL)}
                for name, (width, height) in sizes.items():
                    address, prepare = PICTURES.get(name, PICTURES["accounts"])
                    signed_in = sign_in_url(running.service)
                    taken = await _take(
                        browser, (signed_in, url_of(running.service) + address), prepare, scheme, width, height
                    )
                    changed += _keep(folder / f"console-{name}-{scheme}.png", taken)
    return changed


async def _take(
    browser: Browser, addresses: tuple[str, str], prepare: Prepare, scheme: str, width: int, height: int
) -> Image.Image:
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = await context.new_page()
    for address in addresses:
        await page.goto(address)
    await prepare(page)
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
    differing = sum(grey.point(lambda value: 1 if value > 24 else 0).getdata())
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
