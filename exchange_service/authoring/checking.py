"""Checks one plugin: runs its tests and types, gathers what is known of it, and judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exchange_service.authoring.evidence import UNCHECKED, TypeCheck, check_types, gather_evidence
from exchange_service.authoring.quality import Report, judge
from exchange_service.authoring.quality_file import NAME, quality_text, read_not_passed, read_statements
from exchange_service.authoring.suite_results import SuiteResults, run_suite
from exchange_service.testing.projects import PluginProject


async def check_project(project: PluginProject) -> Report:
    """Run everything, which takes from ten seconds to some minutes, and judge; of a plugin that does not load nothing
    is run. Raises QualityFileBroken."""
    statements = read_statements(quality_path(project)) if project.folder is not None else {}
    evidence = await gather_evidence(project, SuiteResults(), UNCHECKED)
    if evidence.plugin is not None:
        types = check_types(project, evidence.package)
        evidence = replace(evidence, results=run_suite(project), types=types)
    return judge(evidence, statements)


async def judge_as_passed(project: PluginProject, collected: SuiteResults) -> Report:
    """The report if each collected test passes, but for those that the report so far names, and the types are right;
    without running either. Raises QualityFileBroken."""
    tests = tuple(test for test in collected.tests if test.plugin in ("", project.point.module))
    results = replace(collected, tests=tests).as_passed(read_not_passed(quality_path(project)))
    evidence = await gather_evidence(project, results, TypeCheck(True))
    return judge(evidence, read_statements(quality_path(project)))


def quality_path(project: PluginProject) -> Path:
    """Where the plugin's report is kept. Raises ValueError for a plugin without a folder."""
    if project.folder is None:
        raise ValueError("a plugin that comes from a wheel has no place for its report")
    return project.folder / NAME


def write_quality(project: PluginProject, report: Report) -> Path:
    """Write the report into the plugin's folder, and return where."""
    path = quality_path(project)
    path.write_text(quality_text(report), encoding="utf-8")
    return path
