"""`plugins new`: what it renders is green from the first moment, and what it refuses is told in a sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exchange_service.cli import app

# A project's checks start several interpreters, and a busy machine is slow.
pytestmark = pytest.mark.timeout(300)

FLAVOURS = ("token", "signed", "wallet", "push")


def new(*arguments: object, code: int = 0) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["plugins", "new", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def run(folder: Path, *command: object) -> str:
    """Run a Python program in a folder; its output, or a failure that shows what it printed."""
    arguments = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_flavour_is_green_from_the_first_moment(flavour: str, tmp_path: Path, mypy_cache: Path) -> None:
    new("acme", "--into", tmp_path / "acme", "--flavour", flavour, "--title", "Acme Brokerage", "--defaults")
    run(tmp_path / "acme", "ruff", "check", ".")
    run(tmp_path / "acme", "ruff", "format", "--check", ".")
    run(tmp_path / "acme", "mypy", "--cache-dir", mypy_cache)
    printed = run(tmp_path / "acme", "pytest", "-p", "no:cacheprovider", "-q", "-W", "error")
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 65
    assert not re.search(r"skipped|xfailed", printed)
    assert re.search(r"malformed answers: \d+ tried at 1 exchanges, 0 became a false balance", printed)
