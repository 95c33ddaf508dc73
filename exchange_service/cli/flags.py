"""Every setting as a flag, made from `Settings`, so that a setting has one name, one default and one help text."""

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
from exchange_service.cli.signatures import replacing
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.settings import CONFIG_VARIABLE, Settings, load_settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help=f"TOML file with settings. [env var: {CONFIG_VARIABLE}]", show_default=False),
]


def default_text(name: str, field: FieldInfo) -> str:
    """The default as a text for help and documents; the default database depends on the machine."""
    if name == "database_url":
        return "a SQLite file in the user's data folder"
    if field.default_factory is not None:
        return "none"
    if field.default is None:
        return "unset"
    return str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}"


def _describe_secret_settings() -> str:
    """A paragraph of help about the settings that have no flag."""
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

    A secret has no flag, because other users of the machine can see a command line: it comes from the environment or
    the settings file.
    """

    names = [
        name for name, field in Settings.model_fields.items() if (not only or name in only) and not _is_secret(field)
    ]
    file = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption)
    flags = [file, *(_parameter(name, Settings.model_fields[name]) for name in names)]

    def make(values: dict[str, Any]) -> Settings:
        return read_settings(values.pop("config"), values)

    return replacing("settings", flags, make, "" if only else _describe_secret_settings())


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
    """The flag's type: bool, float or Path, else str, which the settings parse."""
    text = str(field.annotation)
    return next((kind for kind in (bool, float, Path) if kind.__name__ in text), str)


def read_settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings from flags, environment and file; an invalid one ends the command with its name."""
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)
    for name, value in flags.items():
        kind = str(Settings.model_fields[name].annotation)
        if value is not None and ("dict" in kind or "list" in kind):
            flags[name] = _json(name, value)
    try:
        settings = load_settings(**flags)
    except ValidationError as invalid:
        fail(
            f"a setting is wrong: {describe(invalid)}. `exchange-service serve --help` lists them.",
            ExitCode.USAGE,
        )
    except (OSError, ValueError) as error:
        fail(f"the settings file cannot be read: {error}", ExitCode.USAGE)
    if settings.model_fields_set & {"cache_url", "database_url"}:
        # Late, because the check loads the libraries of databases.
        from exchange_service.startup_checks import UnsafeSettings, check_urls

        try:
            check_urls(settings)
        except UnsafeSettings as unsafe:
            fail(f"a setting is wrong: {unsafe}", ExitCode.USAGE)
    return settings


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        fail(f"the setting {name} should be JSON; --help shows its form", ExitCode.USAGE)
