"""Lets a test move the wall clock of a process: CHAOS_CLOCK names a file whose eight bytes are the seconds to add.

It is on the path of a replica only while a fault of clocks lasts. What reads the clock in C, such as
`datetime.now`, is not moved. gRPC's core is such a reader, so the deadlines that it gives are compared with the clock
that it reads.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from types import SimpleNamespace


def _move(path: str) -> None:
    with open(path, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
    true_time, true_time_ns = time.time, time.time_ns
    from grpc._cython import cygrpc

    cygrpc.time = SimpleNamespace(time=true_time, time_ns=true_time_ns, sleep=time.sleep, monotonic=time.monotonic)

    def offset() -> float:
        return float(struct.unpack("d", shared)[0])

    time.time = lambda: true_time() + offset()
    time.time_ns = lambda: true_time_ns() + int(offset() * 1_000_000_000)


if "CHAOS_CLOCK" in os.environ:
    _move(os.environ["CHAOS_CLOCK"])
