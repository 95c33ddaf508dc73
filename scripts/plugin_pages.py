"""docs/plugin-quality.md and docs/plugins-directory.md: the rules of quality, and the plugins that there are."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exchange_service.authoring.quality import RULES, TIERS, Tier
from exchange_service.authoring.quality_file import NAME, read_quality
from exchange_service.model import Manifest
from exchange_service.testing.projects import PluginProject, find_project
from exchange_service.testing.witnesses import KINDS, PLACES

ROOT = Path(__file__).parent.parent
LISTED = ROOT / "docs" / "listed-plugins.toml"

_QUALITY_HEAD = """# The quality of a plugin

This page is for you if you write a plugin, or choose one: what each tier of quality asks for. `make docs` generates it
from the rules themselves. `exchange-service plugins check` runs a plugin's tests, the contract suite and mypy, judges
each rule, and writes the report to `quality.toml` in the plugin's folder, for you to commit:

```console
$ exchange-service plugins check ./exchange-service-acme --tier silver
```

It exits with 4 if the plugin is below the tier of `--tier`. `-o json` prints the report for programs, `--no-write`
leaves the file alone. The command runs the plugin's code. It needs `pip install 'exchange-service[authoring]'`.

A plugin has a tier if it keeps all rules of it and of those below."""

_STATEMENTS = """## What you may state

Some rules ask for what a venue may not have, such as a sandbox. Then say so in the rule's table of `quality.toml`. Your
words are kept when the file is written again:

```toml
[rules.sandbox]
status = "exempt"
comment = "acme has one environment alone."
source = "vendor: https://acme.example/docs/environments"
```

- Only the rules that the tables above name with what you may state take a statement.
- The comment has to name what is missing, in the words of the evidence: the listing, the situation, the test.
- The source is a witness: {kinds}. A statement whose source is `unproven` counts as an unproven fact.
- A statement that does not count stays, and `problem` beside it says why.

## Where facts come from

A simulator and its tests are often written by the same person, and then agree with each other whatever the venue does.
Therefore each fact about the venue names its witness: a text that begins with one of these kinds and a colon, and goes
on with where it is.

| kind | what follows the colon |
|---|---|
{kinds_of_witnesses}

`unproven` is no fault: it is the honest word for a guess, with what you have looked for, and the report counts it. A
witness of CCXT has to be readable: `CCXT: okx.exceptions`, without backticks, an id of CCXT and a member of its class.
`plugins check` looks it up if CCXT is installed.

A payload file has the member `witness` before `answer`. A simulator has `trouble_witnesses`. A table of facts in
Python, such as one of the venue's codes or the limits, has comments `# witness: ...`:

| where the comment stands | what it counts for |
|---|---|
{places}

```python
# witness: vendor: https://acme.example/docs/errors
REFUSALS = {{
    4001: CredentialRejected,
    4002: PermissionMissing,  # witness: report: acme/acme-python#12
    # witness: unproven: the page lists the code without a meaning
    4009: AccountUnknown,
}}
```

Here 4001 is known from the page and 4002 from the report. 4009 is a guess, and so is each row that is written below it,
up to the next comment on a line of its own: put guesses last. A comment above two tables counts for the first alone. A
table is an assignment outside of functions; a witness elsewhere is read by nobody, and `plugins check` says so. A test
can read the rows with their witnesses by `table_rows` of `exchange_service.testing.witnesses`.

## What no tier says

A tier says that a plugin is built and tested well, by documents and against a simulator. It does not say that somebody
has seen the plugin at the real venue. Two lines of the report say what is known of that, whatever the tier:

| line | meaning |
|---|---|
| `unproven_facts` | how many facts, of payloads, tables, limits and troubles, are only guesses, marked as such |
| `seen_live` | whether an answer that the real venue, or its sandbox, gave to the author is among the payloads |"""

_DIRECTORY_HEAD = """# Plugins

This page lists the plugins that there are, with the tier that [their report](plugin-quality.md) gives them. `make docs`
generates it. A tier is about documents and tests. The column "seen live" says whether the author has recorded an answer
of the real venue; "unproven" counts facts that are guesses.

## Of this project

| plugin | exchanges | environments | account types | pushed | tier | unproven | seen live | version | licence |
|---|---|---|---|---|---|---|---|---|---|"""

_LISTED_HEAD = """## Of others

Their authors have listed them. Install only plugins that you trust: see
[what a plugin may do](plugins.md#where-it-runs)."""

_LISTING = """To list yours, add a table to [listed-plugins.toml](listed-plugins.toml) by a pull request. The head of
that file has the fields."""

_LISTED_TABLE = """| plugin | exchanges | environments | account types | pushed | tier | version | licence |
|---|---|---|---|---|---|---|---|"""

_TEXTS = ("name", "distribution", "tier", "version", "licence", "quality", "documents")
_LISTS = ("exchanges", "environments", "account_types")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
# More account types or ids than this are counted.
_SHOWN = 6


def quality_page() -> str:
    """docs/plugin-quality.md."""
    tiers = ("\n".join(_tier_table(tier)) for tier in TIERS[1:])
    kinds = "vendor, CCXT, test data, report, standard, or unproven"
    told = "\n".join(f"| `{name}` | {_cell(text)} |" for name, text in KINDS.items())
    places = "\n".join(f"| {where} | {what} |" for where, what in PLACES.items())
    statements = _STATEMENTS.format(kinds=kinds, kinds_of_witnesses=told, places=places)
    return "\n\n".join([_QUALITY_HEAD, *tiers, statements]) + "\n"


def _tier_table(tier: Tier) -> Iterator[str]:
    yield f"## {tier.capitalize()}"
    yield ""
    yield "| rule | what it asks for | how to keep it | what you may state instead |"
    yield "|---|---|---|---|"
    for rule in RULES:
        if rule.tier is tier:
            cells = (f"`{rule.name}`", rule.sentence, rule.remedy, rule.exemption)
            yield f"| {' | '.join(_cell(text) for text in cells)} |"


def directory_page() -> str:
    """docs/plugins-directory.md."""
    folders = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    ours = "\n".join([_DIRECTORY_HEAD, *(_our_row(folder) for folder in folders)])
    listed = read_listed(LISTED)
    parts = [ours, _LISTED_HEAD]
    if listed:
        parts.append("\n".join([_LISTED_TABLE, *(_listed_row(entry) for entry in listed)]))
    return "\n\n".join([*parts, _LISTING]) + "\n"


def _our_row(folder: Path) -> str:
    project = find_project(str(folder))
    manifest: Manifest = project.point.load().exchange_manifest()
    report = read_quality(folder / NAME)
    served = [listing for listing in manifest.exchanges if listing.capabilities.balance]
    environments = _ordered(item.name for listing in served for item in listing.environments)
    pushed = [listing for listing in served if listing.capabilities.push]
    name = f"[{project.info.name}](../plugins/{folder.name}/README.md)"
    cells = (
        name,
        _exchanges([listing.name for listing in served], len(manifest.exchanges)),
        ", ".join(environments),
        _types(_ordered(kind for listing in served for kind in listing.account_types), folder),
        "yes" if len(pushed) == len(served) else _some(len(pushed), len(served)),
        f"[{report['tier']}](../plugins/{folder.name}/{NAME})",
        str(report["unproven_facts"]),
        report["seen_live"],
        project.info.version,
        _licence(project),
    )
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _exchanges(names: Sequence[str], listed: int) -> str:
    """The names of those that are read; of very many their number, with how to list them."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{len(names)} of {listed} listings, see [how to list them](../README.md#try-it)"


def _types(names: Sequence[str], folder: Path) -> str:
    """The account types; of very many their number, with where all of them are."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{len(names)}, see [its page](../plugins/{folder.name}/README.md)"


def _some(count: int, of: int) -> str:
    return f"{count} of {of}" if count else "no"


def _ordered(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _licence(project: PluginProject) -> str:
    assert project.folder is not None
    stated = tomllib.loads((project.folder / "pyproject.toml").read_text(encoding="utf-8"))
    return str(stated["project"]["license"])


def read_listed(path: Path) -> list[Mapping[str, Any]]:
    """The plugins of others, by their names. Raises ValueError for an entry of another form."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    entries = content.pop("plugin", [])
    if content or not isinstance(entries, list):
        raise ValueError(f"{path.name} holds tables [[plugin]] and nothing else")
    for entry in entries:
        _check_entry(entry)
    names = [entry["distribution"] for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError(f"{path.name} lists a distribution twice")
    return sorted(entries, key=lambda entry: str(entry["name"]))


def _check_entry(entry: Mapping[str, Any]) -> None:
    name = entry.get("name", "a plugin without a name")
    known = {*_TEXTS, *_LISTS, "push"}
    if set(entry) != known:
        raise ValueError(f"{name}: its fields lack or exceed {', '.join(sorted(known.symmetric_difference(entry)))}")
    for field in _TEXTS:
        if not isinstance(entry[field], str) or not entry[field].strip() or not entry[field].isprintable():
            raise ValueError(f"{name}: {field} should be a text on one line")
    for field in _LISTS:
        if not isinstance(entry[field], list) or not all(isinstance(item, str) for item in entry[field]):
            raise ValueError(f"{name}: {field} should be a list of texts")
    if not isinstance(entry["push"], bool):
        raise ValueError(f"{name}: push should be true or false")
    for field in ("name", "distribution"):
        if not _NAME.match(entry[field]):
            raise ValueError(f"{name}: {field} should be letters, digits, `.`, `_` and `-`")
    for field in ("quality", "documents"):
        if not re.fullmatch(r"https://[^\s()<>|]+", entry[field]):
            raise ValueError(f"{name}: {field} should be an https link")
    if entry["tier"] not in TIERS[1:]:
        raise ValueError(f"{name}: tier should be one of {', '.join(TIERS[1:])}")


def _listed_row(entry: Mapping[str, Any]) -> str:
    cells = (
        f"[{entry['name']}]({entry['documents']})",
        *(", ".join(entry[field]) for field in _LISTS),
        "yes" if entry["push"] else "no",
        f"[{entry['tier']}]({entry['quality']})",
        entry["version"],
        entry["licence"],
    )
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
