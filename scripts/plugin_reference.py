"""docs/plugin-reference.md: every name that a plugin, its tests and its simulator may use, from the source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from exchange_service import errors, plugin_api, testing
from exchange_service.grpc_server.status import TABLE
from exchange_service.plugin_api import API_VERSION, SERVED_API_VERSIONS
from exchange_service.testing.trouble_contract import ERRORS_OF_TROUBLES
from exchange_service.testing.venue import MEANINGS_OF_SITUATIONS, MEANINGS_OF_TROUBLES
from exchange_service.venues.hooks import HOOK_FORMS
from exchange_service.venues.printing import PRINTS
from scripts.public_api import (
    documentation,
    exported,
    fields,
    is_hook,
    is_method,
    meaning,
    members,
    package,
    signature,
)
from tests.beginners.mistakes import AT_A_CALL, AT_LOAD, Mistake

_HEAD = """# Plugin reference

This page is for you if you write a plugin and look for the meaning of one name. It has every name, field, default, unit
and error of `exchange_service.plugin_api` and of the test kit. [plugins.md](plugins.md) and the
[how-tos](plugin-howtos.md) show how they are used. `make docs` writes this page from the source.

Contents: {contents}"""

_VERSIONS = """## Versions

A plugin says in its manifest for which version of this page it was written: `api_version={version}`, a number and not
the name API_VERSION. This release of the service serves {served}.

- Within a version names, fields with a default, and optional hooks are only added. Nothing is renamed, removed or
  changed in its meaning. A plugin that uses a new name says by its dependency, such as
  `exchange-service-plugin>=0.2,<1`, which release it needs.
- The version rises when a plugin that was written for the one before would break. Version 1 is served by all releases
  0.x, and for at least a year after the first release that has a version 2. Then both are served side by side.
- A plugin of a version that is not served is refused with a sentence that names those that are, and the others serve.

Two tests hold this. Plugins that were written for each served version are kept as they were, in
`tests/plugins_of_version`, and pass the present contract suite in the present service. And `make check` compares this
page with its record, by griffe: a name that is gone, a parameter that is renamed or a default that has changed is a
break."""

_EXAMPLE_ROWS = """| mistake | you wrote | you are told |
|---|---|---|"""

_MISTAKES = (
    """## Mistakes

What you are told if you make a mistake: in the list of plugins (`exchange-service plugins`) if the plugin is not loaded
for it, else as `problem` in the service's log. The contract suite fails with the same words. The plugin of this table
is a module `acme`.

"""
    + _EXAMPLE_ROWS
)

_FIELDS = "| field | type | default | meaning |\n|---|---|---|---|"

_TROUBLES = """## Troubles and situations

What a simulator's `troubled_credential(trouble)` and `demo_credential(situation)` set up, and what the plugin has to
make of it. The contract suite tries every trouble that is not None, and the balance of the situation "moving"; the demo
shows the others. Return None for what the venue cannot have, and state it in
[quality.toml](plugin-quality.md#what-you-may-state).

| trouble | what it is | one of these errors |
|---|---|---|
{troubles}

| situation | what it is | what it becomes |
|---|---|---|
{situations}"""

_ERRORS = """## Errors

A hook raises one of these. All are made by `Error(message, retry_after=..., advice=...)`, see VenueError.
`retried` says whether a caller may try again; a last good balance stands in for such an error meanwhile.
[errors.md](errors.md) says what callers are told to do.

| raise | when | gRPC status | retried |
|---|---|---|---|"""

# The sections, each with the names that belong to it, and the modules whose other names do. A name of no section stands
# in the last one before the tests.
_SECTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Hooks": (("hookimpl", "hookspec"), ()),
    "The manifest": (
        (
            *("Manifest", "ExchangeMetadata", "Environment", "CredentialField", "Capabilities", "RateLimit"),
            *("PushLimits", "PluginSetting", "RetiredExchange", "API_VERSION", "SERVED_API_VERSIONS", "ASSET_CLASSES"),
            *("ANSWER_LIMIT",),
            *("PRODUCTION", "SANDBOX", "SECRET_FIELDS", "ALL_ACCOUNT_TYPES", "KEY_KINDS"),
        ),
        (),
    ),
    "The call": (("VenueCall", "Http", "Response", "Account", "Credential", "Secret", "VenueReports"), ()),
    "State": (("State",), ("exchange_service.plugin_kit.state",)),
    "Reading credentials": (
        ("PrivateKey",),
        ("exchange_service.plugin_kit.credential_fields", "exchange_service.plugin_kit.key_texts"),
    ),
    "Reading answers": (
        ("beside_the_loop",),
        (
            "exchange_service.plugin_kit.payload",
            "exchange_service.plugin_kit.responses",
            "exchange_service.plugin_kit.gateways",
            "exchange_service.plugin_kit.account_names",
        ),
    ),
    "What you return": (
        ("Balance", "VenueAccount", "AssetBalance", "CASH", "HOLDING", "Summary", "Changed", "KeyRights"),
        ("exchange_service.amounts", "exchange_service.plugin_kit.several_accounts"),
    ),
    "Push": (
        ("subscribed", "Subscription", "PushLanguage", "Socket"),
        (
            "exchange_service.plugin_kit.push",
            "exchange_service.plugin_kit.push_connection",
            "exchange_service.plugin_kit.push_language",
        ),
    ),
    "More": ((), ()),
}
# A default that a reader may see as it is: a literal, a constant, or a call without arguments.
_LITERAL = re.compile(r"""('[^']*'|"[^"]*"|b''|-?[\d.]+|True|False|None|\(\)|\{\}|\[\]|[A-Z_]+|[A-Z]\w*\(\))\Z""")
# What of an error its raiser and its readers use.
_ERROR_FIELDS = ("message", "advice", "retry_after", "reason", "transient", "venue_was_asked")
_TESTS: Mapping[str, str] = {
    "testing": "For tests and simulators: `from exchange_service.testing import ...`. Nothing of it imports pytest.",
    "testing.push": "For simulators that push: `from exchange_service.testing.push import ...`.",
    "testing.contract": "The contract suite: `from exchange_service.testing.contract import PluginContract`.",
}


def reference_page() -> str:
    """The whole page."""
    page = exported("plugin_api")
    sections = [_section(title, names) for title, names in _sorted_names(page).items() if names]
    parts = [_VERSIONS.format(version=API_VERSION, served=_served()), *sections]
    parts += [_errors(page), *_tests(), _troubles(), "\n".join((_MISTAKES, *_mistakes()))]
    titles = re.findall(r"^## (.+)$", "\n".join(parts), re.MULTILINE)
    links = " · ".join(f"[{title.lower()}](#{title.lower().replace(' ', '-')})" for title in titles)
    return "\n\n".join((_HEAD.format(contents=links), *parts)) + "\n"


def _served() -> str:
    numbers = " and ".join(map(str, SERVED_API_VERSIONS))
    return f"version {numbers}" if len(SERVED_API_VERSIONS) == 1 else f"the versions {numbers}"


def _sorted_names(page: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the page by section, those that a section names first; errors are left out."""
    sorted_names: dict[str, list[str]] = {title: [] for title in _SECTIONS}
    for title, (names, _) in _SECTIONS.items():
        sorted_names[title] += [name for name in names if name in page]
    named = {name for names in sorted_names.values() for name in names}
    for name, item in page.items():
        if name in named or _is_error(name):
            continue
        module = item.path.rpartition(".")[0]
        homes = (title for title, (_, modules) in _SECTIONS.items() if module in modules)
        sorted_names["Hooks" if is_hook(item) else next(homes, "More")].append(name)
    return sorted_names


def _is_error(name: str) -> bool:
    value = getattr(plugin_api, name, getattr(testing, name, None))
    return inspect.isclass(value) and issubclass(value, errors.VenueError)


def _section(title: str, names: list[str]) -> str:
    page = exported("plugin_api")
    return "\n\n".join((f"## {title}", *("\n\n".join(_entry(name, page[name])) for name in names)))


def _entry(name: str, item: Any, *, level: int = 3) -> Iterator[str]:
    """The heading of a name, how it is declared, what it is, its fields and its methods."""
    yield f"{'#' * level} {name}"
    if name in HOOK_FORMS:
        yield _code(f"@hookimpl\n{HOOK_FORMS[name]}")
    elif item.is_function:
        yield _code(signature(item, own_name=name))
    elif item.is_attribute:
        yield _code(_constant(name, item))
    yield from _text(item)
    if item.is_class:
        yield from _members(item)


def _constant(name: str, item: Any) -> str:
    value = getattr(plugin_api, name, getattr(testing, name, None))
    return f"{name} = {value!r}" if isinstance(value, int | str | tuple | dict | frozenset) else name


def _members(item: Any) -> Iterator[str]:
    bases = [str(base) for base in item.bases if str(base) not in ("Protocol", "Exception")]
    if bases:
        yield f"It has what {' and '.join(f'`{base}`' for base in bases)} has."
    table = list(_field_rows(item))
    if table:
        yield "\n".join((_FIELDS, *table))
    for member in members(item):
        if is_method(member) and documentation(member):
            yield f"**`{signature(member)}`**"
            yield from _text(member)


def _field_rows(item: Any, only: Container[str] | None = None) -> Iterator[str]:
    for field in fields(item):
        if only is not None and field.name not in only:
            continue
        annotation = "" if field.annotation is None else f"`{_cell(str(field.annotation))}`"
        yield f"| `{field.name}` | {annotation} | {_default(field)} | {_cell(meaning(field))} |"


def _default(field: Any) -> str:
    """The default as a reader would write it; empty for a field that has to be given."""
    value = "" if field.value is None else str(field.value)
    made = re.search(r"default_factory=(?:lambda: )?(\w+)", value)
    if made:
        return {"dict": "`{}`", "list": "`[]`", "set": "`set()`", "MappingProxyType": "`{}`"}.get(made[1], "")
    return f"`{_cell(value)}`" if _LITERAL.match(value) else ""


def _text(item: Any) -> Iterator[str]:
    text = documentation(item)
    if text:
        yield inspect.cleandoc(text)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _errors(page: Mapping[str, Any]) -> str:
    rows = []
    for leaf, row in TABLE.items():
        name = leaf.__name__
        if name in page and _is_error(name):
            link = f"[`{row.code.name}`](errors.md#{leaf.reason.lower()})"
            delay = leaf.default_retry_after
            retried = "no" if not row.retry else "yes" if delay is None else f"yes, after {delay:g} s or `retry_after`"
            rows.append(f"| `{name}` | {_cell(_first_sentence(page[name]))} | {link} | {retried} |")
    tree = "\n\n".join(_entry("VenueError", page["VenueError"]))
    base = "\n\n".join(_error_base(package()["errors"]["ServiceError"]))
    return "\n\n".join(("\n".join((_ERRORS, *rows)), tree, base))


def _error_base(item: Any) -> Iterator[str]:
    """What all errors have: what is given, and what may be read or set."""
    yield f"**`{signature(item.members['__init__'], own_name='VenueError').removeprefix('def ').partition(' ->')[0]}`**"
    yield from _text(item)
    yield "\n".join((_FIELDS, *_field_rows(item, _ERROR_FIELDS)))


def _first_sentence(item: Any) -> str:
    return re.split(r"(?<=\.)\s", documentation(item), maxsplit=1)[0]


def _tests() -> Iterator[str]:
    yield "## Testing"
    for module, text in _TESTS.items():
        yield text
        for name, item in exported(module).items():
            if module == "testing.contract" and item.is_class:
                yield from _suite(name, item)
            else:
                yield from _entry(name, item)


def _suite(name: str, item: Any) -> Iterator[str]:
    """A suite: what is set, and not its tests, whose names are sentences."""
    yield f"### {name}"
    yield from _text(item)
    table = [row for suite in (*reversed(item.mro()), item) for row in _field_rows(suite)]
    if table:
        yield "\n".join((_FIELDS, *table))


def _troubles() -> str:
    troubles = [
        f"| {name} | {text} | {', '.join(f'`{kind.__name__}`' for kind in ERRORS_OF_TROUBLES[name])} |"
        for name, text in MEANINGS_OF_TROUBLES.items()
    ]
    situations = [f"| {name} | {what} | {becomes} |" for name, (what, becomes) in MEANINGS_OF_SITUATIONS.items()]
    return _TROUBLES.format(troubles="\n".join(troubles), situations="\n".join(situations))


def _mistakes() -> Iterator[str]:
    for name, mistake in (AT_LOAD | AT_A_CALL).items():
        yield f"| {name} | `{_cell(mistake.wrong)}` | {_told(mistake)} |"


def _told(mistake: Mistake) -> str:
    return _cell(mistake.told or f"{PRINTS} (in the event `plugin.prints`)")
