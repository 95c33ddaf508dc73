"""The memory that is left: of several limits the one counts that leaves least, and the log says when it is short."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exchange_service import memory_limit
from exchange_service.memory_limit import MEBIBYTE, MemoryLimit
from tests.harness import Clock

GROUPS = {
    "v2": ("0::/box\n", "memory.max", "memory.current", "inactive_file"),
    "v1": ("4:cpu,memory:/box\n", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@pytest.fixture(autouse=True)
def no_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that limits nothing, whose process has 100 MiB of 1000 in memory."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(memory_limit, "_PROC", tmp_path)
    monkeypatch.setattr(memory_limit, "_CGROUPS", tmp_path / "groups")
    _use(tmp_path, 100)


def _use(folder: Path, mebibytes: int) -> None:
    (folder / "statm").write_text(f"256000 {mebibytes * 256} 100 1 0 51200 0\n")


def test_without_a_limit_there_is_room() -> None:
    assert MemoryLimit().left() is None
    assert MemoryLimit().has_room()


def test_the_setting_limits_what_the_process_has_in_memory() -> None:
    assert MemoryLimit(400).left() == (400 - 100 - 60) * MEBIBYTE


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.parametrize("folder", ["groups", "groups/box"])
def test_a_containers_limit_counts_without_the_files_that_the_kernel_may_drop(
    tmp_path: Path, version: str, folder: str
) -> None:
    line, limit, used, reclaimable = GROUPS[version]
    (tmp_path / "cgroup").write_text(line)
    group = tmp_path / ("groups/memory" + folder.removeprefix("groups") if version == "v1" else folder)
    group.mkdir(parents=True)
    (group / limit).write_text(f"{1000 * MEBIBYTE}\n")
    (group / used).write_text(f"{500 * MEBIBYTE}\n")
    (group / "memory.stat").write_text(f"anon 1\n{reclaimable} {200 * MEBIBYTE}\n")
    assert MemoryLimit(4000).left() == (1000 - 300 - 150) * MEBIBYTE
    (group / limit).write_text("max\n")
    assert MemoryLimit().left() is None


def test_a_limit_of_virtual_memory_counts_what_is_free_within_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: 2000 * MEBIBYTE, resource.RLIMIT_DATA: 400 * MEBIBYTE}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    monkeypatch.setattr(memory_limit, "_free_within", lambda: 50 * MEBIBYTE)
    assert MemoryLimit().left() == (400 - (200 - 50) - 60) * MEBIBYTE


def test_the_log_says_once_that_memory_is_short_and_once_that_it_is_not(tmp_path: Path) -> None:
    clock = Clock()
    limit = MemoryLimit(200, clock=clock)
    seen = []
    with capture_logs() as lines:
        for used in (100, 180, 190, 166, 100, 100):
            _use(tmp_path, used)
            # Between two measurements nothing is read.
            clock.now += 0.1
            limit.has_room()
            clock.now += 0.2
            seen.append(limit.has_room())
    assert seen == [True, False, False, False, True, True]
    assert [line["event"] for line in lines] == ["memory.short", "memory.enough"]
