"""Who may import whom: the exact list. What is absent here is forbidden."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))

# For each room, the rooms that it may import.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "accounts": {
        *{"balances", "clock", "credentials", "deadlines", "errors", "identity", "model", "observability"},
        *{"plugin_kit", "tasks", "v1", "venue_gate", "venues", "wire"},
    },
    "addresses": set(),
    "amounts": set(),
    "app": {
        *{"accounts", "balances", "cache", "catalogue", "clock", "credentials", "gc_tuning", "grpc_server", "identity"},
        *{"memory_limit", "model", "observability", "open_files", "plugin_host", "settings", "spare_memory"},
        *{"startup_checks", "streams", "venue_gate", "venues", "web"},
    },
    "authoring": {
        *{"credentials", "errors", "grpc_server", "model", "observability", "plugin_api", "plugin_kit", "testing"},
        *{"venues", "wire"},
    },
    "balances": {
        *{"cache", "clock", "credentials", "deadlines", "errors", "identity", "model", "observability", "tasks"},
        *{"recently_used", "venues", "wire"},
    },
    "cache": {"clock", "tasks"},
    "catalogue": {"errors", "model", "recently_used", "venue_gate", "venues", "wire"},
    "cli": {
        *{
            "__init__",
            "accounts",
            "addresses",
            "amounts",
            "app",
            "authoring",
            "balances",
            "cache",
            "client",
            "clock",
            "credentials",
            "environment",
            "errors",
            "gc_tuning",
        },
        *{
            "grpc_server",
            "identity",
            "model",
            "monitoring",
            "observability",
            "open_files",
            "operator",
            "plugin_host",
            "plugin_kit",
        },
        *{"printable", "process_secrecy", "service_manager", "settings", "startup_checks", "testing", "v1"},
        *{"venue_gate", "venues", "wire"},
    },
    "clock": set(),
    "client": {"addresses", "errors", "operator", "v1"},
    # Of the service it knows the messages and the calls within the process, and no model.
    "console": {
        "addresses",
        "amounts",
        "clock",
        "errors",
        "grpc_server",
        "observability",
        "operator",
        "printable",
        "v1",
    },
    "credentials": {"addresses", "deadlines", "errors", "model", "recently_used", "settings", "tasks"},
    "deadlines": set(),
    "environment": set(),
    "errors": set(),
    "gc_tuning": set(),
    "grpc_server": {
        *{"accounts", "balances", "catalogue", "clock", "deadlines", "errors", "identity", "model", "observability"},
        *{"operator", "plugin_host", "recently_used", "socket_folder", "streams", "v1", "venues", "wire"},
    },
    "http_server": {"addresses", "errors", "grpc_server", "observability"},
    "identity": {"cache", "credentials", "deadlines", "errors", "recently_used", "settings", "tasks"},
    "memory_limit": set(),
    "model": {"amounts", "errors"},
    "observability": {"__init__", "addresses", "errors", "printable"},
    "operator": {"v1"},
    "plugin_api": {"amounts", "errors", "model", "plugin_kit", "tasks"},
    "plugin_host": {
        *{"__init__", "credentials", "errors", "gc_tuning", "model", "observability", "operator", "printable"},
        *{"process_secrecy", "settings", "socket_folder", "tasks", "v1", "venues", "wire"},
    },
    "plugin_kit": {"amounts", "errors", "model", "tasks"},
    "monitoring": set(),
    "open_files": set(),
    "spare_memory": set(),
    "printable": set(),
    "process_secrecy": set(),
    "pytest_plugin": set(),
    "recently_used": set(),
    "service_manager": set(),
    "settings": {"addresses", "environment", "observability"},
    "socket_folder": set(),
    "startup_checks": {"addresses", "cache", "credentials", "identity", "settings", "venues"},
    "streams": {"balances", "clock", "errors", "model", "observability", "tasks", "venues", "wire"},
    "tasks": set(),
    "testing": {"model", "plugin_api", "pytest_plugin", "venues"},
    "v1": set(),
    "venue_gate": {"cache", "clock", "errors", "model", "observability", "recently_used", "venues", "wire"},
    "venues": {
        *{"addresses", "credentials", "errors", "model", "observability", "open_files", "plugin_api", "plugin_kit"},
        *{"tasks", "wire"},
    },
    "web": {"addresses", "console", "grpc_server", "http_server", "open_files", "settings"},
    "wire": {"addresses", "amounts", "clock", "errors", "model", "v1"},
}
# Where each of the heavy libraries may be imported.
HOMES = {
    "grpc": {"grpc_server", "client", "cli", "operator", "v1"},
    "sqlalchemy": {"credentials", "identity"},
    "redis": {"cache"},
    # An issuer's keys are no venue's answer, and need none of what guards those.
    "aiohttp": {"identity", "venues", "testing"},
    "ccxt": set(),
    "hvac": {"credentials"},
    "requests": {"credentials"},
    "typer": {"cli"},
    "jwt": {"identity"},
    "opentelemetry": {"observability"},
    "prometheus_client": {"observability"},
    "uvloop": {"cli"},
    "mcp": {"cli"},
    "mcp_types": {"cli"},
    "uvicorn": {"http_server"},
    "connectrpc": {"http_server"},
    "jinja2": {"console"},
    "sse_starlette": {"console"},
    "starlette": {"console"},
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    packages = ["exchange_service", *(f"exchange_service_{name}" for name in PLUGINS)]
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def part(module: str) -> str:
    pieces = module.split(".")
    if pieces[1:3] == ["accounts", "v1"]:
        # Generated, and imported by the client too.
        return "v1"
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


def test_each_package_imports_only_what_the_list_allows(graph: grimp.ImportGraph) -> None:
    wrong = []
    for module in own_modules(graph):
        here = part(module)
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.split(".")[0] != "exchange_service" or part(imported) == here:
                continue
            if part(imported) not in ALLOWED[here]:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_the_list_allows_nothing_that_no_room_needs(graph: grimp.ImportGraph) -> None:
    used: dict[str, set[str]] = {part(module): set() for module in own_modules(graph)}
    for module in own_modules(graph):
        imported = graph.find_modules_directly_imported_by(module)
        parts = {part(name) for name in imported if name.split(".")[0] == "exchange_service"}
        used[part(module)] |= parts - {part(module)}
    assert used == ALLOWED


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
    (independence,) = (item for item in settings["importlinter"]["contracts"] if item["type"] == "independence")
    assert packages == set(independence["modules"])


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


# Runs the command line, and says in the end how often all objects were examined for garbage, and which of the modules
# that it was given are loaded.
COMMAND = """
import atexit, gc, sys
names = sys.argv.pop(1).split(",")
atexit.register(lambda: print("loaded:", *(name for name in names if name in sys.modules)))
atexit.register(lambda: print("examined:", gc.get_stats()[2]["collections"]))
from exchange_service.cli import main
main()
"""
# What a command that only calls a running service does without.
OF_THE_SERVICE = [
    *("exchange_service.app", "exchange_service.settings", "exchange_service.model", "exchange_service.grpc_server"),
    *(
        "aiohttp",
        "cryptography",
        "grpc_health.v1",
        "grpc_reflection.v1alpha",
        "jwt",
        "prometheus_client",
        "psutil",
        "pydantic_settings",
    ),
    *("redis", "sqlalchemy", "starlette", "structlog", "uvloop"),
]


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        ("--version", [*OF_THE_SERVICE, "google", "grpc", "pydantic", "rich"]),
        ("exchanges --address 127.0.0.1:1", OF_THE_SERVICE),
        ("balance --address 127.0.0.1:1 --user alice --exchange oanda", OF_THE_SERVICE),
        ("watch --address 127.0.0.1:1 --user alice --events 1", [*OF_THE_SERVICE, "mcp"]),
    ],
)
def test_a_command_that_calls_a_service_imports_none_of_its_parts(arguments: str, unneeded: list[str]) -> None:
    program = [sys.executable, "-c", COMMAND, ",".join(unneeded), *arguments.split()]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "loaded:", done.stderr


# What only some settings or stores need.
OF_OTHER_SETTINGS = [
    # For the first account that is read in this process.
    *("aiohttp", "yarl", "exchange_service.venues.http"),
    *("connectrpc", "jinja2", "sse_starlette", "starlette", "uvicorn", "exchange_service.console"),
    *(
        "redis",
        "exchange_service.cache.sealed_redis",
        "cryptography",
        "jwt",
        "psycopg",
        "sqlalchemy.dialects.postgresql",
    ),
    *("ccxt", "exchange_service_ccxt_generic.balance", "exchange_service_ccxt_generic.push"),
    *("exchange_service.testing", "exchange_service.cli.demo", "exchange_service.cli.calls"),
    *("opentelemetry", "exchange_service.observability.spans"),
]


def test_a_service_imports_nothing_that_its_settings_do_not_ask_for_and_starts_without_looking_for_garbage(
    tmp_path: Path,
) -> None:
    arguments = ["serve", "--address", "127.0.0.1:0", "--database-url", f"sqlite:///{tmp_path / 'service.db'}"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, ",".join(OF_OTHER_SETTINGS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        before = list(itertools.takewhile(lambda line: "Serving on " not in line, process.stderr))
        process.terminate()
        output, messages = process.communicate(timeout=30)
    assert output.splitlines() == ["examined: 0", "loaded:"], [*before, messages]


def test_a_process_that_reads_a_plugins_manifest_imports_no_library_for_venues_servers_or_settings() -> None:
    program = "import sys, exchange_service.plugin_host.main; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["grpc", "sqlalchemy", "redis", "aiohttp", "ccxt", "pydantic_settings", "psutil", "typer", "uvloop"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_face_of_the_plugin_page_is_pinned() -> None:
    from exchange_service import plugin_api

    hooks = {"exchange_manifest", "fetch_balance", "watch_balance", "check_credential", "refresh_manifest"}
    declared = {name for name in vars(plugin_api) if getattr(vars(plugin_api)[name], "exchange_service_spec", None)}
    assert declared == hooks
    assert all(hasattr(plugin_api, name) for name in plugin_api.__all__)
    assert len(set(plugin_api.__all__)) == len(plugin_api.__all__)
