"""What a plugin's hooks must be: there, marked, of the right name and kind, and with the arguments and the return type
that the plugin API says."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pluggy

from exchange_service import plugin_api
from exchange_service.model import Balance, Changed, KeyRights, Manifest
from exchange_service.venues.failures import near

_ITERATORS = (AsyncIterator, AsyncIterable, AsyncGenerator)


@dataclass(frozen=True, slots=True)
class _HookRule:
    """How a hook is written, and the types that it returns or yields."""

    form: str
    returns: tuple[type, ...]
    is_right: Callable[[Any], bool]
    required: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of its arguments."""
        return ("call",) if "(call)" in self.form else ()


def _is_plain(function: Any) -> bool:
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return not asynchronous and not inspect.isgeneratorfunction(function)


_RULES = {
    "exchange_manifest": _HookRule("def exchange_manifest() -> Manifest", (Manifest,), _is_plain, required=True),
    "fetch_balance": _HookRule(
        "async def fetch_balance(call) -> Balance", (Balance,), inspect.iscoroutinefunction, required=True
    ),
    "watch_balance": _HookRule(
        "async def watch_balance(call) -> AsyncIterator[Balance | Changed], with yield",
        (Balance, Changed),
        inspect.isasyncgenfunction,
    ),
    "check_credential": _HookRule(
        "async def check_credential(call) -> KeyRights", (KeyRights,), inspect.iscoroutinefunction
    ),
    "refresh_manifest": _HookRule(
        "async def refresh_manifest() -> Manifest | None", (Manifest, NoneType), inspect.iscoroutinefunction
    ),
}


# How each hook is written.
HOOK_FORMS = {name: rule.form for name, rule in _RULES.items()}


class WrongHooks(Exception):
    """The hooks of a plugin are not what the plugin API says; the text is a sentence for its author."""


def register_hooks(module: object, name: str) -> pluggy.PluginManager:
    """A plugin manager that knows the hooks of this plugin alone; raises WrongHooks if one is not as it should be."""
    manager = pluggy.PluginManager(plugin_api.hookspec.project_name)
    manager.add_hookspecs(plugin_api)
    try:
        manager.register(module, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        # Of pluggy's text only the hook's name: the rest holds the paths of this machine, and callers read this.
        named = re.search(r"hook '(\w{1,100})'", str(error))
        raise WrongHooks(_refused(named[1] if named else "", module)) from None
    fault = _hook_fault(manager.hook, module)
    if fault:
        raise WrongHooks(fault)
    return manager


def _refused(name: str, module: object) -> str:
    """Why a hook of this name is not taken."""
    rule = _RULES.get(name)
    if rule is None:
        named = f"The hook {name}" if name else "A hook"
        known = ", ".join(_RULES)
        return f"{named} is not part of the plugin API.{near(name, list(_RULES)) or f' Its hooks are {known}.'}"
    try:
        given = list(inspect.signature(getattr(module, name)).parameters)
    except (AttributeError, TypeError, ValueError):
        given = []
    wrong = ", ".join(argument[:64] for argument in given if argument not in rule.arguments)
    return f"The hook {name} takes other arguments than the plugin API says ({wrong or '?'}): write `{rule.form}`."


def _hook_fault(hooks: Any, module: object) -> str:
    """What is wrong with the hooks of a plugin, a sentence; empty if nothing is."""
    for name, rule in _RULES.items():
        implementations = getattr(hooks, name).get_hookimpls()
        if not implementations:
            fault = _missing(name, rule, module)
            if fault:
                return fault
        for implementation in implementations:
            fault = _fault(name, rule, implementation)
            if fault:
                return fault
    return ""


def _missing(name: str, rule: _HookRule, module: object) -> str:
    """What is wrong if there is no such hook; empty if it may be missing."""
    function = getattr(module, name, None)
    own = getattr(function, "__module__", None) == getattr(module, "__name__", "")
    if callable(function) and (own or rule.required):
        return f"The hook {name} is not marked: write `@hookimpl` in the line above `{rule.form}`."
    if rule.required:
        return f"The hook {name} is missing: write `{rule.form}` with `@hookimpl` in the line above it."
    return ""


def _fault(name: str, rule: _HookRule, implementation: pluggy.HookImpl) -> str:
    if implementation.hookwrapper or implementation.wrapper:
        return f"The hook {name} is marked as a wrapper: write @hookimpl without arguments."
    function = inspect.unwrap(implementation.function)
    if not rule.is_right(implementation.function) and not rule.is_right(function):
        return f"The hook {name} is not what the plugin API says: write `{rule.form}`."
    if implementation.argnames != rule.arguments:
        return f"The hook {name} does not take what the plugin API gives it: write `{rule.form}`."
    returned = _returned(function)
    if returned is not None and not _fits(returned, rule):
        return f"The hook {name} says that it returns {_spell(returned)}: write `{rule.form}`."
    return ""


def _returned(function: Any) -> Any:
    """The return type that the function states; None if it states none that can be read."""
    try:
        return get_type_hints(function).get("return")
    # Any exception: an annotation is code of the plugin, and may name what exists for its type checker alone.
    except Exception:
        return None


def _fits(returned: Any, rule: _HookRule) -> bool:
    origin, parts = get_origin(returned), get_args(returned)
    if rule.is_right is inspect.isasyncgenfunction:
        return origin in _ITERATORS and _is_one_of(parts[0], rule.returns)
    return _is_one_of(returned, rule.returns)


def _is_one_of(returned: Any, allowed: tuple[type, ...]) -> bool:
    if returned is Any:
        return True
    if get_origin(returned) in (Union, UnionType):
        return all(_is_one_of(part, allowed) for part in get_args(returned))
    kind = get_origin(returned) or returned
    # What else there is, such as a type variable, is not judged.
    return not isinstance(kind, type) or issubclass(kind, allowed)


def _spell(returned: Any) -> str:
    name = returned.__name__ if isinstance(returned, type) else str(returned)
    return name[:80]
