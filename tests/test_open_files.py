"""The limit on open files: it is raised as far as the system lets it be, and a refusal does not stop the start."""

from __future__ import annotations

import resource

import pytest

from exchange_service import open_files


@pytest.mark.parametrize(
    ("limits", "kernel", "raised"),
    [
        ((1024, 4096), 1 << 30, (4096, 4096)),
        ((256, resource.RLIM_INFINITY), 1 << 30, (1_048_576, resource.RLIM_INFINITY)),
        # macOS: no hard limit, and a kernel that allows less.
        ((256, resource.RLIM_INFINITY), 245_760, (65_536, resource.RLIM_INFINITY)),
        ((256, resource.RLIM_INFINITY), 0, (256, resource.RLIM_INFINITY)),
        ((100_000, 4_000_000), 200_000, (100_000, 4_000_000)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 1 << 30, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)),
    ],
)
def test_the_limit_is_raised_as_far_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], kernel: int, raised: tuple[int, int]
) -> None:
    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        nonlocal limits
        if wanted[0] > kernel:
            raise ValueError("current limit exceeds maximum limit")
        limits = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    open_files.raise_limit()
    assert limits == raised
