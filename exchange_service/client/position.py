"""What a stream has shown of its accounts: enough to open it again without a version going back or a change lost."""

from __future__ import annotations

from collections.abc import Sequence

from exchange_service.client.requests import duration
from exchange_service.v1.balance_pb2 import Balance
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    AccountSelector,
    AccountState,
    StreamBalancesRequest,
    StreamBalancesResponse,
)

# The most that a request takes.
_MOST_ACCOUNTS = 200


class StreamPosition:
    """What a stream follows, as the caller spelled it, and what was seen of each account, as the events name it: its
    newest version, and whether that is confirmed. Enough to open the stream again."""

    def __init__(
        self,
        user_id: str,
        accounts: Sequence[AccountSelector],
        min_interval: float,
        known: Sequence[AccountSelector] = (),
    ) -> None:
        if len(known) > _MOST_ACCOUNTS:
            raise ValueError(f"`known` may name {_MOST_ACCOUNTS} accounts, and names {len(known)}.")
        # Whether any event has come.
        self.began = False
        self._user_id = user_id
        self._min_interval = min_interval
        self._accounts = list(accounts)
        # The newest version of each account, 0 for one of which only errors were seen.
        self._versions: dict[tuple[str, str, str], int] = {}
        # The accounts whose last event was an error, or a balance that was marked.
        self._unconfirmed: set[tuple[str, str, str]] = set()
        for selector in known:
            self._note(account_key(selector), selector.known_version, confirmed=not selector.unconfirmed)
        self._unconfirmed.update(account_key(selector) for selector in accounts if selector.unconfirmed)

    def request(self) -> StreamBalancesRequest:
        """The request that goes on from here."""
        known = [
            AccountSelector(
                exchange_id=key[0],
                environment=key[1],
                account_type=key[2],
                known_version=version,
                unconfirmed=key in self._unconfirmed,
            )
            for key, version in self._versions.items()
        ]
        accounts = [self._with_version(selector) for selector in self._accounts]
        request = StreamBalancesRequest(user_id=self._user_id, accounts=accounts, known=known[-_MOST_ACCOUNTS:])
        if self._min_interval:
            request.min_interval.CopyFrom(duration(self._min_interval))
        return request

    def _with_version(self, selector: AccountSelector) -> AccountSelector:
        """The selector with its newest version, for services that do not read `known` yet."""
        key = account_key(selector)
        made = AccountSelector()
        made.CopyFrom(selector)
        if key in self._versions:
            made.known_version = max(self._versions[key], selector.known_version)
            made.unconfirmed = key in self._unconfirmed
        return made

    def advance(self, event: StreamBalancesResponse) -> None:
        """Take over the version of a balance, and that an error came after it."""
        self.began = True
        if event.HasField("balance"):
            balance = event.balance.balance
            self._note(account_key(balance), balance.version, confirmed=not event.balance.freshness.HasField("stale"))
        elif event.HasField("account_error"):
            self._note(account_key(event.account_error), 0, confirmed=False)

    def _note(self, key: tuple[str, str, str], version: int, *, confirmed: bool) -> None:
        # The newest last: a stream of all accounts may have followed some that are gone.
        self._versions[key] = max(self._versions.pop(key, 0), version)
        if confirmed:
            self._unconfirmed.discard(key)
        else:
            self._unconfirmed.add(key)


def account_key(account: AccountSelector | AccountState | Balance | AccountErrorEvent) -> tuple[str, str, str]:
    """What names an account within its user: exchange, environment and kinds of account."""
    return account.exchange_id, account.environment or "production", account.account_type
