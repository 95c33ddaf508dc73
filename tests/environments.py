"""Virtual environments for plugins, made within a second: their modules are found by a file of paths."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from pathlib import Path

from exchange_service import __version__

ROOT = Path(__file__).parent.parent
# Where the libraries are that this process uses.
LIBRARIES = Path(sysconfig.get_path("purelib"))


class PluginEnvironment:
    """A virtual environment below `folder`; `python` is its interpreter, `site` a folder for plugins."""

    def __init__(self, folder: Path, *modules: Path) -> None:
        venv.create(folder / "venv", symlinks=True)
        self.site = folder / "site"
        self.site.mkdir()
        below = folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (below / "modules.pth").write_text("\n".join(map(str, (self.site, *modules))))
        self.python = str(folder / "venv" / "bin" / "python")

    @classmethod
    def with_library(cls, folder: Path) -> PluginEnvironment:
        """One with this revision of exchange-service-plugin and no plugin."""
        libraries = folder / "libraries"
        libraries.mkdir(parents=True)
        environment = cls(folder, libraries, ROOT)
        _link_libraries(libraries)
        environment.record_library(libraries)
        return environment

    @classmethod
    def with_copied_library(cls, folder: Path, version: str = __version__) -> PluginEnvironment:
        """One whose exchange-service-plugin is a copy, at `site`, that a test may change."""
        libraries = folder / "libraries"
        libraries.mkdir(parents=True)
        environment = cls(folder, libraries)
        _link_libraries(libraries)
        ignored = shutil.ignore_patterns("__pycache__", "console", "cli", "testing")
        shutil.copytree(ROOT / "exchange_service", environment.site / "exchange_service", ignore=ignored)
        environment.record_library(environment.site, version)
        return environment

    def record_library(self, folder: Path, version: str = __version__) -> None:
        """Write the record of exchange-service-plugin, as pip does."""
        record = folder / f"exchange_service_plugin-{version}.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: exchange-service-plugin\nVersion: {version}\n")

    def set_protocol(self, protocol: int) -> None:
        """Let the copied library speak another protocol."""
        path = self.site / "exchange_service" / "plugin_host" / "protocol.py"
        text = path.read_text()
        line = next(line for line in text.splitlines() if line.startswith("PROTOCOL = "))
        path.write_text(text.replace(line, f"PROTOCOL = {protocol}"))


def _link_libraries(folder: Path) -> None:
    """Everything that is installed here but this project's own distributions."""
    for path in LIBRARIES.iterdir():
        if not path.name.startswith(("exchange_service", "_exchange_service", "_editable", "__")):
            _link(path, folder / path.name)


def _link(path: Path, link: Path) -> None:
    """A link, or a folder of links for a namespace: its own folder is searched for packages."""
    if path.is_dir() and path.name.isidentifier() and not (path / "__init__.py").exists():
        link.mkdir()
        for below in path.iterdir():
            _link(below, link / below.name)
    else:
        link.symlink_to(path)


def interpreter_of(environment: PluginEnvironment, *names: str) -> dict[str, str]:
    """The setting plugin_interpreters for these plugins."""
    return dict.fromkeys(names or ("guest",), environment.python)
