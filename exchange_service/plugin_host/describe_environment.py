"""Describes a virtual environment: a program of the service that the environment's own interpreter runs.

    /opt/ccxt/bin/python -I describe_environment.py NAME

It writes a line of JSON: Python's version, what that Python reads, the version and the protocol of
exchange-service-plugin there, and the distributions that have a plugin of this name. No plugin's code is imported, and
of this project only what is installed there: the rest is the standard library, of any version that can read this file.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions, entry_points
from typing import Any
from urllib.parse import unquote, urlsplit

LIBRARY = "exchange-service-plugin"
_GROUP = "exchange_service"
# Earlier ones cannot run it.
_SINCE = (3, 11)
_MOST_LIBRARIES = 20


def editable_projects() -> list[str]:
    """The folders of the projects that are installed in place, by their records."""
    folders: list[str] = []
    for found in distributions():
        record = found.read_text("direct_url.json")
        source = json.loads(record) if record else {}
        if source.get("dir_info", {}).get("editable"):
            folder = unquote(urlsplit(source.get("url", "")).path)
            folders += (path for path in (folder, os.path.join(folder, "src")) if os.path.isdir(path))
    return folders


def trusted_certificates() -> list[str]:
    """The file and the folder of certificates that OpenSSL trusts by itself."""
    paths = ssl.get_default_verify_paths()
    return [path for path in (paths.cafile, paths.capath) if path]


def _version(name: str) -> str:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return ""


def _library() -> dict[str, Any]:
    """The version of exchange-service-plugin and its protocol, or why that could not be imported."""
    described: dict[str, Any] = {"library": _version(LIBRARY), "protocol": None, "failure": ""}
    if described["library"]:
        try:
            from exchange_service.plugin_host.protocol import PROTOCOL

            described["protocol"] = PROTOCOL
        except Exception as error:
            described["failure"] = f"{type(error).__name__}: {error}"[:300]
    return described


def _plugin(point: EntryPoint, found: Distribution) -> dict[str, Any]:
    name = found.metadata["Name"] or ""
    try:
        by_name = distribution(name)
        recorded = by_name.version == found.version and point in by_name.entry_points
    except (PackageNotFoundError, ValueError):
        recorded = False
    return {
        "distribution": name,
        "version": found.version or "",
        "recorded": recorded,
        "needs": _installed_needs(found),
    }


def _installed_needs(found: Distribution) -> list[str]:
    """What a distribution requires, without extras, as it is installed: "ccxt 4.5.90"."""
    required = [item for item in found.requires or () if "extra ==" not in item]
    names = [name[0] for name in (re.match(r"[A-Za-z0-9._-]+", item) for item in required) if name]
    installed = [f"{name} {_version(name)}" for name in names if name != LIBRARY and _version(name)]
    return installed[:_MOST_LIBRARIES]


def _describe(name: str) -> dict[str, Any]:
    points = [point for point in entry_points(group=_GROUP) if point.name == name]
    return {
        "prefixes": [sys.prefix, sys.exec_prefix],
        "base_prefixes": [sys.base_prefix, sys.base_exec_prefix],
        "modules": [path for path in sys.path if path],
        "projects": editable_projects(),
        "certificates": trusted_certificates(),
        "plugins": [_plugin(point, point.dist) for point in points if point.dist is not None],
        **_library(),
    }


def main() -> None:
    """See the module's docstring."""
    # What an import prints does not get into the answer.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    described: dict[str, Any] = {"python": ".".join(map(str, sys.version_info[:3]))}
    if sys.version_info >= _SINCE:
        described |= _describe(sys.argv[1])
    # Something in the environment may have written to standard output before this program began.
    answer.write(f"\n{json.dumps(described)}\n")
    answer.close()


if __name__ == "__main__":
    main()
