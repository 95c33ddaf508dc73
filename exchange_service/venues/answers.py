"""A plugin's answer: checked for its shape, cut to what was requested, and turned into bytes; its errors as ours."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import datetime

from exchange_service.errors import CredentialInvalid, FeatureNotEnabled, PluginFailed, ServiceError, VenueError, leaves
from exchange_service.model import (
    ALL_ACCOUNT_TYPES,
    AssetBalance,
    Balance,
    ExchangeMetadata,
    KeyRights,
    Summary,
    VenueAccount,
)
from exchange_service.plugin_api import VenueCall
from exchange_service.plugin_kit.several_accounts import combined_summary, deficit_notes
from exchange_service.tasks import beside_the_loop
from exchange_service.venues.registry import Listing
from exchange_service.wire.balances import FetchedBalance, fetched_balance

# More rows, or accounts, than any user has: the longest lists of assets have 1,500. A plugin that answers more is
# broken. So many are turned into a reply, or compared with the last ones, in a fraction of 50 ms.
MAX_ROWS = 5000
# A balance of more rows and accounts is made into bytes in a thread. So many take three milliseconds.
_LARGE = 400
# Characters of an account's or an asset's name. Each row repeats its account's.
_LONGEST_NAME = 300
# Collected before any plugin is imported, so that these are ours alone.
_VENUE_LEAVES = frozenset(leaves(VenueError))


async def read_balance(answer: object, listing: Listing, call: VenueCall) -> FetchedBalance:
    """The answer of a plugin's `fetch_balance` as bytes. If it is large, a thread makes them.

    Raises PluginFailed if it is not a balance or cannot be serialized, FeatureNotEnabled if it has no account of the
    requested type, and the accounts' own error if not one of them could be read.
    """
    if _is_large(answer):
        return await beside_the_loop(_read_balance, answer, listing, call)
    return _read_balance(answer, listing, call)


def _is_large(answer: object) -> bool:
    if not isinstance(answer, Balance):
        return False
    try:
        return len(answer.venue_accounts) + sum(len(account.assets) for account in answer.venue_accounts) > _LARGE
    except (TypeError, AttributeError):
        # It is refused for its shape.
        return False


def _read_balance(answer: object, listing: Listing, call: VenueCall) -> FetchedBalance:
    balance = _require_readable(_select_requested(_validate(answer, listing), call))
    if deficits := deficit_notes(balance.venue_accounts, balance.summary):
        balance = replace(balance, notes=(*balance.notes, *deficits))
    if call.environment.name != call.account.environment:
        note = f"Read from {call.exchange.name}'s {call.environment.name}, which the stored metadata choose."
        balance = replace(balance, notes=(*balance.notes, note))
    return _serialize(balance, listing)


def read_key_rights(answer: object, listing: Listing) -> KeyRights:
    """The answer of a plugin's `check_credential`; PluginFailed if it is anything else than KeyRights."""
    if not isinstance(answer, KeyRights):
        name = listing.plugin.info.name
        told = f"The plugin {name} answered with {type(answer).__name__} in place of KeyRights."
        raise with_problem(PluginFailed(told), _other_answer(answer, "KeyRights", "KeyRights(...)"))
    return answer


def _other_answer(answer: object, right: str, form: str) -> str:
    """What is wrong with an answer of another type than the right one, and what to write."""
    kind = type(answer).__name__[:64]
    if answer is None:
        return f"it answered with None in place of {right}: end each way through the hook with `return {form}`"
    if inspect.isawaitable(answer):
        return f"it answered with a {kind} in place of {right}: write `return await` in place of `return`"
    if isinstance(answer, BaseException):
        return f"it returned the exception {kind}: write `raise` in place of `return`"
    if isinstance(answer, type):
        return f"it answered with the class {answer.__name__[:64]} itself in place of {right}: write `return {form}`"
    if isinstance(answer, VenueAccount):
        return f"it answered with {kind} in place of {right}: write `return Balance(venue_accounts=(account,))`"
    return f"it answered with {kind} in place of {right}: write `return {form}`"


def undeclared_field(error: VenueError, metadata: ExchangeMetadata) -> str:
    """What is wrong with a listing that does not ask for the field which its plugin has missed; empty if it does."""
    return unlisted_field(error.missing_field if isinstance(error, CredentialInvalid) else "", metadata)


def unlisted_field(field: str, metadata: ExchangeMetadata) -> str:
    """What is wrong with a listing that does not ask for a field that its plugin reads; empty if it does."""
    # A listing that borrows a credential leaves it to the other to ask for its fields.
    if not field or metadata.credential_of or any(known.name == field for known in metadata.credential_fields):
        return ""
    return (
        f"it reads {field} of the credential, which credential_fields of {metadata.id} does not list: write "
        f'CredentialField("{field}", "...") there'
    )


def translate_error(error: VenueError, plugin: str) -> ServiceError:
    """A plugin's error as the status table has it: a plugin may derive classes of its own, and give any delay."""
    leaf = next((kind for kind in type(error).__mro__ if kind in _VENUE_LEAVES), None)
    if leaf is None:
        return PluginFailed(f"The plugin {plugin} failed with {type(error).__name__}, which says nothing.")
    try:
        delay = error.given_delay if error.retry_after == leaf.default_retry_after else error.retry_after
        ours = leaf(error.message, retry_after=delay, advice=error.advice)
        ours.venue_was_asked = bool(error.venue_was_asked)
    except (AttributeError, TypeError):
        return PluginFailed(f"The plugin {plugin} failed with {type(error).__name__}, which holds no text.")
    # One that was changed after it was made may hold what cannot be sent.
    same = type(error) is leaf and _content(error) == _content(ours)
    return error if same else ours


def _content(error: ServiceError) -> tuple[str, str | None, float | None]:
    return error.message, error.advice, error.retry_after


def _validate(answer: object, listing: Listing) -> Balance:
    """The answer if it has the promised shape; the amounts validated themselves when they were made."""
    plugin = listing.plugin.info.name
    problem = answer_fault(answer, listing.metadata)
    if not problem:
        assert isinstance(answer, Balance)
        return answer
    if not isinstance(answer, Balance):
        told = PluginFailed(f"The plugin {plugin} answered with {type(answer).__name__} in place of a Balance.")
    else:
        told = PluginFailed(f"The plugin {plugin} answered with a wrong balance: {problem.partition(': ')[0]}.")
    raise with_problem(told, problem)


def with_problem(error: PluginFailed, problem: str) -> PluginFailed:
    """The error for the caller, with the problem for the service's log and the plugin's author."""
    error.problem = problem
    return error


def answer_fault(answer: object, metadata: ExchangeMetadata) -> str:
    """What is wrong with what `fetch_balance` returned, or `watch_balance` yielded, and what to write.

    Empty if nothing is. The contract suite fails with the same words.
    """
    if not isinstance(answer, Balance):
        return _other_answer(answer, "a Balance", "Balance(venue_accounts=(...,))")
    return _list_error(answer) or shape_error(answer, metadata) or _time_error(answer)


def _select_requested(balance: Balance, call: VenueCall) -> Balance:
    """The balance without accounts of other types than the requested one.

    An account without a type stays: it could not be read, so its type is not known.
    """
    requested = call.account.account_type
    if requested in ("", ALL_ACCOUNT_TYPES):
        return balance
    kept = tuple(account for account in balance.venue_accounts if account.type in ("", requested))
    if not kept:
        raise FeatureNotEnabled(
            f"{call.exchange.name} shows no account of the type {requested} behind this credential."
        )
    if len(kept) == len(balance.venue_accounts):
        return balance
    return replace(balance, venue_accounts=kept, summary=combined_summary(kept))


def _require_readable(balance: Balance) -> Balance:
    """The balance; raises its accounts' error if not one of them could be read, as for a single account."""
    errors = [account.error for account in balance.venue_accounts if account.error is not None]
    if errors and len(errors) == len(balance.venue_accounts):
        # A transient one goes first: it says nothing lasting about the key.
        raise next((error for error in errors if error.transient), errors[0])
    return balance


def _serialize(balance: Balance, listing: Listing) -> FetchedBalance:
    """The balance as bytes; PluginFailed for a label that is not a text, half of a surrogate pair, a time without a
    zone, or more than can be sent."""
    try:
        return fetched_balance(balance)
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        name = listing.plugin.info.name
        raise PluginFailed(f"The plugin {name} answered with a balance that cannot be serialized.") from None


def _has_known_type(account: VenueAccount, metadata: ExchangeMetadata) -> bool:
    """Whether the listing has the account's type. That of an account that could not be read may be unknown, and so may
    that of one with a name of its own as its sub-account; a listing without account types does not say which there
    are."""
    unknown = not account.type and (account.error is not None or bool(account.sub_account))
    return unknown or not metadata.account_types or account.type in metadata.account_types


def _list_error(balance: Balance) -> str:
    """Which list of a plugin's answer is something else, in words; empty if none is."""
    for name in ("venue_accounts", "notes"):
        if fault := _not_a_tuple(getattr(balance, name)):
            return f"its {name} are not a tuple{fault}"
    for account in balance.venue_accounts:
        if isinstance(account, VenueAccount) and (fault := _not_a_tuple(account.assets)):
            return f"the assets of an account are not a tuple{fault}"
    return ""


def _not_a_tuple(value: object) -> str:
    """What to write in place of something that is no tuple; empty if it is one."""
    if isinstance(value, tuple | list):
        return ""
    kind = type(value).__name__[:64]
    if isinstance(value, VenueAccount | AssetBalance | str):
        shown = '"..."' if isinstance(value, str) else f"{kind}(...)"
        return f", but of the type {kind}: a comma is missing, write ({shown},) with a comma before the bracket"
    if value is None:
        return ", but None: write () for an empty one"
    return f", but of the type {kind}: write tuple(...) around it"


def _time_error(balance: Balance) -> str:
    owners: tuple[Balance | VenueAccount, ...] = (balance, *balance.venue_accounts)
    for owner in owners:
        time: object = owner.venue_time
        if time is None:
            continue
        where = f"the venue_time of a {type(owner).__name__}"
        if not isinstance(time, datetime):
            return f"{where} is of the type {type(time).__name__[:64]}: read it by `milliseconds`, or write a datetime"
        if time.utcoffset() is None:
            return f"{where} has no time zone: read it by `milliseconds`, or write datetime(..., tzinfo=UTC)"
    return ""


def shape_error(balance: Balance, metadata: ExchangeMetadata) -> str:
    """What is wrong with the shape of a plugin's answer for this listing, in words; empty if nothing is."""
    identities = set()
    count = 0
    if len(balance.venue_accounts) > MAX_ROWS:
        return f"{len(balance.venue_accounts)} accounts are more than {MAX_ROWS}"
    for account in balance.venue_accounts:
        if not isinstance(account, VenueAccount) or not all(isinstance(part, str) for part in account.identity):
            return (
                f"an account is not a VenueAccount ({type(account).__name__[:64]}), or its name is not made of texts: "
                "write VenueAccount(id=..., type=..., assets=(...,))"
            )
        if any(len(part) > _LONGEST_NAME for part in account.identity):
            return f"an account has a name of over {_LONGEST_NAME} characters"
        if account.identity in identities:
            return "two accounts have the same id, type and sub-account: give each its own id"
        identities.add(account.identity)
        if not _has_known_type(account, metadata):
            return (
                f"an account is of the type {account.type[:40]!r}, which account_types of {metadata.id} does not list: "
                f"write one of {', '.join(metadata.account_types)[:200]}"
            )
        if not isinstance(account.summary, Summary | None) or not isinstance(account.error, ServiceError | None):
            return "an account's summary or error is of another type: write summary=Summary(...) or error=VenueError"
        assets = set()
        for row in account.assets:
            count += 1
            if count > MAX_ROWS:
                return f"it has more than {MAX_ROWS} rows"
            if not isinstance(row, AssetBalance):
                return (
                    f"a row is not an AssetBalance, but of the type {type(row).__name__[:64]}: write AssetBalance(...)"
                )
            if not isinstance(row.asset, str) or not row.asset:
                return 'a row has no asset: write AssetBalance("BTC", total=...), with the code as a text'
            if not isinstance(row.venue_asset, str):
                return 'a row\'s venue_asset is not a text: leave it out, or write venue_asset="XXBT"'
            if len(row.asset) > _LONGEST_NAME or len(row.venue_asset) > _LONGEST_NAME:
                return f"an asset has a name of over {_LONGEST_NAME} characters"
            assets.add(row.identity)
        if len(assets) != len(account.assets):
            return (
                "an account has two rows for one asset and kind: write one, or name the venue's own codes as "
                "venue_asset, or their kinds as kind"
            )
    if not isinstance(balance.summary, Summary | None):
        return 'its summary is of another type: write Summary("USD", total=...) or None'
    return ""
