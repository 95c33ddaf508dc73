"""`python -m exchange_service.testing PACKAGE.MODULE:SIMULATOR [PORT]` runs a simulator until it is interrupted.

Of a DemoVenue it makes the account of the situation "moving", and prints the credential that opens it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys

from exchange_service.testing.venue import DemoVenue


async def _run(name: str, port: int) -> None:
    module, _, attribute = name.partition(":")
    venue = getattr(importlib.import_module(module), attribute)()
    try:
        url = await venue.start(port)
    except OSError as error:
        sys.exit(f"{attribute} cannot listen on port {port}: {error.strerror}. Choose another one, or leave it out.")
    try:
        sys.stdout.write(f"{attribute} listens at {url}; press Ctrl-C to end.\n")
        if isinstance(venue, DemoVenue) and (row := venue.demo_credential("moving")):
            sys.stdout.write(f"Its account opens with {json.dumps(row)}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    finally:
        await venue.stop()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 0))
