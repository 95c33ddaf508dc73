"""The threat table is complete: each threat has tests of its mitigation, and it says what is not prevented."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from scripts import threats

# The threats of the threat model, then those of an attack on the running service.
WANTED = list(tomllib.loads(threats.THREATS.read_text()))


@pytest.fixture(scope="module")
def table() -> dict[str, threats.Threat]:
    return {threat.id: threat for threat in threats.threats()}


def test_the_table_has_every_threat_in_its_order(table: dict[str, threats.Threat]) -> None:
    numbers = [int(name.removeprefix("T")) for name in table]
    assert numbers == sorted(set(numbers))
    assert numbers[:20] == list(range(1, 21))


@pytest.mark.parametrize("name", WANTED)
def test_each_threat_has_a_test_that_first_attacks_or_states_why_not(
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
        ('@pytest.mark.threat("T999")\ndef test_a() -> None: ...', "T999"),
        ('class TestA:\n    @pytest.mark.threat("T998", attack=True)\n    async def test_a(self) -> None: ...', "T998"),
    ],
)
def test_a_mark_of_an_unknown_threat_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(source)
    monkeypatch.setattr(threats, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=message):
        threats.threats()


def test_a_named_test_that_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threats, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="do not exist"):
        threats.threats()


def test_the_table_of_outcomes_tells_an_attack_that_ends_otherwise_from_one_that_was_not_tried() -> None:
    lines = list(
        threats.outcome_lines([("T1", True, True), ("T1", False, True), ("T2", True, False), ("T3", False, True)])
    )
    cells = {line[:4].strip(): (line[5:21].strip(), line[22:38].strip()) for line in lines}
    assert cells["T1"] == ("attack succeeds", "attack fails")
    assert cells["T2"] == ("a test failed", "a test failed")
    assert cells["T3"] == ("not tried", "holds")
    assert cells["T4"] == ("not tried", "not tried")
