"""The tutorial of docs/plugins.md, followed as a reader does: each file is written, each change is applied, each
command is run in order and prints what the page shows."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

# The checks start several interpreters, and a busy machine is slow.
pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "plugins.md").read_text()
_STEP = re.compile(
    r"^(?:<!-- (?P<mark>run|run beside|patch|write|file|tried)(?:: (?P<file>\S+))? -->\n)?"
    r"^```(?P<kind>\w+)\n(?P<text>.*?)^```\n",
    re.DOTALL | re.MULTILINE,
)
# Programs that a reader runs by hand, because they need the network, a key or another shell.
_BY_HAND = re.compile(r"python -m venv |pip install |exchange-service plugins try \. --live ")


@dataclass(frozen=True)
class Step:
    """A block of the tutorial: what is to be done with it, and its text."""

    mark: str
    file: str
    kind: str
    text: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with what it prints."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def tutorial() -> list[Step]:
    start, end = PAGE.index("\n## Tutorial\n"), PAGE.index("\n## What a call gives you\n")
    return [Step(m["mark"] or "", m["file"] or "", m["kind"], m["text"]) for m in _STEP.finditer(PAGE[start:end])]


class Reader:
    """Somebody who follows the page in an empty folder; `home` is "/home/you" of the page."""

    def __init__(self, home: Path) -> None:
        self.folder = self.home = home
        self.beside: list[subprocess.Popen[str]] = []
        self.ports = {port: str(free_port()) for port in ("9001", "50051")}
        self.site = home / "site"
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "PYTHONPATH": str(self.site),
            "EXCHANGE_SERVICE_ADDRESS": f"127.0.0.1:{self.ports['50051']}",
            "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{home}/exchange-service.db",
        }

    def follow(self, step: Step) -> None:
        if step.mark == "write":
            (self.folder / step.file).write_text(step.text)
        elif step.mark == "patch":
            subprocess.run(["git", "apply", "-"], cwd=self.folder, input=step.text, text=True, check=True)
        elif step.mark == "run beside":
            ((command, output),) = step.commands
            self.start(command, output)
        elif step.mark == "run":
            for command, output in step.commands:
                self.run(command, output)
        elif step.text == "$ pip install --editable .\n":
            self.install()

    def run(self, command: str, output: str) -> None:
        if command.startswith("cd "):
            self.folder = self.folder / command[3:]
            return
        done = subprocess.run(
            ["bash", "-c", self.with_ports(command)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert self.fits(output, done.stdout), f"{command} prints\n{done.stdout}\nand the page shows\n{output}"

    def start(self, command: str, output: str) -> None:
        """Start a program that goes on, and read until it has printed the last line that the page shows."""
        # Without a process group of its own, an end of the test would leave the program below the shell.
        process = subprocess.Popen(
            ["bash", "-c", self.with_ports(command)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.beside.append(process)
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if self.fits(output, printed):
                return
        pytest.fail(f"{command} ended, and printed\n{printed}")

    def install(self) -> None:
        """What pip leaves of an editable install: the record of the distribution, and the way to its folder."""
        record = self.site / "exchange_service_acme-0.1.0.dist-info"
        record.mkdir(parents=True)
        (record / "METADATA").write_text("Metadata-Version: 2.1\nName: exchange-service-acme\nVersion: 0.1.0\n")
        (record / "entry_points.txt").write_text("[exchange_service]\nacme = exchange_service_acme\n")
        (self.site / "exchange_service_acme").symlink_to(self.folder / "exchange_service_acme")

    def with_ports(self, text: str) -> str:
        for shown, port in self.ports.items():
            text = text.replace(shown, port)
        return text

    def fits(self, shown: str, printed: str) -> bool:
        """Whether a program prints what the page shows: "..." stands for any lines, "#" for numbers and times."""
        here = shape(printed.replace(str(self.home), "/home/you"))
        parts = [r"(?:.*\n)*?" if line == "..." else re.escape(shape(f"{line}\n")) for line in shown.splitlines()]
        return re.fullmatch("".join(parts), here) is not None

    def leave(self) -> None:
        for process in self.beside:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=30)


def shape(text: str) -> str:
    """Lines without what differs from run to run: numbers, times, ports, progress and blanks."""
    lines = [re.sub(r"\s+", " ", re.sub(r"[\d.:-]+", "#", line)).strip() for line in text.splitlines()]
    return "".join(f"{line}\n" for line in lines)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.leave()


def test_a_reader_gets_from_nothing_to_a_published_venue(reader: Reader) -> None:
    for step in tutorial():
        reader.follow(step)
    assert (reader.folder / "dist").is_dir()
    assert 'tier = "gold"' in (reader.folder / "quality.toml").read_text()


def test_every_block_of_the_tutorial_is_followed_or_needs_a_person() -> None:
    steps = tutorial()
    assert len(steps) > 15
    left = [step for step in steps if not step.mark]
    assert all(step.kind == "console" for step in left)
    assert [command for step in left for command, _ in step.commands if not _BY_HAND.match(command)] == []


def test_each_file_of_the_pages_is_named_where_a_reader_sees_it() -> None:
    """A comment that names the file is not shown."""
    for name in ("plugins.md", "plugin-howtos.md"):
        page = (ROOT / "docs" / name).read_text()
        marks = list(re.finditer(r"(.*)\n\n<!-- (?:file|write): (\S+) -->\n", page))
        assert len(marks) >= 6
        assert [mark[2] for mark in marks if mark[1] != f"`{mark[2]}`:"] == []


def test_what_a_reader_writes_is_in_order(reader: Reader) -> None:
    """The page's files and changes keep the template's linter and formatter quiet; mypy is asked by `plugins check`."""
    for step in tutorial():
        if step.mark in ("write", "patch") or step.text.startswith("$ exchange-service plugins new"):
            reader.follow(step)
    for command in ("ruff check .", "ruff format --check ."):
        reader.run(f"python -m {command}", "...")


def test_a_simulator_says_in_a_sentence_that_its_port_is_taken() -> None:
    name = "exchange_service_oanda.simulator:OandaSimulator"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "exchange_service.testing", name, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"OandaSimulator cannot listen on port {port}: .*\. Choose another one, or leave it out\.\n", done.stderr
    )
