"""The command line: `exchange-service`. Each group of commands has a module of its own."""

from __future__ import annotations

import os

# gRPC's own lines on standard error repeat our error messages; it reads this variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Nor does it need handlers for a fork: every process that we start runs another program at once. Under uvloop,
# which uses fork and not vfork, they crash one in fifty of these processes before that program begins.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import typer

from exchange_service.cli import calls, credential_check_command, credentials, keys, operate, plugins, sealing, tokens
from exchange_service.cli.outcome import use_any_encoding
from exchange_service.cli.runtime import end_at_sigterm
from exchange_service.observability.logs import configure_logging
from exchange_service.process_secrecy import hide_process

app = typer.Typer(
    name="exchange-service",
    help="List exchanges and brokers, read balances there, and follow them live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Panels cut the names of environment variables at the width of a terminal.
    rich_markup_mode=None,
    epilog="Exit codes: 0 success, 1 bug, 2 wrong usage, 3 unknown or missing, 4 a person must act, 5 try again later.",
)
calls.add_to(app)
operate.add_to(app)
plugins.add_to(app)
for command in (credential_check_command.check, sealing.seal, sealing.unseal, sealing.rewrap):
    credentials.app.command()(command)
app.add_typer(credentials.app, name="credentials")
app.add_typer(keys.app, name="keys")
app.add_typer(tokens.app, name="tokens")


def _version(wanted: bool) -> None:
    if wanted:
        calls.version()
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """List exchanges and brokers, read balances there, and follow them live."""


def main() -> None:
    """Run the command line."""
    end_at_sigterm()
    hide_process()
    use_any_encoding()
    configure_logging()
    app()
