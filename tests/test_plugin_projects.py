"""The plugin that an author works on, found by its folder or its name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exchange_service.model import PluginInfo
from exchange_service.testing.projects import ProjectNotFound, find_project

ROOT = Path(__file__).parent.parent
PYPROJECT = """
[project]
name = "exchange-service-zinc"
version = "2.1"
[project.entry-points."exchange_service"]
zinc = "exchange_service_zinc"
[project.entry-points."exchange_service.simulators"]
zinc = "exchange_service_zinc.simulator:ZincSimulator"
"""


@pytest.fixture(autouse=True)
def restore_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("exchange_service_zinc", None)


def test_a_folder_that_is_not_installed_is_found_and_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "exchange_service_zinc.py").write_text("HERE = True\n")
    project = find_project(str(tmp_path))
    assert project.info == PluginInfo("zinc", "2.1", "exchange-service-zinc")
    assert project.point.load().HERE
    assert [point.value for point in project.simulators] == ["exchange_service_zinc.simulator:ZincSimulator"]
    assert project.folder == tmp_path


def test_an_installed_plugin_is_found_by_its_name_with_the_folder_it_is_installed_from() -> None:
    project = find_project("oanda")
    assert project.info.distribution == "exchange-service-oanda"
    assert [point.name for point in project.simulators] == ["oanda"]
    assert project.folder == ROOT / "plugins" / "oanda"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "has no pyproject.toml"),
        ("[project", "cannot be read as TOML"),
        ('[project]\nname = "exchange-service-zinc"\n', "names no plugins: write one line"),
        (PYPROJECT.replace('zinc = "exchange_service_zinc"\n', 'a = "b"\nc = "d"\n'), "names 2 plugins"),
    ],
)
def test_a_folder_without_one_plugin_is_told_what_is_missing(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ProjectNotFound, match=sentence):
        find_project(str(tmp_path))


def test_an_unknown_name_is_told_which_there_are() -> None:
    with pytest.raises(ProjectNotFound, match="hyperliquid, krakenfutures, lighter, oanda"):
        find_project("onada")
