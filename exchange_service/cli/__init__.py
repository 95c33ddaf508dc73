"""The command line: `exchange-service`. Each group of commands has a module of its own, which is imported when one of
them is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

# gRPC's own lines on standard error repeat our error messages; it reads this variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Nor does it need handlers for a fork: every process that is started runs another program at once. If a plugin lets
# uvloop start one, which uses fork and not vfork, they crash one in fifty before that program begins.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import typer

from exchange_service import __version__
from exchange_service.cli.encoding import use_any_encoding
from exchange_service.cli.runtime import end_at_sigterm
from exchange_service.gc_tuning import uncollected
from exchange_service.observability.logs import configure_logging, listen_to_libraries
from exchange_service.process_secrecy import hide_process


def _calls(app: typer.Typer) -> None:
    from exchange_service.cli import calls

    calls.add_to(app)


def _watch(app: typer.Typer) -> None:
    from exchange_service.cli import watch

    watch.add_to(app)


def _mcp(app: typer.Typer) -> None:
    from exchange_service.cli import mcp

    mcp.add_to(app)


def _health(app: typer.Typer) -> None:
    from exchange_service.cli import health

    health.add_to(app)


def _version(app: typer.Typer) -> None:
    app.command(name="version")(print_version)


def _operate(app: typer.Typer) -> None:
    from exchange_service.cli import operate

    operate.add_to(app)


def _plugins(app: typer.Typer) -> None:
    from exchange_service.cli import plugins

    plugins.add_to(app)


def _credentials(app: typer.Typer) -> None:
    from exchange_service.cli import credential_check_command, credentials, sealing

    for command in (credential_check_command.check, sealing.seal, sealing.unseal, sealing.rewrap):
        credentials.app.command()(command)
    app.add_typer(credentials.app, name="credentials")


def _keys(app: typer.Typer) -> None:
    from exchange_service.cli import keys

    app.add_typer(keys.app, name="keys")


def _tokens(app: typer.Typer) -> None:
    from exchange_service.cli import tokens

    app.add_typer(tokens.app, name="tokens")


def _monitoring(app: typer.Typer) -> None:
    from exchange_service.cli import monitoring

    app.add_typer(monitoring.app, name="operate")


# In the order of the help. What adds commands imports the module with them.
_COMMANDS: dict[str, Callable[[typer.Typer], None]] = {
    **dict.fromkeys(("exchanges", "balance"), _calls),
    "watch": _watch,
    "mcp": _mcp,
    "health": _health,
    "version": _version,
    **dict.fromkeys(("serve", "demo", "doctor"), _operate),
    "operate": _monitoring,
    "plugins": _plugins,
    "credentials": _credentials,
    "keys": _keys,
    "tokens": _tokens,
}
# The commands that run no part of the service, and so write no log lines of ours.
_LOGLESS = frozenset(
    name for name, add in _COMMANDS.items() if add in (_calls, _watch, _mcp, _health, _monitoring, _version)
)
# Panels cut the names of environment variables at the width of a terminal.
_PLAIN: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}


@cache
def _added_by(add: Callable[[typer.Typer], None]) -> Mapping[str, Any]:
    """Commands by their names; they are imported now."""
    app = typer.Typer(**_PLAIN)
    with uncollected():
        add(app)
        return typer.main.get_group(app).commands


class _Imported(Mapping[str, Any]):
    """All commands by their names. One that is looked up is imported, with its own libraries and no others."""

    def __getitem__(self, name: str) -> Any:
        add = _COMMANDS[name]
        try:
            return _added_by(add)[name]
        except KeyError as error:
            # As it is, it would say that there is no such command.
            raise RuntimeError(f"the command {name} cannot be imported") from error

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Commands(typer.core.TyperGroup):
    """The commands, of which a call imports one: imports take most of its time."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes | {"commands": _Imported()})

    def list_commands(self, _context: Any) -> list[str]:
        """Their names, without importing them."""
        return list(self.commands)


app = typer.Typer(
    name="exchange-service",
    cls=_Commands,
    help="List exchanges and brokers, read balances there, and follow them live.",
    no_args_is_help=True,
    epilog="Exit codes: 0 success, 1 bug, 2 wrong usage, 3 unknown or missing, 4 a person must act, 5 try again later.",
    **_PLAIN,
)


def print_version() -> None:
    """Print the version."""
    typer.echo(f"exchange-service {__version__}")


def _print_version_and_exit(wanted: bool) -> None:
    if wanted:
        print_version()
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_print_version_and_exit, is_eager=True, help="Print the version."
    ),
) -> None:
    """List exchanges and brokers, read balances there, and follow them live."""
    # In a process of our own; see `main`.
    if context.obj is not None and context.invoked_subcommand not in _LOGLESS:
        context.obj()


def main() -> None:
    """Run the command line."""
    end_at_sigterm()
    hide_process()
    use_any_encoding()
    listen_to_libraries()
    app(obj=configure_logging)
