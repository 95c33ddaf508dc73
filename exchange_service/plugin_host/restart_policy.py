"""When a plugin's process is started again, replaced or given up: times and limits, without any process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from exchange_service.plugin_host.launch import ProcessPolicy

# Seconds between two health checks of a process.
HEALTH_CHECK_INTERVAL = 1.0
# Seconds without an answer to a health check, after which a process is taken to be stuck. The shorter limit is for a
# third-party plugin of which a call has run past its deadline as well. Our own plugin reads many exchanges' markets at
# once, which may block its event loop past a deadline; to end it would only begin all that again.
OVERDUE_ANSWER_LIMIT = 3.0
ANSWER_LIMIT = 15.0
# Share of a core, over this many health checks, at which a third-party plugin's process is replaced.
_MOST_PROCESSOR = 0.9
PROCESSOR_SAMPLES = 60
# Seconds before a process that has ended twice is started again; doubled each time, until one has lived for a while.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_STABLE_AFTER = 60.0
LEAST_PAUSE = 0.01
# Seconds between two replacements of a process that answers; doubled each time, until one has lived for long.
_FIRST_REPLACEMENT_PAUSE = 10.0
_LONGEST_REPLACEMENT_PAUSE = 600.0
_REPLACEMENT_STABLE_AFTER = 3600.0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a process that answers was found to use: bytes of memory, calls past their deadline, processor seconds."""

    memory: int
    stuck_calls: int
    processor_seconds: float


class RestartPolicy:
    """Decides for the processes of one supervisor. `clock` gives the seconds of any steady clock."""

    def __init__(self, process: ProcessPolicy, clock: Callable[[], float]) -> None:
        self._process = process
        self._clock = clock
        self._restart_at = 0.0
        self._failures = 0
        self._replace_at = 0.0
        self._replacement_pause = _FIRST_REPLACEMENT_PAUSE
        self._overdue = False
        self._processor: deque[float] = deque(maxlen=PROCESSOR_SAMPLES)

    def process_started(self) -> None:
        """Another process serves: what the health checks saw of the last one does not count."""
        self._overdue = False
        self._processor.clear()

    def process_ended(self, lived: float) -> float:
        """Note the end of a process that lived so many seconds, 0 if it did not start; the pause before the next."""
        self._failures = 1 if lived > _STABLE_AFTER else self._failures + 1
        pause = LEAST_PAUSE
        if self._failures > 1:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._failures - 2))
        self._restart_at = self._clock() + pause
        return pause

    def restart_delay(self) -> float:
        """Seconds until a process may be started again; 0 if it may be now."""
        return max(0.0, self._restart_at - self._clock())

    def may_replace(self) -> bool:
        """Whether enough time has passed: a process that is replaced loses its sessions and markets."""
        return self._clock() >= self._replace_at

    def replacement_begun(self, lived: float) -> None:
        """Note that a process which has lived so many seconds is being replaced."""
        if lived > _REPLACEMENT_STABLE_AFTER:
            self._replacement_pause = _FIRST_REPLACEMENT_PAUSE
        self._replace_at = self._clock() + self._replacement_pause
        self._replacement_pause = min(self._replacement_pause * 2, _LONGEST_REPLACEMENT_PAUSE)

    def report_timeout(self) -> None:
        """A call had no answer, not even that it ran past its deadline."""
        self._overdue = True

    def is_stuck(self, unanswered: float) -> bool:
        """Whether a process is taken to be stuck that has not answered a health check for so many seconds."""
        hurry = self._overdue and self._process.third_party
        return unanswered > (OVERDUE_ANSWER_LIMIT if hurry else ANSWER_LIMIT)

    def fault(self, report: HealthReport) -> str:
        """Why a process that answers should be replaced, a sentence; empty if it should not."""
        self._overdue = False
        self._processor.append(report.processor_seconds)
        if report.memory > self._process.memory:
            return f"It used more memory than plugin_memory allows ({report.memory >> 20} MiB)."
        if report.stuck_calls:
            return f"{report.stuck_calls} of its calls ran on after their deadline although they were cancelled."
        most = _MOST_PROCESSOR * HEALTH_CHECK_INTERVAL * PROCESSOR_SAMPLES
        full = len(self._processor) == PROCESSOR_SAMPLES
        if self._process.third_party and full and self._processor[-1] - self._processor[0] > most:
            return "It used the processor without a pause for a minute."
        return ""
