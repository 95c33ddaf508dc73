"""What a plugin's hooks must be: there, of the right kind, and with the return type that the plugin API says."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pluggy

from exchange_service.model import Balance, Changed, KeyRights, Manifest

_ITERATORS = (AsyncIterator, AsyncIterable, AsyncGenerator)


@dataclass(frozen=True, slots=True)
class _HookRule:
    """How a hook is written, and the types that it returns or yields."""

    form: str
    returns: tuple[type, ...]
    is_right: Callable[[Any], bool]
    required: bool = False


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


def hook_fault(hooks: Any) -> str:
    """What is wrong with the hooks of a plugin, a sentence; empty if nothing is."""
    for name, rule in _RULES.items():
        implementations = getattr(hooks, name).get_hookimpls()
        if not implementations and rule.required:
            return f"The hook {name} is missing; see docs/plugins.md."
        for implementation in implementations:
            fault = _fault(name, rule, implementation)
            if fault:
                return fault
    return ""


def _fault(name: str, rule: _HookRule, implementation: pluggy.HookImpl) -> str:
    if implementation.hookwrapper or implementation.wrapper:
        return f"The hook {name} is marked as a wrapper: write @hookimpl without arguments."
    function = inspect.unwrap(implementation.function)
    if not rule.is_right(implementation.function) and not rule.is_right(function):
        return f"The hook {name} is not what the plugin API says: write `{rule.form}`."
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
