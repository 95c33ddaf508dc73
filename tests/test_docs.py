"""The documents tell the truth: their examples run, and what is generated is current."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exchange_service import client, plugin_api, testing
from exchange_service.observability.metrics import Metrics
from tests.commands import run_command

ROOT = Path(__file__).parent.parent
# The variables of a command that has no settings.
PLAIN = {"LANG": "C.UTF-8"}
_FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)```\n", re.DOTALL)


def documented_files() -> dict[str, str]:
    """The files of the two pages for plugin authors, by their names."""
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("plugins.md", "plugin-howtos.md"))
    return {match["name"]: match["text"] for match in _FILE.finditer(pages)}


def write_documented_plugin(folder: Path) -> None:
    """The files of the two pages, as a reader would type them."""
    for name, text in documented_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.project
def test_the_documented_plugin_passes_the_contract_suite(tmp_path: Path) -> None:
    write_documented_plugin(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "tests"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert re.search(r"\d\d+ passed", result.stdout)


def test_the_pages_on_plugins_name_everything_that_a_plugin_can_import() -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("plugins.md", "plugin-howtos.md", "plugin-reference.md")]
    code = " ".join(re.findall(r"^### \w+$|```.*?```|`[^`\n]+`", "\n".join(pages), re.DOTALL | re.MULTILINE))
    missing = [name for name in plugin_api.__all__ if not re.search(rf"\b{name}\b", code)]
    assert missing == [], f"the pages on plugins do not name {', '.join(missing)}"


def test_the_page_on_pushes_names_every_metric_and_log_line_about_them() -> None:
    page = (ROOT / "docs" / "push.md").read_text()
    metrics = {family.name for family in Metrics().collect() if family.name.startswith("exchange_service_push")}
    assert len(metrics) >= 8
    assert [name for name in metrics if not re.search(rf"`{name}(_total)?`", page)] == []
    code = "".join(path.read_text() for path in (ROOT / "exchange_service" / "balances").glob("*.py"))
    events = set(re.findall(r'"(push\.\w+)"', code))
    assert len(events) >= 5
    assert [event for event in events if f"`{event}`" not in page] == []


def public_things() -> list[tuple[str, Any]]:
    """What the three public modules export, and the public methods and properties of their classes."""
    things: list[tuple[str, Any]] = []
    for module in (plugin_api, client, testing):
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, int | str | tuple):
                things.append((f"{module.__name__}.{name}", value))
            if inspect.isclass(value):
                own = {key: item for key, item in vars(value).items() if not key.startswith("_")}
                things += [
                    (f"{module.__name__}.{name}.{key}", item)
                    for key, item in own.items()
                    if isinstance(item, property | staticmethod | classmethod) or inspect.isfunction(item)
                ]
    things += [(f"{plugin_api.__name__}.{name}", value) for name, value in vars(plugin_api).items() if is_hook(value)]
    return things


def is_hook(value: object) -> bool:
    return inspect.isfunction(value) and hasattr(value, "exchange_service_spec")


@pytest.mark.parametrize(("name", "thing"), public_things(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_public_name_has_a_docstring(name: str, thing: Any) -> None:
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    # A dataclass without one gets its signature.
    assert not text.startswith(f"{name.rpartition('.')[2]}("), f"{name} has no docstring"


@pytest.mark.parametrize(("name", "most"), [("acme", 36), ("bolt", 50)])
def test_a_documented_plugin_is_short(name: str, most: int) -> None:
    code = [line for line in documented_files()[f"exchange_service_{name}/__init__.py"].splitlines() if line.strip()]
    assert len(code) <= most


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name
)
def test_every_link_to_a_file_of_the_project_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_every_link_within_a_page_leads_to_a_heading(document: Path) -> None:
    text = document.read_text()
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_generated_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("docs_generator", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    for path, text in generator.generate().items():
        assert path.read_text() == text, f"{path.name} is not current: run `make docs`"


_DEMO_BLOCK = re.compile(r"<!-- runs against the demo -->\n```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def http_address() -> str:
    """A free port of loopback, on which the demo serves HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def demo_address(http_address: str) -> Iterator[str]:
    """A demo in a process of its own, as `make run` starts it, on free ports."""
    command = [sys.executable, "-m", "exchange_service", "demo", "--address", "127.0.0.1:0"]
    environment = {**os.environ, "EXCHANGE_SERVICE_HTTP_ADDRESS": http_address}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        listening = re.search(r"listens on (127\.0\.0\.1:\d+)", first)
        assert listening, first
        yield listening[1]
        process.terminate()
        process.communicate(timeout=20)


def shape(text: str) -> list[str]:
    """Output without what differs from run to run: digits, blanks that depend on their width, and whether another
    command had a balance just before."""
    text = text.replace("BALANCE_SOURCE_CACHE", "BALANCE_SOURCE_VENUE").replace("from the cache", "from the venue")
    return [re.sub(r"\s+", " ", re.sub(r"[\d.:-]+", "#", line)).strip() for line in text.strip().splitlines()]


# What a shell does to a command.
_FOR_A_SHELL = re.compile(r"[|;<>$]|^buf ")


def documented_commands() -> list[tuple[str, str]]:
    """The commands of the documents that run against the demo, with the output that they show."""
    pairs = []
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/push.md", "docs/calling-shell.md"))
    for match in _DEMO_BLOCK.finditer(text):
        if match["kind"] != "console":
            continue
        for part in re.split(r"^\$ ", match["text"], flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command.startswith("exchange-service") and not _FOR_A_SHELL.search(command):
                pairs.append((command, output))
    return pairs


@pytest.mark.parametrize(("command", "output"), documented_commands(), ids=lambda value: value.splitlines()[0][:60])
def test_the_commands_of_the_documents_print_what_they_show(demo_address: str, command: str, output: str) -> None:
    result = run_command((*command.split()[1:], "--address", demo_address), PLAIN)
    assert shape(result.stdout + result.stderr) == shape(output)


def shell_lines() -> list[tuple[str, str]]:
    """The lines of the page on shells that need one, each with the output that it shows."""
    blocks = [m["text"] for m in _DEMO_BLOCK.finditer((ROOT / "docs" / "calling-shell.md").read_text())]
    parts = [part.partition("\n") for text in blocks for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [(line, output) for line, _, output in parts if _FOR_A_SHELL.search(line)]


async def run_in_shell(line: str, address: str, turn: asyncio.Semaphore) -> str:
    """What a line prints to standard output, in a shell with our programs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "EXCHANGE_SERVICE_ADDRESS": address}
    async with turn, asyncio.timeout(60):
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", line.replace("127.0.0.1:50051", address)), env=variables, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    return output.decode()


async def test_the_lines_of_the_page_on_shells_print_what_they_show(demo_address: str) -> None:
    lines, turn = shell_lines(), asyncio.Semaphore(os.cpu_count() or 1)
    assert len(lines) >= 10
    shown = await asyncio.gather(*(run_in_shell(line, demo_address, turn) for line, _ in lines))
    for (line, output), got in zip(lines, shown, strict=True):
        assert shape(got) == shape(output), line


def documented_requests() -> list[tuple[str, str]]:
    """The commands of the page on HTTP, each with the output that it shows."""
    blocks = [m["text"] for m in _DEMO_BLOCK.finditer((ROOT / "docs" / "http.md").read_text())]
    parts = [part for text in blocks for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    # A line that ends in a backslash goes on.
    return [tuple(re.split(r"(?<!\\)\n", part, maxsplit=1)) for part in parts]  # type: ignore[misc]


@pytest.mark.parametrize(("command", "output"), documented_requests(), ids=lambda value: value.splitlines()[0][:60])
def test_the_requests_of_the_page_on_http_print_what_they_show(
    demo_address: str, http_address: str, command: str, output: str
) -> None:
    for program in ("curl", "jq"):
        if program in command and shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    command = command.replace("127.0.0.1:50052", http_address)
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert shape(result.stdout) == shape(output)


def test_the_shell_example_of_the_readme_gets_a_balance(demo_address: str, tmp_path: Path) -> None:
    example = re.search(r"^\$ (buf curl .*?)```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert example
    command = shlex.split(example[1].replace("\\\n", " ").replace("127.0.0.1:50051", demo_address))
    command[0] = str(Path(sys.executable).with_name("buf"))
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["balance"]["userId"] == "demo"


def test_the_python_example_of_the_readme_runs(demo_address: str) -> None:
    (program,) = (m["text"] for m in _DEMO_BLOCK.finditer((ROOT / "README.md").read_text()) if m["kind"] == "python")
    program = program.replace("127.0.0.1:50051", demo_address)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert re.match(r"EUR \d+\.\d{4} 0:00:\d\d", first)
    assert re.match(r"\w+ \d{16}", second)


@pytest.mark.parametrize("reason", sorted(re.findall(r"^## (\w+)$", (ROOT / "docs" / "errors.md").read_text(), re.M)))
def test_the_demo_shows_the_reasons_that_the_error_page_lists_for_it(demo_address: str, reason: str) -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    section = re.search(rf"^## {reason}\n(.*?)(?=^## |\Z)", page, re.M | re.DOTALL)
    assert section
    demo = re.search(
        r"see it in the demo: `exchange-service ([^`]*)`(, twice, the second time with `(.*)`)?", section[1]
    )
    if demo is None:
        return
    command = (*demo[1].split(), "--address", demo_address)
    if demo[2]:
        run_command(command, PLAIN)
        command += tuple(demo[3].split())
    result = run_command(command, PLAIN)
    assert reason in result.stdout + result.stderr


def test_every_picture_of_a_page_is_there_and_small_and_no_other_is_kept() -> None:
    kept = {
        path.relative_to(ROOT / "docs").as_posix(): path.stat().st_size for path in (ROOT / "docs/images").glob("*")
    }
    shown = re.findall(r'(?:src|srcset)="(images/[^"]+)"', "".join(path.read_text() for path in ROOT.glob("docs/*.md")))
    assert sorted(shown) == sorted(kept)
    assert [name for name, size in kept.items() if size > 100_000] == []
