"""Names that the benchmarks and their child processes share. It imports little, so that a child starts quickly."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The listing of the benchmarks' own venue, and the service's name in a method's path.
EXCHANGE = "benchmark"
SERVICE = "/exchange_service.v1.ExchangeService/"


def environment(**changes: str) -> dict[str, str]:
    """A child's environment: compiled modules are used, as in an installation, and the settings of the caller's own
    service are left out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EXCHANGE_SERVICE_")}
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return inherited | changes


def user(number: int) -> str:
    """The user of the account with this number; each has one account."""
    return f"user-{number:05}"
