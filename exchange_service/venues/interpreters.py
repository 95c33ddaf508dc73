"""The interpreter of a plugin that runs in another virtual environment than the service."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python and its environment, as it described itself when the service began.

    `command` is its path, as the operator gave it: by this path it finds its environment. `python` is Python's version.
    `libraries` are distributions that the plugin needs, with their versions there: "exchange-service-plugin 0.1.0"
    first. `prefixes` and `base_prefixes` are the folders of the environment and of the Python below it, `modules` the
    folders in which it looks for modules, `projects` those of distributions that are installed in place,
    `certificates` the file and the folder of certificates that its OpenSSL trusts.
    """

    command: str
    python: str
    libraries: tuple[str, ...]
    prefixes: tuple[str, ...]
    base_prefixes: tuple[str, ...]
    modules: tuple[str, ...]
    projects: tuple[str, ...]
    certificates: tuple[str, ...]

    @property
    def described(self) -> str:
        """Its versions, for operators: "Python 3.12.4, exchange-service-plugin 0.1.0, ccxt 4.5.90"."""
        return ", ".join((f"Python {self.python}", *self.libraries))
