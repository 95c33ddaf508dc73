"""Commands that share options: one parameter of theirs becomes several flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def replacing(
    parameter: str, flags: Sequence[inspect.Parameter], make: Callable[[dict[str, Any]], Any], more_help: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `flags` in place of one parameter; `make` turns their values, by name, into its value."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**arguments: Any) -> None:
            values = {flag.name: arguments.pop(flag.name) for flag in flags}
            command(**{parameter: make(values)}, **arguments)

        own = inspect.signature(command, eval_str=True).parameters.values()
        others = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own if item.name != parameter]
        parameters = [*others, *flags]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {item.name: item.annotation for item in parameters}
        wrapper.__name__ = command.__name__
        wrapper.__doc__ = "\n\n".join(part for part in (inspect.cleandoc(command.__doc__ or ""), more_help) if part)
        return wrapper

    return decorate
