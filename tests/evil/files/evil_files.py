"""Opens more files than its limit, and writes a longer one than its limit."""

import contextlib
import os
from pathlib import Path

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

MEBIBYTE = 1024 * 1024


async def opens(call: VenueCall) -> Balance:
    with contextlib.ExitStack() as stack:
        for _ in range(10_000):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
    return WELL


async def writes(call: VenueCall) -> Balance:
    Path(os.environ["HOME"], "much").write_bytes(b"x" * (64 * MEBIBYTE))  # noqa: ASYNC240
    return WELL


plugin = EvilPlugin("evil-files", opens, writes)
