"""The process's clock: steps of the system's clock, and what they must not do to balances."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exchange_service import clock
from exchange_service.clock import SteadyClock
from exchange_service.v1 import balance_pb2
from tests.harness import ScriptedPlugin, registry_of, serving

START = 1_800_000_000.0
HOUR = 3600.0


class System:
    """A machine whose clock a test sets wrong."""

    def __init__(self) -> None:
        self.uptime = 100.0
        self.wrong_by = 0.0
        self.steady = SteadyClock(lambda: START + self.uptime + self.wrong_by, lambda: self.uptime)

    def error_after(self, seconds: float) -> float:
        """By how much the process's clock is wrong when it was asked each second for so long."""
        for _ in range(int(seconds)):
            self.uptime += 1
            self.steady()
        return round(self.steady() - START - self.uptime, 3)


class TestSteadyClock:
    @pytest.mark.parametrize("step", [HOUR, -HOUR, 2.0])
    def test_a_step_that_is_taken_back_within_a_minute_changes_nothing(self, step: float) -> None:
        system = System()
        system.wrong_by = step
        assert system.error_after(50) == 0
        system.wrong_by = 0.0
        assert system.error_after(100) == 0

    @pytest.mark.parametrize("step", [HOUR, -HOUR])
    def test_a_step_that_stands_is_followed_after_a_minute_and_logged(self, step: float) -> None:
        system = System()
        system.wrong_by = step
        with capture_logs() as lines:
            assert system.error_after(59) == 0
            assert system.error_after(5) == step
        assert [line["event"] for line in lines] == ["clock.stepped", "clock.step_followed"]

    def test_a_clock_that_keeps_jumping_is_not_followed(self) -> None:
        system = System()
        for number in range(8):
            system.wrong_by = HOUR * (1 + number % 2)
            assert system.error_after(40) == 0

    def test_the_usual_corrections_are_followed_at_once(self) -> None:
        system = System()
        for _ in range(20):
            system.wrong_by += 0.3
            assert system.error_after(1) == round(system.wrong_by, 3)


async def test_a_jump_of_the_systems_clock_changes_no_age_and_sends_nobody_to_the_venue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = ScriptedPlugin()
    async with serving(tmp_path, registry=registry_of(plugin)) as running:
        await running.store()
        first = (await running.client.get_balance("alice", "fakex")).balance
        for step in (HOUR, -HOUR):
            with monkeypatch.context() as patch:
                patch.setattr(clock.wall, "_system", lambda by=step: time.time() + by)
                for _ in range(2):
                    # It is looked at each second.
                    patch.setattr(clock.wall, "_looked", 0.0)
                    reply = await running.client.get_balance("alice", "fakex")
                    assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_CACHE
                    assert reply.freshness.age.ToSeconds() < 20
                    assert reply.balance == first
        assert len(plugin.calls) == 1
