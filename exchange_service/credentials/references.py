"""The references of credentials, kept for a short time: what stands between each call and the database."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exchange_service.credentials import CredentialReference, CredentialStore
from exchange_service.errors import StoreUnavailable
from exchange_service.model import Account, Credential

# A change by another program is seen within this time.
TTL = 30.0
# After this share of it who asks gets what is known, while the store is asked beside the call.
_REFRESH_AFTER = 2 / 3
# A credential that was just added works after this time.
MISSING_TTL = 2.0
# While the database is down, what was known serves this long, and the database is tried this often.
GRACE = 300.0
RETRY_AFTER = 5.0
MAX_ACCOUNTS = 20_000


@dataclass(slots=True)
class _Known:
    reference: CredentialReference | None
    # When the store said so, when it is asked again beside the calls, and when they wait for that.
    confirmed: float
    refresh_after: float
    ask_after: float


class CachedReferences:
    """`find` from memory where the store was asked a short while ago. It holds references, never a secret.

    Callers who ask for the same account at the same time share one question.
    """

    def __init__(
        self,
        store: CredentialStore,
        ttl: float = TTL,
        *,
        max_accounts: int = MAX_ACCOUNTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ttl = ttl
        self._max_accounts = max_accounts
        self._clock = clock
        self._known: OrderedDict[Account, _Known] = OrderedDict()
        self._questions: dict[Account, asyncio.Task[CredentialReference | None]] = {}

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        """As the store's `find`. An exchange's `aliases` and `credential_of` are taken to be always the same."""
        known = self._known.get(account)
        now = self._clock()
        if known is not None and now < known.ask_after:
            self._known.move_to_end(account)
            if now >= known.refresh_after:
                self._question(account, aliases, credential_of)
            return known.reference
        # Shielded: a caller who gives up does not end the question for the others.
        return await asyncio.shield(self._question(account, aliases, credential_of))

    def get_local(self, account: Account) -> CredentialReference | None:
        """The reference, where the store was asked so lately that nobody needs to be asked."""
        known = self._known.get(account)
        return known.reference if known is not None and self._clock() < known.refresh_after else None

    def _question(
        self, account: Account, aliases: Sequence[str], credential_of: str
    ) -> asyncio.Task[CredentialReference | None]:
        """The question to the store that is under way, or a new one."""
        question = self._questions.get(account)
        if question is None:
            question = asyncio.create_task(self._ask(account, aliases, credential_of), name="credential reference")
            self._questions[account] = question
            question.add_done_callback(lambda done: self._answered(account, done))
        return question

    async def open(self, reference: CredentialReference) -> Credential:
        """What the row holds, from the store each time."""
        return await self._store.open(reference)

    def forget(self, account: Account) -> None:
        """Ask the store at the next call: the credential was changed or refused."""
        self._known.pop(account, None)
        # A question that is under way may have been answered before the change.
        self._questions.pop(account, None)

    async def _ask(self, account: Account, aliases: Sequence[str], credential_of: str) -> CredentialReference | None:
        question = asyncio.current_task()
        try:
            reference = await self._store.find(account, aliases=aliases, credential_of=credential_of)
        except StoreUnavailable:
            known = self._known.get(account)
            now = self._clock()
            if known is None or known.reference is None or now - known.confirmed > GRACE:
                raise
            known.refresh_after = known.ask_after = min(now + RETRY_AFTER, known.confirmed + GRACE)
            return known.reference
        except Exception:
            self._known.pop(account, None)
            raise
        if self._questions.get(account) is question:
            self._keep(account, reference)
        return reference

    def _keep(self, account: Account, reference: CredentialReference | None) -> None:
        now = self._clock()
        ttl = min(self._ttl, MISSING_TTL) if reference is None else self._ttl
        self._known[account] = _Known(reference, now, now + ttl * _REFRESH_AFTER, now + ttl)
        self._known.move_to_end(account)
        while len(self._known) > self._max_accounts:
            self._known.popitem(last=False)

    def _answered(self, account: Account, question: asyncio.Task[Any]) -> None:
        if self._questions.get(account) is question:
            del self._questions[account]
        if not question.cancelled():
            # Taken here too: perhaps nobody waits any more, and asyncio would log it.
            question.exception()
