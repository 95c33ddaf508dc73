"""The package is divided between three distributions: what clients need, what a plugin's process and a plugin's tests
need besides, and the rest."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).parent.parent
TREE = ROOT / "exchange_service"
SERVICE = ROOT / "pyproject.toml"
PLUGIN = ROOT / "packages" / "exchange-service-plugin" / "pyproject.toml"
CLIENT = ROOT / "clients" / "python" / "pyproject.toml"
# What clients import. Rooms count as a whole.
FOR_CLIENTS = ("accounts.v1", "client", "errors", "operator", "v1")
# What a plugin's environment is for: the program of its process, and a plugin's own imports.
FOR_PLUGINS = ("plugin_api", "plugin_host.main", "plugin_kit", "pytest_plugin", "testing", "venues")


def read(project: Path) -> Any:
    return tomllib.loads(project.read_text())


def listed(project: Path) -> list[str]:
    """The files and folders of a smaller distribution, below exchange_service/."""
    files: list[str] = read(project)["tool"]["hatch"]["build"]["hooks"]["custom"]["files"]
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


def needed(wanted: Iterable[str]) -> tuple[set[str], set[str]]:
    """What importing these rooms and modules needs, with all that is below them: modules, and foreign packages."""
    names = {f"exchange_service.{name}" for name in wanted}
    return imported_by(names | {below for name in names for below in graph().find_descendants(name)})


def foreign_names(packages: set[str]) -> set[str]:
    """The distributions of foreign packages. `google` is in two of them."""
    names = {"google": "protobuf", "grpc": "grpcio", "python_socks": "aiohttp-socks", "yarl": "aiohttp"}
    return {names.get(name, name) for name in packages}


def required_by(project: Path) -> set[str]:
    return {re.split(r"[>=<]", item)[0] for item in read(project)["project"]["dependencies"]}


def test_the_clients_distribution_has_exactly_the_modules_that_clients_import() -> None:
    assert modules(listed(CLIENT)) == needed(FOR_CLIENTS)[0]


def test_the_plugins_distribution_has_exactly_what_its_programs_import_besides() -> None:
    assert modules(listed(PLUGIN)) == needed(FOR_PLUGINS)[0] - modules(listed(CLIENT))


@pytest.mark.parametrize("project", [CLIENT, PLUGIN], ids=["client", "plugin"])
def test_every_file_of_the_list_exists_and_has_its_stub_beside_it(project: Path) -> None:
    assert [name for name in listed(project) if not (TREE / name).exists()] == []
    stubs = {f"{name}i" for name in listed(project) if (TREE / f"{name}i").exists()}
    assert stubs <= set(listed(project))


def test_the_service_leaves_out_what_the_smaller_distributions_have() -> None:
    excluded = read(SERVICE)["tool"]["hatch"]["build"]["exclude"]
    assert excluded == [f"/exchange_service/{name}" for name in sorted(listed(CLIENT) + listed(PLUGIN))]


def test_the_smaller_distributions_depend_on_what_they_import_and_on_no_more() -> None:
    assert foreign_names(needed(FOR_CLIENTS)[1]) | {"googleapis-common-protos"} == required_by(CLIENT)
    extras = read(PLUGIN)["project"]["optional-dependencies"].values()
    optional = {requirement.partition(">")[0] for extra in extras for requirement in extra}
    foreign = foreign_names(needed(FOR_PLUGINS)[1]) - optional
    assert foreign | {"exchange-service-client"} == required_by(PLUGIN)


def test_a_plugins_process_imports_no_grpc() -> None:
    assert "grpc" not in needed(FOR_PLUGINS)[1]


def test_all_ask_for_the_same_versions_of_what_they_share_and_are_of_one_version() -> None:
    service, plugin, client = (read(project)["project"] for project in (SERVICE, PLUGIN, CLIENT))
    assert service["version"] == plugin["version"] == client["version"]
    shared = {item for item in (*plugin["dependencies"], *client["dependencies"]) if not item.startswith("pydantic")}
    assert shared <= set(service["dependencies"])
    assert f"exchange-service-client=={client['version']}" in plugin["dependencies"]
    assert f"exchange-service-plugin=={plugin['version']}" in service["dependencies"]
    assert f"exchange-service-plugin[testing]=={plugin['version']}" in service["optional-dependencies"]["testing"]


def test_plugins_depend_on_the_smaller_distribution_and_not_on_the_service() -> None:
    projects = sorted((ROOT / "plugins").glob("*/pyproject.toml"))
    assert len(projects) >= 7
    for path in projects:
        ours = [item for item in read(path)["project"]["dependencies"] if item.startswith("exchange-service")]
        assert ours == ["exchange-service-plugin>=0.1,<0.2"], path
