"""Brings later versions of the template into a project, without losing what its author has changed.

Copier merges three texts: what the old version rendered, what the new one renders, and what the author made of it. It
takes both versions from a git repository by their tags. The template comes in a wheel, so such a repository is made for
the length of an update. A project's answers name it by an address that exists on no machine, and git is told where it
is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from exchange_service.authoring.new import TEMPLATES, NotCreated, newest_version, require_copier

ANSWERS = ".copier-answers.yml"
# What a project's answers name as the template's address, as the template itself has it.
SOURCE = "https://exchange-service.invalid/plugin-template.git"
_STATED = re.compile(r"^_src_path: (?P<source>\S+)\n_commit: v(?P<version>[0-9]+)$", re.MULTILINE)
# Settings of the author that must not change a repository of ours.
_OWN_REPOSITORY = {
    "user.name": "exchange-service",
    "user.email": "plugin-template@exchange-service.invalid",
    "commit.gpgsign": "false",
    "tag.gpgsign": "false",
    "core.hooksPath": os.devnull,
    "core.autocrlf": "false",
}


class NotUpdated(Exception):
    """The project is as it was; the text is a sentence for the author."""


@dataclass(frozen=True, slots=True)
class Update:
    """From which version of the template to which one, and the files in which both sides changed the same lines."""

    before: int
    after: int
    conflicts: tuple[str, ...] = ()


def update_project(folder: Path, *, ask: bool = False, templates: Path = TEMPLATES) -> Update:
    """Bring the newest version of the template into the project in `folder`, a clean git repository or a part of one.

    Nothing is committed. New questions of the template are asked at the terminal if `ask` says so, otherwise they have
    their defaults. Raises NotUpdated, and changes nothing, if the folder is not such a project.
    """
    git = shutil.which("git")
    if git is None:
        raise NotUpdated(
            "git is not installed, which merges the template's changes with yours. Install it with the system's "
            "package manager, such as `apt-get install git`."
        )
    try:
        require_copier()
    except NotCreated as error:
        raise NotUpdated(str(error)) from None
    before, after = _read_version(folder), newest_version(templates)
    if before > after:
        raise NotUpdated(
            f"The project is of version {before} of the template, and this exchange-service has version {after}. "
            "Upgrade it with `pip install --upgrade 'exchange-service[authoring]'`."
        )
    if before == after:
        return Update(before, after)
    _require_clean(git, folder)
    with TemporaryDirectory(prefix="exchange-service-template-") as place:
        repository = _make_repository(git, Path(place), templates)
        _run_copier(folder, _point_to(repository, Path(place)), ask=ask)
    conflicts = _git(git, folder, "diff", "--name-only", "--diff-filter=U", "--relative")
    return Update(before, after, tuple(dict.fromkeys(conflicts.splitlines())))


def _read_version(folder: Path) -> int:
    """The version of the template that the project has."""
    try:
        stated = _STATED.search((folder / ANSWERS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise NotUpdated(
            f"{folder} has no file {ANSWERS}, so it was not made by `exchange-service plugins new`, or the file was "
            "not committed."
        ) from None
    if stated is None or stated["source"] != SOURCE:
        raise NotUpdated(
            f"{folder / ANSWERS} names another template than that of `exchange-service plugins new`. If it was edited, "
            "take it from an earlier commit; a project of another template is updated by `copier update`."
        )
    return int(stated["version"])


def _require_clean(git: str, folder: Path) -> None:
    try:
        changed = _git(git, folder, "status", "--porcelain", "--", ".")
    except subprocess.CalledProcessError:
        raise NotUpdated(
            f"{folder} is in no git repository, so nothing could show what an update changes. Make one with "
            "`git init && git add --all && git commit -m 'Begin'`."
        ) from None
    if changed:
        raise NotUpdated(f"{folder} has changes that are not committed. Commit them, then update.")


def _make_repository(git: str, place: Path, templates: Path) -> Path:
    """A git repository with a tag for each version of the template."""
    repository = place / "template"
    repository.mkdir()
    _git(git, repository, "init", "--quiet")
    settings = [text for name, value in _OWN_REPOSITORY.items() for text in ("-c", f"{name}={value}")]
    for version in sorted(templates.glob("v[0-9]*"), key=lambda folder: int(folder.name.removeprefix("v"))):
        for old in repository.iterdir():
            if old.name != ".git":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(version, repository, dirs_exist_ok=True)
        _git(git, repository, *settings, "add", "--all", "--force")
        _git(git, repository, *settings, "commit", "--quiet", "--allow-empty", "--message", version.name)
        _git(git, repository, *settings, "tag", version.name)
    return repository


def _point_to(repository: Path, place: Path) -> Mapping[str, str]:
    """The environment in which git finds the template's address in a folder."""
    count = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    return {
        **os.environ,
        "GIT_CONFIG_COUNT": str(count + 1),
        f"GIT_CONFIG_KEY_{count}": f"url.{repository.as_uri()}.insteadOf",
        f"GIT_CONFIG_VALUE_{count}": SOURCE,
        # Copier keeps copies of what it takes for a server's repository.
        "COPIER_CACHE_DIR": str(place / "cache"),
    }


def _run_copier(folder: Path, environment: Mapping[str, str], *, ask: bool) -> None:
    # In a process of its own: Copier reads the environment when it is imported.
    command = [sys.executable, "-m", "copier", "update", "--skip-answered", "--conflict", "inline"]
    command += [] if ask else ["--defaults"]
    # Standard output stays the author's: the questions stand there.
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=dict(environment), stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        last = next(iter(reversed(done.stderr.strip().splitlines())), f"it ended with {done.returncode}")
        raise NotUpdated(f"Copier could not update the project: {last} Look at `git status`.")


def _git(git: str, folder: Path, *arguments: str) -> str:
    """The output of a git command. Raises subprocess.CalledProcessError."""
    command = [git, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()
