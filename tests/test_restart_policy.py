"""When a plugin's process is started again or replaced, by a clock that the test moves."""

from __future__ import annotations

import pytest

from exchange_service.plugin_host.launch import MEBIBYTE, ProcessPolicy
from exchange_service.plugin_host.restart_policy import (
    ANSWER_LIMIT,
    OVERDUE_ANSWER_LIMIT,
    PROCESSOR_SAMPLES,
    HealthReport,
    RestartPolicy,
)
from tests.harness import Clock

MEMORY = 100 * MEBIBYTE
MINUTE, HOUR = 60.0, 3600.0


def policy_for(*, third_party: bool = True, clock: Clock | None = None) -> RestartPolicy:
    return RestartPolicy(ProcessPolicy("guest", "acme-guest", MEMORY, third_party), clock or Clock())


def report(*, memory: int = 1, stuck_calls: int = 0, processor_seconds: float = 0.0) -> HealthReport:
    return HealthReport(memory, stuck_calls, processor_seconds)


class TestDelays:
    def test_the_first_restart_is_immediate_and_each_further_delay_is_twice_as_long(self) -> None:
        policy = policy_for()
        pauses = [policy.process_ended(1.0) for _ in range(9)]
        assert pauses == [0.01, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]

    def test_a_process_that_did_not_start_counts_as_an_end(self) -> None:
        policy = policy_for()
        assert [policy.process_ended(0.0) for _ in range(3)] == [0.01, 0.5, 1.0]

    def test_one_that_lived_for_a_minute_is_started_at_once_again(self) -> None:
        policy = policy_for()
        for _ in range(5):
            policy.process_ended(1.0)
        assert policy.process_ended(MINUTE + 1) == 0.01
        assert policy.process_ended(1.0) == 0.5

    def test_the_delay_runs_down_with_the_clock(self) -> None:
        clock = Clock()
        policy = policy_for(clock=clock)
        assert policy.restart_delay() == 0
        policy.process_ended(1.0)
        policy.process_ended(1.0)
        assert policy.restart_delay() == pytest.approx(0.5)
        clock.now += 0.3
        assert policy.restart_delay() == pytest.approx(0.2)
        clock.now += 0.3
        assert policy.restart_delay() == 0


class TestReplacements:
    def test_each_waits_twice_as_long_as_the_one_before_up_to_ten_minutes(self) -> None:
        clock = Clock()
        policy = policy_for(clock=clock)
        assert policy.may_replace()
        for pause in (10, 20, 40, 80, 160, 320, 600, 600):
            policy.replacement_begun(MINUTE)
            clock.now += pause - 1
            assert not policy.may_replace()
            clock.now += 1
            assert policy.may_replace()

    def test_one_that_lived_for_an_hour_begins_with_the_first_delay_again(self) -> None:
        clock = Clock()
        policy = policy_for(clock=clock)
        for _ in range(4):
            policy.replacement_begun(MINUTE)
        policy.replacement_begun(HOUR + 1)
        clock.now += 10
        assert policy.may_replace()


class TestAnswers:
    def test_one_without_an_answer_is_stuck_after_fifteen_seconds(self) -> None:
        policy = policy_for()
        assert not policy.is_stuck(ANSWER_LIMIT)
        assert policy.is_stuck(ANSWER_LIMIT + 0.1)

    def test_a_third_party_one_is_stuck_sooner_once_a_call_timed_out(self) -> None:
        policy = policy_for()
        policy.report_timeout()
        assert policy.is_stuck(OVERDUE_ANSWER_LIMIT + 0.1)
        assert not policy.is_stuck(OVERDUE_ANSWER_LIMIT)

    def test_one_of_ours_is_not(self) -> None:
        policy = policy_for(third_party=False)
        policy.report_timeout()
        assert not policy.is_stuck(OVERDUE_ANSWER_LIMIT + 0.1)

    def test_an_answer_and_another_process_end_the_hurry(self) -> None:
        policy = policy_for()
        for end in (lambda: policy.fault(report()), policy.process_started):
            policy.report_timeout()
            end()
            assert not policy.is_stuck(OVERDUE_ANSWER_LIMIT + 0.1)


class TestFaults:
    def test_a_healthy_process_has_no_fault(self) -> None:
        assert policy_for().fault(report(memory=MEMORY)) == ""

    def test_more_memory_than_allowed_is_one(self) -> None:
        assert policy_for().fault(report(memory=MEMORY + MEBIBYTE)) == (
            "It used more memory than plugin_memory allows (101 MiB)."
        )

    def test_calls_that_do_not_end_are_one(self) -> None:
        assert policy_for().fault(report(stuck_calls=2)) == (
            "2 of its calls ran on after their deadline although they were cancelled."
        )

    def test_a_third_party_one_that_uses_the_processor_for_a_minute_has_one(self) -> None:
        policy = policy_for()
        faults = [policy.fault(report(processor_seconds=float(second))) for second in range(PROCESSOR_SAMPLES)]
        assert faults[:-1] == [""] * (PROCESSOR_SAMPLES - 1)
        assert faults[-1] == "It used the processor without a pause for a minute."

    def test_one_of_this_project_and_one_that_idles_at_times_have_no_fault(self) -> None:
        ours, pausing = policy_for(third_party=False), policy_for()
        for second in range(2 * PROCESSOR_SAMPLES):
            assert ours.fault(report(processor_seconds=float(second))) == ""
            assert pausing.fault(report(processor_seconds=second * 0.8)) == ""

    def test_the_processor_time_of_one_process_is_not_counted_for_the_next(self) -> None:
        policy = policy_for()
        for second in range(PROCESSOR_SAMPLES - 1):
            policy.fault(report(processor_seconds=float(second)))
        policy.process_started()
        assert policy.fault(report(processor_seconds=1000.0)) == ""
