"""The rules of a plugin's quality, in tiers, and what a plugin lacks of each.

RULES is the one table: `exchange-service plugins check` judges by it, and docs/plugin-quality.md is generated from it.
A rule looks at evidence that a machine has gathered. Some rules ask for what a venue may not have, such as a sandbox.
There the author may state that, naming what is missing and where it is known from; see `Statement`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from exchange_service.authoring.evidence import Evidence, SourceFile, witness_comments
from exchange_service.model import ANSWER_LIMIT, ExchangeMetadata
from exchange_service.plugin_api import API_VERSION
from exchange_service.testing.contract import PluginContract
from exchange_service.testing.listing_contract import ListingContract
from exchange_service.testing.malformed_contract import MalformedContract
from exchange_service.testing.names_contract import NamesContract
from exchange_service.testing.push_contract import PushContract
from exchange_service.testing.safety_contract import SafetyContract
from exchange_service.testing.trouble_contract import TroubleContract
from exchange_service.testing.witnesses import Witness, parse_witness

# More listings than this are counted and not named.
_NAMED = 5
_SECRETS = (
    "test_the_call_does_not_show_the_credential",
    "test_a_redirect_is_not_followed_to_another_host",
    "test_a_certificate_that_nobody_trusts_ends_the_call_before_anything_is_sent",
)
_FIGURES = ("test_a_figure_that_is_no_number_is_never_believed",)
_BALANCE = ("test_a_good_credential_gives_a_balance",)
_OUTCOMES = {"failed": "fails", "skipped": "is skipped", "not run": "does not run"}
# The kind of a witness of an answer that `plugins try --record` has kept.
_RECORDED = "recorded"
_DEADLINES = ("test_it_ends_with_its_deadline",)


class Tier(StrEnum):
    """The tiers, from the lowest; a plugin has one if it keeps every rule of it and of those below."""

    NONE = "none"
    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"
    PLATINUM = "platinum"


TIERS = tuple(Tier)


class Status(StrEnum):
    """Of a rule: it is kept, something is missing, or the author has stated why what is missing cannot be there."""

    DONE = "done"
    TODO = "todo"
    EXEMPT = "exempt"


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that is missing: `word` is what an author's statement has to name, empty if any will do.

    `excusable` is false for what no statement can put right, such as a test that fails.
    """

    text: str
    word: str = ""
    excusable: bool = True


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rule found: the evidence where it is kept, and all that is missing."""

    evidence: str
    lacks: tuple[Lack, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: one plain sentence, what to do to keep it, and the function that judges.

    `exemption` is what an author may state in place of keeping it; empty: nothing but keeping it counts.
    """

    name: str
    tier: Tier
    sentence: str
    remedy: str
    judge: Callable[[Evidence], Judgement]
    exemption: str = ""


@dataclass(frozen=True, slots=True)
class Statement:
    """The author's word on a rule in quality.toml, which is kept when the file is written again.

    It counts if `status` is "exempt", the rule takes a statement, `comment` names each thing that is missing, and
    `source` is a witness of `exchange_service.testing.witnesses`, such as "vendor: https://acme.example/docs".
    """

    status: str = ""
    comment: str = ""
    source: str = ""

    @property
    def witness(self) -> Witness | None:
        """Where it is known from; None if `source` names no such thing."""
        try:
            return parse_witness(self.source)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule's result. `evidence` is what was found or what is missing; `advice` is what to do, if something is."""

    rule: Rule
    status: Status
    evidence: str
    advice: str = ""
    statement: Statement = field(default_factory=Statement)


@dataclass(frozen=True, slots=True)
class Report:
    """How a plugin keeps the rules.

    `unproven` counts the facts and the statements that are only guesses. `seen_live` says whether an answer of the real
    venue is among the recordings. Neither decides on the tier.
    """

    name: str
    version: str
    findings: tuple[Finding, ...]
    unproven: int
    seen_live: str
    # The tests of the contract that were skipped or failed: exchange, name and outcome.
    not_passed: tuple[str, ...] = ()

    @property
    def tier(self) -> Tier:
        """The highest tier whose rules, and those below, are all kept."""
        reached = Tier.NONE
        for tier in TIERS[1:]:
            if any(found.status is Status.TODO for found in self.findings if found.rule.tier is tier):
                break
            reached = tier
        return reached

    def missing_for(self, tier: Tier) -> list[Finding]:
        """What is to do for this tier and those below."""
        wanted = TIERS[: TIERS.index(tier) + 1]
        return [found for found in self.findings if found.rule.tier in wanted and found.status is Status.TODO]


def judge(evidence: Evidence, statements: Mapping[str, Statement]) -> Report:
    """Judge a plugin by every rule, with its author's statements by the names of rules."""
    findings = tuple(_judge_rule(rule, evidence, statements.get(rule.name, Statement())) for rule in RULES)
    info = evidence.project.info
    guesses = [found for found in findings if found.status is Status.EXEMPT and not _is_proven(found.statement.witness)]
    unproven = count_unproven(evidence) + len(guesses)
    return Report(
        info.name,
        info.version,
        findings,
        unproven,
        seen_live(evidence.payloads.values()),
        tuple(sorted(_not_passed(evidence))),
    )


def _judge_rule(rule: Rule, evidence: Evidence, statement: Statement) -> Finding:
    judged = rule.judge(evidence) if evidence.plugin is not None else _unloaded(rule, evidence)
    if not judged.lacks:
        return Finding(rule, Status.DONE, judged.evidence, statement=statement)
    missing = "missing: " + "; ".join(lack.text for lack in judged.lacks)
    if statement.status != Status.EXEMPT:
        return Finding(rule, Status.TODO, missing, _advise(rule, judged), statement)
    fault = _statement_fault(rule, judged, statement)
    if fault:
        return Finding(rule, Status.TODO, missing, f"The statement does not count: {fault}", statement)
    return Finding(rule, Status.EXEMPT, missing, statement=statement)


def _advise(rule: Rule, judged: Judgement) -> str:
    """How to keep a rule, and that its author may state something instead, if a statement could count."""
    if not rule.exemption or not all(lack.excusable for lack in judged.lacks):
        return rule.remedy
    return f"{rule.remedy} Or state in quality.toml, under [rules.{rule.name}], {rule.exemption}."


def _statement_fault(rule: Rule, judged: Judgement, statement: Statement) -> str:
    """Why an author's statement does not count; empty if it does."""
    if not rule.exemption:
        return f"the rule {rule.name} takes none. {rule.remedy}"
    final = [lack.text for lack in judged.lacks if not lack.excusable]
    if final:
        return f"it cannot excuse that {final[0]}. {rule.remedy}"
    unnamed = [lack.word for lack in judged.lacks if lack.word not in statement.comment]
    if not statement.comment.strip() or unnamed:
        return f"write into its `comment` why {', '.join(unnamed) or 'it'} cannot be there."
    if statement.witness is None:
        return 'write into its `source` where that is known from, such as "vendor: https://acme.example/docs".'
    return ""


def _unloaded(rule: Rule, evidence: Evidence) -> Judgement:
    if rule.name == "loads":
        return Judgement("", (Lack(evidence.refusal),))
    return Judgement("", (Lack("not looked at, because the plugin does not load"),))


# Bronze


def _loads(evidence: Evidence) -> Judgement:
    tests = _tests(ListingContract)
    lacks = [Lack(f"{fault}") for fault in evidence.results.errors]
    lacks += [lack for test in tests for lack in _missed(evidence, _listed(evidence), test)]
    return Judgement(f"{', '.join(_listed_names(evidence))}: the contract of a listing", tuple(lacks))


def _manifest(evidence: Evidence) -> Judgement:
    lacks = []
    for name in ("instructions", "documentation_url", "credential_url", "asset_types", "market_hours"):
        # No page makes a key where none is needed.
        asked = [item for item in evidence.served if name != "credential_url" or _needs_secret(item)]
        without = [item.id for item in asked if not getattr(item, name).strip()]
        if without:
            lacks.append(Lack(f"{name} of {_count(without)}", name))
    return Judgement("instructions, documentation_url, credential_url", tuple(lacks))


def _needs_secret(listing: ExchangeMetadata) -> bool:
    return any(field.required and field.secret for field in listing.credential_fields)


def _balance(evidence: Evidence) -> Judgement:
    if not evidence.served:
        return Judgement("no listing is read")
    if not evidence.tried:
        return Judgement("", (Lack(evidence.simulator_fault or "a simulator with which the suite reads a balance"),))
    return _passed(evidence, _BALANCE)


def _amounts(evidence: Evidence) -> Judgement:
    lacks = [
        Lack(f"{source.path}:{call.lineno} makes a Decimal from a float", excusable=False)
        for source in evidence.sources
        for call in source.calls()
        if not source.of_simulator and _is_decimal_of_float(call)
    ]
    judged = _passed(evidence, _FIGURES)
    return Judgement(f"{judged.evidence}; no Decimal is made from a float", (*lacks, *judged.lacks))


def _is_decimal_of_float(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Name) or call.func.id != "Decimal":
        return False
    return any(
        (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float")
        or (isinstance(node, ast.Constant) and isinstance(node.value, float))
        for argument in call.args
        for node in ast.walk(argument)
    )


def _errors(evidence: Evidence) -> Judgement:
    return _passed(evidence, [name for name in _tests(TroubleContract) if name not in _DEADLINES])


def _secrets(evidence: Evidence) -> Judgement:
    return _passed(evidence, _SECRETS)


def _licence(evidence: Evidence) -> Judgement:
    if evidence.licence:
        return Judgement(evidence.licence)
    return Judgement("", (Lack("a licence in pyproject.toml"),))


def _readme(evidence: Evidence) -> Judgement:
    if not evidence.readme.strip():
        return Judgement("", (Lack("a README"),))
    text = evidence.readme.lower()
    fields = {item.name: item.label for listing in evidence.served for item in listing.credential_fields}
    types = {name for listing in evidence.served for name in listing.account_types}
    unnamed = [name for name, label in fields.items() if name.lower() not in text and label.lower() not in text]
    unnamed += sorted(name for name in types if name.lower() not in text)
    lacks = [Lack(f"it does not name {name}") for name in unnamed]
    return Judgement("it names each credential field and each account type", tuple(lacks))


# Silver


def _simulated(evidence: Evidence) -> Judgement:
    tried = {listing.id for listing in evidence.tried}
    without = [listing.id for listing in evidence.served if listing.id not in tried]
    lacks = (Lack(f"a simulator of {_count(without)}", _word(without)),) if without else ()
    return Judgement(_count([listing.id for listing in evidence.tried]), lacks)


def _malformed(evidence: Evidence) -> Judgement:
    return _passed(evidence, _tests(MalformedContract))


def _safety(evidence: Evidence) -> Judgement:
    return _passed(evidence, [*_tests(SafetyContract), *_DEADLINES])


def _whole_suite(evidence: Evidence) -> Judgement:
    lacks = []
    for listing in evidence.tried:
        tests = [test for test in _tests(PluginContract, all_of_it=True) if _applies(test, listing)]
        missed = [lack for test in tests for lack in _missed(evidence, [listing], test)]
        replaced = set(evidence.results.replaced(listing.id)) - {lack.word for lack in missed}
        lacks += missed
        lacks += [Lack(f"{listing.id}: {test} is replaced by a test of its own", test) for test in sorted(replaced)]
    if not evidence.tried and evidence.served:
        lacks.append(Lack("no listing is tried with a simulator"))
    return Judgement(f"{_count([item.id for item in evidence.tried])}: every test, as the suite has it", tuple(lacks))


def _own_tests(evidence: Evidence) -> Judgement:
    if evidence.folder is None:
        return _needs_folder()
    failed = [test.id.rpartition("/")[2] for test in evidence.results.own if test.outcome == "failed"]
    lacks = [Lack(f"{name} fails") for name in failed[:_NAMED]]
    if not evidence.results.own:
        lacks.append(Lack("tests beside the contract suite"))
    return Judgement("they pass", tuple(lacks))


def _payloads(evidence: Evidence) -> Judgement:
    if evidence.folder is None:
        return _needs_folder()
    lacks = [Lack(f"{path}: {fault}") for path, fault in evidence.payloads.items() if isinstance(fault, str)]
    if not evidence.payloads:
        lacks.append(Lack("payloads/*.json, each an answer of the venue with its `witness`"))
    elif not evidence.payload_readers:
        lacks.append(Lack("a test that reads a file of payloads"))
    readers = ", ".join(evidence.payload_readers[:_NAMED])
    return Judgement(f"{_files(len(evidence.payloads))} with a witness, read by {readers}", tuple(lacks))


def _limits(evidence: Evidence) -> Judgement:
    without = [listing.id for listing in evidence.served if not listing.limits]
    lacks = [Lack(f"limits of {_count(without)}", _word(without))] if without else []
    bare = [place for source in evidence.sources for place in _limits_without_witness(source)]
    lacks += [Lack(f"{place} states a limit without `# witness:`", place) for place in bare]
    return Judgement("each limit has a witness", tuple(lacks))


def _limits_without_witness(source: SourceFile) -> Iterator[str]:
    return (place for place, witnesses in _stated_limits(source) if not witnesses)


def _stated_limits(source: SourceFile) -> Iterator[tuple[str, list[Witness]]]:
    """Where limits are stated in numbers, with the witnesses in the statement and in the comment above it.

    Limits that are computed come from a table, whose rows have the witnesses.
    """
    if source.of_simulator:
        return
    lines = source.text.splitlines()
    for statement in ast.walk(source.tree):
        if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.Return, ast.Expr)):
            continue
        made = [node for node in ast.walk(statement) if isinstance(node, ast.Call) and _name(node) == "RateLimit"]
        if not any(isinstance(argument, ast.Constant) for call in made for argument in call.args[1:]):
            continue
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        while first > 1 and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        known = (witness for line, witness in witness_comments(source) if first <= line <= last)
        yield f"{source.path}:{statement.lineno}", [witness for witness in known if witness is not None]


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _typed(evidence: Evidence) -> Judgement:
    package = evidence.package
    lacks = []
    if package is None or not package.is_dir() or not (package / "py.typed").is_file():
        lacks.append(Lack(f"py.typed in {evidence.project.point.module}"))
    if not evidence.types.ran:
        lacks.append(Lack("mypy is not installed, so the types were not checked"))
    elif evidence.types.first:
        lacks.append(Lack(evidence.types.first))
    return Judgement("py.typed; mypy --strict finds nothing", tuple(lacks))


# Gold


def _demo(evidence: Evidence) -> Judgement:
    lacks = []
    for listing in evidence.tried:
        played = evidence.simulators.get(listing.id)
        if played is None or not played.in_demo:
            lacks.append(Lack(f"a DemoVenue for {listing.id}, named in exchange_service.simulators", listing.id))
            continue
        lacks += [Lack(f"{listing.id}: {name!r}", name) for name in played.lacking]
    if not evidence.tried and evidence.served:
        lacks.append(Lack("no listing is tried with a simulator"))
    return Judgement(f"{_count([item.id for item in evidence.tried])}: every situation and trouble", tuple(lacks))


def _named_answers(evidence: Evidence) -> Judgement:
    named = {name: played.named_by for name, played in evidence.simulators.items() if played.has_other_user}
    without = [listing.id for listing in evidence.tried if not named.get(listing.id)]
    lacks = [Lack(f"`named_by` and `other_credential` of {_count(without)}", _word(without))] if without else []
    judged = _passed(evidence, _tests(NamesContract))
    found = "; ".join(f"{item.id}: {named[item.id]}" for item in evidence.tried if named.get(item.id))
    return Judgement(found or judged.evidence, (*lacks, *(judged.lacks if not lacks else ())))


def _read_only(evidence: Evidence) -> Judgement:
    without = [listing.id for listing in evidence.tried if not evidence.results.requests_named(listing.id)]
    lacks = [Lack(f"`allowed_requests` of {_count(without)}")] if without else []
    judged = _passed(evidence, ("test_it_asks_for_nothing_but_what_it_says",))
    return Judgement("allowed_requests, and nothing else is sent", (*lacks, *judged.lacks))


def _key_rights(evidence: Evidence) -> Judgement:
    lacks = () if evidence.has_hook("check_credential") else (Lack("the hook check_credential"),)
    return Judgement("the hook check_credential", lacks)


def _sandbox(evidence: Evidence) -> Judgement:
    without = [listing.id for listing in evidence.served if not listing.capabilities.sandbox]
    lacks = (Lack(f"a sandbox of {_count(without)}", _word(without)),) if without else ()
    return Judgement(_count([listing.id for listing in evidence.served]), lacks)


def _account_types(evidence: Evidence) -> Judgement:
    without = [listing.id for listing in evidence.served if not listing.account_types]
    lacks = [Lack(f"account_types of {_count(without)}")] if without else []
    judged = _passed(evidence, ("test_an_account_type_is_read_alone",))
    types = sorted({name for listing in evidence.tried for name in listing.account_types})
    return Judgement(f"each is read alone: {', '.join(types)}", (*lacks, *judged.lacks))


def _current(evidence: Evidence) -> Judgement:
    stated = evidence.manifest.api_version if evidence.manifest is not None else 0
    lacks = () if stated == API_VERSION else (Lack(f"api_version={API_VERSION}; the manifest says {stated}"),)
    return Judgement(f"api_version={stated}", lacks)


def _automation(evidence: Evidence) -> Judgement:
    if evidence.folder is None:
        return _needs_folder()
    patterns = (".github/workflows/*.y*ml", ".gitlab-ci.yml", ".ci/*", ".circleci/config.yml", ".woodpecker*.y*ml")
    found = evidence.nearest(*patterns, "azure-pipelines.yml", "Jenkinsfile", "noxfile.py")
    return Judgement(found) if found else Judgement("", (Lack("a file that runs the tests at each change"),))


def _changelog(evidence: Evidence) -> Judgement:
    if evidence.folder is None:
        return _needs_folder()
    found = evidence.nearest("CHANGELOG*", "CHANGES*", "HISTORY*")
    return Judgement(found) if found else Judgement("", (Lack("CHANGELOG.md"),))


# Platinum


def _push(evidence: Evidence) -> Judgement:
    pushing = [listing for listing in evidence.served if listing.capabilities.push]
    polled = [listing.id for listing in evidence.served if not listing.capabilities.push]
    lacks = [Lack(f"a push of {_count(polled)}", _word(polled))] if polled else []
    tried = [listing for listing in pushing if listing in evidence.tried]
    tests = _tests(PushContract)
    lacks += [lack for test in tests for lack in _missed(evidence, tried, test)]
    return Judgement(f"{_count([item.id for item in tried])}: the contract of pushes", tuple(lacks))


def _sources(evidence: Evidence) -> Judgement:
    if evidence.folder is None:
        return _needs_folder()
    lacks = [] if evidence.payloads else [Lack("there is no payload")]
    for path, witness in evidence.payloads.items():
        if isinstance(witness, Witness) and not witness.proven:
            lacks.append(Lack(f"{path} is unproven"))
    for source in evidence.sources:
        wrong = [line for line, witness in witness_comments(source) if witness is None]
        lacks += [Lack(f"{source.path}:{line} names no witness of a known kind") for line in wrong]
        for place, witnesses in _stated_limits(source):
            lacks += [Lack(f"the limit at {place} is unproven") for witness in witnesses if not witness.proven]
    for played in evidence.simulators.values():
        silent = [name for name, witness in played.witnesses.items() if witness is None]
        lacks += [Lack(f"trouble_witnesses of {played.exchange_id}: {name!r}") for name in silent]
    return Judgement("payloads and limits are proven, and each trouble has a witness", tuple(lacks))


def _bounded(evidence: Evidence) -> Judgement:
    computing = [
        source.path
        for source in evidence.sources
        if not source.of_simulator and any(_name(call) in ("compute", "beside_the_loop") for call in source.calls())
    ]
    smaller = [item.id for item in evidence.served if item.answer_limit < ANSWER_LIMIT]
    if computing or len(smaller) == len(evidence.served):
        return Judgement(", ".join(computing) or "answer_limit of each listing is below 1 MiB")
    return Judgement("", (Lack("call.compute for what is made of an answer, or a smaller answer_limit"),))


RULES: tuple[Rule, ...] = (
    Rule(
        "loads",
        Tier.BRONZE,
        "The service loads it: the import is light, the hooks fit, and the manifest keeps every rule.",
        "Run `pytest --exchange-plugin` for it and mend what fails.",
        _loads,
    ),
    Rule(
        "manifest",
        Tier.BRONZE,
        "Each listing says how a key is made, where keys are made, and where the venue documents its interface.",
        "Fill these fields of ExchangeMetadata.",
        _manifest,
        "why there is no such page",
    ),
    Rule(
        "balance",
        Tier.BRONZE,
        "A good credential gives a balance from a simulator.",
        "Write a simulator, name it in the entry-point group exchange_service.simulators, and run the suite.",
        _balance,
    ),
    Rule(
        "amounts",
        Tier.BRONZE,
        "Amounts keep every digit, and what is no number is never believed.",
        "Read amounts by `amount` and `required_amount`, and never by way of a float.",
        _amounts,
        "by which tests of its own this is tried, where the suite skips its test",
    ),
    Rule(
        "errors",
        Tier.BRONZE,
        "A refusal, a limit and an outage each become the right error.",
        "Look for the venue's own codes first, and end with `raise_unexpected_status`.",
        _errors,
    ),
    Rule(
        "secrets",
        Tier.BRONZE,
        "No secret is in an error, a log line or a repr, and none is sent to another host.",
        "Use `call.http`, and put no credential and no URL into a text.",
        _secrets,
    ),
    Rule(
        "licence",
        Tier.BRONZE,
        "The distribution has a licence.",
        'Write `license = "MIT"`, or another, into [project] of pyproject.toml.',
        _licence,
    ),
    Rule(
        "readme",
        Tier.BRONZE,
        "A README names what is read and each field of the credential.",
        "Write into README.md which accounts are read, and what each credential field is.",
        _readme,
    ),
    Rule(
        "simulated",
        Tier.SILVER,
        "Each listing that is read has a simulator, with which the suite tries it.",
        "Write a simulator for each of them.",
        _simulated,
        "by what other tests these listings are tried",
    ),
    Rule(
        "malformed",
        Tier.SILVER,
        "A malformed, truncated or foreign answer never becomes a balance.",
        "Read each value by a function of plugin_api, which raises VenueMalformed.",
        _malformed,
        "by which tests of its own this is tried, where the suite skips its test",
    ),
    Rule(
        "safety",
        Tier.SILVER,
        "Hostile answers are cut, deadlines are kept, nothing is left open, and the event loop is not blocked.",
        "Use `call.http` alone, await everything, and install blockbuster, which finds what blocks.",
        _safety,
    ),
    Rule(
        "suite",
        Tier.SILVER,
        "Every test of the contract suite passes, and none is skipped or replaced.",
        "Run the suite, and mend what fails.",
        _whole_suite,
        "why a test is skipped or replaced",
    ),
    Rule(
        "tests",
        Tier.SILVER,
        "It has tests of its own, and they pass.",
        "Write tests for what the suite cannot know: the figures, the venue's words and codes.",
        _own_tests,
    ),
    Rule(
        "payloads",
        Tier.SILVER,
        "Its tests read answers of the venue, and each file names where the answer is known from.",
        'Keep each answer as {"witness": "vendor: https://...", "answer": ...} in payloads/, and read it in a test.',
        _payloads,
    ),
    Rule(
        "limits",
        Tier.SILVER,
        "Each listing states how often the venue may be asked, with a source.",
        "State `limits`, and write `# witness: vendor: https://...` beside each.",
        _limits,
        "that the venue has no such limit",
    ),
    Rule(
        "typed",
        Tier.SILVER,
        "The package is typed: it has py.typed, and mypy --strict finds nothing.",
        "Add an empty py.typed to the package, run `mypy --strict` on it, and mend what it finds.",
        _typed,
    ),
    Rule(
        "demo",
        Tier.GOLD,
        "Its simulator plays in the demo, and shows every situation and trouble that the venue can have.",
        "Let `demo_credential` and `troubled_credential` make them.",
        _demo,
        "which of them the venue cannot have",
    ),
    Rule(
        "names",
        Tier.GOLD,
        "Another user's answer never becomes this one's balance.",
        "Compare names by `require_account` or `require_same_accounts`; set `named_by` and `other_credential`.",
        _named_answers,
        "that the venue's answers name no account",
    ),
    Rule(
        "read_only",
        Tier.GOLD,
        "A balance sends the requests that are listed and no others.",
        "Set `allowed_requests` of the simulator.",
        _read_only,
    ),
    Rule(
        "key_rights",
        Tier.GOLD,
        "It says whether a key may trade or withdraw.",
        "Write the hook `check_credential`.",
        _key_rights,
        "that the venue does not say what a key may do",
    ),
    Rule(
        "sandbox",
        Tier.GOLD,
        "Each listing has the venue's sandbox.",
        "Add the environment SANDBOX, and set `capabilities.sandbox`.",
        _sandbox,
        "that the venue has no sandbox",
    ),
    Rule(
        "account_types",
        Tier.GOLD,
        "Each listing declares its account types, and each can be read alone.",
        "Set `account_types`, and ask `call.wants` before you read one.",
        _account_types,
    ),
    Rule(
        "current",
        Tier.GOLD,
        "It is written for the present version of the plugin API.",
        "Read what changed, and raise `api_version` in the manifest.",
        _current,
    ),
    Rule(
        "automation",
        Tier.GOLD,
        "A file in the repository runs the tests at each change.",
        "Add one, such as .github/workflows/tests.yml.",
        _automation,
    ),
    Rule(
        "changelog",
        Tier.GOLD,
        "A changelog says what each release brought.",
        "Begin CHANGELOG.md.",
        _changelog,
    ),
    Rule(
        "push",
        Tier.PLATINUM,
        "Changes are pushed, and the suite's tests of pushes pass.",
        "Write the hook `watch_balance`.",
        _push,
        "that the venue does not push, or why it is polled",
    ),
    Rule(
        "sources",
        Tier.PLATINUM,
        "No payload and no limit is a guess; each trouble of a simulator says where it is known from, if it is known.",
        "Find a source for each, and set `trouble_witnesses`.",
        _sources,
    ),
    Rule(
        "bounded",
        Tier.PLATINUM,
        "A large answer does not stop the others.",
        "Make rows by `call.compute`, or lower `answer_limit`.",
        _bounded,
    ),
)


def count_unproven(evidence: Evidence) -> int:
    """How many facts of the plugin are only guesses: payloads, witnesses in comments, and troubles."""
    witnesses: list[Witness | str | None] = list(evidence.payloads.values())
    witnesses += [witness for source in evidence.sources for _, witness in witness_comments(source)]
    witnesses += [witness for played in evidence.simulators.values() for witness in played.witnesses.values()]
    return sum(not _is_proven(witness) for witness in witnesses)


def _is_proven(witness: Witness | str | None) -> bool:
    return isinstance(witness, Witness) and witness.proven


def seen_live(payloads: Iterable[Witness | str]) -> str:
    """Whether the author has recorded an answer of the real venue, or of its sandbox: "no", or how many and where."""
    sources = [one.source for one in payloads if isinstance(one, Witness) and one.kind == _RECORDED]
    if not sources:
        return "no"
    return f"yes: {_files(len(sources))}, recorded at {'; '.join(dict.fromkeys(sources))}"


def _needs_folder() -> Judgement:
    return Judgement("", (Lack("it can be seen in the project's folder alone, and this plugin comes from a wheel"),))


def _tests(contract: type, *, all_of_it: bool = False) -> list[str]:
    """The names of the tests of a class of the contract; by default without those of the classes that it inherits."""
    names: Iterable[str] = dir(contract) if all_of_it else vars(contract)
    return sorted(name for name in names if name.startswith("test_"))


def _applies(test: str, listing: ExchangeMetadata) -> bool:
    return listing.capabilities.push or test not in _tests(PushContract)


def _listed(evidence: Evidence) -> list[ExchangeMetadata]:
    """The listings that the contract of a listing has been tried with: those with a simulator, else the first."""
    if evidence.tried or evidence.manifest is None:
        return list(evidence.tried)
    return list(evidence.manifest.exchanges[:1])


def _listed_names(evidence: Evidence) -> list[str]:
    return [listing.id for listing in _listed(evidence)]


def _passed(evidence: Evidence, tests: Sequence[str]) -> Judgement:
    """Whether these tests passed for each listing that has a simulator."""
    if not evidence.tried and evidence.served:
        return Judgement("", (Lack("no listing is tried with a simulator"),))
    lacks = [lack for test in tests for lack in _missed(evidence, evidence.tried, test)]
    names = ", ".join(tests) if len(tests) == 1 else f"{len(tests)} tests of the suite"
    return Judgement(f"{_count([item.id for item in evidence.tried])}: {names}", tuple(lacks))


def _missed(evidence: Evidence, listings: Iterable[ExchangeMetadata], test: str) -> list[Lack]:
    """For each of these listings with which the test did not pass: what became of it."""
    lacks = []
    for listing in listings:
        outcome = evidence.results.outcome(listing.id, test)
        if outcome != "passed":
            lacks.append(Lack(f"{listing.id}: {test} {_OUTCOMES[outcome]}", test, outcome == "skipped"))
    return lacks


def _not_passed(evidence: Evidence) -> Iterator[str]:
    for exchange_id, name in dict.fromkeys((test.exchange, test.name) for test in evidence.results.tests):
        outcome = evidence.results.outcome(exchange_id, name)
        if exchange_id and outcome != "passed":
            yield f"{exchange_id} {name} {outcome}"


def _count(ids: Sequence[str]) -> str:
    return ", ".join(ids) if len(ids) <= _NAMED else f"{len(ids)} listings"


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"


def _word(ids: Sequence[str]) -> str:
    """What a statement about these listings has to name: the one; if there are several, any comment will do."""
    return ids[0] if len(ids) == 1 else ""
