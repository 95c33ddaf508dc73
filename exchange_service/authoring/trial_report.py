"""A trial as plain data that is fit to be shown: for a terminal and for programs alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from exchange_service.authoring.masking import Masker, secrets_given
from exchange_service.authoring.trying import LoadedProject, Trial
from exchange_service.authoring.watch_loop import BLOCKED
from exchange_service.errors import PluginFailed, ServiceError
from exchange_service.grpc_server.status import TABLE
from exchange_service.model import ExchangeMetadata, KeyRights
from exchange_service.venues.printing import PRINTS
from exchange_service.venues.tap import SeenRequest

# What every request has, and says nothing about the plugin.
_USUAL_HEADERS = frozenset(
    {"host", "accept", "accept-encoding", "user-agent", "content-length", "connection", "date", "server"}
    | {"upgrade", "sec-websocket-version", "sec-websocket-key", "sec-websocket-accept", "transfer-encoding"}
)
# Lines of a print and of a push that are shown.
_MOST_PRINTED, _MOST_MESSAGES = 5, 20


def describe_trial(loaded: LoadedProject, trial: Trial, *, lines: int) -> dict[str, Any]:
    """The trial as JSON values, without its balances. `lines` of each body are shown; 0: all."""
    masker, info = trial.masker, loaded.project.info
    return {
        "plugin": {
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "module": loaded.project.point.value,
            "folder": str(loaded.project.folder or ""),
        },
        "exchange": _listing(trial.listing.metadata, trial),
        "tried": trial.where,
        "requests": [_request(seen, masker, trial.began, lines) for seen in trial.requests],
        "seconds": round(trial.seconds, 4),
        "plugin_seconds": round(trial.busy, 4),
        "budget": _budget(trial),
        "error": describe_error(trial.error, masker),
        "traceback": masker.text(trial.trace).split("\n") if trial.trace else [],
        "rights": _rights(trial.rights, masker),
        "rights_error": describe_error(trial.rights_error, masker),
        "push_error": describe_error(trial.push_error, masker),
        "notices": list(notices(loaded, trial)),
    }


def _listing(metadata: ExchangeMetadata, trial: Trial) -> dict[str, Any]:
    return {
        "id": metadata.id,
        "name": metadata.name,
        "environment": trial.environment,
        "account_type": trial.account.account_type,
        "account_types": list(metadata.account_types),
        "urls": dict(next(item.urls for item in metadata.environments if item.name == trial.environment)),
        "credential_fields": [item.name + ("" if item.required else "?") for item in metadata.credential_fields],
    }


def _request(seen: SeenRequest, masker: Masker, began: float, lines: int) -> dict[str, Any]:
    headers = [pair for pair in seen.headers if pair[0].lower() not in _USUAL_HEADERS]
    answer_headers = [pair for pair in seen.answer_headers.items() if pair[0].lower() not in _USUAL_HEADERS]
    return {
        "method": seen.method,
        "url": masker.url(seen.url),
        "headers": dict(masker.headers(headers)),
        "body": masker.request_body(seen.body) if seen.body else "",
        "began": round(seen.began - began, 4),
        "seconds": None if seen.seconds is None else round(seen.seconds, 4),
        "status": seen.status,
        "failure": seen.failure,
        "answer_headers": dict(masker.headers(answer_headers)),
        "bytes": len(seen.answer),
        "answer": list(masker.answer(bytes(seen.answer), lines)) if seen.answer else [],
        "messages": [
            {
                "sent": message.sent,
                "seconds": round(message.at - seen.began, 4),
                "text": masker.message(message.text),
            }
            for message in seen.messages[:_MOST_MESSAGES]
        ],
        "more_messages": max(0, len(seen.messages) - _MOST_MESSAGES),
    }


def _budget(trial: Trial) -> dict[str, Any]:
    metadata, reports = trial.listing.metadata, trial.reports
    return {
        "requests": len(trial.requests),
        "limits": [
            {
                "scope": limit.scope,
                "count": limit.count,
                "seconds": limit.seconds,
                "cost": limit.cost_of(trial.account.account_type),
            }
            for limit in metadata.limits
        ],
        "reported_usage": [
            {"window_seconds": window, "used": used, "resets_after": delay}
            for window, (used, delay) in sorted(reports.usage.items())
        ],
        "reported_cooldown": reports.cooldown,
        "reported_costs": [
            {"window_seconds": window or None, "units": units} for window, units in sorted(reports.costs.items())
        ],
    }


def describe_error(error: ServiceError | None, masker: Masker) -> dict[str, Any] | None:
    """An error as callers see it, with the next step that they are given; None for None."""
    if error is None:
        return None
    advice = TABLE[type(error)].next_step if error.advice is None else error.advice
    return {
        "reason": error.reason,
        "message": masker.text(error.message),
        "advice": masker.text(advice),
        "retry_after": error.retry_after,
        # What the service's log says to the plugin's author.
        "problem": masker.text(error.problem) if isinstance(error, PluginFailed) else "",
    }


def _rights(rights: KeyRights | None, masker: Masker) -> dict[str, Any] | None:
    if rights is None:
        return None
    return {
        "may_trade": rights.trade,
        "may_withdraw": rights.withdraw,
        "expires": rights.expires.isoformat() if rights.expires else None,
        "notes": [masker.text(note) for note in rights.notes],
    }


def notices(loaded: LoadedProject, trial: Trial) -> Iterator[str]:
    """What the author should know beside the result, a sentence each."""
    if trial.replaced:
        yield (
            f"The venue has replaced {', '.join(trial.replaced)}, and the old value is spent. Nothing is stored here: "
            "for the next trial with a real credential get a new one."
        )
    for blocking in sorted(trial.blockings, key=lambda item: item.seconds, reverse=True)[:3]:
        at = f" at {blocking.place}: `{trial.masker.text(blocking.code)}`" if blocking.place else ""
        yield (
            f"It blocked the event loop for {blocking.seconds * 1000:.0f} ms{at}. More than {BLOCKED * 1000:.0f} ms is "
            "too long, because all other accounts wait: await it, or call it with `await asyncio.to_thread(...)`; for "
            "what reads an answer there is `await call.compute(...)`."
        )
    for when, text in (("at import", loaded.printed), ("in the call", trial.printed)):
        if text.strip():
            shown = " / ".join(trial.masker.lines(text, _MOST_PRINTED))
            name = trial.masker.secrets.found_in(text)
            secret = f" It holds the secret {name}: print no secret." if name else ""
            yield f"It printed {when}, which becomes log lines in the service: {shown}{secret}"
            yield f"{PRINTS[0].upper()}{PRINTS[1:]}."
    for name in trial.left_tasks:
        yield (
            f"It left the task {trial.masker.text(name)!r} running after the account was closed: await or cancel each "
            "task, or keep it in call.account_state, which closes it."
        )
    for text in trial.left_open:
        yield f"It left something open: {trial.masker.text(text)}"
    yield from _budget_notices(trial)
    for where, error in (("The error", trial.error), ("The error of the push", trial.push_error)):
        if error is not None and (name := trial.masker.secrets.found_in(error.text)):
            yield f"{where} holds the secret {name}, and callers would see it: put no secret into a message."


def _gives_a_secret(seen: SeenRequest) -> bool:
    try:
        return any(True for _ in secrets_given(json.loads(seen.answer)))
    except (ValueError, RecursionError):
        return False


def _budget_notices(trial: Trial) -> Iterator[str]:
    # A token is asked for once, and kept.
    sent = sum(not seen.is_socket and not _gives_a_secret(seen) for seen in trial.requests)
    for limit in trial.listing.metadata.limits:
        cost = limit.cost_of(trial.account.account_type)
        told = {0, limit.seconds} & trial.reports.costs.keys()
        if not trial.pushes and sent > cost and trial.error is None and not told:
            yield (
                f"It sent {sent} requests, and its limit of {limit.count} in {limit.seconds} s counts {cost} for a "
                "balance: raise `cost`, if the venue counts requests."
            )
    windows: Mapping[int, Any] = {limit.seconds: limit for limit in trial.listing.metadata.limits}
    for window in trial.reports.usage:
        if window not in windows:
            yield f"It reported the usage of a window of {window} s, and no limit of the listing has that one."
