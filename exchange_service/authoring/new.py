"""A new plugin's project from the template in this package, and later versions of the template for an older one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exchange_service.venues.registry import load_registry

# Each released version of the template has a folder, v1, v2 and so on.
TEMPLATES = Path(__file__).parent / "template"
# One that the names of a distribution and of a package can hold too: it does not end with a separator.
_ID = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?\Z")

# Characters of a folder's path in a sentence.
_LONGEST_SHOWN = 200


class NotCreated(Exception):
    """There is no new project; the text is a sentence for the author."""


@dataclass(frozen=True, slots=True)
class NewProject:
    """A project that was rendered: its folder, and what its author should know of the id."""

    folder: Path
    notes: tuple[str, ...] = ()


def newest_version(templates: Path = TEMPLATES) -> int:
    """The number of the newest version of the template."""
    return max(int(folder.name.removeprefix("v")) for folder in templates.glob("v[0-9]*"))


def create_project(
    name: str, into: Path | None, answers: Mapping[str, Any], *, ask: bool = False, force: bool = False
) -> NewProject:
    """Render the template for the exchange `name` into a new folder: `into`, or exchange-service-NAME here.

    `answers` are answers to questions of the template's copier.yml. The others are asked for at the terminal if `ask`
    says so, otherwise they have their defaults. Raises NotCreated for a wrong id or answer, for an id of an installed
    custom plugin unless `force` is set, for a folder that is not empty, and if Copier is missing.
    """
    require_id(name)
    folder = (into or Path(f"exchange-service-{name}")).resolve()
    _require_empty(folder)
    notes = _find_claims(name, force=force)
    require_copier()
    from copier import run_copy
    from copier.errors import CopierError

    try:
        run_copy(
            str(TEMPLATES / f"v{newest_version()}"),
            folder,
            data={"name": name, **answers},
            defaults=not ask,
            user_defaults=_guess_author(),
            quiet=True,
        )
    except KeyboardInterrupt:
        # At a question; Copier's is one of its errors as well.
        raise
    except (CopierError, ValueError) as error:
        raise NotCreated(f"No project was made: {_describe(error)}") from None
    except OSError as error:
        raise _not_written(folder, error) from None
    return NewProject(folder, notes)


def require_id(name: str) -> None:
    """Raise NotCreated if `name` cannot be the id of an exchange and the name of its plugin."""
    if not _ID.match(name):
        raise NotCreated(
            f"{name[:64]!r} cannot be an exchange's id: write 1 to 64 lower case letters, digits, '_' and '-', "
            "with a letter or digit first and last, such as acme or acme-futures."
        )


def _not_written(folder: Path, error: OSError) -> NotCreated:
    reason = error.strerror or type(error).__name__
    shown = str(folder) if len(str(folder)) <= _LONGEST_SHOWN else f"{str(folder)[:_LONGEST_SHOWN]}..."
    return NotCreated(f"No project was made: {shown} cannot be written ({reason}). Name another folder by --into.")


def _require_empty(folder: Path) -> None:
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        # Before Copier begins, which could not clean up after itself there.
        above = next(parent for parent in folder.parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "it is not in a folder that you may write in")
    except OSError as error:
        raise _not_written(folder, error) from None
    if taken:
        raise NotCreated(
            f"{folder} exists and is not an empty folder, so nothing was written. Name another one by --into."
        )


def _find_claims(name: str, *, force: bool) -> tuple[str, ...]:
    """What to know of the installed plugins that list this id already."""
    notes = []
    for plugin in load_registry().plugins:
        claimed = next((listed for listed in plugin.manifest.exchanges if listed.id == name), None)
        if claimed is None and plugin.info.name != name:
            continue
        if claimed is not None and claimed.is_ccxt:
            notes.append(
                f"CCXT's plugin lists {name} too. A custom plugin wins over CCXT, so yours serves {name} once it is "
                "installed, and this is announced at each start. The operator can choose with exchange_plugins."
            )
        elif not force:
            raise NotCreated(
                f"The installed plugin {plugin.info.name} ({plugin.info.distribution}) has the id {name} already: of "
                "two custom plugins only one is served. Take another id, or go on with --force."
            )
        else:
            notes.append(
                f"The plugin {plugin.info.name} ({plugin.info.distribution}) has the id {name} already. Only one of "
                "the two is served; the operator can choose with exchange_plugins."
            )
    return tuple(notes)


def require_copier() -> None:
    """Raise NotCreated if Copier is not installed."""
    if find_spec("copier") is None:
        raise NotCreated(
            "Copier is not installed, which renders the template. Install it with "
            "`pip install 'exchange-service[authoring]'`."
        )


def _guess_author() -> dict[str, str]:
    """The default for the author's name: the one that git knows."""
    git = shutil.which("git")
    if git is None:
        return {}
    # The command is ours and takes nothing from outside.
    done = subprocess.run([git, "config", "user.name"], capture_output=True, text=True, check=False)  # noqa: S603
    name = done.stdout.strip()
    return {"author": name} if name and name.isprintable() and not re.search(r'["\\{}<>]', name) else {}


def _describe(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text if text.endswith(".") else f"{text}."
