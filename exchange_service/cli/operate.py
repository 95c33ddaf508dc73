"""The operator's commands: serve, demo and doctor."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from exchange_service.cli import tables
from exchange_service.cli.flags import with_settings
from exchange_service.cli.outcome import ExitCode, Output, console, fail, messages, plain, run
from exchange_service.cli.runtime import LoopFactory, LoopMissing, loop_factory
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.gc_tuning import tune_gc, uncollected
from exchange_service.observability.logs import configure_logging
from exchange_service.open_files import raise_limit
from exchange_service.service_manager import ServiceManager
from exchange_service.settings import Settings

if TYPE_CHECKING:
    from exchange_service.app import Service

# Where the demo lists the keys of its venues, unless it is taken.
_DEMO_SITE_PORT = 50053


@with_settings()
def serve(settings: Settings) -> None:
    """Serve until interrupted. Each setting is a flag, an environment variable, or a line of the settings file."""
    run(_serve(settings), loop_factory=_select_loop(settings))


def _select_loop(settings: Settings) -> LoopFactory | None:
    try:
        return loop_factory(settings.event_loop)
    except LoopMissing as error:
        fail(str(error), ExitCode.ACT)


async def _serve(settings: Settings) -> None:
    with uncollected():
        service = await _start(settings)
    tune_gc()
    from exchange_service.identity.methods import who_may_call

    text = f"Serving on {service.address}, {plain(who_may_call(settings))}. Interrupt to end."
    if url := service.web.console_url():
        text = f"The console is at {plain(url)}\n{text}"
    await _run_managed(service, text)
    messages.print("Stopped.")
    await end_process()


async def _run_managed(service: Service, text: str) -> None:
    """Serve until a signal comes. A service manager, if there is one, is told what a person at the terminal is."""
    manager = ServiceManager.from_environment()

    def ready() -> None:
        messages.print(text, soft_wrap=True)
        manager.ready(f"Serving on {service.address}.")

    alive = asyncio.create_task(manager.keep_alive(), name="watchdog of the service manager")
    try:
        await service.run_until_signal(ready, lambda: manager.stopping("Leaving: health says NOT_SERVING."))
    finally:
        alive.cancel()


async def _start(settings: Settings) -> Service:
    from exchange_service.app import start_service
    from exchange_service.credentials.keysets import KeysetInvalid
    from exchange_service.credentials.wrapped_keysets import KeysetAway
    from exchange_service.grpc_server.server import BindError
    from exchange_service.startup_checks import UnsafeSettings

    configure_logging(settings.log_level, settings.log_format)
    raise_limit()
    try:
        return await start_service(settings)
    except KeysetAway as away:
        fail(f"{away} Waited for {settings.keyset_wait:g} seconds (keyset_wait).", ExitCode.AGAIN)
    except (UnsafeSettings, BindError, KeysetInvalid) as error:
        fail(str(error), ExitCode.ACT)


async def end_process() -> None:
    """End the process even if a plugin's task ignores its cancellation: Python would wait for it forever."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if not others:
        return
    _, left = await asyncio.wait(others, timeout=1.0)
    if left:
        names = ", ".join(sorted(task.get_name() for task in left))
        messages.print(f"[yellow]left behind, because they ignore their cancellation:[/] {plain(names)}")
        sys.stdout.flush()
        os._exit(0)


@with_settings()
def demo(
    settings: Settings,
    redis: Annotated[bool, typer.Option("--redis", help="Cache balances in a Redis-compatible server.")] = False,
) -> None:
    """Serve simulated accounts on loopback, to try everything without a key. Nothing leaves this machine."""
    given = settings.model_fields_set
    # Livelier than a real service, unless the settings say otherwise.
    quick = {
        "shutdown_delay": 0.0,
        "poll_interval": 2.0,
        "poll_interval_still": 2.0,
        "log_level": "warning",
        "max_age": 5.0,
        **_console_settings(settings),
    }
    settings = settings.model_copy(update={name: quick[name] for name in quick.keys() - given})
    run(_demo(settings, redis), loop_factory=_select_loop(settings))


def _console_settings(settings: Settings) -> dict[str, object]:
    """What serves the demo to browsers too, if the libraries for that are installed, nobody else reaches it, and the
    settings do not say --no-console."""
    from exchange_service.cli.demo import HTTP_ADDRESS

    unwanted = "console" in settings.model_fields_set and not settings.console
    libraries = ("connectrpc", "starlette", "sse_starlette")
    if unwanted or not settings.loopback or any(find_spec(name) is None for name in libraries):
        return {}
    if settings.knows_callers and not settings.takes_tokens:
        # Browsers would have to present a client certificate, which the pages do not ask for.
        return {}
    return {"http_address": HTTP_ADDRESS, "console": True, "manage_accounts": True}


async def _demo(settings: Settings, redis: bool) -> None:
    from exchange_service.cli.demo import running_demo
    from exchange_service.cli.welcome import print_welcome
    from exchange_service.grpc_server.server import BindError
    from exchange_service.startup_checks import UnsafeSettings

    configure_logging(settings.log_level, settings.log_format)
    raise_limit()
    started = time.monotonic()
    try:
        async with running_demo(settings, redis=redis, site_port=_DEMO_SITE_PORT) as running:
            tune_gc()
            welcome = partial(print_welcome, running, time.monotonic() - started)
            await running.service.run_until_signal(welcome)
    except UnsafeSettings as error:
        fail(str(error), ExitCode.ACT)
    except BindError as error:
        fail(f"{error} Another service may be running; choose a port with --address 127.0.0.1:50061.", ExitCode.ACT)
    messages.print("Stopped.")
    await end_process()


@with_settings()
def doctor(
    settings: Settings,
    output: Annotated[Output, typer.Option("--output", "-o", envvar=f"{ENVIRONMENT_PREFIX}OUTPUT")] = Output.TABLE,
) -> None:
    """Check settings, database, cache, plugins and the fields of stored credentials, and say what to do."""
    from exchange_service.cli.doctor import Severity, examine

    findings = asyncio.run(examine(settings))
    if output is Output.TABLE:
        colours = {Severity.WELL: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}
        for finding in findings:
            colour = colours[finding.severity]
            console.print(
                f"[{colour}]{finding.severity.value:8}[/] {plain(finding.subject)}: {plain(finding.text)}",
                soft_wrap=True,
            )
    else:
        entries = [
            {"severity": finding.severity.value, "subject": finding.subject, "text": finding.text}
            for finding in findings
        ]
        if output is Output.JSON:
            tables.print_json(entries)
        else:
            for entry in entries:
                tables.print_line(entry)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(ExitCode.ACT)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (serve, demo, doctor):
        app.command()(command)
