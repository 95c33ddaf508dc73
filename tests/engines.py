"""The engine on which the tests run the service: EXCHANGE_SERVICE_TEST_ENGINE=native chooses the other one."""

from __future__ import annotations

import os
from collections.abc import Mapping

TEST_ENGINE = os.environ.get("EXCHANGE_SERVICE_TEST_ENGINE", "")
NATIVE = TEST_ENGINE == "native"

# For processes of the service that a test starts with an environment of its own.
ENGINE_VARIABLES: Mapping[str, str] = {"EXCHANGE_SERVICE_ENGINE": TEST_ENGINE} if TEST_ENGINE else {}
