"""The first round of a stream: each account of a user once, with its balance or its error."""

from __future__ import annotations

from collections.abc import Sequence

from exchange_service.client.position import account_key
from exchange_service.errors import DeadlinePassed
from exchange_service.v1 import error_reason_pb2
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    AccountSelector,
    AccountState,
    BalanceEvent,
    StreamBalancesRequest,
    StreamBalancesResponse,
)

# An account that nobody has, marked: a stream that resumes begins with a heartbeat, which lists the user's accounts.
_NOBODYS = AccountSelector(exchange_id="none", unconfirmed=True)


class FirstRound:
    """Collects the events of a stream until each of its accounts has one."""

    def __init__(self, user_id: str, accounts: Sequence[AccountSelector]) -> None:
        self._user_id = user_id
        self._accounts = accounts
        # Of the first heartbeat; None before it.
        self._states: dict[tuple[str, str, str], AccountState] | None = None
        self._answers: dict[tuple[str, str, str], BalanceEvent | AccountErrorEvent] = {}

    def request(self) -> StreamBalancesRequest:
        """The request of the stream."""
        return StreamBalancesRequest(user_id=self._user_id, accounts=self._accounts, known=[_NOBODYS])

    def advance(self, event: StreamBalancesResponse) -> bool:
        """Take over an event; return whether the round is complete."""
        if event.HasField("balance"):
            self._answers[account_key(event.balance.balance)] = event.balance
        elif event.HasField("account_error"):
            # An error does not hide the last good balance that came before it.
            self._answers.setdefault(account_key(event.account_error), event.account_error)
        elif event.HasField("heartbeat"):
            self._states = {account_key(state): state for state in event.heartbeat.accounts}
        return self._states is not None and all(
            key in self._answers or state.HasField("error") for key, state in self._states.items()
        )

    def result(self) -> list[BalanceEvent | AccountErrorEvent]:
        """Each account's balance or error, in the order of the accounts' names. One that has not answered in time has
        an error with the reason DEADLINE_PASSED. Raises DeadlinePassed if not even the accounts are known."""
        if self._states is None:
            raise DeadlinePassed("The service did not name the user's accounts in time.", advice="Give it more time.")
        keys = sorted(self._states.keys() | self._answers.keys())
        return [self._answers.get(key) or _unanswered(key, self._states[key]) for key in keys]


def _unanswered(key: tuple[str, str, str], state: AccountState) -> AccountErrorEvent:
    made = AccountErrorEvent(exchange_id=key[0], environment=key[1], account_type=key[2], last_version=state.version)
    if state.HasField("error"):
        made.error.CopyFrom(state.error)
    else:
        made.error.reason = error_reason_pb2.ERROR_REASON_DEADLINE_PASSED
        made.error.message = "The account did not answer in time. Give the call more time."
    return made
