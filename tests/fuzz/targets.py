"""Every decoder of bytes from outside, as a function of bytes, with valid values to begin from.

A target may raise its documented errors. Any other exception, an input that takes long, and a broken promise (an
AssertionError) are findings. Where a seal stops a fuzzer, the target has the key and its input is what is sealed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from exchange_service.errors import ServiceError

# Seconds of this thread's processor that one input may take.
LONGEST = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder: `read` raises `documented` errors and no others; `seeds` are inputs that it accepts."""

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    documented: tuple[type[Exception], ...]


class Finding(Exception):
    """A decoder did with an input what it should not; the text says what."""


TARGETS: dict[str, Target] = {}


def target(
    name: str, seeds: Iterable[bytes], documented: tuple[type[Exception], ...] = (ServiceError,)
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Register the function below as a target."""

    def register(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
        assert name not in TARGETS, name
        TARGETS[name] = Target(name, read, tuple(seeds), documented)
        return read

    return register


def check(tested: Target, data: bytes) -> bool:
    """Whether the target accepts the input. Raises Finding if it does not do what it promises."""
    began = time.thread_time()
    try:
        tested.read(data)
        accepted = True
    except tested.documented:
        accepted = False
    except Exception as error:
        raise Finding(f"{tested.name}: {type(error).__name__} for {data[:200]!r}") from error
    if (took := time.thread_time() - began) > LONGEST:
        raise Finding(f"{tested.name}: {took:.1f} s of processor for {data[:200]!r}")
    return accepted
