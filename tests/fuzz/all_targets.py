"""Every target, by its name."""

from __future__ import annotations

from tests.fuzz import from_callers, from_plugins, from_redis, from_tables, from_venues
from tests.fuzz.targets import LONGEST, TARGETS, Finding, Target, check

# Each module has registered its targets.
MODULES = (from_callers, from_plugins, from_redis, from_tables, from_venues)
__all__ = ["LONGEST", "TARGETS", "Finding", "Target", "check"]
