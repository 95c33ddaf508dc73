"""The command `plugins try`: one call of a plugin in view of its author."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from exchange_service.cli import tables
from exchange_service.cli.calls import OutputOption
from exchange_service.cli.outcome import ExitCode, Output, console, exit_code, fail, messages, plain, run

if TYPE_CHECKING:
    # Imports the plugins' libraries, which other commands do not need.
    from exchange_service.authoring.recording import Written
    from exchange_service.authoring.trying import LoadedProject, Trial, Wish
    from exchange_service.model import Credential
    from exchange_service.venues.plugin_settings import OperatorSettings
    from exchange_service.venues.registry import Listing

_MILLISECONDS = 1000
# Headers of an answer that say something to an author.
_TELLING = ("limit", "retry", "remaining", "reset", "used", "weight", "content-type", "location")


def try_plugin(
    plugin: Annotated[str, typer.Argument(help="The plugin's folder, or the name of an installed one.")] = ".",
    exchange: Annotated[str, typer.Option("--exchange", "-e", help="Which listing, if it has several.")] = "",
    environment: Annotated[str, typer.Option(help="production, sandbox, or the venue's own name.")] = "production",
    account_type: Annotated[str, typer.Option(help="One of the listing's account types, or all.")] = "",
    situation: Annotated[
        str, typer.Option(help="Which account of the simulator: moving, empty, refused, limited, slow, stale, partly.")
    ] = "",
    trouble: Annotated[
        str,
        typer.Option(help="Or one with a trouble, such as outage; a name that there is not lists them."),
    ] = "",
    url: Annotated[str, typer.Option(help="An address in the venue's place, as venue_urls has it.")] = "",
    live: Annotated[bool, typer.Option("--live", help="The real venue, with a credential of yours.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=120, help="Seconds for the call.")] = 8.0,
    watch: Annotated[float, typer.Option(min=0, max=3600, help="Then follow its pushes for so many seconds.")] = 0.0,
    check_credential: Annotated[bool, typer.Option("--check-credential", help="Then ask what the key may do.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Keep the answers in this new folder, with secrets, ids and amounts replaced.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the recording that is there.")] = False,
    lines: Annotated[int, typer.Option(min=0, help="Lines that are shown of each body; 0: all.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """Load a plugin as the service does and read one balance: of its simulator, an address or the real venue.

    Shows every request and answer without secrets, times, the budget used, and the balance or the error with the
    traceback of your own code. With --url and --live the credential is one JSON object on standard input (api_key,
    api_secret, passphrase, extra_metadata), or is prompted for; it is never an argument.

    Exit codes: 0 a balance was read, 1 the plugin is not loaded or failed, 2 wrong usage, 3 there is no such plugin,
    listing or simulator, 4 the venue refuses the credential or a person must act, 5 the venue failed: try again later.
    """
    from exchange_service.authoring.trying import Wish
    from exchange_service.testing.projects import ProjectNotFound, find_project

    if bool(url) + live + bool(situation or trouble) > 1:
        fail("choose one of --url, --live, and a --situation or --trouble of the simulator", ExitCode.USAGE)
    if url and not url.startswith(("http://", "https://")):
        fail("--url should begin with http:// or https://", ExitCode.USAGE)
    try:
        project = find_project(plugin)
    except ProjectNotFound as missing:
        fail(str(missing), ExitCode.MISSING)
    wish = Wish(
        exchange,
        environment,
        account_type,
        situation or "moving",
        trouble,
        url,
        live,
        timeout,
        watch,
        check_credential,
    )
    if record is not None:
        _check_target(record, force=force)
    run(_try(project, wish, lines, output, record, force=force), output)


def _check_target(folder: Path, *, force: bool) -> None:
    from exchange_service.authoring.recording import RecordingRefused, check_target

    try:
        check_target(folder, force=force)
    except RecordingRefused as refused:
        fail(str(refused), ExitCode.USAGE)


async def _try(project: Any, wish: Wish, lines: int, output: Output, record: Path | None, *, force: bool) -> None:
    from exchange_service.authoring import trying
    from exchange_service.authoring.trial_report import describe_trial
    from exchange_service.observability.logs import configure_logging

    # What the service would log of a failure is shown in full here.
    configure_logging(stream=io.StringIO())
    try:
        loaded = trying.load_project(project)
    except trying.NotLoaded as refused:
        _show_not_loaded(project.info.name, refused, output)
    try:
        listing = loaded.listing(wish.exchange)
        async with AsyncExitStack() as stack:
            trial = await _trial(stack, loaded, listing, wish)
    except trying.CannotTry as missing:
        fail(str(missing), ExitCode.MISSING)
    report = describe_trial(loaded, trial, lines=lines)
    written, refusal = None, ""
    if record is not None:
        written, refusal = _record(trial, record, force=force)
        report["recording"] = _describe_recording(written, refusal)
    _show(trial, report, output)
    if refusal and output is not Output.TABLE:
        messages.print(f"[bold red]error:[/] {plain(refusal)}", soft_wrap=True)
    if trial.error is not None:
        raise typer.Exit(exit_code(trial.error))
    if refusal:
        raise typer.Exit(ExitCode.ACT)


def _record(trial: Trial, folder: Path, *, force: bool) -> tuple[Written | None, str]:
    """What was written, or why nothing was."""
    from exchange_service.authoring.recording import RecordingRefused, write_recording

    try:
        return write_recording(trial, folder, force=force), ""
    except RecordingRefused as refused:
        return None, str(refused)
    except OSError as error:
        return None, f"The recording cannot be written into {folder}: {error.strerror}."


def _describe_recording(written: Written | None, refusal: str) -> dict[str, Any]:
    if written is None:
        return {"refused": refusal}
    return {
        "folder": str(written.folder),
        "files": list(written.files),
        "replaced": [{"field": item.place, "kind": str(item.kind), "count": item.count} for item in written.replaced],
        "kept": list(written.kept),
        "notes": list(written.notes),
    }


async def _trial(stack: AsyncExitStack, loaded: LoadedProject, listing: Listing, wish: Wish) -> Trial:
    from dataclasses import replace

    from exchange_service.authoring import trying
    from exchange_service.venues.plugin_settings import OperatorSettings

    if wish.url or wish.live:
        trying.use_settings(loaded, _operators_settings())
        where = f"the address {wish.url}" if wish.url else "the real venue"
        credential = _ask_credential(listing)
        return await trying.try_plugin(loaded, listing, wish, credential, where)
    venue, name = await stack.enter_async_context(trying.open_simulator(loaded, listing, wish))
    trying.use_settings(loaded, OperatorSettings(stand_ins={loaded.plugin.info.distribution: venue.settings}))
    credential = trying.simulated_credential(venue, wish)
    shown = f"trouble {wish.trouble!r}" if wish.trouble else f"situation {wish.situation!r}"
    where = f"the simulator {name}, with a credential of the {shown}"
    return await trying.try_plugin(loaded, listing, replace(wish, url=venue.url), credential, where, venue=venue)


def _operators_settings() -> OperatorSettings:
    from exchange_service.cli.flags import read_settings
    from exchange_service.plugin_host.discovery import operator_settings

    return operator_settings(read_settings(None, {}))


def _ask_credential(listing: Listing) -> Credential:
    """The credential of standard input: typed at a terminal, else one JSON object."""
    from exchange_service.authoring.trying import checked_credential
    from exchange_service.cli.credentials import prompt_credential, read_credential
    from exchange_service.errors import CredentialInvalid

    typed = sys.stdin.isatty()
    by_hand = {"at_end": "nothing was tried", "as_json": "on a standard input that is no terminal"}
    credential = prompt_credential(listing.metadata, **by_hand) if typed else read_credential()
    try:
        return checked_credential(listing, credential)
    except CredentialInvalid as invalid:
        fail(f"nothing was tried: {invalid.text}", ExitCode.USAGE)


def _show_not_loaded(name: str, refused: Any, output: Output) -> NoReturn:
    if output is Output.TABLE:
        messages.print(f"[bold red]The plugin {plain(name)} is not loaded:[/] {plain(refused.reason)}", soft_wrap=True)
        for line in refused.trace.split("\n") if refused.trace else ():
            messages.print(f"  {plain(line)}", soft_wrap=True, highlight=False)
    else:
        value = {"plugin": {"name": name}, "not_loaded": refused.reason, "traceback": refused.trace.split("\n")}
        _print(value, output)
    raise typer.Exit(ExitCode.BUG)


def _print(value: Mapping[str, Any], output: Output) -> None:
    if output is Output.JSON:
        tables.print_json(value)
    else:
        tables.print_line(value)


def _show(trial: Trial, report: dict[str, Any], output: Output) -> None:
    if output is not Output.TABLE:
        balance = None if trial.fetched is None else tables.as_dict(_message(trial, trial.fetched))
        pushes = [
            {
                "seconds": round(item.seconds, 4),
                "balance": item.balance and tables.as_dict(_message(trial, item.balance)),
            }
            for item in trial.pushes
        ]
        _print(report | {"balance": balance, "pushes": pushes}, output)
        return
    for line in _lines(report):
        console.print(line, soft_wrap=True, highlight=False)
    if trial.fetched is not None:
        _show_balance(trial, trial.fetched)
    for item in trial.pushes:
        what = "the account has changed" if item.balance is None else "a balance"
        console.print(f"[bold]pushed after {item.seconds:.1f} s:[/] {what}", highlight=False)
        if item.balance is not None:
            _show_balance(trial, item.balance)
    for line in _endings(report):
        console.print(line, soft_wrap=True, highlight=False)


def _message(trial: Trial, fetched: Any) -> Any:
    """The balance as callers get it, and no secret in its texts."""
    from exchange_service.wire.balances import parse_fetched

    message = parse_fetched(fetched)
    message.exchange_id = trial.listing.metadata.id
    message.environment = trial.environment
    message.notes[:] = [trial.masker.text(note) for note in message.notes]
    for account in message.venue_accounts:
        account.label = trial.masker.text(account.label)
        if account.HasField("error"):
            account.error.message = trial.masker.text(account.error.message)
    return message


def _show_balance(trial: Trial, fetched: Any) -> None:
    message = _message(trial, fetched)
    console.print(tables.balance(message))
    for line in tables.summaries(message):
        console.print(f"[dim]summary[/] {line}", soft_wrap=True, highlight=False)
    for fault in tables.faults(message):
        console.print(f"[red]not read:[/] {fault}", soft_wrap=True, highlight=False)
    for note in message.notes:
        console.print(f"[dim]note:[/] {plain(note)}", soft_wrap=True, highlight=False)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for a person, up to the balance."""
    plugin, exchange = report["plugin"], report["exchange"]
    version = " ".join(part for part in (plugin["distribution"], plugin["version"]) if part)
    yield plain(f"plugin {plugin['name']} ({version}), {plugin['folder'] or plugin['module']}")
    kinds = ", ".join(exchange["account_types"]) or "any"
    yield plain(f"listing {exchange['id']}: {exchange['name']}, {exchange['environment']}, account types: {kinds}")
    yield plain(f"tried with {report['tried']}")
    yield ""
    for number, request in enumerate(report["requests"], 1):
        yield from _request_lines(number, request)
    yield from _budget_lines(report)
    yield ""


def _request_lines(number: int, request: Mapping[str, Any]) -> Iterator[str]:
    yield f"[bold]{number}  {plain(request['method'])} {plain(request['url'])}[/]"
    for name, value in request["headers"].items():
        yield f"   [dim]{plain(name)}:[/] {plain(value)}"
    if request["body"]:
        yield f"   {plain(request['body'])}"
    yield f"   {_answer_line(request)}"
    for name, value in request["answer_headers"].items():
        if any(word in name.lower() for word in _TELLING) and "application/json" not in value:
            yield f"   [dim]{plain(name)}:[/] {plain(value)}"
    yield from (f"   {plain(line)}" for line in request["answer"])
    for message in request["messages"]:
        arrow = "→" if message["sent"] else "←"
        yield f"   [cyan]{arrow}[/] {plain(message['text'])}"
    if request["more_messages"]:
        yield f"   … ({request['more_messages']} more messages)"
    yield ""


def _answer_line(request: Mapping[str, Any]) -> str:
    if request["status"] is None:
        return f"[red]no answer[/] ({plain(request['failure'] or 'the call ended before')})"
    if request["seconds"] is None:
        return f"{request['status']}, and the answer was not read to its end"
    colour = "green" if request["status"] < 300 else "red"
    failed = f", {plain(request['failure'])}" if request["failure"] else ""
    took = f"{request['seconds'] * _MILLISECONDS:.0f} ms"
    if request["status"] == 101:
        return f"[{colour}]101[/], a WebSocket after {took}{failed}"
    return f"[{colour}]{request['status']}[/] in {took}, {request['bytes']:,} bytes{failed}"


def _budget_lines(report: Mapping[str, Any]) -> Iterator[str]:
    budget, count = report["budget"], len(report["requests"])
    took, busy = (report[name] * _MILLISECONDS for name in ("seconds", "plugin_seconds"))
    plural = "" if count == 1 else "s"
    yield f"[bold]{count} request{plural}[/] in {took:.0f} ms, of which the plugin computed for {busy:.0f} ms"
    for limit in budget["limits"]:
        yield (f"limit by {limit['scope']}: {limit['count']} in {limit['seconds']} s; a balance uses {limit['cost']}")
    if not budget["limits"]:
        yield "the listing names no limits"
    for usage in budget["reported_usage"]:
        yield f"reported: {usage['used']} used in {usage['window_seconds']} s, reset in {usage['resets_after']:g} s"
    for cost in budget["reported_costs"]:
        window = f" of the limit of {cost['window_seconds']} s" if cost["window_seconds"] else ""
        yield f"reported: {cost['units']} units{window} were really used"
    if budget["reported_cooldown"]:
        yield f"reported: no requests for {budget['reported_cooldown']:g} s"


def _endings(report: Mapping[str, Any]) -> Iterator[str]:
    """What follows the balance: rights, errors with the author's frames, notices."""
    if rights := report["rights"]:
        told = {True: "yes", False: "no", None: "the venue does not say"}
        ends = f"; expires: {rights['expires']}" if rights["expires"] else ""
        yield f"may trade: {told[rights['may_trade']]}; may withdraw: {told[rights['may_withdraw']]}{ends}"
        yield from (f"[dim]note on the key:[/] {plain(note)}" for note in rights["notes"])
    for name, title in (("error", "no balance"), ("rights_error", "no rights"), ("push_error", "the push ended")):
        if error := report[name]:
            wait = f" (Wait {error['retry_after']:.3g} s.)" if error["retry_after"] else ""
            yield f"[bold red]{title}: {error['reason']}[/] {plain(error['message'])} {plain(error['advice'])}{wait}"
            if error["problem"]:
                yield f"[bold]what to change:[/] {plain(error['problem'])}"
    if report["traceback"]:
        yield ""
        yield "[bold]Raised in the plugin[/] (callers and logs do not see this):"
        yield from (plain(line) for line in report["traceback"])
    for notice in report["notices"]:
        yield f"[yellow]notice:[/] {plain(notice)}"
    if "recording" in report:
        yield ""
        yield from _recording_lines(report["recording"])


def _recording_lines(recording: Mapping[str, Any]) -> Iterator[str]:
    if "refused" in recording:
        yield f"[bold red]not recorded:[/] {plain(recording['refused'])}"
        return
    count = len(recording["files"])
    yield f"[bold]recorded[/] {count} answer{'' if count == 1 else 's'} in {plain(recording['folder'])}; replaced were:"
    for item in recording["replaced"]:
        yield f"   {item['kind']:<6}  {item['count']:>4}×  {plain(item['field'])}"
    if recording["kept"]:
        yield f"kept as they are: {plain(', '.join(recording['kept']))}"
        yield "Read the files before you commit them: only you know what else names somebody."
    for note in recording["notes"]:
        yield f"[yellow]notice:[/] {plain(note)}"


def add_to(group: typer.Typer) -> None:
    """Add the command to the group `plugins`."""
    group.command("try")(try_plugin)
