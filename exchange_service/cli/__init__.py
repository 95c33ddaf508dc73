"""The command line: `exchange-service`. Each group of commands stands in a module of its own."""

from __future__ import annotations

import typer

from exchange_service.cli import calls, credentials, operate
from exchange_service.logs import configure_logging

app = typer.Typer(
    name="exchange-service",
    help="List exchanges and brokers, read balances there, and follow them live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 well, 1 a bug, 2 wrong usage, 3 unknown or missing, 4 a person must act, 5 try again later.",
)
calls.add_to(app)
operate.add_to(app)
app.add_typer(credentials.app, name="credentials")


def main() -> None:
    """Run the command line."""
    configure_logging()
    app()
