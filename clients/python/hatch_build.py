"""Takes the files of this distribution from the one source tree, exchange_service/ of the project's folder.

In a source distribution they stand beside this file. An installation in place finds the tree by `dev-mode-dirs`.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "exchange_service"


class FilesOfTheTree(BuildHookInterface[Any]):
    """Adds the files and folders of the list `files` in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatchling calls this before it builds a wheel or a source distribution."""
        if version == "editable":
            return
        beside = Path(self.root) / PACKAGE
        tree = beside if beside.is_dir() else Path(self.root).parent.parent / PACKAGE
        for name in self.config["files"]:
            if not (tree / name).exists():
                raise FileNotFoundError(f"{tree / name}, which `files` in pyproject.toml names, does not exist.")
            build_data["force_include"][str(tree / name)] = f"{PACKAGE}/{name}"
