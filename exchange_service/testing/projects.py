"""The plugin that an author works on: a folder with its pyproject.toml, or an installed plugin by its name."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from exchange_service.model import PluginInfo
from exchange_service.venues.loading import PLUGIN_GROUP, SIMULATOR_GROUP, installed_plugins, plugin_info


class ProjectNotFound(Exception):
    """There is no such plugin, or its folder does not say which one it holds; the text is a sentence for its author."""


@dataclass(frozen=True, slots=True)
class PluginProject:
    """A plugin with the entry points of its own distribution: its module, and its simulators.

    `folder` is the folder of its pyproject.toml; None for a plugin that is installed from a wheel.
    """

    info: PluginInfo
    point: EntryPoint
    simulators: tuple[EntryPoint, ...]
    folder: Path | None


def find_project(wanted: str) -> PluginProject:
    """The plugin in the folder `wanted`, or the installed one of this name.

    The folder's modules become importable, before installed ones, and need not be installed. Raises ProjectNotFound.
    """
    folder = Path(wanted)
    if (folder / "pyproject.toml").is_file():
        return _read_folder(folder.resolve())
    for point in installed_plugins():
        if point.name == wanted:
            return _read_installed(point)
    if folder.is_dir():
        raise ProjectNotFound(
            f"The folder {wanted} has no pyproject.toml. Begin one with `exchange-service plugins new`."
        )
    known = ", ".join(sorted(point.name for point in installed_plugins())) or "none"
    raise ProjectNotFound(
        f"No installed plugin has the name {wanted!r}; installed are: {known}. Give the plugin's folder, or install it "
        "with `pip install --editable FOLDER`."
    )


def project_name(folder: Path) -> str:
    """The name of the plugin that a folder's pyproject.toml declares; empty if there is none, or more than one."""
    try:
        points = _read_points(folder)[1].get(PLUGIN_GROUP, {})
    except ProjectNotFound:
        return ""
    return next(iter(points)) if len(points) == 1 else ""


def _read_points(folder: Path) -> tuple[Any, Any]:
    """The table [project] of a folder, and its entry points by their groups."""
    try:
        project: Any = tomllib.loads((folder / "pyproject.toml").read_text()).get("project", {})
    except (OSError, ValueError) as error:
        raise ProjectNotFound(f"{folder / 'pyproject.toml'} cannot be read as TOML: {error}") from None
    return project, project.get("entry-points", {})


def _read_folder(folder: Path) -> PluginProject:
    project, groups = _read_points(folder)
    points = [EntryPoint(name, value, PLUGIN_GROUP) for name, value in groups.get(PLUGIN_GROUP, {}).items()]
    if len(points) != 1:
        raise ProjectNotFound(
            f"{folder / 'pyproject.toml'} names {len(points) or 'no'} plugins: write one line, such as "
            f'`acme = "exchange_service_acme"`, below [project.entry-points."{PLUGIN_GROUP}"].'
        )
    for place in (folder, folder / "src"):
        if place.is_dir() and str(place) not in sys.path:
            sys.path.insert(0, str(place))
    simulators = tuple(
        EntryPoint(name, value, SIMULATOR_GROUP) for name, value in groups.get(SIMULATOR_GROUP, {}).items()
    )
    info = PluginInfo(points[0].name, str(project.get("version", "")), str(project.get("name", "")))
    return PluginProject(info, points[0], simulators, folder)


def _read_installed(point: EntryPoint) -> PluginProject:
    info = plugin_info(point)
    simulators = tuple(
        item for item in entry_points(group=SIMULATOR_GROUP) if plugin_info(item).distribution == info.distribution
    )
    return PluginProject(info, point, simulators, _editable_folder(point))


def _editable_folder(point: EntryPoint) -> Path | None:
    """The folder from which pip has installed the plugin in place."""
    record = point.dist.read_text("direct_url.json") if point.dist is not None else None
    try:
        origin = json.loads(record or "{}")
        editable = origin["dir_info"]["editable"]
        folder = Path(url2pathname(urlsplit(origin["url"]).path))
    except (ValueError, KeyError, TypeError):
        return None
    return folder if editable and (folder / "pyproject.toml").is_file() else None
