"""The rules of alerts, for Prometheus."""

from __future__ import annotations

import re
from importlib.resources import files

# The job of the rules as they stand in the file.
JOB = "exchange-service"
# Where the paragraphs for the person who is woken stand, in the documents.
RUNBOOK = "docs/runbook.md"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}\Z")
_ALERT = re.compile(r"^( +)- alert: (\w+)$(.*?)^\1  annotations:\n", re.MULTILINE | re.DOTALL)


def check_job(job: str) -> str:
    """The name of a job of Prometheus, as it is. Raises ValueError for one that could end the quotes of a rule."""
    if not _NAME.match(job):
        raise ValueError(f"{job!r} cannot be the name of a job: use letters, digits, and . _ - / between them.")
    return job


def alert_rules(job: str = JOB, runbook: str = RUNBOOK) -> str:
    """The rules as a YAML file for the replicas that Prometheus scrapes as `job`. Each alert's annotation `runbook` is
    the page `runbook`, a path or a URL, with the alert's heading. Raises ValueError for a wrong `job` or `runbook`."""
    if any(sign in runbook for sign in '"\\\n#{'):
        raise ValueError(f"{runbook!r} cannot be the address of the runbook: leave quotes, braces and # out.")
    text = (files(__package__) / "alerts.yaml").read_text()
    text = text.replace(f'job="{JOB}"', f'job="{check_job(job)}"').replace(f"the job {JOB}", f"the job {job}")
    return _ALERT.sub(lambda match: f'{match[0]}{match[1]}    runbook: "{runbook}#{match[2].lower()}"\n', text)
