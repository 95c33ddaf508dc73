"""Whether an answer is about the account that was asked for, by the names that venues give accounts there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from exchange_service.errors import VenueMalformed
from exchange_service.plugin_kit.several_accounts import check_number
from exchange_service.plugin_kit.state import State

# Seconds after which names that no answer has confirmed are forgotten. Otherwise a user whose first answer was about
# another account would be refused the true ones for as long as the account is in use.
_NAMES_AGE = 3600.0
# Characters of a name that are compared. No venue's names are longer.
_LONGEST_NAME = 100


@dataclass(slots=True)
class _Names:
    """The names in the last answer that was accepted, and when that was, in the event loop's seconds."""

    known: frozenset[str] = frozenset()
    confirmed: float = 0.0


def require_account(expected: object, found: object, venue: str) -> None:
    """Raise VenueMalformed if `found`, the account's name in an answer of `venue`, is not the `expected` one.

    A number and its text are the same name. An answer without a name, None or an empty text, is not refused. Letters
    count in their case, so write addresses in one case before.
    """
    name = _text(found)
    if name and name != _text(expected):
        raise VenueMalformed(f"{venue} answered for another account than the requested one.")


async def require_same_accounts(state: State, found: Iterable[object], venue: str, *, kind: str = "") -> None:
    """Raise VenueMalformed if an answer names none of the accounts that the answer before has named.

    `state` is `call.account_state`, which lives while the account is in use; `found` are the names in one answer.
    Use it where the name is not known before the first answer. Accounts may be added, go away and change their order;
    an answer without names is not refused. `kind` keeps names apart that are not comparable, such as those of users
    and those of accounts. Names that no answer confirms for an hour are forgotten, because the first answer may
    have been the wrong one. Raises VenueMalformed for more than 200 names too.
    """
    names = frozenset(filter(None, map(_text, found)))
    check_number(len(names))
    if not names:
        return
    last = await state.get(f"accounts named {kind}", _no_names)
    now = asyncio.get_running_loop().time()
    if last.known.isdisjoint(names) and last.known and now - last.confirmed < _NAMES_AGE:
        raise VenueMalformed(f"{venue} answered for another account than before.")
    last.known, last.confirmed = names, now


async def _no_names() -> _Names:
    return _Names()


def _text(name: object) -> str:
    return "" if name is None else str(name).strip()[:_LONGEST_NAME]
