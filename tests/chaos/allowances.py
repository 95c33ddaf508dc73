"""What a busy machine may cost that is no fault of the service.

The clients and the rig write how late their own loops are (`history.Lag`), and the checker adds that to each limit in
seconds. It does not see how late the other processes are: the replicas, the venue and the servers. For these there is a
tolerance that always holds, and more once the clients were so late that the others must have been late as well.
"""

from __future__ import annotations

import os

import psutil

from tests.chaos.history import History, Reply

# Seconds by which an age may differ from the truth, and by which a call may end after its deadline.
AGE_TOLERANCE = 0.5
END_TOLERANCE = 0.25
# Seconds of lag at which the venue's process may be late as well.
_OVERLOADED = 0.3
# Processes that wait for a core, by the load, from which on the machine is busy with others.
_BUSY = 2.5


def machine_was_late(history: History, reply: Reply) -> bool:
    """Whether a call's time may have passed because the machine was busy with others."""
    timed_out = reply.reason in ("VENUE_TIMEOUT", "DEADLINE_PASSED") or (
        reply.code == "DEADLINE_EXCEEDED" and not reply.reason
    )
    return timed_out and history.lag(reply.begin, reply.end) > _OVERLOADED


def asks_allowed(asks: float, history: History, warm: float) -> float:
    """How often the venue may be asked: twice as often on a busy machine, because a replica that is too slow for its
    Redis keeps for itself. `warm` is when the watching began."""
    return asks * (2 if history.lag(warm, history.at("over") or warm) > _OVERLOADED else 1)


def lag_of_load() -> float:
    """Seconds by which a process may be late that this one does not see: a tenth for each that waits for a core."""
    waiting = psutil.getloadavg()[0] / (os.cpu_count() or 1)
    return min(1.0, waiting / 10) if waiting > _BUSY else 0.0
