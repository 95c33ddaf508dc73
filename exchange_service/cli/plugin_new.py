"""`plugins new`: the project of a plugin, from the template."""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from exchange_service.cli.outcome import ExitCode, console, fail, messages, plain


class Flavour(StrEnum):
    """How the venue knows whose account it is asked for."""

    TOKEN = "token"  # noqa: S105
    SIGNED = "signed"
    OAUTH = "oauth"
    WALLET = "wallet"
    PUSH = "push"


class Licence(StrEnum):
    """The licence of the plugin."""

    MIT = "MIT"
    APACHE = "Apache-2.0"
    BSD = "BSD-3-Clause"
    PROPRIETARY = "Proprietary"


def _option(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, show_default=False)


def new(
    name: Annotated[str, typer.Argument(help="The exchange's id, such as acme.")],
    into: Annotated[Path | None, _option("The folder; it is made. Default: exchange-service-NAME.")] = None,
    flavour: Annotated[
        Flavour | None,
        _option("A token; a signed query; OAuth; a wallet's address; a token and a WebSocket that pushes."),
    ] = None,
    title: Annotated[str | None, _option("The exchange's name as users know it.")] = None,
    asset_class: Annotated[
        str | None, _option("Crypto, Forex, Stocks, Options, Futures or Multi-Asset.", "--asset-class")
    ] = None,
    website: Annotated[str | None, _option("The page of the venue's interface for programs.")] = None,
    author: Annotated[str | None, _option("Who holds the copyright. Default: git's user.name.")] = None,
    licence: Annotated[Licence | None, _option("The licence of the plugin.")] = None,
    defaults: Annotated[bool, _option("Ask nothing.", "--defaults")] = False,
    force: Annotated[bool, _option("Go on if an installed plugin has the id already.", "--force")] = False,
) -> None:
    """Write the project of a new plugin: package, simulator, tests, CI file and README, all of it green.

    On a terminal it asks for what is not given. `exchange-service plugins update` brings later versions of the template
    into the project.
    """
    from exchange_service.authoring.new import NotCreated, create_project

    given = {
        "flavour": flavour and flavour.value,
        "title": title,
        "asset_class": asset_class,
        "website": website,
        "author": author,
        "licence": licence and licence.value,
    }
    answers = {key: value for key, value in given.items() if value is not None}
    try:
        made = create_project(name, into, answers, ask=sys.stdin.isatty() and not defaults, force=force)
    except NotCreated as error:
        fail(str(error), ExitCode.USAGE)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for note in made.notes:
        messages.print(f"[yellow]note:[/] {plain(note)}", soft_wrap=True)
    shown = os.path.relpath(made.folder)
    console.print(f"Wrote {plain(shown)}. Go on with:", soft_wrap=True)
    for command in (f"cd {shlex.quote(shown)}", "pip install --editable '.[test]'", "pytest"):
        console.print(f"  {plain(command)}", soft_wrap=True)
