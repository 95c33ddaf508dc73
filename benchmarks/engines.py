"""The engines that the service is measured on: the parts that speak HTTP/2 for it."""

from __future__ import annotations

from importlib.util import find_spec

GRPCIO, NATIVE = "grpcio", "native"
ENGINES = (GRPCIO, NATIVE)


def is_installed(engine: str) -> bool:
    """Whether the engine's package is there: the native one is an extra, and has no wheel for some platforms."""
    return engine != NATIVE or find_spec("pygrpc_native") is not None
