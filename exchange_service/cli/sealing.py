"""The commands `credentials seal`, `unseal` and `rewrap`: they change stored rows in place, while the table is in
use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.cli.credentials import confirm, with_store
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, fail, messages, plain, run
from exchange_service.settings import Settings

if TYPE_CHECKING:
    # Imports the database, which other commands do not need.
    from exchange_service.credentials.rewriting import Change, Choice
    from exchange_service.credentials.sql import SqlCredentialStore

_SETTINGS = ("database_url", "keyset_file", "keyset_key", "keyset_login")
_REPORT_EVERY = 500
_User = Annotated[str, typer.Option("--user", "-u", help="Only this user's.")]
_Exchange = Annotated[str, typer.Option("--exchange", "-e", help="Only this exchange's.")]
_All = Annotated[bool, typer.Option("--all", help="Every stored credential.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only report what would be changed.")]


@with_settings(*_SETTINGS)
def seal(
    settings: Settings, user: _User = "", exchange: _Exchange = "", every: _All = False, dry_run: _DryRun = False
) -> None:
    """Seal credentials that are stored in plain text. Programs that read the table without the keyset can no longer use
    them.

    You may interrupt the command and run it again at any time; the service keeps serving.
    """
    from exchange_service.credentials.rewriting import Change

    choice = _make_choice(user, exchange, every)
    run(with_store(settings, _make_rewrite(Change.SEAL, choice, dry_run)))


@with_settings(*_SETTINGS)
def unseal(
    settings: Settings,
    user: _User = "",
    exchange: _Exchange = "",
    every: _All = False,
    dry_run: _DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Store sealed credentials in plain text again, for programs that read the table without the keyset."""
    from exchange_service.credentials.rewriting import Change

    choice = _make_choice(user, exchange, every)
    if not yes and not dry_run:
        confirm("Store these credentials in plain text?")
    run(with_store(settings, _make_rewrite(Change.UNSEAL, choice, dry_run)))


@with_settings(*_SETTINGS)
def rewrap(settings: Settings, dry_run: _DryRun = False) -> None:
    """Seal again, with the primary key, what an older key has sealed; then `keys retire` can remove the older key."""
    from exchange_service.credentials.rewriting import Change, Choice

    run(with_store(settings, _make_rewrite(Change.REWRAP, Choice(), dry_run)))


def _make_choice(user: str, exchange: str, every: bool) -> Choice:
    from exchange_service.credentials.rewriting import Choice

    exchange = exchange.strip().lower()
    if every == bool(user or exchange):
        fail("say which credentials: --user, --exchange, both of them, or --all", ExitCode.USAGE)
    return Choice(user, exchange)


def _make_rewrite(change: Change, choice: Choice, dry_run: bool) -> Callable[[Any], Awaitable[None]]:
    async def work(store: SqlCredentialStore) -> None:
        await require_keys(store)
        await _require_one_keyset(store, change)
        await _rewrite(store, change, choice, dry_run)

    return work


async def require_keys(store: SqlCredentialStore) -> None:
    """End the command if there are no usable keys."""
    if store.vault.keys is None:
        fail("there is no keyset: run `exchange-service keys create FILE`, then set keyset_file", ExitCode.ACT)
    problem = await store.vault.keys.problem()
    if problem:
        fail(problem, ExitCode.ACT)


async def _require_one_keyset(store: SqlCredentialStore, change: Change) -> None:
    """End a sealing whose keys do not open what is sealed already: most often a new keyset was made by mistake."""
    from exchange_service.credentials.key_check import check_keys
    from exchange_service.credentials.rewriting import Change

    if change is not Change.SEAL:
        return
    check = await check_keys(store)
    if not check.keys_fit:
        fail(f"nothing was sealed: {' '.join(check.problems)}", ExitCode.ACT)


async def _rewrite(store: SqlCredentialStore, change: Change, choice: Choice, dry_run: bool) -> None:
    from exchange_service.credentials.rewriting import RewriteResult, rewrite

    counts: Counter[RewriteResult] = Counter()
    successes = (RewriteResult.CHANGED, RewriteResult.NOTHING_TO_DO)
    try:
        async for row in rewrite(store, change, choice, dry_run=dry_run):
            counts[row.result] += 1
            if row.result not in successes:
                account = row.account
                where = f"{account.user_id} at {account.exchange_id} ({account.environment})"
                messages.print(f"[yellow]{plain(where)}:[/] {row.result.value}", soft_wrap=True)
            if counts.total() % _REPORT_EVERY == 0:
                messages.print(f"{counts.total()} read, {counts[RewriteResult.CHANGED]} changed")
    finally:
        # Also if the database fails half-way: finished rows stay changed, and the next run does the others.
        left = counts.total() - sum(counts[result] for result in successes)
        word = "would be changed" if dry_run else "changed"
        messages.print(
            f"{change.value}: {counts[RewriteResult.CHANGED]} {word}, "
            f"{counts[RewriteResult.NOTHING_TO_DO]} with nothing to do, {left} left unchanged."
        )
    if not counts and (choice.user_id or choice.exchange_id):
        fail("no credential is stored for this choice", ExitCode.MISSING)
    if left:
        raise typer.Exit(ExitCode.ACT)
