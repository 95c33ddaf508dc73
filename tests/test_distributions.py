"""The package is divided between two distributions: what a plugin's process and a plugin's tests need, and the rest."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).parent.parent
TREE = ROOT / "exchange_service"
SERVICE = ROOT / "pyproject.toml"
PLUGIN = ROOT / "packages" / "exchange-service-plugin" / "pyproject.toml"
# What a plugin's environment is for: the program of its process, and a plugin's own imports. Rooms count as a whole.
WANTED = ("plugin_api", "plugin_host.main", "pytest_plugin")
WHOLE_ROOMS = ("plugin_kit", "testing", "venues")


def read(project: Path) -> Any:
    return tomllib.loads(project.read_text())


def listed() -> list[str]:
    """The files and folders of the smaller distribution, below exchange_service/."""
    files: list[str] = read(PLUGIN)["tool"]["hatch"]["build"]["hooks"]["custom"]["files"]
    return files


def modules(names: Iterable[str]) -> set[str]:
    """The modules in files and folders below exchange_service/."""
    found: set[str] = set()
    for name in names:
        path = TREE / name
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            if file.suffix == ".py":
                found.add(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    return found


@cache
def graph() -> grimp.ImportGraph:
    """What each module imports at run time."""
    return grimp.build_graph(
        "exchange_service", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def imported_by(roots: Iterable[str]) -> tuple[set[str], set[str]]:
    """The modules of the package that importing `roots` needs, themselves included, and the foreign packages."""
    needed: set[str] = set()
    foreign: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module in needed:
            continue
        needed.add(module)
        # A module's folders are imported before it.
        waiting += [module.rpartition(".")[0]] if "." in module else []
        for name in graph().find_modules_directly_imported_by(module):
            if name.partition(".")[0] == "exchange_service":
                waiting.append(name)
            else:
                foreign.add(name.partition(".")[0])
    return needed, foreign - set(sys.stdlib_module_names)


def wanted() -> set[str]:
    names = {f"exchange_service.{name}" for name in (*WANTED, *WHOLE_ROOMS)}
    return names | {below for name in names for below in graph().find_descendants(name)}


def test_the_smaller_distribution_has_exactly_the_modules_that_its_programs_import() -> None:
    assert modules(listed()) == imported_by(wanted())[0]


def test_every_file_of_the_list_exists_and_has_its_stub_beside_it() -> None:
    assert [name for name in listed() if not (TREE / name).exists()] == []
    stubs = {f"{name}i" for name in listed() if (TREE / f"{name}i").exists()}
    assert stubs <= set(listed())


def test_the_service_leaves_out_what_the_smaller_distribution_has() -> None:
    excluded = read(SERVICE)["tool"]["hatch"]["build"]["exclude"]
    assert excluded == [f"/exchange_service/{name}" for name in listed()]


def test_the_smaller_distribution_depends_on_what_it_imports_and_on_no_more() -> None:
    project = read(PLUGIN)["project"]
    names = {"google": "protobuf", "yarl": "aiohttp", "python_socks": "aiohttp-socks"}
    foreign = {names.get(name, name) for name in imported_by(wanted())[1]}
    required = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    extras = project["optional-dependencies"].values()
    optional = {requirement.partition(">")[0] for extra in extras for requirement in extra}
    assert foreign - optional == required


def test_both_ask_for_the_same_versions_of_what_both_use_and_are_of_one_version() -> None:
    service, plugin = read(SERVICE)["project"], read(PLUGIN)["project"]
    shared = [item for item in plugin["dependencies"] if not item.startswith("pydantic")]
    assert set(shared) <= set(service["dependencies"])
    assert service["version"] == plugin["version"]
    assert f"exchange-service-plugin=={plugin['version']}" in service["dependencies"]
    assert f"exchange-service-plugin[testing]=={plugin['version']}" in service["optional-dependencies"]["testing"]


def test_plugins_depend_on_the_smaller_distribution_and_not_on_the_service() -> None:
    projects = sorted((ROOT / "plugins").glob("*/pyproject.toml"))
    assert len(projects) >= 7
    for path in projects:
        ours = [item for item in read(path)["project"]["dependencies"] if item.startswith("exchange-service")]
        assert ours == ["exchange-service-plugin>=0.1,<0.2"], path
