"""The commands that make, rotate, show and retire the keys that seal credentials. No command prints a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.cli import tables
from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.credentials import with_store
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, fail, messages, plain, run
from exchange_service.cli.sealing import require_keys
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.settings import Settings

if TYPE_CHECKING:
    from exchange_service.credentials.keysets import Keyset
    from exchange_service.credentials.sql import SqlCredentialStore
    from exchange_service.credentials.vault import TransitKey

app = typer.Typer(help="Make, rotate, show and retire the keys that seal credentials.", no_args_is_help=True)


_MANAGER = ("keyset_key", "keyset_login")


@app.command()
@with_settings(*_MANAGER)
def create(
    settings: Settings, file: Annotated[Path, typer.Argument(help="The new file; it must not exist yet.")]
) -> None:
    """Make a keyset of one new key, in a new file that only your user can read. With keyset_key it is wrapped by that
    key of a manager."""
    from exchange_service.credentials.keyset_files import create_keyset_file

    wrapping = _wrapping(settings)
    with _refusals():
        keyset = create_keyset_file(file, wrapping)
    wrapped = f", wrapped with {wrapping.name}" if wrapping else ""
    also = " and the manager's key" if wrapping else ""
    messages.print(
        f"Made {plain(str(file))} with the key {keyset.primary}{wrapped}. Set keyset_file to it, and keep a copy in "
        f"another safe place, apart from the database's backups: without the key{also}, what it seals cannot be "
        "opened.",
        soft_wrap=True,
    )


@app.command()
@with_settings("keyset_file", *_MANAGER)
def wrap(settings: Settings) -> None:
    """Let keyset_key, a key of a manager, wrap the plain keyset file. Afterwards the file alone opens nothing."""
    _convert(settings, opens=False, writes=True)
    assert settings.keyset_file is not None
    messages.print(
        f"Wrapped {plain(str(settings.keyset_file))} with {plain(settings.keyset_key or '')}. Copies and backups of "
        "the plain file still open what it seals: remove them, or rotate the keys.",
        soft_wrap=True,
    )


@app.command()
@with_settings("keyset_file", *_MANAGER)
def unwrap(settings: Settings) -> None:
    """Write the wrapped keyset file in plain again, to do without the manager. Then unset keyset_key."""
    _convert(settings, opens=True, writes=False)
    assert settings.keyset_file is not None
    messages.print(f"Wrote {plain(str(settings.keyset_file))} in plain: unset keyset_key.", soft_wrap=True)


@app.command()
@with_settings("keyset_file", *_MANAGER)
def rewrap(settings: Settings) -> None:
    """Wrap the keyset file again, with the newest version of the manager's key. The keys in it stay the same."""
    from exchange_service.credentials.configured_keyset import configured_keyset_text
    from exchange_service.credentials.wrapped_keysets import key_version

    versions = []
    with _refusals():
        versions.append(key_version(configured_keyset_text(settings) or ""))
        _convert(settings, opens=True, writes=True)
        versions.append(key_version(configured_keyset_text(settings) or ""))
    messages.print(f"Wrapped with {plain(versions[1])} of the key; before it was {plain(versions[0])}.")


def _convert(settings: Settings, *, opens: bool, writes: bool) -> None:
    """Write the same keyset in another form: wrapped or plain."""
    from exchange_service.credentials.keyset_files import convert_keyset_file

    wrapping = _wrapping(settings)
    if wrapping is None:
        fail(
            "keyset_key names the manager's key; set it, such as vault://transit/keys/exchange-service", ExitCode.USAGE
        )
    with _refusals():
        convert_keyset_file(
            _require_file(settings), lambda keyset: keyset, wrapping if opens else None, wrapping if writes else None
        )


def _wrapping(settings: Settings) -> TransitKey | None:
    """The manager's key, or None. Ends the command if it cannot be asked."""
    if settings.keyset_key is None:
        return None
    from exchange_service.credentials.configured_keyset import configured_wrapping
    from exchange_service.credentials.vault import unusable

    if problem := unusable(settings.keyset_login):
        fail(problem, ExitCode.ACT)
    return configured_wrapping(settings)


@contextmanager
def _refusals() -> Iterator[None]:
    """End the command with the sentence of a keyset that cannot be used."""
    from exchange_service.credentials.keysets import KeysetInvalid
    from exchange_service.credentials.wrapped_keysets import KeysetAway

    try:
        yield
    except KeysetInvalid as invalid:
        fail(str(invalid), ExitCode.AGAIN if isinstance(invalid, KeysetAway) else ExitCode.ACT)


@app.command()
@with_settings("keyset_file", *_MANAGER)
def rotate(
    settings: Settings,
    add_only: Annotated[
        bool,
        typer.Option("--add-only", help="Add a key that opens but does not seal yet, to distribute it first."),
    ] = False,
    to: Annotated[str, typer.Option("--to", help="Let this key of the keyset seal from now on, and add no key.")] = "",
) -> None:
    """Add a key to the keyset file and let it seal from now on. The older keys still open.

    A running service reads the file again within seconds.
    """
    if add_only and to:
        fail("--add-only and --to exclude each other", ExitCode.USAGE)
    before: set[str] = set()

    def change(keyset: Keyset) -> Keyset:
        before.update(keyset.keys)
        return keyset.with_primary(to) if to else keyset.with_new_key(primary=not add_only)

    keyset = _change_file(settings, change)
    for key_id in keyset.keys.keys() - before:
        messages.print(f"Added the key {key_id}.")
    if add_only:
        messages.print(f"{keyset.primary} still seals. When every replica has the file, run `keys rotate --to KEY`.")
    else:
        messages.print(f"{keyset.primary} seals from now on. `credentials rewrap` seals stored credentials with it.")


@app.command()
@with_settings("database_url", "keyset_file", *_MANAGER)
def status(
    settings: Settings,
    output: Annotated[Output, typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT")] = Output.TABLE,
) -> None:
    """Show each key's id, the time of its creation, and the number of stored values that it seals; never the key
    itself."""

    async def show(store: SqlCredentialStore) -> None:
        from exchange_service.credentials.rewriting import survey

        await require_keys(store)
        entries = _list_keys(_read_keyset(settings), (await survey(store)).values_by_key)
        tables.print_list(entries, output, lambda: _make_table(entries))

    run(with_store(settings, show), output)


def _list_keys(keyset: Keyset, values_by_key: dict[str, int]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [
        {
            "key": key_id,
            "primary": key_id == keyset.primary,
            "created": f"{key.created:%Y-%m-%dT%H:%M:%SZ}",
            "values": values_by_key.get(key_id, 0),
        }
        for key_id, key in sorted(keyset.keys.items(), key=lambda item: item[1].created)
    ]
    for key_id in sorted(values_by_key.keys() - keyset.keys.keys()):
        entries.append({"key": key_id, "primary": False, "created": None, "values": values_by_key[key_id]})
    return entries


def _make_table(entries: list[dict[str, Any]]) -> Columns:
    table = Columns(Column("key", whole=True), Column("seals"), Column("created"), Column("values", whole=True))
    for entry in entries:
        name = plain(entry["key"]) or "(damaged)"
        created = entry["created"] or "[red]not in the keyset[/]"
        table.add(name, "new values" if entry["primary"] else "", created, str(entry["values"]))
    return table


@app.command()
@with_settings("database_url", "keyset_file", *_MANAGER)
def retire(
    settings: Settings, key: Annotated[str, typer.Argument(help="The key's id, as `keys status` shows it.")]
) -> None:
    """Take a key that seals nothing any more out of the keyset file, and keep it in a file beside it."""
    from exchange_service.credentials.keyset_files import retired_file
    from exchange_service.credentials.sealed_settings import settings_sealed_with

    if sealed := settings_sealed_with(key, settings):
        names = ", ".join(sealed)
        fail(f"plugin_settings has texts that the key {key} seals: {names}; seal these again first", ExitCode.ACT)

    async def check_unused(store: SqlCredentialStore) -> None:
        from exchange_service.credentials.rewriting import survey

        await require_keys(store)
        values = (await survey(store)).values_by_key
        if values[key]:
            count = values[key]
            fail(
                f"values that the key {key} still seals: {count}; run `exchange-service credentials rewrap` first",
                ExitCode.ACT,
            )
        if not values[_read_keyset(settings).primary]:
            fail(
                "nothing in this database is sealed with the primary key, so the key may be in use elsewhere: "
                "check database_url",
                ExitCode.ACT,
            )

    run(with_store(settings, check_unused))
    _change_file(settings, lambda keyset: keyset.without(key))
    assert settings.keyset_file is not None
    file = plain(str(retired_file(settings.keyset_file, key)))
    messages.print(
        f"Retired the key {plain(key)}. It is kept in {file}, for backups from before the rewrap and for other "
        "databases. Remove that file when nothing needs it.",
        soft_wrap=True,
    )


def _read_keyset(settings: Settings) -> Keyset:
    from exchange_service.credentials.configured_keyset import configured_keyset

    with _refusals():
        keyset = configured_keyset(settings)
    assert keyset is not None
    return keyset


def _require_file(settings: Settings) -> Path:
    if settings.keyset_file is None:
        fail(
            "only a keyset_file can be changed here; change a keyset from the environment where it is stored",
            ExitCode.USAGE,
        )
    return settings.keyset_file


def _change_file(settings: Settings, change: Callable[[Keyset], Keyset]) -> Keyset:
    from exchange_service.credentials.keyset_files import change_keyset_file

    wrapping = _wrapping(settings)
    with _refusals():
        return change_keyset_file(_require_file(settings), change, wrapping)
