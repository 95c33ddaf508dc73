"""The health check of one process: whether it answers, and whether it uses more than it may."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exchange_service.plugin_host.connection import CallFailed
from exchange_service.plugin_host.process import PluginProcess
from exchange_service.plugin_host.restart_policy import HEALTH_CHECK_INTERVAL, HealthReport, RestartPolicy


@dataclass(frozen=True, slots=True)
class HealthFault:
    """Why a process is not to be kept, a sentence. `answers`: it still does, so another process can take over first."""

    reason: str
    answers: bool


async def check_health(process: PluginProcess, restarts: RestartPolicy) -> HealthFault | None:
    """What is wrong with the process; None if nothing is. Waits as long as `restarts` lets the process take."""
    try:
        stuck_calls = await _count_stuck_calls(process, restarts)
    except CallFailed as failure:
        reason = await process.failure_reason(failure, f"It does not answer ({failure.name}).")
        return HealthFault(reason, answers=False)
    if stuck_calls is None:
        return HealthFault("It did not answer any more: the plugin blocked its event loop.", answers=False)
    await process.measure_memory()
    reason = restarts.fault(HealthReport(process.memory, stuck_calls, process.processor_seconds()))
    reason = reason or process.outgrown()
    return HealthFault(reason, answers=True) if reason else None


async def _count_stuck_calls(process: PluginProcess, restarts: RestartPolicy) -> int | None:
    """How many of its calls are stuck; None if the process is itself."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    check = asyncio.create_task(process.health_check(), name=f"health check of {process.policy.name}")
    try:
        while not check.done():
            await asyncio.wait({check}, timeout=HEALTH_CHECK_INTERVAL)
            if not check.done() and restarts.is_stuck(loop.time() - began):
                return None
        return check.result()
    finally:
        check.cancel()
