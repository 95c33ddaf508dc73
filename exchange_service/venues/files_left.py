"""What is said if this process has no file left to ask a venue with."""

from __future__ import annotations

import structlog

from exchange_service.errors import ServiceOverloaded
from exchange_service.open_files import none_left

log = structlog.get_logger(__name__)


def raise_if_none_left(error: BaseException) -> None:
    """Raise ServiceOverloaded if this process has no file left."""
    if not none_left(error):
        return
    log.error("service.out_of_files", effect="no venue can be asked", advice="raise the limit on open files")
    raise ServiceOverloaded(
        "The service has no connection left for the venue.",
        advice="Call again after the delay. The operator: raise the limit on open files (`exchange-service doctor`).",
    ) from None
