"""The documents tell the truth: their examples run, and what is generated is current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)```\n", re.DOTALL)


def write_documented_plugin(folder: Path) -> None:
    """The files of docs/plugins.md, as a reader would type them."""
    for match in _FILE.finditer((ROOT / "docs" / "plugins.md").read_text()):
        path = folder / match["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(match["text"])


def test_the_documented_plugin_passes_the_contract_suite(tmp_path: Path) -> None:
    write_documented_plugin(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "tests"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert re.search(r"\d\d+ passed", done.stdout)


def test_the_documented_plugin_is_about_thirty_lines() -> None:
    files = {match["name"]: match["text"] for match in _FILE.finditer((ROOT / "docs" / "plugins.md").read_text())}
    code = [line for line in files["exchange_service_acme/__init__.py"].splitlines() if line.strip()]
    assert len(code) <= 36


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name
)
def test_every_link_to_a_file_of_the_project_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
