"""The client's wheel alone in a new environment: its size, and its page and its examples, run and type-checked.

`make test-client` gets pyright and runs it; without that these tests are left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_cli import environment
from tests.test_packaging import CLIENT, build_wheels, install, pip_list, run

PYRIGHT = os.environ.get("EXCHANGE_SERVICE_TEST_PYRIGHT", "")
pytestmark = [
    pytest.mark.skipif(not PYRIGHT, reason="`make test-client` gets pyright"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parent.parent
EXAMPLES = CLIENT / "examples"
PAGE = ROOT / "docs" / "calling-python.md"
# The client, the three that it asks for, and the one that grpcio does.
PACKAGES = {"exchange-service-client", "grpcio", "protobuf", "googleapis-common-protos", "typing-extensions"}
# Of the whole environment, without pip.
MOST_MEGABYTES = 30
# Where a service is in the page, and where its replicas are.
SERVICE, REPLICAS = "127.0.0.1:50051", "127.0.0.1:50051,127.0.0.1:50052"
_SNIPPET = re.compile(r"<!-- (?P<use>runs|checked): (?P<name>[\w-]+) -->\n```python\n(?P<text>.*?)```", re.DOTALL)
# What each snippet that runs prints.
PRINTED = {
    "first": r"EUR \d+\.\d+\n0:00:\d\d(\.\d+)?\n",
    "sync": r"EUR \d+\.\d+\nSERVING\n",
    "amounts": r"(\S+ \S+ -?\d[\d.]* (free|the venue does not say what is free).*\n)+",
    "balances": r"(\w+ (-?[\d.]+ \w+|several figures|[A-Z_]+: .+)( \(older: .+\))?\n){7,}",
    "stream": r"(\w+ .*\n)+",
    "resume": r"heartbeat\n",
    "errors": r"no account is connected\nuser_id it is required.*\nagain in \d+ s\n"
    r"the user has to act: CREDENTIAL_REJECTED.*\n",
    "fork": r"EUR \d+\.\d+\nEUR \d+\.\d+\n",
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the client's wheel and what it needs, from the ordinary index."""
    folder = tmp_path_factory.mktemp("client")
    (wheel,) = build_wheels(folder / "wheels", CLIENT).values()
    venv.create(folder / "venv")
    install(folder / "venv" / "bin", wheel)
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a demo in a process of its own."""
    command = [sys.executable, "-m", "exchange_service", "demo", "--address", "127.0.0.1:0"]
    home = environment(tmp_path_factory.mktemp("demo"))
    with subprocess.Popen(command, env=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        match = re.search(r"listens on (\S+)", process.stdout.readline())
        assert match
        yield match[1]
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the examples and of the page's snippets, where no source tree is near."""
    copies = tmp_path_factory.mktemp("programs")
    shutil.copytree(EXAMPLES, copies / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (copies / "page").mkdir()
    for match in _SNIPPET.finditer(PAGE.read_text()):
        (copies / "page" / f"{match['name'].replace('-', '_')}.py").write_text(match["text"])
    return copies


def outcome(*command: object, cwd: Path) -> tuple[int, str, str]:
    """How a program ends: its exit code and both outputs."""
    plain = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=plain, capture_output=True, text=True, timeout=90
    )
    return done.returncode, done.stdout, done.stderr


def test_the_wheel_alone_needs_three_packages_and_less_than_thirty_megabytes(programs: Path) -> None:
    listed = json.loads(pip_list(programs))
    installed = {item["name"].lower().replace("_", "-"): item["version"] for item in listed}
    others = {name: version for name, version in installed.items() if name not in ("pip", "setuptools")}
    (site,) = programs.parent.glob("lib/python*/site-packages")
    files = [path for path in site.rglob("*") if path.is_file() and path.relative_to(site).parts[0][:3] != "pip"]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    print(f"\n{', '.join(f'{name} {version}' for name, version in sorted(others.items()))}: {megabytes:.1f} MB")
    assert PACKAGES - {"typing-extensions"} <= others.keys() <= PACKAGES
    assert megabytes < MOST_MEGABYTES


def test_the_examples_list_read_and_follow(programs: Path, demo: str, folder: Path) -> None:
    def example(name: str, *arguments: str) -> tuple[int, str, str]:
        return outcome(programs / "python", folder / "examples" / f"{name}.py", *arguments, cwd=folder)

    for twin in ("", "_sync"):
        code, output, errors = example(f"list_exchanges{twin}", "--address", demo, "--search", "oanda")
        assert (code, output, errors) == (0, "oanda\tOANDA\tForex\n", "SERVING\n")
        code, output, errors = example(f"balance{twin}", "--address", demo, "demo", "oanda")
        assert (code, errors) == (0, "")
        assert re.fullmatch(r"EUR \d+\.\d+\n(\S+\t\w*\t\w+\t\d+\.\d+\tfree \S+\n)+", output)
        code, output, errors = example(f"balance{twin}", "--address", demo, "nobody", "oanda")
        assert (code, output) == (1, "")
        assert errors.startswith("CREDENTIAL_MISSING")
        code, output, errors = example(f"balances{twin}", "--address", demo, "demo")
        assert (code, errors) == (0, "")
        assert len(output.splitlines()) >= 8
        code, output, errors = example(f"follow{twin}", "--address", demo, "--seconds", "3", "demo")
        assert (code, errors) == (0, "")
        events = [json.loads(line) for line in output.splitlines()]
        assert {"account": "oanda/production", "event": "balance"}.items() <= {**events[0], **oanda(events)}.items()
        code, output, errors = example(f"follow{twin}", "--address", "127.0.0.1:1", "demo")
        assert (code, output) == (1, "")
        assert "127.0.0.1:1" in errors


def oanda(events: list[dict[str, object]]) -> dict[str, object]:
    """The first event of OANDA's account."""
    return next(event for event in events if event.get("account") == "oanda/production")


@pytest.mark.parametrize("way", [(), ("--sync",)])
def test_steady_calls_count_what_failed(programs: Path, demo: str, folder: Path, way: tuple[str, ...]) -> None:
    command = (programs / "python", folder / "examples" / "steady.py", *way)
    assert outcome(*command, f"{demo},{demo}", "2", cwd=folder) == (0, "calls 40 failed 0\n", "")
    code, output, errors = outcome(*command, "127.0.0.1:1", "0.2", cwd=folder)
    assert (code, output) == (1, "calls 4 failed 4\n")
    assert len(errors.splitlines()) == 4


def test_every_snippet_of_the_page_is_run_or_checked() -> None:
    found = list(_SNIPPET.finditer(PAGE.read_text()))
    assert PAGE.read_text().count("```python") == len(found)
    assert {match["name"] for match in found if match["use"] == "runs"} == PRINTED.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_a_snippet_of_the_page_prints_what_it_says(programs: Path, demo: str, folder: Path, name: str) -> None:
    text = (folder / "page" / f"{name.replace('-', '_')}.py").read_text()
    program = folder / f"{name}.py"
    program.write_text(text.replace(REPLICAS, f"{demo},{demo}").replace(SERVICE, demo))
    code, output, errors = outcome(programs / "python", program, cwd=folder)
    program.unlink()
    assert (code, bool(re.fullmatch(PRINTED[name], output))) == (0, True), output + errors


# What each checker has to find in lines 5 and 7, or it does not see the client's types.
WRONG = """from exchange_service.client import AsyncClient, Client


async def show(client: AsyncClient, other: Client) -> None:
    await client.get_balance(1, "oanda")
    for event in other.stream_balances("demo"):
        print(event.heartbeat)
"""


def test_mypy_strict_finds_nothing_in_examples_and_snippets(programs: Path, folder: Path) -> None:
    checks = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=.cache")
    checks = (*checks, f"--python-executable={programs / 'python'}")
    assert len(list(folder.glob("*/*.py"))) > 15
    for part in ("examples", "page"):
        assert "no issues" in run(*checks, part, cwd=folder)
    code, output, _ = outcome(*checks, "-c", WRONG, cwd=folder)
    assert (code, ":5:" in output, ":7:" in output) == (1, True, True), output


def test_pyright_finds_nothing_in_examples_and_snippets(programs: Path, folder: Path) -> None:
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    checks = (PYRIGHT, "--pythonpath", programs / "python")
    assert run(*checks, "examples", "page", cwd=folder).startswith("0 errors, 0 warnings")
    (folder / "wrong.py").write_text(WRONG)
    code, output, _ = outcome(*checks, "wrong.py", cwd=folder)
    assert (code, ":5:" in output, ":7:" in output) == (1, True, True), output
