"""The command `credentials check`, which tries stored credentials at their venues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.amounts import format_amount
from exchange_service.cli import tables
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, console, exit_code, fail, plain, run
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.errors import ServiceError
from exchange_service.model import PRODUCTION, Account, VenueAccount
from exchange_service.settings import Settings

if TYPE_CHECKING:
    # Imports the database and the plugins, which other commands do not need.
    from exchange_service.cli.credential_check import CredentialCheck

_ALLOWED = {True: "yes", False: "no", None: "the venue does not say"}


@with_settings(
    *("database_url", "keyset_file", "keyset_key", "keyset_login", "exchange_plugins", "venue_urls", "venue_timeout"),
    *("outgoing_address", "egress"),
)
def check(
    settings: Settings,
    user: Annotated[str, typer.Option("--user", "-u", help="The user that owns the credentials.")],
    exchange: Annotated[str, typer.Option("--exchange", "-e", help="Only this exchange. Default: all exchanges.")] = "",
    environment: Annotated[str, typer.Option(help="With --exchange: production or sandbox.")] = "",
    output: Annotated[Output, typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT")] = Output.TABLE,
) -> None:
    """Try stored credentials at their venues: whether they work, which accounts they show, and what else the keys may
    do."""
    if environment and not exchange:
        fail("--environment needs --exchange", ExitCode.USAGE)
    run(_check(settings, user, exchange, environment or PRODUCTION, output), output)


async def _check(settings: Settings, user: str, exchange: str, environment: str, output: Output) -> None:
    from exchange_service.cli.credential_check import open_checker

    failures: list[ExitCode] = []
    results: list[dict[str, Any]] = []
    async with open_checker(settings) as checker:
        accounts = [Account(user, exchange, environment)] if exchange else await checker.stored_accounts(user)
        if not accounts:
            fail(f"no credential is stored for {user}", ExitCode.MISSING)
        for account in accounts:
            result = await checker.check(account)
            if result.error is not None:
                failures.append(exit_code(result.error))
            if output is Output.TABLE:
                _print(result)
            elif output is Output.JSONL:
                tables.print_line(_as_dict(result))
            results.append(_as_dict(result))
    if output is Output.JSON:
        tables.print_json(results)
    if failures:
        raise typer.Exit(failures[0])


def _print(check: CredentialCheck) -> None:
    account = check.account
    where = plain(f"{account.user_id} at {check.name} ({account.environment})")
    if check.error is not None:
        console.print(f"{where}: [red]does not work[/], {check.error.reason}", soft_wrap=True)
        console.print(f"  {plain(check.error.text)}", soft_wrap=True)
    if check.balance is None:
        return
    console.print(f"{where}: [green]works[/]", soft_wrap=True)
    for entry in check.balance.venue_accounts:
        name = " ".join(part for part in (entry.type, entry.id, entry.sub_account, entry.label) if part)
        console.print(f"  account {plain(name)}: {plain(_describe_account(entry))}", soft_wrap=True)
    rights = check.rights
    if rights is not None:
        console.print(f"  may trade: {_ALLOWED[rights.trade]}; may withdraw: {_ALLOWED[rights.withdraw]}")
        if rights.expires is not None:
            console.print(f"  expires: {rights.expires:%Y-%m-%d %H:%M} UTC")
    for note in (*check.balance.notes, *(rights.notes if rights else ())):
        console.print(f"  note: {plain(note)}", soft_wrap=True)
    for warning in check.warnings:
        console.print(f"  [yellow]warning:[/] {plain(warning)}", soft_wrap=True)


def _describe_account(entry: VenueAccount) -> str:
    if entry.error is not None:
        return f"not read, {entry.error.reason}: {entry.error.text}"
    held = sum(1 for row in entry.assets if not row.is_zero())
    counted = f"{held} asset{'' if held == 1 else 's'}" if held else "nothing held"
    figures = entry.summary
    if figures is not None and figures.equity is not None:
        return f"{counted}, equity {format_amount(figures.equity)} {figures.currency}"
    return counted


def _as_dict(check: CredentialCheck) -> dict[str, Any]:
    """The check for programs. It reports the number of assets without amounts, which `balance` shows."""
    account, rights = check.account, check.rights
    accounts = check.balance.venue_accounts if check.balance is not None else ()
    return {
        "user_id": account.user_id,
        "exchange_id": account.exchange_id,
        "environment": account.environment,
        "works": check.error is None,
        "error": _fault(check.error),
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
        "notes": [*(check.balance.notes if check.balance else ()), *(rights.notes if rights else ())],
        "warnings": list(check.warnings),
    }


def _fault(error: ServiceError | None) -> dict[str, Any] | None:
    return None if error is None else {"reason": error.reason, "message": error.text}
