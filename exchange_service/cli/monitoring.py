"""The commands that print what a monitoring system imports."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from exchange_service.cli.outcome import ExitCode, fail, plain

app = typer.Typer(help="Print the dashboard and the rules of alerts for your monitoring.", no_args_is_help=True)

JobOption = Annotated[str, typer.Option("--job", help="The job by which Prometheus scrapes the service's replicas.")]


@app.command()
def dashboard(job: JobOption = "exchange-service") -> None:
    """Print the dashboard that Grafana imports, as JSON."""
    from exchange_service.monitoring.dashboard import dashboard

    try:
        typer.echo(json.dumps(dashboard(job), indent=2))
    except ValueError as error:
        fail(f"--job: {plain(str(error))}", ExitCode.USAGE)


@app.command()
def alerts(
    job: JobOption = "exchange-service",
    runbook: Annotated[
        str, typer.Option("--runbook", help="Where your people read docs/runbook.md: a URL, without a heading.")
    ] = "docs/runbook.md",
) -> None:
    """Print the rules of alerts that Prometheus reads, as YAML."""
    from exchange_service.monitoring.alerts import alert_rules

    try:
        typer.echo(alert_rules(job, runbook), nl=False)
    except ValueError as error:
        fail(plain(str(error)), ExitCode.USAGE)
