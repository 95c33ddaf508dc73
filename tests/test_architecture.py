"""Who may import whom: the exact list. What is absent here is forbidden."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))

NOUNS = {"model", "errors", "payload"}
# For each part, the parts of the service that it may import. A folder counts as one part.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "accounts": {"arithmetic", "errors", "model"},
    "app": {
        *{"balances", "cache", "catalogue", "credentials", "feeds", "grpc_server", "identity", "metered", "metrics"},
        *{"kept_balances", "metrics_server", "model", "plugin_host", "registry", "sessions", "settings", "venue_gate"},
        *{"venue_http", "venue_status"},
    },
    "arithmetic": set(),
    "balances": {"credentials", "errors", "kept_balances", "model", "registry", "sessions", "venue_gate", "wire"},
    "cache": {"errors", "model", "wire"},
    "catalogue": {"errors", "model", "registry", "venue_status", "wire"},
    "checkup": {
        *{"app", "credentials", "errors", "model", "plugin_host", "registry", "sessions", "settings", "venue_http"},
        *{"venue_status", "wire"},
    },
    "cli": {
        *{"__init__", "app", "checkup", "client", "credentials", "demo", "doctor", "errors", "grpc_server", "model"},
        *{"cache", "identity", "kept_balances", "logs", "payload", "plugin_host", "runtime", "settings", "v1"},
    },
    "client": {"errors", "v1"},
    "credential_fields": {"errors", "model"},
    "credentials": {"errors", "model", "settings"},
    "demo": {"app", "model", "settings", "testing"},
    "doctor": {"app", "cache", "credentials", "errors", "identity", "model", "plugin_host", "registry", "settings"},
    "errors": set(),
    "feeds": {"balances", "errors", "model", "registry", "wire"},
    "grpc_server": {
        *{"balances", "catalogue", "errors", "feeds", "identity", "logs", "metrics", "model", "plugin_host"},
        *{"registry", "v1", "wire"},
    },
    "identity": {"cache", "credentials", "errors", "settings"},
    "kept_balances": {"cache", "errors", "model", "wire"},
    "logs": {"redaction"},
    "metered": {"credentials", "errors", "metrics", "model", "plugin_host", "registry", "sessions", "wire"},
    "metrics": {"errors"},
    "metrics_server": {"metrics"},
    "model": {"arithmetic", "errors"},
    "payload": {"errors"},
    "plugin_api": {"accounts", "arithmetic", "credential_fields", "errors", "model", "payload", "state"},
    "plugin_host": {
        *{
            "credentials",
            "errors",
            "logs",
            "model",
            "redaction",
            "registry",
            "sessions",
            "settings",
            "v1",
            "venue_http",
        },
        "wire",
    },
    "pytest_plugin": set(),
    "redaction": set(),
    "registry": {"errors", "model", "plugin_api", "state"},
    "runtime": set(),
    "sessions": {
        *{"accounts", "credentials", "errors", "model", "plugin_api", "redaction", "registry", "state", "venue_http"},
        "wire",
    },
    "settings": {"redaction"},
    "state": set(),
    "testing": {"__init__", "plugin_api", "pytest_plugin", "venue_http", "client"},
    "v1": set(),
    "venue_gate": {"cache", "credentials", "errors", "model", "registry", "venue_status"},
    "venue_http": {"errors", "model", "payload"},
    "venue_status": {"errors", "model"},
    "wire": {"errors", "model", "payload", "v1"},
}
# Where each of the heavy libraries may be imported.
HOMES = {
    "grpc": {"grpc_server", "client", "cli", "plugin_host", "v1"},
    "sqlalchemy": {"credentials", "identity"},
    "redis": {"cache", "venue_gate"},
    # An issuer's keys are no venue's answer, and need none of what guards those.
    "aiohttp": {"identity", "venue_http", "testing"},
    "ccxt": set(),
    "typer": {"cli"},
    "jwt": {"identity"},
    "limits": {"identity", "venue_gate"},
    "stamina": {"venue_gate"},
    "prometheus_client": {"metrics", "metrics_server"},
    "uvloop": {"runtime"},
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    packages = ["exchange_service", *(f"exchange_service_{name}" for name in PLUGINS)]
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def part(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def own_modules(graph: grimp.ImportGraph) -> list[str]:
    return sorted(name for name in graph.modules if name.split(".")[0] == "exchange_service")


def test_every_file_of_the_package_is_seen_by_the_import_checks(graph: grimp.ImportGraph) -> None:
    files = [*(ROOT / "exchange_service").rglob("*.py"), *(ROOT / "plugins").glob("*/exchange_service_*/**/*.py")]
    assert len(files) > 60
    for file in files:
        below = (
            file.relative_to(ROOT)
            if file.is_relative_to(ROOT / "exchange_service")
            else file.relative_to(file.parents[len(file.relative_to(ROOT / "plugins").parts) - 2])
        )
        module = ".".join(below.with_suffix("").parts).removesuffix(".__init__")
        assert module in graph.modules, f"{file} is not seen: does its folder lack an __init__.py?"


def test_each_part_imports_only_what_the_house_allows(graph: grimp.ImportGraph) -> None:
    wrong = []
    for module in own_modules(graph):
        here = part(module)
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.split(".")[0] != "exchange_service" or part(imported) == here:
                continue
            if part(imported) not in ALLOWED[here]:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_the_list_names_no_part_that_is_gone(graph: grimp.ImportGraph) -> None:
    assert set(ALLOWED) == {part(module) for module in own_modules(graph)}


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_stay_in_their_homes(graph: grimp.ImportGraph, library: str) -> None:
    wrong = [
        module
        for module in own_modules(graph)
        for imported in graph.find_modules_directly_imported_by(module)
        if imported == library and part(module) not in HOMES[library]
    ]
    assert not wrong


def test_plugins_import_the_plugin_page_alone_and_simulators_the_test_kit(graph: grimp.ImportGraph) -> None:
    wrong = []
    for name in PLUGINS:
        package = f"exchange_service_{name}"
        for module in sorted({package, *graph.find_descendants(package)}):
            for imported in graph.find_modules_directly_imported_by(module):
                if imported.split(".")[0] != "exchange_service" or imported == "exchange_service.plugin_api":
                    continue
                # A plugin with several simulators has a folder of them.
                if not ("simulator" in module.split(".") and part(imported) == "testing"):
                    wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_every_plugin_is_linted_typed_and_import_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    packages = {f"exchange_service_{name}" for name in PLUGINS}
    assert packages <= set(settings["mypy"]["packages"])
    assert packages <= set(settings["importlinter"]["root_packages"])
    for contract in settings["importlinter"]["contracts"][2:]:
        assert packages == set(contract.get("source_modules") or contract["modules"])


def test_importing_the_package_pulls_in_the_standard_library_alone() -> None:
    program = (
        "import sys; before = set(sys.modules); import exchange_service; "
        "print([n for n in set(sys.modules) - before "
        "if n.split('.')[0] not in sys.stdlib_module_names | {'exchange_service'}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_plugin_page_pulls_in_no_server_and_no_venue_library() -> None:
    program = "import sys, exchange_service.plugin_api; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["grpc", "sqlalchemy", "redis", "aiohttp", "ccxt", "pydantic", "typer"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_face_of_the_plugin_page_is_pinned() -> None:
    from exchange_service import plugin_api

    hooks = {"exchange_manifest", "fetch_balance", "watch_balance", "check_credential", "refresh_manifest"}
    found = {name for name in vars(plugin_api) if getattr(vars(plugin_api)[name], "exchange_service_spec", None)}
    assert found == hooks
    assert all(hasattr(plugin_api, name) for name in plugin_api.__all__)
    assert len(set(plugin_api.__all__)) == len(plugin_api.__all__)
