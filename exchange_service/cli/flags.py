"""Every setting as a flag: made from `Settings`, so that a setting has one name, one default and one help text."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from exchange_service.cli.outcome import ExitCode, describe, fail
from exchange_service.settings import CONFIG_VARIABLE, ENVIRONMENT_PREFIX, Settings, load_settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help=f"TOML file with settings. [env var: {CONFIG_VARIABLE}]", show_default=False),
]


def default_text(name: str, field: FieldInfo) -> str:
    """The default as a text for help and documents; the database's depends on the machine."""
    if name == "database_url":
        return "a SQLite file in the user's data folder"
    if field.default_factory is not None:
        return "none"
    if field.default is None:
        return "unset"
    return str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}"


def _secret_settings() -> str:
    """The settings that have no flag, in words for the help text."""
    entries = [
        f"{ENVIRONMENT_PREFIX}{name.upper()}: {field.description} Default: {default_text(name, field)}."
        for name, field in Settings.model_fields.items()
        if _is_secret(field)
    ]
    return "From the environment or the settings file only: " + " ".join(entries)


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def with_settings(*only: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each setting (or for those named) in place of its `settings` parameter.

    A secret has no flag, because a command line can be seen by others: it comes from the environment or the file.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [
            name
            for name, field in Settings.model_fields.items()
            if (not only or name in only) and not _is_secret(field)
        ]

        def wrapper(config: Path | None = None, **arguments: Any) -> None:
            flags = {name: arguments.pop(name) for name in names}
            command(settings=read_settings(config, flags), **arguments)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        flags = [_parameter(name, Settings.model_fields[name]) for name in names]
        file = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption)
        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = [*keyword, file, *flags]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapper.__name__ = command.__name__
        wrapper.__doc__ = inspect.cleandoc(command.__doc__ or "")
        if not only:
            wrapper.__doc__ += f"\n\n{_secret_settings()}"
        return wrapper

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    declarations = [f"{flag}/--no-{flag.removeprefix('--')}"] if _kind(field) is bool else [flag]
    option = typer.Option(
        *declarations,
        help=f"{field.description} Default: {default_text(name, field)}.",
        envvar=f"{ENVIRONMENT_PREFIX}{name.upper()}",
        show_default=False,
    )
    kind: Any = _kind(field)
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(field: FieldInfo) -> type:
    """The flag's type; what is no number, truth value or path is read from a text by the settings."""
    text = str(field.annotation)
    return next((kind for kind in (bool, float, Path) if kind.__name__ in text), str)


def read_settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings from flags, environment and file; a wrong one ends the command with its name."""
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)
    for name, value in flags.items():
        if value is not None and "dict" in str(Settings.model_fields[name].annotation):
            flags[name] = _json_object(name, value)
    try:
        return load_settings(**flags)
    except ValidationError as invalid:
        fail(f"a setting is wrong: {describe(invalid)}. `exchange-service serve --help` lists all.", ExitCode.USAGE)
    except (OSError, ValueError) as error:
        fail(f"the settings file cannot be read: {error}", ExitCode.USAGE)


def _json_object(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        fail(f"--{name.replace('_', '-')} should be a JSON object", ExitCode.USAGE)
