"""What an exception of a plugin says to the plugin's author, without its text.

The text of an exception may hold a secret, and callers read why a plugin does not serve. So only the texts of the
model's own errors are repeated. Of some other errors the names are taken that stand in the plugin's code: a keyword
that one of our classes does not have, a module that is not installed.
"""

from __future__ import annotations

import difflib
import dis
import inspect
import re
from collections.abc import Sequence
from types import CodeType, FunctionType
from typing import Any

from exchange_service import plugin_api
from exchange_service.model import ModelError

_PAGE = plugin_api.__name__
# A name of code as a sentence may repeat it.
_NAME = re.compile(r"[A-Za-z_]\w{0,63}\Z", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_][\w.]{0,99}\Z", re.ASCII)
# How Python words slips of the pen.
_SLIP = re.compile(
    r"(invalid syntax|'.' was never closed|unmatched '.'|expected '.'|unexpected indent|unindent does not match|"
    r"expected an indented block|unterminated \S*string literal)[^\n]{0,100}\Z"
)
# How Python words a call that does not fit a signature: the function, and what is wrong.
_WRONG_CALL = re.compile(r"(?:(\w+)\.)?(\w+)\(\) (.*)\Z", re.DOTALL)
_UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: ((?:'\w+'(?:, and |, | and )?)+)")
_TOO_MANY = re.compile(r"takes (?:from \d+ to )?\d+ positional arguments? but \d+ (?:was|were) given")
# What stands in an example in place of "...".
_VALUES = {"api_version": str(plugin_api.API_VERSION)}
_NOT_THERE = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")


def describe_failure(error: BaseException, module: str = "") -> str:
    """An exception's type, where it was raised within the package of `module`, and what can be said of it."""
    place, problem = place_in(error, module), known_problem(error)
    told = f"{type(error).__name__}{place and f' in {place}'}{problem and f': {problem}'}"
    return told if told.endswith(("?", ".")) else f"{told}."


def known_problem(error: BaseException) -> str:
    """What an exception says, as far as its text can be shown to anybody; empty if that is nothing."""
    if isinstance(error, ModelError):
        return str(error)
    if isinstance(error, SyntaxError):
        return _syntax(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(error)
    if isinstance(error, ImportError):
        return _missing_name(error)
    if isinstance(error, TypeError):
        return _wrong_call(error)
    return ""


def place_in(error: BaseException, module: str) -> str:
    """The innermost place within the package of `module` that the exception passed, such as "acme.parse, line 12".

    Empty if it passed none. It holds no path of this machine.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        name = re.split(r"[\\/]", error.filename)[-1]
        return f"{name}, line {error.lineno}" if re.match(r"[\w.-]{1,100}\Z", name, re.ASCII) else ""
    package, place = module.partition(".")[0], ""
    trace = error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if package and name.partition(".")[0] == package and _MODULE.match(name):
            place = f"{name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def near(name: str, known: Sequence[str]) -> str:
    """A question with the most similar of the known names; empty if none is similar."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {found[0]}?" if found else ""


def _syntax(error: SyntaxError) -> str:
    """What Python says of the commonest slips, which repeats none of the code."""
    told = error.msg or ""
    if told.startswith("'a") and told.endswith("outside async function"):
        return f"{told}: write `async def`."
    return told if _SLIP.match(told) else ""


def _missing_module(error: ModuleNotFoundError) -> str:
    name = error.name or ""
    if not _MODULE.match(name):
        return ""
    if name.partition(".")[0] == _PAGE.partition(".")[0]:
        return f"this release has no {name}. All that a plugin imports is {_PAGE}."
    library = name.partition(".")[0]
    return (
        f"the module {library} is not installed. Write the distribution that has it into `dependencies` of the "
        "plugin's pyproject.toml, and install the plugin again."
    )


def _missing_name(error: ImportError) -> str:
    found = _NOT_THERE.match(str(error))
    if found is None or found[2] != _PAGE or not _NAME.match(found[1]):
        return ""
    other = near(found[1], plugin_api.__all__)
    return f"{_PAGE} has no {found[1]}.{other or ' A later release may have it: see `dependencies` of the plugin.'}"


def _wrong_call(error: TypeError) -> str:
    """What is wrong with a call of something on the plugin page; empty for any other call."""
    call = _WRONG_CALL.match(str(error))
    owner = call and (call[1] if call[2] == "__init__" and call[1] else call[2])
    if not call or owner not in plugin_api.__all__:
        return ""
    if unexpected := _UNEXPECTED.match(call[3]):
        if not _NAME.match(unexpected[1]):
            return ""
        other = near(unexpected[1], list(_parameters(getattr(plugin_api, owner))))
        return f"{owner} has no {unexpected[1]}.{other or f' See {owner} in docs/plugin-reference.md.'}"
    if missing := _MISSING.match(call[3]):
        names = " and ".join(re.findall(r"'(\w+)'", missing[1]))
        return f"{owner} lacks {names}: write {_form(owner)}."
    if _TOO_MANY.match(call[3]):
        return f"{owner} is given too many values: write {_form(owner)}."
    return ""


def _form(owner: str) -> str:
    """The call with the parameters that it must have, by their names."""
    needed = [
        name
        for name, item in _parameters(getattr(plugin_api, owner)).items()
        if item.default is inspect.Parameter.empty
    ]
    joined = ", ".join(f"{name}={_VALUES.get(name, '...')}" for name in needed)
    return f"{owner}({joined})"


def _parameters(thing: Any) -> dict[str, inspect.Parameter]:
    if not isinstance(thing, type | FunctionType):
        return {}
    return {
        name: item
        for name, item in inspect.signature(thing).parameters.items()
        if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
    }


def reads_names(code: CodeType, *names: str) -> bool:
    """Whether a piece of compiled code, or one function within it, uses all of these global names or attributes. To
    import them is no use."""
    used = {step.argval for step in dis.get_instructions(code) if step.opname.startswith("LOAD_")}
    return used.issuperset(names) or any(
        reads_names(inner, *names) for inner in code.co_consts if isinstance(inner, CodeType)
    )
