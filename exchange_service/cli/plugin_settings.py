"""`plugins seal` and `plugins settings`: the secrets that an operator gives a plugin, and what a plugin lets be set."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.cli import tables
from exchange_service.cli.calls import OutputOption
from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, echo, fail, messages, plain, run
from exchange_service.model import PluginInfo, PluginSetting
from exchange_service.settings import Settings

if TYPE_CHECKING:
    from exchange_service.venues.registry import Registry


@with_settings("keyset_file", "keyset_key", "keyset_login")
def seal(
    settings: Settings,
    plugin: Annotated[str, typer.Argument(help="The plugin's name, or its distribution's.")],
    setting: Annotated[str, typer.Argument(help="The setting's name, as `plugins settings` shows it.")],
) -> None:
    """Seal a secret for plugin_settings with the keyset. Asks for it, or reads it from standard input, and prints the
    sealed text, which opens for this setting of this plugin alone."""
    info, declared = _find_setting(settings, plugin, setting)
    if not declared.secret:
        fail(f"{setting!r} of {info.name} is not a secret: write it into plugin_settings as it is", ExitCode.USAGE)
    secret = _ask(f"{info.name} {setting}") if sys.stdin.isatty() else sys.stdin.read().rstrip("\r\n")
    if not secret.strip():
        fail("standard input holds no secret, and nothing was sealed", ExitCode.USAGE)
    sealed: list[str] = []
    run(_seal(settings, info.name, setting, secret, sealed))
    messages.print("Put this text into plugin_settings, and start the service again:", soft_wrap=True)
    echo(sealed[0])


async def _seal(settings: Settings, plugin: str, setting: str, secret: str, into: list[str]) -> None:
    from exchange_service.credentials.configured import configured_keys
    from exchange_service.credentials.sealed_settings import seal_setting

    keys = configured_keys(settings)
    if keys is None:
        fail("there is no keyset: `exchange-service keys create FILE`, then set keyset_file", ExitCode.ACT)
    if problem := await keys.problem():
        fail(problem, ExitCode.ACT)
    into.append(await seal_setting(secret, plugin, setting, keys))


def _find_setting(settings: Settings, plugin: str, setting: str) -> tuple[PluginInfo, PluginSetting]:
    registry, found = _declared(settings, plugin)
    if not found:
        _fail_unknown(registry, plugin)
    of_plugin = [(info, item) for info, declared in found.items() for item in declared]
    wanted = next((pair for pair in of_plugin if pair[1].name == setting), None)
    if wanted is None:
        names = ", ".join(item.name for _, item in of_plugin) or "none"
        fail(f"{plugin} has no setting {setting!r}; its settings: {names}", ExitCode.USAGE)
    return wanted


def _declared(settings: Settings, plugin: str) -> tuple[Registry, dict[PluginInfo, tuple[PluginSetting, ...]]]:
    """The settings of each plugin of this name, or of all if it is empty."""
    from exchange_service.plugin_host.discovery import open_registry
    from exchange_service.venues.loading import goes_by

    registry = open_registry(settings)
    return registry, {
        info: declared for info, declared in registry.declared.items() if not plugin or goes_by(info, plugin)
    }


def _fail_unknown(registry: Registry, plugin: str) -> None:
    for problem in registry.not_loaded:
        if problem.plugin.name == plugin:
            fail(f"the plugin {plugin} is not loaded: {problem.reason}", ExitCode.ACT)
    known = ", ".join(sorted(info.name for info in registry.declared)) or "none"
    fail(f"no installed plugin has the name {plugin!r}; loaded are: {known}", ExitCode.USAGE)


def _ask(question: str) -> str:
    # Here, because the module needs a terminal's own library.
    from exchange_service.cli.terminal import EndOfInput, open_terminal
    from exchange_service.plugin_kit.key_texts import is_unfinished

    try:
        with open_terminal(is_unfinished) as terminal:
            return terminal.ask(question, hidden=True).strip()
    except (EndOfInput, KeyboardInterrupt):
        raise typer.Abort from None


@with_settings("keyset_file", "keyset_key", "keyset_login")
def show_settings(
    settings: Settings,
    plugin: Annotated[str, typer.Argument(help="One plugin's name; all, if it is left out.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what can be set by plugin_settings, and what is set; never a secret."""
    registry, found = _declared(settings, plugin)
    if plugin and not found:
        _fail_unknown(registry, plugin)
    loaded = {item.info: item.settings for item in registry.plugins}
    entries = [
        _entry(info, item, loaded.get(info), shown=not _comes_from_elsewhere(settings, info, item.name))
        for info, declared in sorted(found.items())
        for item in declared
    ]
    if not entries:
        messages.print("Nothing can be set by plugin_settings: no installed plugin declares a setting.", soft_wrap=True)
    tables.print_list(entries, output, lambda: _table(entries))
    for problem in registry.not_loaded:
        if problem.plugin in found:
            messages.print(f"[red]{plain(problem.plugin.name)}:[/] {plain(problem.reason)}", soft_wrap=True)


def _comes_from_elsewhere(settings: Settings, info: PluginInfo, setting: str) -> bool:
    """Whether the operator keeps the value in the environment or sealed.

    It is not shown then, whatever the plugin calls it: a later release may forget that it is a secret.
    """
    from exchange_service.credentials.sealing import is_sealed
    from exchange_service.venues.loading import goes_by

    given = [table.get(setting) for plugin, table in settings.plugin_settings.items() if goes_by(info, plugin)]
    return any(isinstance(value, Mapping) or (isinstance(value, str) and is_sealed(value)) for value in given)


def _entry(info: PluginInfo, setting: PluginSetting, values: Any, *, shown: bool) -> dict[str, Any]:
    """`values` are None for a plugin that is not loaded, which therefore has none.

    If the value is not `shown`, the entry says only whether there is one.
    """
    value = None if values is None else values.get(setting.name)
    told = None if value is None or setting.secret or not shown else value
    return {
        "plugin": info.name,
        "setting": setting.name,
        "type": "secret" if setting.secret else setting.type,
        "required": setting.required,
        "set": value is not None and (setting.default is None or value != setting.default),
        "value": told if isinstance(told, bool | int | None) else str(told),
        "description": setting.description,
    }


def _table(entries: list[dict[str, Any]]) -> Columns:
    table = Columns(
        Column("plugin", whole=True),
        Column("setting", whole=True),
        Column("type", spare=2),
        Column("required", spare=1),
        Column("value", whole=True),
        Column("description"),
    )
    for entry in entries:
        hidden = "(set)" if entry["set"] else "-"
        value = hidden if entry["value"] is None else plain(json.dumps(entry["value"]).strip('"'))
        required = "yes" if entry["required"] else ""
        names = (entry["plugin"], entry["setting"], entry["type"])
        table.add(*map(plain, names), required, value, plain(entry["description"]))
    return table
