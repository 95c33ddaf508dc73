"""`plugins`: the installed plugins and the state of their processes, and the group of the commands for authors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import typer

from exchange_service.cli import tables
from exchange_service.cli.calls import OutputOption, Target, calling
from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.flags import read_settings
from exchange_service.cli.outcome import ExitCode, Output, console, messages, plain, run
from exchange_service.client import ServiceUnreachable
from exchange_service.operator.v1 import plugin_service_pb2
from exchange_service.wire.protobuf import to_seconds

_STATES = {
    plugin_service_pb2.PLUGIN_PROCESS_STATE_IDLE: "idle",
    plugin_service_pb2.PLUGIN_PROCESS_STATE_STARTING: "[yellow]starting[/]",
    plugin_service_pb2.PLUGIN_PROCESS_STATE_RUNNING: "[green]running[/]",
    plugin_service_pb2.PLUGIN_PROCESS_STATE_WAITING: "[red]waiting[/]",
}
_MEBIBYTE = 1024 * 1024


app = typer.Typer(invoke_without_command=True)


@calling
def plugins(context: typer.Context, target: Target, output: OutputOption = Output.TABLE) -> None:
    """Show the plugins, what they serve, the processes that run them, and why one is not loaded.

    Asks the running service. If no service answers, it shows the installed plugins. Exit code 4 if a plugin, or a
    listing of one, is not served although it is installed.
    """
    if context.invoked_subcommand is None:
        run(_plugins(target, output), output)


async def _plugins(target: Target, output: Output) -> None:
    try:
        async with target.client() as client:
            reply = await client.list_plugins()
    except ServiceUnreachable:
        messages.print(f"[yellow]No service answers at {plain(target.address)}; these are the installed plugins.[/]")
        reply = _read_installed()
    _show(reply, output)
    if any(not problem.notice for problem in reply.problems):
        raise typer.Exit(ExitCode.ACT)


def _show(reply: plugin_service_pb2.ListPluginsResponse, output: Output) -> None:
    if output is Output.TABLE:
        console.print(_table(reply))
        for held_to in sorted({status.sandbox for status in reply.plugins if status.sandbox}):
            messages.print(f"Plugins' own processes are kept to: {plain(held_to)}.", soft_wrap=True)
        for status in reply.plugins:
            if status.interpreter:
                versions = plain(", ".join((f"Python {status.python_version}", *status.libraries)))
                text = f"{plain(status.plugin.name)} runs on {plain(status.interpreter)}: {versions}."
                messages.print(text, soft_wrap=True)
            for process in status.processes:
                if process.last_end:
                    messages.print(
                        f"[yellow]{plain(status.plugin.name)}:[/] last ended: {plain(process.last_end)}", soft_wrap=True
                    )
        for problem in reply.problems:
            colour = "yellow" if problem.notice else "red"
            messages.print(f"[{colour}]{plain(problem.plugin.name)}:[/] {plain(problem.reason)}", soft_wrap=True)
        return
    rows = [_row(status) for status in reply.plugins]
    if output is Output.JSON:
        problems = [{"name": item.plugin.name, "reason": item.reason, "notice": item.notice} for item in reply.problems]
        tables.print_json({"plugins": rows, "problems": problems})
    else:
        for row in rows:
            tables.print_line(row)


def _read_installed() -> plugin_service_pb2.ListPluginsResponse:
    """The service's answer without processes, made from the installed plugins."""
    from exchange_service.plugin_host.discovery import open_registry
    from exchange_service.plugin_host.report import list_installed

    settings = read_settings(None, {})
    return list_installed(open_registry(settings), settings.plugin_sandbox)


def _row(status: plugin_service_pb2.PluginStatus) -> dict[str, Any]:
    """A plugin as JSON for programs."""
    return {
        "name": status.plugin.name,
        "distribution": status.plugin.distribution,
        "version": status.plugin.version,
        "exchanges": status.exchange_count,
        "with_balances": status.balance_exchange_count,
        "with_pushes": status.push_exchange_count,
        "own_process": status.own_process,
        "sandbox": status.sandbox,
        "interpreter": status.interpreter,
        "python": status.python_version,
        "libraries": list(status.libraries),
        "processes": [tables.as_dict(process) for process in status.processes],
    }


def _table(reply: plugin_service_pb2.ListPluginsResponse) -> Columns:
    """A line for each process, and one for a plugin without a process."""
    # Whether a plugin has a process of its own is seen by its state, and the rest is in the metrics.
    figures = {"process": 0, "memory": 3, "uptime": 2, "restarts": 4}
    table = Columns(
        Column("plugin", whole=True),
        Column("version", whole=True),
        Column("exchanges", whole=True),
        Column("runs in", spare=1),
        Column("state", whole=True),
        *(Column(name, whole=True, right=True, spare=spare) for name, spare in figures.items()),
    )
    for status in reply.plugins:
        where = "its own process" if status.own_process else "the service"
        known = (plain(status.plugin.name), plain(status.plugin.version), str(status.exchange_count), where)
        for process in status.processes or (None,):
            table.add(*known, *_process(process))
    return table


def _process(process: plugin_service_pb2.PluginProcess | None) -> tuple[str, str, str, str, str]:
    if process is None:
        return ("", "", "", "", "")
    return (
        _STATES.get(process.state, "unknown"),
        str(process.process_id or ""),
        f"{process.memory_bytes / _MEBIBYTE:.0f} MiB" if process.memory_bytes else "",
        str(timedelta(seconds=to_seconds(process.uptime))) if process.HasField("uptime") else "",
        str(process.restart_count),
    )


def add_to(parent: typer.Typer) -> None:
    """Add the command, with those for authors."""
    from exchange_service.cli import plugin_check, plugin_new, plugin_settings, plugin_try, plugin_update

    app.callback()(plugins)
    app.command()(plugin_settings.seal)
    app.command("settings")(plugin_settings.show_settings)
    app.command()(plugin_new.new)
    app.command()(plugin_update.update)
    plugin_try.add_to(app)
    plugin_check.add_to(app)
    parent.add_typer(app, name="plugins")
