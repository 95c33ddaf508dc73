"""`credentials check`: stored credentials tried at their venues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.amounts import format_amount
from exchange_service.cli import tables
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, console, exit_code, fail, plain, run
from exchange_service.errors import ServiceError
from exchange_service.model import PRODUCTION, Account, VenueAccount
from exchange_service.settings import ENVIRONMENT_PREFIX, Settings

if TYPE_CHECKING:
    # Drags in the database and the plugins, which other commands do without.
    from exchange_service.cli.credential_check import Checkup

_ANSWERS = {True: "yes", False: "no", None: "the venue does not say"}


@with_settings("database_url", "keyset_file", "exchange_plugins", "venue_urls", "venue_timeout")
def check(
    settings: Settings,
    user: Annotated[str, typer.Option("--user", "-u", help="Whose credentials.")],
    exchange: Annotated[str, typer.Option("--exchange", "-e", help="Only this one. Default: all of the user's.")] = "",
    environment: Annotated[str, typer.Option(help="With --exchange: production or sandbox.")] = "",
    output: Annotated[Output, typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT")] = Output.TABLE,
) -> None:
    """Try stored credentials at their venues: whether they work, which accounts show, what else the keys may do."""
    if environment and not exchange:
        fail("--environment needs --exchange", ExitCode.USAGE)
    run(_check(settings, user, exchange, environment or PRODUCTION, output), output)


async def _check(settings: Settings, user: str, exchange: str, environment: str, output: Output) -> None:
    from exchange_service.cli.credential_check import open_checker

    failures: list[ExitCode] = []
    results: list[dict[str, Any]] = []
    async with open_checker(settings) as checker:
        accounts = [Account(user, exchange, environment)] if exchange else await checker.stored(user)
        if not accounts:
            fail(f"no credential is stored for {user}", ExitCode.MISSING)
        for account in accounts:
            checkup = await checker.check(account)
            if checkup.error is not None:
                failures.append(exit_code(checkup.error))
            if output is Output.TABLE:
                _print(checkup)
            elif output is Output.JSONL:
                tables.print_line(_as_dict(checkup))
            results.append(_as_dict(checkup))
    if output is Output.JSON:
        tables.print_json(results)
    if failures:
        raise typer.Exit(failures[0])


def _print(checkup: Checkup) -> None:
    account = checkup.account
    where = plain(f"{account.user_id} at {checkup.name} ({account.environment})")
    if checkup.error is not None:
        console.print(f"{where}: [red]does not work[/], {checkup.error.reason}", soft_wrap=True)
        console.print(f"  {plain(checkup.error.text)}", soft_wrap=True)
    if checkup.balance is None:
        return
    console.print(f"{where}: [green]works[/]", soft_wrap=True)
    for entry in checkup.balance.venue_accounts:
        place = " ".join(part for part in (entry.type, entry.id, entry.sub_account, entry.label) if part)
        console.print(f"  account {plain(place)}: {plain(_state(entry))}", soft_wrap=True)
    rights = checkup.rights
    if rights is not None:
        console.print(f"  may trade: {_ANSWERS[rights.trade]}; may withdraw: {_ANSWERS[rights.withdraw]}")
        if rights.expires is not None:
            console.print(f"  expires: {rights.expires:%Y-%m-%d %H:%M} UTC")
    for note in (*checkup.balance.notes, *(rights.notes if rights else ())):
        console.print(f"  note: {plain(note)}", soft_wrap=True)
    for warning in checkup.warnings:
        console.print(f"  [yellow]warning:[/] {plain(warning)}", soft_wrap=True)


def _state(entry: VenueAccount) -> str:
    if entry.error is not None:
        return f"not read, {entry.error.reason}: {entry.error.text}"
    held = sum(1 for row in entry.assets if not row.is_zero())
    counted = f"{held} asset{'' if held == 1 else 's'}" if held else "nothing held"
    figures = entry.summary
    if figures is not None and figures.equity is not None:
        return f"{counted}, equity {format_amount(figures.equity)} {figures.currency}"
    return counted


def _as_dict(checkup: Checkup) -> dict[str, Any]:
    """The checkup for programs. Of what is held it says only how many assets: the balance is another command's."""
    account, rights = checkup.account, checkup.rights
    accounts = checkup.balance.venue_accounts if checkup.balance is not None else ()
    return {
        "user_id": account.user_id,
        "exchange_id": account.exchange_id,
        "environment": account.environment,
        "works": checkup.error is None,
        "error": _fault(checkup.error),
        "accounts": [
            {
                "type": entry.type,
                "id": entry.id,
                "sub_account": entry.sub_account,
                "label": entry.label,
                "assets_held": None if entry.error else sum(1 for row in entry.assets if not row.is_zero()),
                "error": _fault(entry.error),
            }
            for entry in accounts
        ],
        "may_trade": rights.trade if rights else None,
        "may_withdraw": rights.withdraw if rights else None,
        "expires": rights.expires.isoformat() if rights and rights.expires else None,
        "notes": [*(checkup.balance.notes if checkup.balance else ()), *(rights.notes if rights else ())],
        "warnings": list(checkup.warnings),
    }


def _fault(error: ServiceError | None) -> dict[str, Any] | None:
    return None if error is None else {"reason": error.reason, "message": error.text}
