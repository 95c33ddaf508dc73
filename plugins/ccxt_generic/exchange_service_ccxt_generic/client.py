"""One call through CCXT for one account: its instance, the answer to `fetch_balance`, and the rights of its key."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from exchange_service.plugin_api import (
    FeatureNotEnabled,
    KeyRights,
    NotSupported,
    VenueCall,
    VenueMalformed,
    VenueTimeout,
)
from exchange_service_ccxt_generic.account_types import (
    UNIFIED,
    is_unified,
    true_type,
    without_plain,
)
from exchange_service_ccxt_generic.answers import in_turn
from exchange_service_ccxt_generic.aside import by_steps
from exchange_service_ccxt_generic.credentials import Wish
from exchange_service_ccxt_generic.instances import Instances, Opened
from exchange_service_ccxt_generic.recording import Recorder
from exchange_service_ccxt_generic.refusals import unsupported_reason
from exchange_service_ccxt_generic.rights import Question, unknown_rights

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fetched:
    """CCXT's balance of one account, the raw answers behind it, the venue's codes by CCXT's, and CCXT's instance."""

    account_type: str
    result: Any = field(repr=False)
    answers: list[Any] = field(repr=False)
    venue_codes: Mapping[str, list[str]] = field(repr=False)
    instance: Any = field(repr=False)
    # The size of the answers.
    size: int = 0


class CcxtClient:
    """The reads of one call. Raises NotSupported for an exchange that this plugin never reads."""

    def __init__(self, call: VenueCall) -> None:
        reason = unsupported_reason(call.exchange.id)
        if reason:
            raise NotSupported(f"{call.exchange.name}: {reason}")
        self._call = call
        self._id = call.exchange.id
        self._venue = call.exchange.name
        self.recorder = Recorder(self._id, self._venue)
        self.instances = Instances(call, self.recorder)

    async def by_deadline(self, deadline: float, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Raises VenueTimeout at `deadline`, in the event loop's time."""
        # CCXT's own time limit is for one request, and a balance may take several.
        try:
            async with asyncio.timeout_at(deadline):
                return await work
        except TimeoutError:
            raise VenueTimeout(f"{self._venue} did not answer in time.") from None

    async def fetch(self, opened: Opened, wish: Wish) -> Fetched:
        """What CCXT makes of the account that `wish` names. Raises a VenueError, also for one that CCXT has caught."""
        account_type = self._type_read(opened, wish)
        parameters = dict(wish.parameters)
        if is_unified(self._id, opened.instance.options):
            parameters = without_plain(parameters)
        with self.recorder.record(opened.ccxt) as record:
            try:
                result = await by_steps(opened.instance.fetch_balance(parameters))
            except opened.ccxt.BaseError as error:
                if record.arose_in_reading(error):
                    self.recorder.raise_swallowed(opened.ccxt, record)
                raise
        self.recorder.raise_swallowed(opened.ccxt, record)
        answers = await in_turn(record.size, record.json_values)
        if not opened.instance.markets:
            raise VenueMalformed(f"{self._venue} lists no markets, so its answer cannot be checked.")
        return Fetched(account_type, result, answers, record.venue_codes, opened.instance, record.size)

    async def key_rights(self, opened: Opened, question: Question) -> KeyRights:
        """What the exchange says of the key. A test host may not serve the request: then the rights are unknown."""
        try:
            with self.recorder.record(opened.ccxt):
                return question.read(await getattr(opened.instance, question.method)())
        except NotSupported:
            return unknown_rights(self._venue)

    def _type_read(self, opened: Opened, wish: Wish) -> str:
        """The type of the account that `wish` reads. Raises FeatureNotEnabled for a unified one if it is not."""
        if wish.named and wish.account_type != UNIFIED:
            return wish.account_type
        offered = self._call.exchange.account_types
        account_type = true_type(self._id, wish.account_type, opened.instance.options, offered)
        if wish.named and account_type != UNIFIED:
            raise FeatureNotEnabled(f"{self._venue} says that this is not a unified account.")
        return account_type
