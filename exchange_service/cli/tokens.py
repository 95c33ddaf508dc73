"""Service tokens: made, listed and revoked. A token's text is shown once, to who makes it, and to nobody again."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from exchange_service.cli import tables
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, console, echo, fail, messages, plain, run
from exchange_service.settings import ENVIRONMENT_PREFIX, Settings

if TYPE_CHECKING:
    # Drags in the database, which other commands do without.
    from exchange_service.identity.token_store import TokenStore
    from exchange_service.identity.tokens import StoredToken

app = typer.Typer(help="Make, list and revoke the tokens by which services call.", no_args_is_help=True)

_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


@app.command()
@with_settings("database_url", "service_tokens")
def create(
    settings: Settings,
    name: Annotated[str, typer.Option(help="What the token is for, to tell it from others.")],
    user: Annotated[
        list[str] | None, typer.Option("--user", "-u", help="A user whom it may read; can be repeated.")
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="It may read every user.")] = False,
    act_as: Annotated[
        bool, typer.Option("--act-as", help="It may read any user, whom each call names in the metadata x-act-as too.")
    ] = False,
    expires: Annotated[str, typer.Option(help="After how long it ends: 12h, 90d or 26w. Default: never.")] = "",
) -> None:
    """Make a token, and print it once. Its holder calls with `authorization: Bearer TOKEN`, or with this command line
    and EXCHANGE_SERVICE_TOKEN."""
    from exchange_service.identity import scope_from
    from exchange_service.identity.tokens import new_token

    if (bool(user) + all_users + act_as) != 1:
        fail("say whom it may read, by --user, --all-users or --act-as, and by one of them", ExitCode.USAGE)
    if not name.strip() or not name.isprintable():
        fail("--name should be a text that can be shown", ExitCode.USAGE)
    try:
        scope = scope_from("*" if all_users else "act-as" if act_as else list(user or ()))
    except ValueError:
        fail("a --user is none that a call could name", ExitCode.USAGE)
    token, stored = new_token(name, scope, lifetime=_seconds(expires) if expires else None)

    async def store_it(store: TokenStore) -> None:
        await store.add(stored)

    run(_with_tokens(settings, store_it))
    echo(token)
    until = f"until {_day(stored.expires)}" if stored.expires is not None else "until it is revoked"
    messages.print(
        f"The token {stored.id} ({plain(name)}) reads {plain(scope.describe())}, {until}. It is not shown again.",
        soft_wrap=True,
    )
    if not settings.service_tokens:
        messages.print("[yellow]note:[/] the service takes tokens once service_tokens=true is set.", soft_wrap=True)


def _seconds(lifetime: str) -> int:
    found = _LIFETIME.fullmatch(lifetime.strip())
    if found is None:
        fail("--expires should be a number of hours, days or weeks, such as 12h, 90d or 26w", ExitCode.USAGE)
    return int(found[1]) * _SECONDS[found[2]]


def _day(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


@app.command("list")
@with_settings("database_url")
def list_tokens(
    settings: Settings,
    output: Annotated[Output, typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT")] = Output.TABLE,
) -> None:
    """List the tokens, with whom they may read; never the tokens themselves."""

    async def show(store: TokenStore) -> None:
        tokens = await store.all()
        if output is Output.JSON:
            tables.print_json([_as_dict(token) for token in tokens])
        elif output is Output.JSONL:
            for token in tokens:
                tables.print_line(_as_dict(token))
        else:
            table = Table("id", "name", "reads", "created", "expires", "revoked", box=None, pad_edge=False)
            for token in tokens:
                times = (_day(token.created), _day(token.expires) or "never", _day(token.revoked))
                table.add_row(token.id, plain(token.name), plain(token.scope.describe()), *times)
            console.print(table)

    run(_with_tokens(settings, show), output)


def _as_dict(token: StoredToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scope": token.scope.as_value(),
        "created": _day(token.created),
        "expires": _day(token.expires) or None,
        "revoked": _day(token.revoked) or None,
    }


@app.command()
@with_settings("database_url")
def revoke(
    settings: Settings, token_id: Annotated[str, typer.Argument(metavar="ID", help="As `tokens list` shows it.")]
) -> None:
    """Make a token worthless, everywhere within 30 seconds; open streams end too."""

    async def revoke_it(store: TokenStore) -> None:
        if not await store.revoke(token_id):
            # Not repeated: it may be a whole token, in the place of its id.
            fail("there is no token with this id that could still be revoked", ExitCode.MISSING)
        messages.print(f"Revoked the token {plain(token_id)}.", soft_wrap=True)

    run(_with_tokens(settings, revoke_it))


async def _with_tokens(settings: Settings, work: Callable[[TokenStore], Awaitable[None]]) -> None:
    from exchange_service.identity.token_store import TokenStore

    store = TokenStore(settings.database_url)
    try:
        await work(store)
    finally:
        await store.close()
