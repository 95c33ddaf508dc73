"""The commands that make, list and revoke service tokens. A token's text is shown once, when it is made."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.cli import tables
from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, echo, fail, messages, plain, run
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.settings import Settings

if TYPE_CHECKING:
    # Imports the database, which other commands do not need.
    from exchange_service.identity.token_signatures import TokenSignatures
    from exchange_service.identity.token_store import TokenStore
    from exchange_service.identity.tokens import StoredToken

app = typer.Typer(help="Make, list and revoke the tokens with which services call.", no_args_is_help=True)

_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


@app.command()
@with_settings("database_url", "service_tokens", "manage_accounts")
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
    manage: Annotated[
        bool, typer.Option("--manage", help="The token may also connect and remove accounts of these users.")
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
        users = scope_from("*" if all_users else "act-as" if act_as else list(user or ()))
    except ValueError:
        fail("a --user is not an id that a call could name", ExitCode.USAGE)
    scope = replace(users, manage=manage)
    token, stored = new_token(name, scope, lifetime=_parse_lifetime(expires) if expires else None)

    signatures = _signatures(settings)

    async def add(store: TokenStore) -> None:
        try:
            await store.add(replace(stored, signature=signatures.sign(stored)))
        except ValueError as error:
            fail(str(error), ExitCode.USAGE)

    run(_with_tokens(settings, add))
    echo(token)
    until = f"until {_format_time(stored.expires)}" if stored.expires is not None else "until it is revoked"
    messages.print(
        f"The token {stored.id} ({plain(name)}) reads {plain(scope.describe())}, {until}. It is not shown again.",
        soft_wrap=True,
    )
    _print_notes(settings, manage=manage)


def _print_notes(settings: Settings, *, manage: bool) -> None:
    """What the settings still lack for a new token to work."""
    from exchange_service.identity.token_signatures import key_warning

    if warning := key_warning(settings):
        messages.print(f"[yellow]note:[/] {plain(warning)}", soft_wrap=True)
    if manage and not settings.manage_accounts:
        messages.print("[yellow]note:[/] nobody can manage accounts until manage_accounts=true is set.", soft_wrap=True)
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

    signatures = _signatures(settings, make_key=False)

    async def show(store: TokenStore) -> None:
        tokens = await store.all()
        entries = [_as_dict(token, signatures.fits(token)) for token in tokens]
        tables.print_list(entries, output, lambda: _make_table(tokens, signatures))

    run(_with_tokens(settings, show), output)


def _make_table(tokens: Sequence[StoredToken], signatures: TokenSignatures) -> Columns:
    table = Columns(
        Column("id", whole=True),
        *map(Column, ("name", "reads")),
        Column("created", spare=1),
        *map(Column, ("expires", "revoked", "signed")),
    )
    for token in tokens:
        times = (_format_time(token.created), _format_time(token.expires) or "never", _format_time(token.revoked))
        signed = "" if token.revoked is not None else "yes" if signatures.fits(token) else "[red]no[/]"
        table.add(plain(token.id), plain(token.name), plain(token.scope.describe()), *times, signed)
    return table


def _as_dict(token: StoredToken, signed: bool) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scope": token.scope.as_value(),
        "created": _format_time(token.created),
        "expires": _format_time(token.expires) or None,
        "revoked": _format_time(token.revoked) or None,
        "signed": signed,
    }


@app.command()
@with_settings("database_url")
def sign(
    settings: Settings,
    token_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="As `tokens list` shows them.")
    ] = None,
    all_tokens: Annotated[bool, typer.Option("--all", help="Every token that is not revoked.")] = False,
) -> None:
    """Sign tokens that this service does not accept: those of an earlier version, or of another `hash_key`.

    Look at them first with `tokens list`: another program may have written them."""
    if bool(token_ids) == all_tokens:
        fail("name the tokens to sign, or give --all", ExitCode.USAGE)
    signatures, wanted = _signatures(settings), set(token_ids or ())

    async def sign_tokens(store: TokenStore) -> None:
        tokens = [token for token in await store.all() if token.revoked is None]
        missing = wanted - {token.id for token in tokens}
        if missing:
            # Not repeated: one may be a whole token instead of its id.
            fail(f"{len(missing)} of these ids are of no token, or of a revoked one", ExitCode.MISSING)
        changed = False
        for token in tokens:
            if signatures.fits(token) or not (all_tokens or token.id in wanted):
                continue
            done = await store.sign(token, signatures.sign(token))
            changed = changed or not done
            word = "Signed" if done else "Left as it is, because another program has changed it:"
            name, reads = plain(token.name), plain(token.scope.describe())
            messages.print(f"{word} the token {plain(token.id)} ({name}), which reads {reads}.", soft_wrap=True)
        if changed:
            raise typer.Exit(ExitCode.AGAIN)

    run(_with_tokens(settings, sign_tokens))


def _signatures(settings: Settings, *, make_key: bool = True) -> TokenSignatures:
    from exchange_service.identity.token_signatures import KeyUnusable, configured_signatures

    try:
        return configured_signatures(settings, make_key=make_key)
    except KeyUnusable as error:
        fail(str(error), ExitCode.ACT)


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
