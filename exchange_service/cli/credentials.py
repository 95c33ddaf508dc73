"""The commands that store, list and remove credentials. Secrets are prompted for or read from standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.cli import tables
from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, exit_code, fail, messages, missing_text, plain, run
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.errors import CredentialInvalid, ServiceError
from exchange_service.model import SECRET_FIELDS, Account, Credential, CredentialField, ExchangeMetadata
from exchange_service.plugin_kit.credential_fields import missing_fields, stored_field, stored_form
from exchange_service.plugin_kit.key_texts import is_unfinished
from exchange_service.settings import Settings

if TYPE_CHECKING:
    from exchange_service.cli.terminal import Terminal

app = typer.Typer(help="Store, list, check and remove the credentials of users' accounts.", no_args_is_help=True)

_PLAIN_WARNING = (
    "It is stored in plain text, because there is no keyset. Make one with `exchange-service keys create FILE` and set "
    "keyset_file; then seal the stored credentials with `exchange-service credentials seal`."
)
# The exit code of a shell for a command that Ctrl-C has ended.
_INTERRUPTED = 130
_UserOption = Annotated[str, typer.Option("--user", "-u", help="The user that owns the account.")]
_ExchangeOption = Annotated[str, typer.Option("--exchange", "-e", help="The exchange's id, such as oanda.")]
_EnvironmentOption = Annotated[str, typer.Option(help="production, sandbox, or the venue's own name for one of them.")]


@app.command()
@with_settings("database_url", "exchange_plugins", "keyset_file", "keyset_key", "keyset_login")
def add(
    settings: Settings,
    user: _UserOption,
    exchange: _ExchangeOption,
    environment: _EnvironmentOption = "production",
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read one JSON object: api_key, api_secret, passphrase, extra_metadata.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a stored credential without asking.")] = False,
) -> None:
    """Store a credential. Secrets are prompted for, or read from standard input; they are never arguments."""
    from exchange_service.plugin_host.discovery import open_registry

    try:
        account, listing = open_registry(settings).account(user, exchange, environment)
    except ServiceError as error:
        fail(error.text, exit_code(error))
    metadata = listing.metadata
    if not metadata.capabilities.balance:
        messages.print(f"[yellow]note:[/] {plain(metadata.unsupported_reason)}", soft_wrap=True)
    existing = _find_existing(settings, account, metadata)
    if existing is not None and not replace:
        if stdin or not sys.stdin.isatty():
            fail("a credential is stored already; add --replace to replace it", ExitCode.USAGE)
        confirm(f"Replace the stored credential of {user} at {metadata.name}?")
    credential = read_credential() if stdin else prompt_credential(metadata)
    try:
        credential = stored_form(metadata, credential)
    except CredentialInvalid as invalid:
        fail(f"nothing was stored: {invalid.text}", ExitCode.USAGE)
    problem = missing_text(missing_fields(metadata, credential))
    if problem:
        fail(f"nothing was stored: {problem}", ExitCode.USAGE)

    async def store_it(store: Any) -> None:
        new = await store.put(existing or account, credential)
        word = "Stored" if new else "Replaced"
        where = plain(f"{user} at {metadata.name} ({account.environment})")
        database = plain(_describe_database(settings))
        sealed = store.vault.keys is not None
        how = ", sealed" if sealed else ""
        messages.print(f"{word} the credential of {where} in {database}{how}.", soft_wrap=True)
        if not sealed:
            messages.print(f"[yellow]warning:[/] {_PLAIN_WARNING}", soft_wrap=True)
        await _publish_change(settings, account, existing or account)

    run(with_store(settings, store_it))


def _find_existing(settings: Settings, account: Account, metadata: ExchangeMetadata) -> Account | None:
    return _find_row(_read_accounts(settings, account.user_id), account, metadata)


def _read_accounts(settings: Settings, user: str) -> list[Account]:
    """The user's stored accounts."""
    accounts: list[Account] = []

    async def read(store: Any) -> None:
        accounts.extend(await store.accounts(user))

    run(with_store(settings, read))
    return accounts


def _describe_database(settings: Settings) -> str:
    """The database's URL without the user and the password."""
    family, _, rest = settings.database_url.partition("://")
    return f"{family}://{rest.rpartition('@')[2]}"


def confirm(question: str) -> None:
    """Ask for confirmation, or exit. Call it outside of an event loop, in which an interrupt would not reach the
    prompt."""
    try:
        typer.confirm(question, abort=True)
    except typer.Abort:
        raise typer.Exit(_INTERRUPTED) from None


def _find_row(stored: list[Account], account: Account, metadata: ExchangeMetadata) -> Account | None:
    """The stored account that serves this one, perhaps under an alias of the environment."""
    names = {account.environment, *metadata.environment_aliases(account.environment)}
    rows = (row for row in stored if row.exchange_id == account.exchange_id and row.environment in names)
    return next(rows, None)


def prompt_credential(
    metadata: ExchangeMetadata, *, at_end: str = "nothing was stored", as_json: str = "with --stdin"
) -> Credential:
    """A credential that is typed at the terminal; exits without one. `at_end` is what a refusal begins with, and
    `as_json` how the command takes a key of several lines."""
    if metadata.instructions:
        messages.print(metadata.instructions)
    if not sys.stdin.isatty():
        fail("standard input is not a terminal; add --stdin and pass a JSON object: see --help", ExitCode.USAGE)
    # Here, because the module needs a terminal's own library.
    from exchange_service.cli.terminal import EndOfInput, open_terminal

    values: dict[str, str] = {}
    try:
        with open_terminal(is_unfinished) as terminal:
            for field in metadata.credential_fields:
                values[field.name] = _ask(terminal, field)
    except (EndOfInput, KeyboardInterrupt):
        raise typer.Exit(_INTERRUPTED) from None
    except CredentialInvalid as invalid:
        lines = f"A key of several lines can also come as JSON, {as_json}."
        fail(f"{at_end}: {invalid.text} {lines}", ExitCode.USAGE)
    metadata_values = {name: value for name, value in values.items() if value and name not in SECRET_FIELDS}
    return Credential.from_texts(values, metadata_values)


def _ask(terminal: Terminal, field: CredentialField) -> str:
    """The answer for a field, as it is stored. Raises CredentialInvalid at once if it cannot be that."""
    label = field.label if field.required else f"{field.label} (may be left empty)"
    while True:
        answer = terminal.ask(label, hidden=field.secret).strip()
        if answer:
            return stored_field(field, answer)
        if not field.required:
            return ""


def read_credential() -> Credential:
    """A credential from one JSON object on standard input. Exits if it is anything else."""
    try:
        # A key in lines is often put into the object as it is.
        value = json.loads(sys.stdin.read(), strict=False)
    except ValueError:
        # The parser's own text would repeat a part of the input.
        fail("standard input is not one JSON object", ExitCode.USAGE)
    if not isinstance(value, dict) or value.keys() - {*SECRET_FIELDS, "extra_metadata"}:
        fail(
            "the JSON object may have only api_key, api_secret, passphrase and extra_metadata; all other fields belong "
            'into the last, such as {"extra_metadata": {"account_id": "..."}}',
            ExitCode.USAGE,
        )
    metadata = value.pop("extra_metadata", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(entry, str) for entry in value.values()):
        fail("api_key, api_secret and passphrase should be strings, and extra_metadata an object", ExitCode.USAGE)
    return Credential.from_texts({name: text.strip() for name, text in value.items()}, metadata)


@app.command("list")
@with_settings("database_url", "exchange_plugins")
def list_stored(
    settings: Settings,
    user: Annotated[str, typer.Option("--user", "-u", help="Only this user's.")] = "",
    output: Annotated[Output, typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT")] = Output.TABLE,
) -> None:
    """List the users and exchanges with a stored credential, and why one is not served any more; never the credentials
    themselves."""

    async def show(store: Any) -> None:
        accounts = await (store.accounts(user) if user else store.all_accounts())
        retired = _retired_exchanges(settings) if accounts else {}
        entries = [
            {
                "user_id": account.user_id,
                "exchange_id": account.exchange_id,
                "environment": account.environment,
                "retired": retired.get(account.exchange_id.strip().lower()),
            }
            for account in accounts
        ]
        tables.print_list(entries, output, lambda: _stored_table(entries))

    run(with_store(settings, show), output)


def _retired_exchanges(settings: Settings) -> dict[str, str]:
    """What happened to each exchange that was served once, by its id."""
    from exchange_service.plugin_host.discovery import open_registry
    from exchange_service.venues.registry import retirement

    return {exchange_id: retirement(entry).message for exchange_id, entry in open_registry(settings).retired.items()}


def _stored_table(entries: list[dict[str, Any]]) -> Columns:
    retired = any(entry["retired"] for entry in entries)
    names = [Column(title, whole=True) for title in ("user", "exchange", "environment")]
    table = Columns(*names, *([Column("state")] if retired else []))
    for entry in entries:
        state = [f"[yellow]{plain(entry['retired'] or '')}[/]"] if retired else []
        table.add(*(plain(entry[name]) for name in ("user_id", "exchange_id", "environment")), *state)
    return table


@app.command()
@with_settings("database_url", "exchange_plugins")
def remove(
    settings: Settings,
    user: _UserOption,
    exchange: _ExchangeOption,
    environment: _EnvironmentOption = "production",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove a stored credential."""
    where = f"{user} at {exchange} ({environment})"
    row = _select_row(settings, user, exchange, environment)
    if row is None:
        fail(f"no credential is stored for {where}", ExitCode.MISSING)
    if not yes:
        confirm(f"Remove the credential of {where}?")

    async def remove_it(store: Any) -> None:
        if not await store.remove(row):
            fail(f"no credential is stored for {where}", ExitCode.MISSING)
        messages.print(f"Removed the credential of {plain(where)}.", soft_wrap=True)
        await _publish_change(settings, row)

    run(with_store(settings, remove_it))


def _select_row(settings: Settings, user: str, exchange: str, environment: str) -> Account | None:
    """The stored account. If no plugin serves its exchange any more, it is found by the names as they were given."""
    from exchange_service.plugin_host.discovery import open_registry

    try:
        account, listing = open_registry(settings).account(user, exchange, environment)
    except ServiceError:
        account = Account(user, exchange.strip().lower(), environment)
        return account if account in _read_accounts(settings, user) else None
    return _find_existing(settings, account, listing.metadata)


async def _publish_change(settings: Settings, *accounts: Account) -> None:
    """Make running replicas that share a Redis forget the old credential at once; others notice the change within 30
    seconds."""
    if settings.cache_url.startswith("memory:") or settings.hash_key is None:
        return
    from exchange_service.balances.cached import publish_credential_change
    from exchange_service.cache import open_cache
    from exchange_service.credentials.configured import configured_hash_key

    hash_key = configured_hash_key(settings)
    async with open_cache(settings.cache_url, hash_key, prefix=settings.cache_prefix) as cache:
        for account in dict.fromkeys(accounts):
            await publish_credential_change(cache, hash_key, account)


async def with_store(settings: Settings, work: Callable[[Any], Awaitable[None]]) -> None:
    """Call `work` with the store that the settings name, then close the store."""
    from exchange_service.credentials.configured import open_configured_store

    if settings.keyset_file is not None and settings.keyset is not None:
        fail("set either keyset_file or keyset, not both: only one keyset can seal", ExitCode.USAGE)
    store = await open_configured_store(settings)
    try:
        await work(store)
    finally:
        await store.close()
