"""What the tests of the service and of its plugins share."""

from __future__ import annotations

from hypothesis import settings

# On a busy machine any example may take longer than Hypothesis allows by default.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
