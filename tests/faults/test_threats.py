"""The threat table is whole: each threat has tests that show how it is met, and what is not met is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import threats

# Those of the threat model; plugins' own (T11, T12) as far as the loader and the deadlines go.
WANTED = [f"T{number}" for number in range(1, 21)]


@pytest.fixture(scope="module")
def table() -> dict[str, threats.Threat]:
    return {threat.id: threat for threat in threats.threats()}


def test_the_table_has_every_threat_in_its_order(table: dict[str, threats.Threat]) -> None:
    assert list(table) == WANTED


@pytest.mark.parametrize("name", WANTED)
def test_each_is_shown_to_be_met_after_it_has_succeeded_or_it_is_said_why_not(
    table: dict[str, threats.Threat], name: str
) -> None:
    threat = table[name]
    assert threat.marks or threat.open, f"{name} has no test, and nothing says why"
    assert threat.attacked or (name == "T11" and threat.open), f"no test of {name} first succeeds as the attacker"


def test_the_page_names_every_test_and_every_gap(table: dict[str, threats.Threat]) -> None:
    page = threats.security_page()
    for threat in table.values():
        assert f"| {threat.id} |" in page
        assert threat.open in page
        for mark in threat.marks:
            assert f"`{mark.node}`" in page


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('@pytest.mark.threat("T99")\ndef test_a() -> None: ...', "T99"),
        ('class TestA:\n    @pytest.mark.threat("T98", attack=True)\n    async def test_a(self) -> None: ...', "T98"),
    ],
)
def test_a_mark_of_no_threat_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(source)
    monkeypatch.setattr(threats, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=message):
        threats.threats()


def test_a_test_that_is_named_and_gone_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threats, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="no test"):
        threats.threats()
