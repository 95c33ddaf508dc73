"""`plugins check`: what it finds in the documented plugin, in a broken one and in ours, and what it keeps."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import exchange_service_oanda
import psutil
import pytest

from exchange_service.authoring import evidence
from exchange_service.authoring.checking import judge_as_passed, write_quality
from exchange_service.authoring.evidence import UNCHECKED, SourceFile, TypeCheck, gather_evidence
from exchange_service.authoring.places import without_places
from exchange_service.authoring.quality import (
    RULES,
    TIERS,
    Finding,
    Report,
    Statement,
    Status,
    Tier,
    _faults_of_comments,
    _states_rights,
    judge,
    seen_live,
)
from exchange_service.authoring.quality_file import QualityFileBroken, quality_text, read_quality, read_statements
from exchange_service.authoring.suite_results import SuiteResults, run_pytest
from exchange_service.testing.projects import find_project
from exchange_service.testing.witnesses import Witness
from scripts.plugin_pages import LISTED, read_listed
from tests.commands import run_command
from tests.plugin_reports import untold_skips
from tests.test_docs import write_documented_plugin

ROOT = Path(__file__).parent.parent
OURS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
PLAIN = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
Documented = tuple[Path, Mapping[str, dict[str, str]], str]


@pytest.fixture(autouse=True)
def restore_path() -> Iterator[None]:
    """Forget the places of plugins that are looked at."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def collected() -> SuiteResults:
    """Tests of all our plugins, which pytest reads and does not run: those of the contract, and a few of their own."""
    files = [file for folder in OURS for file in files_to_collect(folder)]
    return run_pytest(["--collect-only", *map(str, files)], working_folder=ROOT)


def files_to_collect(folder: Path) -> list[Path]:
    """The files with the contract suite, whatever their names, and the smallest of the others: reading all of them
    takes long, and that there are tests of its own is all that a report says of them."""
    files = sorted(folder.glob("tests/**/test_*.py"), key=lambda file: (file.stat().st_size, file))
    suites = [file for file in files if "PluginContract" in file.read_text()]
    return [*suites, *[file for file in files if file not in suites][:1]]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Documented:
    """The folder of the documented plugin, its rules as the command prints them, and its tier."""
    folder = tmp_path_factory.mktemp("exchange-service-acme")
    write_documented_plugin(folder)
    # The page has a second plugin, whose tests are not this one's.
    (folder / "tests" / "test_bolt.py").unlink()
    command = [sys.executable, "-m", "exchange_service", "plugins", "check", str(folder), "-o", "json"]
    # mypy reads the whole service, unless an earlier run has left what it knows.
    environment = {**PLAIN, "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "plugins-check")}
    done = subprocess.run(
        [*command, "--tier", "silver"], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 4, done.stderr
    printed = json.loads(done.stdout)
    return folder, {rule["name"]: rule for rule in printed["rules"]}, printed["tier"]


def of_plugin(collected: SuiteResults, name: str) -> SuiteResults:
    return replace(collected, tests=tuple(test for test in collected.tests if f"plugins/{name}/" in test.id))


def our_report(folder: Path, collected: SuiteResults) -> Report:
    return asyncio.run(judge_as_passed(find_project(str(folder)), of_plugin(collected, folder.name)))


def finding(report: Report, name: str) -> Finding:
    return next(found for found in report.findings if found.rule.name == name)


@pytest.mark.project
class TestTheDocumentedPlugin:
    def test_it_reaches_bronze_out_of_the_page(self, documented: Documented) -> None:
        _, rules, tier = documented
        assert {name for name, rule in rules.items() if rule["status"] == "todo"} == {
            *("tests", "payloads", "limits", "typed"),
            *("demo", "names", "read_only", "key_rights", "sandbox", "automation", "changelog"),
            *("push", "sources", "bounded"),
        }
        assert tier == "bronze"

    def test_what_is_missing_is_said_with_what_to_do(self, documented: Documented) -> None:
        _, rules, _ = documented
        assert rules["limits"]["evidence"] == "missing: limits of acme"
        assert rules["limits"]["advice"].startswith("State `limits`")
        # What no statement can put right does not advise one.
        assert rules["demo"]["advice"].endswith(
            "Or state in quality.toml, under [rules.demo], which of them the venue cannot have."
        )
        assert "quality.toml" not in rules["typed"]["advice"]
        assert "exchange_service_acme/__init__.py:19: error: Function is missing" in rules["typed"]["evidence"]

    def test_the_report_in_its_folder_says_the_same_and_names_no_place_of_this_machine(
        self, documented: Documented
    ) -> None:
        folder, rules, tier = documented
        text = (folder / "quality.toml").read_text()
        written = tomllib.loads(text)
        assert written["tier"] == tier
        assert {name: table["evidence"] for name, table in written["rules"].items()} == {
            name: rule["evidence"] for name, rule in rules.items()
        }
        assert str(folder) not in text


class TestABrokenPlugin:
    def test_one_that_does_not_load_has_no_tier_and_is_told_why(self, tmp_path: Path) -> None:
        write_documented_plugin(tmp_path)
        module = tmp_path / "exchange_service_acme" / "__init__.py"
        module.write_text(module.read_text().replace("async def fetch_balance", "async def fetch_balances"))
        # Another process reads it, because this one has the documented plugin's module already.
        done = run_command(("plugins", "check", str(tmp_path), "--tier", "bronze"), PLAIN)
        assert done.returncode == 4
        assert "The hook fetch_balances is not part of the plugin API" in done.stdout
        assert "acme 1.0.0: none. For bronze: loads, manifest" in done.stdout

    def test_no_place_of_this_machine_gets_into_the_report(self, tmp_path: Path) -> None:
        write_documented_plugin(tmp_path)
        package = tmp_path / "exchange_service_acme"
        (package / "__init__.py").write_text(f"open({str(Path.home() / 'of-mine' / 'key.pem')!r})\n")
        done = run_command(("plugins", "check", str(tmp_path)), PLAIN)
        text = (tmp_path / "quality.toml").read_text()
        assert re.search("FileNotFoundError.*key.pem", text), done.stderr
        assert "of-mine" not in text
        assert "of-mine" not in done.stdout

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("a.py:3: error in {folder}/src/a.py", "a.py:3: error in src/a.py"),
            ("No such file: '{home}/x/y/key.pem'\nand more", "No such file: '.../key.pem' and more"),
            ("https://a.example/v1/x and /v1/accounts", "https://a.example/v1/x and /v1/accounts"),
        ],
    )
    def test_a_text_keeps_what_is_not_of_this_machine(self, text: str, shown: str, tmp_path: Path) -> None:
        assert without_places(text.format(folder=tmp_path, home=Path.home()), tmp_path) == shown

    def test_a_name_that_no_plugin_has_is_told_which_there_are(self) -> None:
        done = run_command(("plugins", "check", "onada"), PLAIN)
        assert done.returncode == 3
        assert "hyperliquid, krakenfutures, lighter, oanda" in done.stderr

    def test_a_tier_that_there_is_not_is_wrong_usage(self) -> None:
        done = run_command(("plugins", "check", "oanda", "--tier", "diamond"), PLAIN)
        assert (done.returncode, "bronze, silver, gold, platinum" in done.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("tier = ", "cannot be read as TOML"),
            ("rules = 1", "`rules` should be tables"),
            ("[rules]\nsandbox = 1", r"write \[rules.sandbox\] as a table"),
            ("[rules.sandbox]\ncomment = 1", "comment of .* should be a text"),
        ],
    )
    def test_a_report_that_cannot_be_read_is_left_alone(self, tmp_path: Path, text: str, sentence: str) -> None:
        (tmp_path / "quality.toml").write_text(text)
        with pytest.raises(QualityFileBroken, match=sentence):
            read_statements(tmp_path / "quality.toml")


class TestStatements:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """OANDA's plugin in a place of its own, without its report; its module is the one that is imported already."""
        assert exchange_service_oanda.__file__
        folder = tmp_path / "oanda"
        shutil.copytree(ROOT / "plugins" / "oanda", folder, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        (folder / "quality.toml").unlink()
        return folder

    @pytest.fixture
    def judged(self, folder: Path, collected: SuiteResults) -> Callable[[str], Report]:
        def judge_with(text: str) -> Report:
            (folder / "quality.toml").write_text(text)
            return asyncio.run(judge_as_passed(find_project(str(folder)), of_plugin(collected, "oanda")))

        return judge_with

    def test_one_that_names_what_is_missing_and_its_source_counts_and_is_kept(
        self, folder: Path, judged: Callable[[str], Report]
    ) -> None:
        (folder / "README.md").unlink()
        (folder / "payloads").rename(folder / "elsewhere")
        statement = {"status": "exempt", "comment": 'it has "none"\\', "source": "vendor: https://acme.example"}
        text = "[rules.changelog]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in statement.items())
        report = judged(text)
        found = finding(report, "changelog")
        # The rule takes no statement.
        assert (found.status, found.advice.partition(":")[0]) == (Status.TODO, "The statement does not count")
        write_quality(find_project(str(folder)), report)
        kept = read_quality(folder / "quality.toml")["rules"]["changelog"]
        assert statement.items() <= kept.items()
        assert kept["problem"] == found.advice
        assert quality_text(judged((folder / "quality.toml").read_text())) == quality_text(report)

    @pytest.mark.parametrize(
        ("comment", "source", "counts"),
        [
            ("Acme answers a 'missing right' as a wrong key.", "vendor: https://acme.example", True),
            ("Acme answers a 'missing right' as a wrong key.", "unproven: no page says so", True),
            ("Acme has no such case.", "vendor: https://acme.example", False),
            ("Acme answers a 'missing right' as a wrong key.", "", False),
            ("Acme answers a 'missing right' as a wrong key.", "somebody said so", False),
        ],
    )
    def test_it_counts_only_if_it_names_what_is_missing_and_where_that_is_known_from(
        self, collected: SuiteResults, comment: str, source: str, counts: bool
    ) -> None:
        folder = ROOT / "plugins" / "tradier"
        evidence = asyncio.run(
            gather_evidence(find_project(str(folder)), of_plugin(collected, "tradier").as_passed(), TypeCheck(True))
        )
        statements = read_statements(folder / "quality.toml")
        statements["demo"] = replace(statements["demo"], comment=comment, source=source)
        found = finding(judge(evidence, statements), "demo")
        assert found.status is (Status.EXEMPT if counts else Status.TODO)
        assert bool(found.advice) is not counts

    def test_one_that_is_a_guess_counts_as_an_unproven_fact(self, collected: SuiteResults) -> None:
        folder = ROOT / "plugins" / "tradier"
        evidence = asyncio.run(
            gather_evidence(find_project(str(folder)), of_plugin(collected, "tradier").as_passed(), TypeCheck(True))
        )
        statements = read_statements(folder / "quality.toml")
        proven = {**statements, "demo": replace(statements["demo"], source="vendor: https://acme.example")}
        assert judge(evidence, statements).unproven == judge(evidence, proven).unproven + 1


class TestRules:
    def judged(self, results: SuiteResults, types: TypeCheck = UNCHECKED) -> Report:
        folder = ROOT / "plugins" / "oanda"
        evidence = asyncio.run(gather_evidence(find_project(str(folder)), results, types))
        return judge(evidence, read_statements(folder / "quality.toml"))

    def changed(self, collected: SuiteResults, name: str, **changes: object) -> SuiteResults:
        """OANDA's tests as if all had passed, with one of them changed."""
        passed = of_plugin(collected, "oanda").as_passed()
        assert any(test.name == name for test in passed.tests)
        tests = (replace(test, **changes) if test.name == name else test for test in passed.tests)  # type: ignore[arg-type]
        return replace(passed, tests=tuple(tests))

    @pytest.mark.parametrize(
        ("name", "rules"),
        [
            ("test_nonsense_is_never_a_balance", {"malformed", "suite"}),
            ("test_it_never_blocks_the_event_loop", {"safety", "suite"}),
            ("test_a_ban_is_a_rate_limit", {"errors", "suite"}),
            ("test_a_flood_ends_in_the_last_figures_and_lets_others_go_on", {"push", "suite"}),
            ("test_an_account_type_is_read_alone", {"account_types", "suite"}),
            ("test_the_listing_is_complete", {"loads", "suite"}),
        ],
    )
    @pytest.mark.parametrize("outcome", ["failed", "skipped"])
    def test_a_test_of_the_suite_that_does_not_pass_is_missed_by_its_rules(
        self, collected: SuiteResults, name: str, rules: set[str], outcome: str
    ) -> None:
        report = self.judged(self.changed(collected, name, outcome=outcome), TypeCheck(True))
        missed = {found.rule.name for found in report.findings if found.status is Status.TODO}
        assert missed == rules
        assert name in finding(report, "suite").evidence

    def test_what_may_be_stated_is_told_beside_what_to_do(self) -> None:
        evidence = asyncio.run(
            gather_evidence(find_project(str(ROOT / "plugins" / "oanda")), SuiteResults(), TypeCheck(True))
        )
        advice = {found.rule.name: found.advice for found in judge(evidence, {}).findings}
        assert "Or state in quality.toml, under [rules.key_rights], that the venue does not say" in advice["key_rights"]
        assert "state in" not in advice["balance"]

    @pytest.mark.parametrize(
        ("changelog", "kept"),
        [
            ("# Changelog\n\n## 1.0.0\n\n- Reads Acme's balances.\n", False),
            ("# Changelog\n\n## 1.0.0\n\n- Reads Acme's balances and follows its pushes.\n", False),
            ("# Changelog\n\n## 1.0.0\n\n- Reads Acme's balances.\n- Reads margin accounts.\n", True),
            ("# Changelog\n\n## Unreleased\n\n### Added\n\n- Reads margin accounts,\n  and others.\n", True),
            ("# Changelog\n\n## 0.9.0\n\n- Reads margin accounts.\n\n## 1.0.0\n", False),
            ("# Changelog\n", False),
        ],
    )
    def test_a_changelog_says_more_of_this_version_than_the_template(
        self, tmp_path: Path, changelog: str, kept: bool
    ) -> None:
        write_documented_plugin(tmp_path)
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        assert (self.of_folder(tmp_path, "changelog").status is Status.DONE) is kept

    @pytest.mark.parametrize(("entry", "kept"), [("- Bolt is read.", False), ("- Reads ACME's options.", True)])
    def test_the_changelog_of_several_plugins_names_this_one(self, tmp_path: Path, entry: str, kept: bool) -> None:
        (tmp_path / ".git").mkdir()
        (tmp_path / "CHANGELOG.md").write_text(f"## 1.0.0\n\n{entry}\n")
        write_documented_plugin(tmp_path / "acme")
        assert (self.of_folder(tmp_path / "acme", "changelog").status is Status.DONE) is kept

    @pytest.mark.parametrize(
        ("rights", "kept"),
        [
            ('KeyRights(notes=("It is not stated.",))', False),
            ("KeyRights(None, None)", False),
            ("KeyRights(trade=None)", False),
            ("KeyRights(trade=False)", True),
            ("KeyRights(None, found)", True),
            ("KeyRights(**found)", True),
        ],
    )
    def test_a_hook_that_says_nothing_of_any_key_does_not_count(self, rights: str, kept: bool) -> None:
        assert _states_rights(ast.parse(rights, mode="eval").body) is kept  # type: ignore[arg-type]

    def of_folder(self, folder: Path, rule: str) -> Finding:
        evidence = asyncio.run(gather_evidence(find_project(str(folder)), SuiteResults(), TypeCheck(True)))
        return finding(judge(evidence, {}), rule)

    def test_a_witness_that_nobody_can_read_is_missed(self) -> None:
        text = """def read():
    # witness: unproven
    return 3
# witness: CCXT: `okx.exceptions`
CODES = {
    1: 2,  # witness: a friend
}
"""
        source = SourceFile("acme/parse.py", text, ast.parse(text))
        assert [fault.partition(" ")[0] for fault in _faults_of_comments(source)] == [
            "acme/parse.py:4:",
            "acme/parse.py:6",
            "acme/parse.py:2",
        ]

    @pytest.mark.parametrize(("outcome", "status"), [("skipped", Status.EXEMPT), ("failed", Status.TODO)])
    def test_a_statement_excuses_a_test_that_is_skipped_and_none_that_fails(
        self, collected: SuiteResults, outcome: str, status: Status
    ) -> None:
        name = "test_nonsense_is_never_a_balance"
        results = self.changed(collected, name, outcome=outcome)
        evidence = asyncio.run(gather_evidence(find_project(str(ROOT / "plugins" / "oanda")), results, TypeCheck(True)))
        statement = Statement("exempt", f"{name} needs what is not here", "unproven")
        found = finding(judge(evidence, {"suite": statement}), "suite")
        assert found.status is status
        assert found.advice.startswith("The statement does not count: it cannot excuse") is (outcome == "failed")

    def test_a_test_that_the_plugin_has_in_place_of_the_suites_is_told(self, collected: SuiteResults) -> None:
        report = self.judged(self.changed(collected, "test_a_ban_is_a_rate_limit", replaced=True), TypeCheck(True))
        assert "test_a_ban_is_a_rate_limit is replaced" in finding(report, "suite").evidence
        assert report.tier is Tier.BRONZE

    def test_an_answer_that_the_author_recorded_at_the_real_venue_is_told_beside_the_tier(self) -> None:
        recorded = Witness("recorded", "api.acme.example, sandbox, 2026-11-30")
        assert seen_live([Witness("vendor", "https://acme.example"), "not a payload"]) == "no"
        assert seen_live([recorded, recorded]) == "yes: 2 files, recorded at api.acme.example, sandbox, 2026-11-30"

    def test_types_that_nobody_checked_are_not_right(self, collected: SuiteResults) -> None:
        report = self.judged(of_plugin(collected, "oanda").as_passed())
        assert "mypy is not installed" in finding(report, "typed").evidence

    def test_no_rule_of_the_suite_is_kept_if_nothing_ran(self) -> None:
        report = self.judged(SuiteResults(errors=("ImportError: no module",)), TypeCheck(True))
        assert report.tier is Tier.NONE
        missed = {found.rule.name for found in report.missing_for(Tier.SILVER)}
        assert {"loads", "balance", "amounts", "errors", "secrets", "malformed", "safety", "suite", "tests"} <= missed

    def test_each_has_a_sentence_a_remedy_and_a_tier(self) -> None:
        assert len({rule.name for rule in RULES}) == len(RULES)
        assert [rule.tier for rule in RULES] == sorted((rule.tier for rule in RULES), key=TIERS.index)
        assert all(rule.sentence.endswith(".") and rule.remedy.endswith(".") for rule in RULES)


class TestRunning:
    def test_the_suite_is_not_run_twice_for_an_exchange_that_the_plugins_own_tests_try(self) -> None:
        own = ROOT / "plugins" / "oanda" / "tests" / "test_oanda_contract.py"
        found = run_pytest(["--collect-only", "--exchange-plugin", "oanda", str(own)], working_folder=ROOT)
        contract = [test.id for test in found.tests if test.exchange == "oanda"]
        assert len(set(contract)) == len(contract)
        assert {test.partition("::")[0].rpartition("/")[2] for test in contract} == {"test_oanda_contract.py"}

    def test_what_became_of_each_test_is_recorded(self, tmp_path: Path) -> None:
        (tmp_path / "test_it.py").write_text(
            "import pytest, exchange_service_oanda\n"
            "from exchange_service_oanda.simulator import OandaSimulator\n"
            "from exchange_service.testing.contract import PluginContract\n"
            "class TestIt(PluginContract):\n"
            "    plugin, exchange_id, simulator = exchange_service_oanda, 'oanda', OandaSimulator\n"
            "    def test_the_listing_is_complete(self): pytest.skip('not now')\n"
            "    def test_a_good_credential_gives_a_balance(self): assert False\n"
            "def test_its_own_complete(): pass\n"
        )
        found = run_pytest(["-k", "complete or good_credential or mixed or borrowed", "."], working_folder=tmp_path)
        assert {(test.exchange, test.name): (test.outcome, test.replaced) for test in found.tests} == {
            ("oanda", "test_the_listing_is_complete"): ("skipped", True),
            ("oanda", "test_a_good_credential_gives_a_balance"): ("failed", True),
            ("oanda", "test_a_borrowed_credential_is_one_of_the_same_plugin"): ("passed", False),
            ("", "test_its_own_complete"): ("passed", False),
        }
        assert not found.requests_named("oanda")

    def test_tests_that_hang_are_ended_with_what_they_have_started(self, tmp_path: Path) -> None:
        (tmp_path / "test_it.py").write_text(
            "import pathlib, subprocess, sys, threading\n"
            "def test_it():\n"
            "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "    pathlib.Path('child').write_text(str(child.pid))\n"
            "    threading.Event().wait()\n"
        )
        found = run_pytest(["."], working_folder=tmp_path, limit=4.0)
        assert found.tests == ()
        assert "did not end within 4 seconds" in found.errors[0]
        child = int((tmp_path / "child").read_text())
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    def test_a_simulator_that_hangs_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_documented_plugin(tmp_path)
        (tmp_path / "exchange_service_acme_hangs.py").write_text(
            "import asyncio\n"
            "from exchange_service.testing import DemoVenue\n"
            "class Hanging(DemoVenue):\n"
            "    exchange_id = 'acme'\n"
            "    def routes(self): return []\n"
            "    async def start(self): await asyncio.Event().wait()\n"
        )
        project = find_project(str(tmp_path))
        point = EntryPoint("acme", "exchange_service_acme_hangs:Hanging", "exchange_service.simulators")
        monkeypatch.setattr(evidence, "_LIMIT", 0.2)
        found = asyncio.run(gather_evidence(replace(project, simulators=(point,)), SuiteResults(), UNCHECKED))
        assert "did not begin and end within 0.2 seconds" in found.simulator_fault

    def test_a_test_that_ends_pytest_is_an_error_of_the_report(self, tmp_path: Path) -> None:
        (tmp_path / "test_it.py").write_text("import os\ndef test_it(): os._exit(0)\n")
        found = run_pytest(["."], working_folder=tmp_path)
        assert found.tests == ()
        assert "pytest ended with 0 before it was done" in found.errors[0]

    def test_what_tests_print_is_not_kept_in_memory(self, tmp_path: Path) -> None:
        (tmp_path / "conftest.py").write_text(
            "import os\ndef pytest_sessionstart(session): os.write(1, b'x' * 50_000_000); os._exit(3)\n"
        )
        tracemalloc.start()
        try:
            found = run_pytest(["-s", "."], working_folder=tmp_path)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(found.errors[0]) < 400
        assert most < 5_000_000

    def test_pytest_that_cannot_begin_is_an_error_of_the_report(self, tmp_path: Path) -> None:
        found = run_pytest(["--no-such-option"], working_folder=tmp_path)
        assert found.tests == ()
        assert "no-such-option" in found.errors[0] or "usage" in found.errors[0]


def test_a_suite_is_found_whatever_its_file_is_called(tmp_path: Path) -> None:
    texts = {
        "test_venue.py": "class TestVenue(PluginContract): ...",
        "test_a.py": "def test_a(): ...",
    }
    (tmp_path / "tests").mkdir()
    for name, text in texts.items():
        (tmp_path / "tests" / name).write_text(text)
    (tmp_path / "tests" / "test_long.py").write_text("def test_b(): ...\n" * 9)
    assert [file.name for file in files_to_collect(tmp_path)] == ["test_venue.py", "test_a.py"]


@pytest.mark.project
class TestOurs:
    @pytest.mark.parametrize("folder", OURS, ids=lambda folder: folder.name)
    def test_the_report_in_its_folder_is_current(self, folder: Path, collected: SuiteResults) -> None:
        # That its tests pass is tested by the tests themselves, and its types by `make check`.
        text = (folder / "quality.toml").read_text()
        current = quality_text(our_report(folder, collected))
        assert text == current, f"run `exchange-service plugins check plugins/{folder.name}`"

    @pytest.mark.parametrize("folder", OURS, ids=lambda folder: folder.name)
    def test_it_is_gold_or_better(self, folder: Path) -> None:
        assert read_quality(folder / "quality.toml")["tier"] in ("gold", "platinum")


class TestListedPlugins:
    ENTRY = """
[[plugin]]
name = "acme"
distribution = "exchange-service-acme"
exchanges = ["acme"]
environments = ["production"]
account_types = ["cash"]
push = false
tier = "silver"
version = "1.0.0"
licence = "MIT"
quality = "https://acme.example/quality.toml"
documents = "https://acme.example/"
"""

    def test_those_that_are_listed_have_the_form(self) -> None:
        read_listed(LISTED)

    def test_the_example_in_the_files_head_has_the_form(self, tmp_path: Path) -> None:
        _, _, example = LISTED.read_text().partition("# [[plugin]]\n")
        lines = [line.removeprefix("# ") for line in example.splitlines()]
        (tmp_path / "listed.toml").write_text("[[plugin]]\n" + "\n".join(lines))
        assert [entry["name"] for entry in read_listed(tmp_path / "listed.toml")] == ["acme"]

    @pytest.mark.parametrize(
        ("before", "after", "sentence"),
        [
            ("push = false\n", "", "lack or exceed push"),
            ('tier = "silver"', 'tier = "diamond"', "tier should be one of bronze"),
            ("https://acme.example/quality", "http://acme.example/quality", "quality should be an https link"),
            ('name = "acme"', 'name = "a | b"', "name should be letters"),
            ("push = false", 'push = "no"', "push should be true or false"),
            ('exchanges = ["acme"]', 'exchanges = "acme"', "exchanges should be a list"),
            ("[[plugin]]", "[plugin]", r"holds tables \[\[plugin\]\]"),
        ],
    )
    def test_another_form_is_refused_with_a_sentence(
        self, tmp_path: Path, before: str, after: str, sentence: str
    ) -> None:
        assert before in self.ENTRY
        (tmp_path / "listed.toml").write_text(self.ENTRY.replace(before, after))
        with pytest.raises(ValueError, match=sentence):
            read_listed(tmp_path / "listed.toml")

    def test_one_that_is_listed_twice_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "listed.toml").write_text(self.ENTRY * 2)
        with pytest.raises(ValueError, match="twice"):
            read_listed(tmp_path / "listed.toml")


class TestSkips:
    @pytest.mark.parametrize(
        ("passed", "skipped", "told"),
        [
            ([], ["oanda"], False),
            (["oanda"], ["oanda"], True),
            (["tradier"], ["oanda"], False),
            # CCXT's report names this one.
            ([], ["ccxt_generic"], True),
        ],
    )
    def test_a_skip_that_the_report_does_not_name_fails_the_run(
        self, passed: list[str], skipped: list[str], told: bool
    ) -> None:
        def reports(plugins: list[str]) -> list[SimpleNamespace]:
            test = "test_a_truncated_answer_is_never_a_balance"
            return [
                SimpleNamespace(nodeid=f"plugins/{name}/tests/test_x_contract.py::TestX::{test}") for name in plugins
            ]

        untold = untold_skips(reports(passed), reports(skipped))
        assert bool(untold) is not told
        assert all("oanda: test_a_truncated_answer" in line for line in untold)
