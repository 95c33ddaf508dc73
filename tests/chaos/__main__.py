"""`.venv/bin/python -m tests.chaos`, see `run`."""

from __future__ import annotations

import sys

from tests.chaos.run import main

if __name__ == "__main__":
    sys.exit(main())
