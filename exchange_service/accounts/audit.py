"""The audit log of accounts: who has connected, checked or removed which, and how that ended. Never a value."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from exchange_service.errors import ServiceError
from exchange_service.identity import Caller, Kind

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class AuditLine:
    """What a line will say of the outcome: a word for a good one, else the error's reason."""

    outcome: str = ""


class AccountAudit:
    """Writes one line for each change, refused ones too. `hash_user` gives the keyed hash that stands for a user."""

    def __init__(self, hash_user: Callable[[str], str]) -> None:
        self._hash_user = hash_user

    @contextmanager
    def recording(
        self, change: str, caller: Caller, user_id: str, exchange_id: str, environment: str
    ) -> Iterator[AuditLine]:
        """Write the line at the end of the block, with the outcome that the block has set, or its error."""
        line = AuditLine()
        try:
            yield line
        except ServiceError as error:
            line.outcome = error.reason
            raise
        except asyncio.CancelledError:
            line.outcome = "CANCELLED"
            raise
        except Exception:
            line.outcome = "SERVICE_FAILED"
            raise
        finally:
            log.info(
                "account.managed",
                change=change,
                caller=self._name(caller),
                user=self._hash_user(user_id),
                exchange=exchange_id,
                environment=environment,
                outcome=line.outcome,
            )

    def _name(self, caller: Caller) -> str:
        """The caller's name; of a user, whose name is an id, the hash."""
        identity = caller.identity
        if identity.kind is not Kind.USER:
            return identity.name
        return f"user {self._hash_user(identity.scope.only_user() or identity.name)}"
