"""Every decoder of bytes from outside takes valid values, and refuses altered ones with its documented errors."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.all_targets import TARGETS, Finding, Target, check

ROOT = Path(__file__).parent.parent.parent
# Altered inputs for each target; each seed comes once as it is.
EXAMPLES = 80
# KiB by which reading them may raise the most memory that this process has used.
MOST_MEMORY = 128 * 1024
# What decoders stumble over: nothing, the largest bytes, numbers out of range, brackets, texts that are not UTF-8.
PIECES = [b"", b"\xff" * 9, b"-1", b"1e999", b"NaN", b"9" * 400, b"[" * 2000, b'{"a":' * 500, b"\xed\xa0\x80", b"\0"]


@st.composite
def altered(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with up to four cuts, each filled with something else; or bytes of no meaning."""
    data = draw(st.sampled_from((*seeds, b"")))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 1, 4, 40))))
        piece = draw(st.one_of(st.binary(max_size=12), st.sampled_from(PIECES)))
        data = data[:start] + piece + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_raises_only_documented_errors_soon_and_within_bounds(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    tested, count = TARGETS[name], len(TARGETS[name].seeds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in tested.seeds:
        check(tested, seed)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(altered(tested.seeds))
    def read(data: bytes) -> None:
        nonlocal count
        count += 1
        check(tested, data)

    read()
    record_property("inputs", count)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


@pytest.mark.parametrize("name", TARGETS)
def test_some_seed_of_each_decoder_is_accepted(name: str) -> None:
    assert any(check(TARGETS[name], seed) for seed in TARGETS[name].seeds)


def test_an_undocumented_error_a_slow_input_and_a_broken_promise_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(data: bytes) -> object:
        raise KeyError(data)

    def promising(data: bytes) -> object:
        raise AssertionError

    def slow(data: bytes) -> object:
        return sum(range(10**6))

    tested = Target("one", raising, (), (KeyError,))
    assert not check(tested, b"")
    for read in (raising, promising):
        with pytest.raises(Finding):
            check(replace(tested, read=read, documented=()), b"")
    monkeypatch.setattr(targets, "LONGEST", 0.001)
    with pytest.raises(Finding, match="s of processor"):
        check(replace(tested, read=slow), b"")


def test_the_decoders_are_fuzzed_without_the_tools_of_these_tests() -> None:
    program = "import sys, tests.fuzz.all_targets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {"pytest", "hypothesis"}.isdisjoint(done.stdout.split())
