"""Log lines: structured, on standard error, so that standard output stays what programs read."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_logging(level: str = "warning", style: str = "auto") -> None:
    """Lines of `level` and above; `style` is "console" for people, "json", or "auto" for what fits standard error."""
    for_people = style == "console" or (style == "auto" and sys.stderr.isatty())
    # Other libraries' own lines are not ours to redact: only their warnings are shown.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    renderer: Any = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
