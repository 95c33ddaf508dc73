"""What a plugin's author is told of an exception: the frames of their own files in full, the others counted."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AuthorsFiles:
    """The folders and files of the plugin itself."""

    places: tuple[Path, ...]

    def __contains__(self, name: object) -> bool:
        path = Path(str(name))
        if {"site-packages", ".venv", "venv"} & set(path.parts) and path.parent not in self.places:
            return any(path.is_relative_to(place) for place in self.places if "site-packages" in place.parts)
        return any(path.is_relative_to(place) for place in self.places)

    def short(self, name: str) -> str:
        """A file's path from the plugin's folder, or from the one that holds its package; else its last two parts."""
        path = Path(name)
        for place in self.places:
            if path.is_relative_to(place):
                return str(path.relative_to(place if (place / "pyproject.toml").is_file() else place.parent))
        return "/".join(path.parts[-2:])


def files_of(module_name: str, file: str | None, folder: Path | None) -> AuthorsFiles:
    """The files of the plugin whose module this is. `folder` is that of its pyproject.toml."""
    places = [folder] if folder is not None else []
    if file:
        path = Path(file).resolve()
        inside = path.name == "__init__.py"
        # A module within a package: the outermost package is the plugin.
        depth = module_name.count(".") + (1 if inside else 0)
        places.insert(0, path.parents[depth - 1] if depth else path)
    return AuthorsFiles(tuple(places))


def describe_trace(error: BaseException, files: AuthorsFiles) -> str:
    """The exception with its causes, as Python prints it, but for frames that are not the author's: those are counted.

    It quotes lines of code and the exceptions' texts, which may hold secrets: hide them before it is shown.
    """
    return "\n".join(_lines(traceback.TracebackException.from_exception(error), files))


def has_own_frame(error: BaseException, files: AuthorsFiles) -> bool:
    """Whether the exception passed the author's code, or is about how it is written."""
    found = traceback.TracebackException.from_exception(error)
    return isinstance(error, SyntaxError) or any(frame.filename in files for frame in found.stack)


def _lines(found: traceback.TracebackException, files: AuthorsFiles) -> Iterator[str]:
    before = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    if before is not None:
        yield from _lines(before, files)
        joined = "This was the cause of:" if found.__cause__ is not None else "While that was handled:"
        yield from ("", joined, "")
    for own, frames in groupby(found.stack, key=lambda frame: frame.filename in files):
        if own:
            for frame in frames:
                yield f'  File "{files.short(frame.filename)}", line {frame.lineno}, in {frame.name}'
                if frame.line:
                    yield f"    {frame.line}"
        else:
            yield f"  … {_counted([frame.filename for frame in frames])}"
    for line in found.format_exception_only():
        yield from line.rstrip("\n").split("\n")
    if found.exceptions:
        for number, inner in enumerate(found.exceptions, 1):
            yield f"  of these {len(found.exceptions)} exceptions, number {number}:"
            yield from (f"  {line}" for line in _lines(inner, files))


def _counted(names: list[str]) -> str:
    """How many frames there are, and of which packages."""
    packages: list[str] = []
    for name in names:
        parts = Path(name).parts
        if "site-packages" in parts:
            package = parts[parts.index("site-packages") + 1].removesuffix(".py")
        elif "exchange_service" in parts:
            package = "exchange_service"
        else:
            package = "Python"
        if package not in packages:
            packages.append(package)
    return f"{len(names)} frame{'' if len(names) == 1 else 's'} of {', '.join(packages)}"
