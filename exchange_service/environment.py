"""The names of our environment variables, for those that read no settings."""

from __future__ import annotations

# Before the name of each setting, and before those of the command line's own variables.
ENVIRONMENT_PREFIX = "EXCHANGE_SERVICE_"
