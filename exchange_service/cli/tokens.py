"""The commands that make, list and revoke service tokens. A token's text is shown once, when it is made."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from exchange_service.cli import tables
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, echo, fail, messages, plain, run
from exchange_service.settings import ENVIRONMENT_PREFIX, Settings

if TYPE_CHECKING:
    # Imports the database, which other commands do not need.
    from exchange_service.identity.token_store import TokenStore
    from exchange_service.identity.tokens import StoredToken

app = typer.Typer(help="Make, list and revoke the tokens with which services call.", no_args_is_help=True)

_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


@app.command()
@with_settings("database_url", "service_tokens")
def create(
    settings: Settings,
    name: Annotated[str, typer.Option(help="What the token is for; it distinguishes the token in the list.")],
    user: Annotated[
        list[str] | None, typer.Option("--user", "-u", help="A user that the token may read; can be repeated.")
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="The token may read every user.")] = False,
    act_as: Annotated[
        bool,
        typer.Option(
            "--act-as",
            help="The token may read any user, whom each call names in the metadata x-act-as.",
        ),
    ] = False,
    expires: Annotated[str, typer.Option(help="The lifetime, such as 12h, 90d or 26w. Default: unlimited.")] = "",
) -> None:
    """Make a token, and print it once. Its holder sends `authorization: Bearer TOKEN` with each call, or sets
    EXCHANGE_SERVICE_TOKEN for this command line."""
    from exchange_service.identity import scope_from
    from exchange_service.identity.tokens import new_token

    if (bool(user) + all_users + act_as) != 1:
        fail("say which users the token may read, by exactly one of --user, --all-users and --act-as", ExitCode.USAGE)
    if not name.strip() or not name.isprintable():
        fail("--name should be a printable text", ExitCode.USAGE)
    try:
        scope = scope_from("*" if all_users else "act-as" if act_as else list(user or ()))
    except ValueError:
        fail("a --user is not an id that a call could name", ExitCode.USAGE)
    token, stored = new_token(name, scope, lifetime=_parse_lifetime(expires) if expires else None)

    async def add(store: TokenStore) -> None:
        await store.add(stored)

    run(_with_tokens(settings, add))
    echo(token)
    until = f"until {_format_time(stored.expires)}" if stored.expires is not None else "until it is revoked"
    messages.print(
        f"The token {stored.id} ({plain(name)}) reads {plain(scope.describe())}, {until}. It is not shown again.",
        soft_wrap=True,
    )
    if not settings.service_tokens:
        messages.print("[yellow]note:[/] the service accepts tokens once service_tokens=true is set.", soft_wrap=True)


def _parse_lifetime(lifetime: str) -> int:
    match = _LIFETIME.fullmatch(lifetime.strip())
    if match is None:
        fail("--expires should be a number of hours, days or weeks, such as 12h, 90d or 26w", ExitCode.USAGE)
    return int(match[1]) * _SECONDS[match[2]]


def _format_time(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


@app.command("list")
@with_settings("database_url")
def list_tokens(
    settings: Settings,
    output: Annotated[Output, typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT")] = Output.TABLE,
) -> None:
    """List the tokens with the users that they may read; never the tokens themselves."""

    async def show(store: TokenStore) -> None:
        tokens = await store.all()
        tables.print_list([_as_dict(token) for token in tokens], output, lambda: _make_table(tokens))

    run(_with_tokens(settings, show), output)


def _make_table(tokens: Sequence[StoredToken]) -> Table:
    table = Table("id", "name", "reads", "created", "expires", "revoked", box=None, pad_edge=False)
    for token in tokens:
        times = (_format_time(token.created), _format_time(token.expires) or "never", _format_time(token.revoked))
        table.add_row(token.id, plain(token.name), plain(token.scope.describe()), *times)
    return table


def _as_dict(token: StoredToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scope": token.scope.as_value(),
        "created": _format_time(token.created),
        "expires": _format_time(token.expires) or None,
        "revoked": _format_time(token.revoked) or None,
    }


@app.command()
@with_settings("database_url")
def revoke(
    settings: Settings,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `tokens list` shows it.")],
) -> None:
    """Revoke a token. It stops working everywhere within 30 seconds, and its open streams end."""

    async def revoke_token(store: TokenStore) -> None:
        if not await store.revoke(token_id):
            # Not repeated: it may be a whole token instead of its id.
            fail("there is no token with this id that is not revoked yet", ExitCode.MISSING)
        messages.print(f"Revoked the token {plain(token_id)}.", soft_wrap=True)

    run(_with_tokens(settings, revoke_token))


async def _with_tokens(settings: Settings, work: Callable[[TokenStore], Awaitable[None]]) -> None:
    from exchange_service.identity.token_store import TokenStore

    store = TokenStore(settings.database_url)
    try:
        await work(store)
    finally:
        await store.close()
