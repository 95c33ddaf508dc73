"""The plugins that were written for each served version of the page: they use all that it had, and are not edited."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from exchange_service.plugin_api import SERVED_API_VERSIONS
from exchange_service.venues import manifests
from exchange_service.venues.manifests import manifest_faults
from tests.harness import ScriptedPlugin

FOLDER = Path(__file__).parent
# The digest of all files of a version's plugins. It changes if one of them is edited, which nobody should do: what
# breaks such a plugin breaks other people's.
DIGESTS = {1: "4c2dbcc37038a367b456412385b86442102b582edb19f946e7aebffd02930320"}
# Names of the page when the plugins of a version were written.
NAMES = {1: 86}


def files(version: int) -> list[Path]:
    return sorted((FOLDER / str(version)).rglob("*.py"))


def digest(version: int) -> str:
    found = hashlib.sha256()
    for path in files(version):
        found.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


@pytest.mark.parametrize("version", SERVED_API_VERSIONS)
def test_a_served_version_has_plugins_and_a_test_of_its_own(version: int) -> None:
    assert files(version)
    assert (FOLDER / f"test_version_{version}.py").exists()


@pytest.mark.parametrize("version", SERVED_API_VERSIONS)
def test_the_plugins_of_a_version_are_as_they_were_written(version: int) -> None:
    assert digest(version) == DIGESTS[version], "do not edit these plugins: mend what breaks them"


@pytest.mark.parametrize("version", SERVED_API_VERSIONS)
def test_the_plugins_of_a_version_import_and_use_all_that_its_page_had(version: int) -> None:
    used = set()
    for path in files(version):
        text = path.read_text()
        for block in re.findall(r"from exchange_service\.plugin_api import \(\n(.*?)\)", text, re.DOTALL):
            used |= {name for name in re.findall(r"\w+", block) if len(re.findall(rf"\b{name}\b", text)) > 1}
    assert len(used) == NAMES[version]


def test_a_version_that_is_not_served_is_told_which_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "SERVED_API_VERSIONS", (1, 2))
    assert list(manifest_faults(ScriptedPlugin(api_version=2).manifest)) == []
    assert list(manifest_faults(ScriptedPlugin(api_version=1).manifest)) == []
    (told,) = manifest_faults(ScriptedPlugin(api_version=3).manifest)
    assert "was written for version 3 of the plugin API, and this release of the service serves 1 and 2" in told
