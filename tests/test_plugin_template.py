"""`plugins new`: what it renders is green from the first moment, and what it refuses is told in a sentence."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from exchange_service.authoring.new import TEMPLATES, newest_version
from exchange_service.authoring.updating import SOURCE, NotUpdated, Update, update_project
from exchange_service.cli import app

# A project's checks start several interpreters, and a busy machine is slow.
pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

FLAVOURS = ("token", "signed", "oauth", "wallet", "push")


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


# What `plugins check` says of a project whose tests have run and whose types are right.
JUDGE = """
import asyncio, json, sys
from pathlib import Path
from exchange_service.authoring.evidence import TypeCheck, gather_evidence
from exchange_service.authoring.quality import judge
from exchange_service.authoring.quality_file import read_statements
from exchange_service.authoring.suite_results import read_record
from exchange_service.testing.projects import find_project

evidence = asyncio.run(gather_evidence(find_project("."), read_record(Path(sys.argv[1])), TypeCheck(True)))
report = judge(evidence, read_statements(Path("quality.toml")))
lacking = [found.rule.name for found in report.findings if found.status == "todo"]
print(json.dumps({"tier": report.tier, "lacking": lacking, "unproven": report.unproven}))
"""


def judge_project(folder: Path, record: Path) -> dict[str, Any]:
    """The report on a rendered project, in a process of its own, because all of them have the same name."""
    arguments = [sys.executable, "-c", JUDGE, str(record)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    judged: dict[str, Any] = json.loads(done.stdout)
    return judged


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_flavour_is_green_from_the_first_moment(flavour: str, tmp_path: Path, mypy_cache: Path) -> None:
    new("acme", "--into", tmp_path / "acme", "--flavour", flavour, "--title", "Acme Brokerage", "--defaults")
    run(tmp_path / "acme", "ruff", "check", ".")
    run(tmp_path / "acme", "ruff", "format", "--check", ".")
    run(tmp_path / "acme", "mypy", "--cache-dir", mypy_cache)
    recorded = ("-p", "exchange_service.authoring.recorder", "--exchange-record", tmp_path / "record.json")
    printed = run(tmp_path / "acme", "pytest", "-p", "no:cacheprovider", "-q", "-W", "error", *recorded)
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 65
    assert not re.search(r"skipped|xfailed", printed)
    assert re.search(r"malformed answers: \d+ tried at 1 exchanges, 0 became a false balance", printed)
    report = judge_project(tmp_path / "acme", tmp_path / "record.json")
    # For gold it lacks what its author alone can say, and for platinum the sources of facts, and a push.
    assert report["tier"] == "silver"
    of_gold = ["changelog"] if flavour == "wallet" else ["key_rights", "changelog"]
    assert report["lacking"] == [*of_gold, *([] if flavour == "push" else ["push"]), "sources"]
    assert report["unproven"] >= 9


@pytest.mark.parametrize(("name", "title"), [("1inch", "1inch"), ("acme_futures-europe", "Börse für Futures 😀")])
def test_names_of_any_form_give_code_that_is_in_order(name: str, title: str, tmp_path: Path) -> None:
    for flavour in FLAVOURS:
        answers = ("--flavour", flavour, "--title", title, "--website", "https://acme.example/a", "--defaults")
        new(name, "--into", tmp_path / flavour, *answers)
    run(tmp_path, "ruff", "check", ".")
    run(tmp_path, "ruff", "format", "--check", ".")
    run(tmp_path, "compileall", "-q", ".")


@pytest.mark.parametrize("licence", ["MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary"])
def test_a_licence_is_in_the_metadata_and_in_full(licence: str, tmp_path: Path) -> None:
    new("acme", "--into", tmp_path / "acme", "--licence", licence, "--author", "Jane Roe", "--defaults")
    project = tomllib.loads((tmp_path / "acme" / "pyproject.toml").read_text())["project"]
    text = (tmp_path / "acme" / "LICENSE").read_text()
    assert project["authors"] == [{"name": "Jane Roe"}]
    assert project["license"] == ("LicenseRef-Proprietary" if licence == "Proprietary" else licence)
    assert (project.get("classifiers") == ["Private :: Do Not Upload"]) == (licence == "Proprietary")
    assert "Jane Roe" in text or licence == "Apache-2.0"
    assert {"MIT": "MIT License", "Apache-2.0": "Apache License", "BSD-3-Clause": "BSD 3-Clause"}.get(
        licence, ""
    ) in text


def test_the_readme_has_the_answers(tmp_path: Path) -> None:
    printed = new(
        *("acme", "--into", tmp_path / "acme", "--title", "Acme Brokerage", "--website", "https://acme.example/api"),
        *("--asset-class", "Crypto", "--defaults"),
    )
    readme = (tmp_path / "acme" / "README.md").read_text()
    assert "the Acme Brokerage plugin" in readme
    assert "<https://acme.example/api>" in readme
    assert "`spot`" in readme
    assert "pip install --editable '.[test]' pytest" in printed


class TestRefusals:
    @pytest.mark.parametrize("name", ["Acme", "_acme", "acme-", "ac me", "", "a" * 65, "../acme"])
    def test_a_wrong_id_is_told_what_an_id_may_be(self, name: str, tmp_path: Path) -> None:
        printed = new("--into", tmp_path / "made", "--defaults", "--", name, code=2)
        assert "1 to 64 lower case letters, digits" in printed
        assert not (tmp_path / "made").exists()

    def test_a_folder_that_holds_something_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        assert "not an empty folder" in new("acme", "--into", tmp_path, code=2)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("place", ["file/acme", "x" * 300])
    def test_a_folder_that_cannot_be_written_is_told(self, place: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        printed = new("acme", "--into", tmp_path / place, "--defaults", code=2)
        assert re.search(r"cannot be written\s\(.*\).\s*Name another folder by --into", printed, re.DOTALL)

    def test_an_id_of_an_installed_plugin_needs_force(self, tmp_path: Path) -> None:
        assert "exchange-service-oanda" in new("oanda", "--into", tmp_path / "made", "--defaults", code=2)
        assert not (tmp_path / "made").exists()
        assert "Only one of the two is served" in new("oanda", "--into", tmp_path / "made", "--defaults", "--force")
        assert (tmp_path / "made" / "exchange_service_oanda" / "parse.py").exists()

    def test_of_an_id_of_ccxt_it_says_who_will_serve_it(self, tmp_path: Path) -> None:
        printed = new("kraken", "--into", tmp_path / "made", "--defaults")
        assert "A custom plugin wins over CCXT, so yours serves kraken" in printed

    @pytest.mark.parametrize(
        "answer",
        [
            ("--title", 'Ac"me'),
            ("--title", " "),
            ("--author", "{{ x }}"),
            ("--website", "http://acme.example"),
            ("--asset-class", "Shares"),
        ],
    )
    def test_a_wrong_answer_is_told_and_nothing_is_left(self, answer: tuple[str, str], tmp_path: Path) -> None:
        printed = new("acme", "--into", tmp_path / "made", "--defaults", *answer, code=2)
        assert answer[0].removeprefix("--").replace("-", "_") in printed
        assert not (tmp_path / "made").exists()

    def test_without_copier_there_is_the_command_that_installs_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "copier", None)
        printed = new("acme", "--into", tmp_path / "made", "--defaults", code=2)
        assert "pip install 'exchange-service[authoring]'" in printed


class Project:
    """A rendered project in a git repository, and a folder of templates in which there is a later version."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.templates = folder / "acme", folder / "templates"
        new("acme", "--into", self.folder, "--defaults")
        shutil.copytree(TEMPLATES, self.templates)
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> str:
        named = ["-c", "user.name=An Author", "-c", "user.email=author@acme.example"]
        done = subprocess.run(
            ["git", *named, *arguments], cwd=self.folder, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Work")

    def edit(self, name: str, old: str, new: str) -> None:
        change(self.folder / name, old, new)

    def release(self, name: str, old: str, new: str) -> None:
        """A version 2 of the template, in which one of its files differs."""
        second = self.templates / "v2"
        shutil.copytree(self.templates / f"v{newest_version()}", second)
        change(next((second / "project").glob("*answers*")), "_commit: v1", "_commit: v2")
        change(second / "project" / name, old, new)

    def update(self) -> Update:
        return update_project(self.folder, templates=self.templates)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


class TestUpdate:
    def test_a_later_version_comes_in_and_the_authors_own_edits_stay(self, project: Project) -> None:
        project.edit("exchange_service_acme/client.py", "/v1/balance", "/v7/holdings")
        project.edit(".github/workflows/test.yml", "ubuntu-latest", "our-own-runner")
        (project.folder / "CHANGELOG.md").unlink()
        project.commit()
        project.release(".github/workflows/test.yml.jinja", '"3.13"', '"3.14"')
        assert project.update() == Update(1, 2)
        workflow = (project.folder / ".github/workflows/test.yml").read_text()
        assert '"3.14"' in workflow
        assert "our-own-runner" in workflow
        assert "/v7/holdings" in (project.folder / "exchange_service_acme/client.py").read_text()
        assert not (project.folder / "CHANGELOG.md").exists()
        assert project.git("status", "--porcelain").split() == [
            *("M", ".copier-answers.yml", "M", ".github/workflows/test.yml")
        ]
        project.commit()
        assert project.update() == Update(2, 2)

    def test_the_report_and_its_statements_are_left_to_the_author(self, project: Project) -> None:
        project.edit("quality.toml", "TODO: is it so at your venue? A token", "A token")
        project.commit()
        project.release("quality.toml.jinja", "TODO: is it so at your venue? ", "TODO: is that so? ")
        assert project.update() == Update(1, 2)
        assert 'comment = "A token' in (project.folder / "quality.toml").read_text()

    def test_lines_that_both_have_changed_are_shown_as_a_conflict(self, project: Project) -> None:
        project.edit(".github/workflows/test.yml", "timeout-minutes: 15", "timeout-minutes: 60")
        project.commit()
        project.release(".github/workflows/test.yml.jinja", "timeout-minutes: 15", "timeout-minutes: 20")
        assert project.update().conflicts == (".github/workflows/test.yml",)
        workflow = (project.folder / ".github/workflows/test.yml").read_text()
        assert re.search(r"<<<<<<<.*: 60\n=======\n.*: 20\n>>>>>>>", workflow, re.DOTALL)

    def test_no_path_of_this_machine_stands_in_the_project(self, project: Project, tmp_path: Path) -> None:
        project.release("README.md.jinja", "For developers", "For programmers")
        for _ in range(2):
            texts = [
                path.read_text() for path in project.folder.rglob("*") if path.is_file() and ".git/" not in f"{path}"
            ]
            assert not [text for text in texts if str(tmp_path) in text or str(TEMPLATES) in text]
            project.update()

    def test_changes_that_are_not_committed_are_left_alone(self, project: Project) -> None:
        project.release("README.md.jinja", "For developers", "For programmers")
        project.edit("README.md", "For developers", "For us")
        with pytest.raises(NotUpdated, match="not committed"):
            project.update()
        assert "For us" in (project.folder / "README.md").read_text()

    def test_a_folder_outside_of_git_is_told_how_to_begin(self, project: Project) -> None:
        project.release("README.md.jinja", "For developers", "For programmers")
        shutil.rmtree(project.folder / ".git")
        with pytest.raises(NotUpdated, match="git init"):
            project.update()

    def test_without_git_there_is_a_sentence(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(NotUpdated, match="git is not installed"):
            project.update()

    def test_a_project_of_a_later_service_is_not_taken_back(self, project: Project) -> None:
        project.edit(".copier-answers.yml", "_commit: v1", "_commit: v9")
        with pytest.raises(NotUpdated, match=r"version 9 of the template.*Upgrade"):
            project.update()

    @pytest.mark.parametrize("answers", [None, "_src_path: gh:somebody/template\n_commit: v1\n", "name: acme\n"])
    def test_a_project_of_another_template_is_refused(self, project: Project, answers: str | None) -> None:
        (project.folder / ".copier-answers.yml").unlink()
        if answers is not None:
            (project.folder / ".copier-answers.yml").write_text(answers)
        with pytest.raises(NotUpdated, match=r"plugins new"):
            project.update()

    def test_each_version_names_itself_and_the_address_that_an_update_looks_for(self) -> None:
        for version in TEMPLATES.glob("v*"):
            (answers,) = (version / "project").glob("*answers*")
            assert f"_src_path: {SOURCE}\n_commit: {version.name}\n" in answers.read_text()

    def test_the_command_says_that_a_project_is_up_to_date(self, project: Project) -> None:
        done = CliRunner().invoke(app, ["plugins", "update", str(project.folder)])
        assert done.exit_code == 0
        assert "version 1 of the template, which is the newest" in done.output


class TestQuestions:
    """At a real terminal."""

    def ask(self, folder: Path) -> tuple[int, int]:
        """Begin the command; its process and its terminal."""
        arguments = [sys.executable, "-m", "exchange_service", "plugins", "new", "acme", "--flavour", "wallet"]
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(folder)
            os.execv(sys.executable, arguments)
        return child, terminal

    def test_ctrl_c_at_a_question_leaves_nothing_behind(self, tmp_path: Path) -> None:
        child, terminal = self.ask(tmp_path)
        shown = ""
        while "exchange's name" not in shown:
            shown += os.read(terminal, 4096).decode(errors="replace")
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
        os.close(terminal)
        assert list(tmp_path.iterdir()) == []

    def test_what_is_not_given_is_asked_for_and_has_a_default(self, tmp_path: Path) -> None:
        child, terminal = self.ask(tmp_path)
        answers = {
            "exchange's name": "Acme Brokerage",
            "What is traded": "",
            "page of the venue": "",
            "copyright": "Jane",
        }
        shown = ""
        for question, answer in (answers | {"licence of the plugin": "", "Go on with": ""}).items():
            while question not in shown:
                shown += os.read(terminal, 4096).decode(errors="replace")
            # Ctrl-U takes the default away, which stands in the line.
            os.write(terminal, (f"\x15{answer}\r" if answer else "\r").encode())
            shown = shown.partition(question)[2]
        os.waitpid(child, 0)
        os.close(terminal)
        project = tomllib.loads((tmp_path / "exchange-service-acme" / "pyproject.toml").read_text())["project"]
        assert project["authors"] == [{"name": "Jane"}]
        assert project["description"] == "Acme Brokerage for exchange-service."
