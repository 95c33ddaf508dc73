"""`plugins check`: how well a plugin is made, rule by rule, in tiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service.cli import tables
from exchange_service.cli.calls import OutputOption
from exchange_service.cli.outcome import ExitCode, Output, console, fail, messages, plain, run

if TYPE_CHECKING:
    # Imports the contract suite, which other commands do not need.
    from exchange_service.authoring.quality import Report
    from exchange_service.testing.projects import PluginProject

_TIERS = ("bronze", "silver", "gold", "platinum")
_COLOURS = {"done": "green", "exempt": "cyan", "todo": "red"}


def check(
    plugin: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER", help="An installed plugin, or the folder of its pyproject.toml.")
    ] = ".",
    tier: Annotated[str, typer.Option(help="Exit with 4 if the plugin is below: bronze, silver, gold, platinum.")] = "",
    write: Annotated[bool, typer.Option(help="Write quality.toml into the plugin's folder.")] = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Run a plugin's tests, the contract suite and mypy, and show which rules of quality it keeps.

    Runs the code of the plugin. The report is written to quality.toml in the plugin's folder; what you state there is
    kept. A plugin that comes from a wheel is only shown. docs/plugin-quality.md has the rules.
    """
    if tier and tier not in _TIERS:
        fail(f"--tier is one of {', '.join(_TIERS)}", ExitCode.USAGE)
    run(_check(plugin, tier, write, output), output)


async def _check(plugin: str, tier: str, write: bool, output: Output) -> None:
    from exchange_service.authoring.suite_results import can_run
    from exchange_service.testing.projects import ProjectNotFound, find_project

    if not can_run():
        fail("pytest and pytest-asyncio are missing: pip install 'exchange-service[authoring]'", ExitCode.MISSING)
    try:
        project = find_project(plugin)
    except ProjectNotFound as error:
        fail(str(error), ExitCode.MISSING)
    messages.print(f"Running the contract suite and the tests of {plain(project.info.name)} ...")
    report = await _judge(project, write)
    if output is Output.TABLE:
        _show(report)
    elif output is Output.JSON:
        tables.print_json(_as_dict(report))
    else:
        tables.print_line(_as_dict(report))
    if tier and _TIERS.index(tier) > _place(report):
        raise typer.Exit(ExitCode.ACT)


async def _judge(project: PluginProject, write: bool) -> Report:
    from exchange_service.authoring.checking import check_project, write_quality
    from exchange_service.authoring.quality_file import QualityFileBroken

    try:
        report = await check_project(project)
    except QualityFileBroken as error:
        fail(str(error), ExitCode.ACT)
    if write and project.folder is not None:
        messages.print(f"Written: {plain(str(write_quality(project, report)))}", soft_wrap=True)
    return report


def _place(report: Report) -> int:
    """Where the report's tier stands among the tiers; -1 below the lowest."""
    return _TIERS.index(report.tier) if report.tier in _TIERS else -1


def _show(report: Report) -> None:
    for tier in _TIERS:
        console.print(f"[bold]{tier}[/]")
        for found in (found for found in report.findings if found.rule.tier == tier):
            colour = _COLOURS[found.status]
            name = f"[{colour}]{found.status:<6}[/] {found.rule.name:<13}"
            console.print(f"  {name} {plain(found.evidence)}", soft_wrap=True)
            if found.advice:
                console.print(f"{'':23}{plain(found.advice)}", soft_wrap=True)
            if found.status == "exempt":
                words = f"{found.statement.comment} ({found.statement.source})"
                console.print(f"{'':23}the author: {plain(words)}", soft_wrap=True)
    console.print(f"\n{plain(report.name)} {plain(report.version)}: [bold]{report.tier}[/]{_next(report)}")
    console.print(f"unproven facts: {report.unproven}. seen live: {plain(report.seen_live)}")


def _next(report: Report) -> str:
    """What the next tier lacks, as the end of a sentence."""
    following = _TIERS[_place(report) + 1 :]
    if not following:
        return ""
    missing = [
        found.rule.name for found in report.findings if found.status == "todo" and found.rule.tier == following[0]
    ]
    return f". For {following[0]}: {', '.join(missing)}"


def _as_dict(report: Report) -> dict[str, Any]:
    return {
        "name": report.name,
        "version": report.version,
        "tier": str(report.tier),
        "unproven_facts": report.unproven,
        "seen_live": report.seen_live,
        "rules": [
            {
                "name": found.rule.name,
                "tier": str(found.rule.tier),
                "rule": found.rule.sentence,
                "status": str(found.status),
                "evidence": found.evidence,
                "advice": found.advice,
                "comment": found.statement.comment,
                "source": found.statement.source,
            }
            for found in report.findings
        ],
    }


def add_to(parent: typer.Typer) -> None:
    """Add the command."""
    parent.command()(check)
