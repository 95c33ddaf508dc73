"""Who learns when a venue's answers come."""

from __future__ import annotations

from contextvars import ContextVar

from exchange_service.model import VenueReports

# Learns when an account's answers come, in the task of a call and in those that it starts.
noting_answers: ContextVar[VenueReports | None] = ContextVar("noting_answers", default=None)
