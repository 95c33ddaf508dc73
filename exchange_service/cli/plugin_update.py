"""`plugins update`: later versions of the template in a plugin's project."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from exchange_service.cli.outcome import ExitCode, console, fail, messages, plain


def update(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The project's folder.", show_default=False)] = Path(),
    defaults: Annotated[bool, typer.Option("--defaults", help="Ask nothing.", show_default=False)] = False,
) -> None:
    """Bring the newest version of the template into a project that `plugins new` made. Your own changes stay.

    The project has to be in git, without uncommitted changes. Nothing is committed. Exit code 4 if both sides changed
    the same lines.
    """
    from exchange_service.authoring.updating import NotUpdated, update_project

    try:
        done = update_project(folder, ask=sys.stdin.isatty() and not defaults)
    except NotUpdated as error:
        fail(str(error), ExitCode.USAGE)
    if done.before == done.after:
        console.print(f"The project has version {done.after} of the template, which is the newest.")
        return
    console.print(f"Version {done.after} of the template is in, where version {done.before} was. Look at `git diff`.")
    if done.conflicts:
        messages.print(
            "[yellow]You and the template changed the same lines of the files below. Both stand there, between <<<<<<< "
            "and >>>>>>>: keep what is right, then `git add` the files.[/]",
            soft_wrap=True,
        )
        for name in done.conflicts:
            messages.print(f"  {plain(name)}", soft_wrap=True)
        raise typer.Exit(ExitCode.ACT)
