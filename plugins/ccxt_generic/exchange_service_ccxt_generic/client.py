"""Reading one account through CCXT: CCXT's classes, the markets that accounts share, one instance for each account."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    SANDBOX,
    Balance,
    CredentialInvalid,
    CredentialRejected,
    FeatureNotEnabled,
    KeyRights,
    NotSupported,
    RequestRefused,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
)
from exchange_service_ccxt_generic import parse
from exchange_service_ccxt_generic.account_types import UNIFIED, true_type, wallets
from exchange_service_ccxt_generic.credentials import StoredCredential, Wish, read_credential
from exchange_service_ccxt_generic.describe import environment_urls, required_credentials
from exchange_service_ccxt_generic.empty import lost_row, proves_empty
from exchange_service_ccxt_generic.exact import RECORD, Exact, Guarded, Record, laid_over
from exchange_service_ccxt_generic.failures import translated
from exchange_service_ccxt_generic.kinds import KINDS, has_code
from exchange_service_ccxt_generic.refusals import SAFE_OPTIONS, unsupported_reason
from exchange_service_ccxt_generic.rights import QUESTIONS, Question, untold

T = TypeVar("T")

# Milliseconds for one request; the host ends the call at the caller's deadline, which may be earlier.
_ACCOUNT_TIMEOUT = 10_000
# Lists of markets are megabytes, and loading them goes on when the caller's deadline has passed.
_MARKETS_TIMEOUT = 30_000
_LOADS_AT_ONCE = 2
# Seconds. New assets keep their venue's code until the markets are loaded anew.
_MARKETS_AGE = 24 * 3600.0
# Seconds. A user may change the kind of his account, which is asked for when the instance is made.
_INSTANCE_AGE = 3600.0
# Seconds before the deadline at which a wallet beside others is given up, so that they are still told of.
_LAST_WORD = 0.5
_CCXT_LOGGER = "ccxt.base.exchange"

# What CCXT gives as the time of the balance is here the time when the account last changed, perhaps years ago.
_TIME_OF_LAST_CHANGE = frozenset(
    {
        "binance",
        "binancecoinm",
        "binanceus",
        "binanceusdm",
        "bitrue",
        "hollaex",
        "latoken",
        "pacifica",
        "phemex",
        "tokocrypto",
    }
)

# Here even the public lists are only given to a key, so each account loads its own.
_KEY_FOR_MARKETS = frozenset({"alpaca", "mudrex"})


@dataclass(frozen=True, slots=True)
class Untouched:
    """What an instance in the call's environment is like before any user's data has touched it."""

    # CCXT's names of the credentials that it needs.
    required: tuple[str, ...]
    urls: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Opened:
    """What an account's calls read with."""

    ccxt: Any
    stored: StoredCredential
    instance: Any


class CcxtClient:
    """One call for one account."""

    def __init__(self, call: VenueCall) -> None:
        reason = unsupported_reason(call.exchange.id)
        if reason:
            raise NotSupported(f"{call.exchange.name}: {reason}")
        self._call = call
        self._id = call.exchange.id
        self._venue = call.exchange.name

    async def balance(self) -> Balance:
        """The account's balance, or a VenueError; an answer that proves nothing is VenueMalformed, never zero."""
        return await self._in_time(self._call.deadline, self._balance())

    async def key_rights(self) -> KeyRights:
        """What the key may do besides reading, as far as the exchange tells, or a VenueError."""
        question = QUESTIONS.get(self._id)
        if question is None:
            return untold(self._venue)
        return await self._in_time(self._call.deadline, self._answered(question))

    async def _balance(self) -> Balance:
        opened = await self._opened()
        asked = self._call.account.account_type
        if asked == ALL_ACCOUNT_TYPES:
            return await self._every_wallet(opened)
        return await self._read(opened, opened.stored.wish_for(asked) if asked else opened.stored.wish)

    async def _answered(self, question: Question) -> KeyRights:
        opened = await self._opened()
        try:
            with self._recorded(opened.ccxt):
                return question.read(await getattr(opened.instance, question.method)())
        except NotSupported:
            # Test hosts serve less than the live ones.
            return untold(self._venue)

    async def _in_time(self, deadline: float, reading: Coroutine[Any, Any, T]) -> T:
        # CCXT has a time limit for each request, and a balance may take several.
        try:
            async with asyncio.timeout_at(deadline):
                return await reading
        except TimeoutError:
            raise VenueTimeout(f"{self._venue} did not answer in time.") from None

    async def _opened(self) -> Opened:
        """What the account is read with, and with the markets that all accounts share as they are now."""
        state = self._call.account_state
        opened = await state.get("opened", self._open, max_age=_INSTANCE_AGE)
        source = await self._markets()
        if source is not None and opened.instance.markets is not source.markets:
            opened.instance.set_markets_from_exchange(source)
        return opened

    async def _open(self) -> Opened:
        """The credential, read once, and the account's instance. The state goes when the credential changes."""
        call = self._call
        ccxt = await call.plugin_state.get("ccxt", _import_ccxt)
        untouched = await call.plugin_state.get(f"untouched {self._where()}", partial(self._untouched, ccxt))
        stored = read_credential(call.credential, self._id, untouched.required, call.exchange.account_types)
        make = partial(self._account_instance, ccxt, stored, untouched, await self._markets())
        return Opened(ccxt, stored, await call.account_state.get("instance", make, max_age=_INSTANCE_AGE))

    async def _markets(self) -> Any:
        """The instance with the markets that all accounts share; None where each account loads its own."""
        if self._id in _KEY_FOR_MARKETS:
            return None
        return await self._call.plugin_state.get(f"markets {self._where()}", self._loaded, max_age=_MARKETS_AGE)

    async def _loaded(self) -> Any:
        return await self._load_markets(await self._call.plugin_state.get("ccxt", _import_ccxt))

    def _where(self) -> str:
        return f"{self._id} {self._call.environment.name} {self._call.override}"

    async def _every_wallet(self, opened: Opened) -> Balance:
        """Each wallet as an account of its own, one that cannot be read with its error.

        The first is read alone: a key that is refused is not sent again.
        """
        types = wallets(self._id, self._call.exchange.account_types, opened.instance.options)
        wishes = [opened.stored.wish_beside_others(account_type) for account_type in types]
        first = await self._attempt(opened, wishes[0])
        if isinstance(first, (CredentialRejected, VenueRateLimited)):
            raise first
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self._attempt(opened, wish)) for wish in wishes[1:]]
        return parse.gathered(self._venue, dict(zip(types, (first, *(task.result() for task in others)), strict=True)))

    async def _attempt(self, opened: Opened, wish: Wish) -> Balance | VenueError:
        try:
            return await self._in_time(self._call.deadline - _LAST_WORD, self._read(opened, wish))
        except VenueError as error:
            return error

    async def _untouched(self, ccxt: Any) -> Untouched:
        instance = self._construct(ccxt, Guarded, self._call.public_http.client_session, _MARKETS_TIMEOUT)
        await instance.close()
        required = required_credentials(self._id, instance.requiredCredentials)
        return Untouched(required, environment_urls(instance.urls, instance.hostname))

    async def _load_markets(self, ccxt: Any) -> Any:
        """An instance without a key that has loaded the markets. It is made in a task of its own, for every caller that
        waits for it, whether or not the first one's deadline passes."""
        # Reading megabytes keeps the event loop busy, and with many at once for longer than it should be silent.
        at_once = await self._call.plugin_state.get("loading markets", _few_at_once)
        async with at_once:
            return await self._with_markets(ccxt)

    async def _with_markets(self, ccxt: Any) -> Any:
        instance = self._construct(ccxt, Guarded, self._call.public_http.client_session, _MARKETS_TIMEOUT)
        self._rebase(instance)
        with self._recorded(ccxt):
            await instance.load_markets()
        await instance.close()
        if not instance.markets:
            raise VenueMalformed(f"{self._venue} lists no markets, so nothing of its answer is believed.")
        return instance

    async def _account_instance(self, ccxt: Any, stored: StoredCredential, untouched: Untouched, source: Any) -> Any:
        """An instance for the account, which knows the kind of the account where CCXT tells kinds apart: no call ever
        reads with one that does not. `source` has the shared markets, if there are any."""
        session = self._call.http.client_session
        instance = self._construct(ccxt, Exact, session, _ACCOUNT_TIMEOUT, credentials=stored.constructor)
        if environment_urls(instance.urls, instance.hostname) != untouched.urls:
            raise RuntimeError("an instance's addresses differ from its exchange's")
        self._rebase(instance)
        if source is not None:
            instance.set_markets_from_exchange(source)
        kind = KINDS.get(self._id)
        if kind is not None:
            with self._recorded(ccxt) as record:
                await getattr(instance, kind.method)(*kind.arguments)
            self._raise_what_was_swallowed(ccxt, record, kind.plain)
            if not kind.is_told(record.answers):
                raise self._untold()
        return instance

    def _construct(
        self,
        ccxt: Any,
        layer: type[Guarded],
        session: Any,
        timeout: int,
        credentials: Mapping[str, str] | None = None,
    ) -> Any:
        """An instance in the call's environment. CCXT sets an attribute for every key that its constructor is given,
        so the keys are these and no others."""
        ccxt_class = getattr(ccxt, self._id, None) if self._id in ccxt.exchanges else None
        if ccxt_class is None:
            raise NotSupported(f"The installed CCXT has no exchange {self._id}.")
        instance = laid_over(layer, ccxt_class)(
            {
                **(credentials or {}),
                "session": session,
                "timeout": timeout,
                "enableRateLimit": True,
                "aiohttp_trust_env": False,
                "verbose": False,
                "enableLastHttpResponse": False,
                "enableLastResponseHeaders": False,
                # The test host for Binance's futures still answers, and CCXT refuses it unless told so.
                "options": {**SAFE_OPTIONS, "disableFuturesSandboxWarning": True},
            }
        )
        if self._call.environment.name == SANDBOX:
            # Elsewhere CCXT's own switch breaks half-way, with the live addresses in place.
            if not instance.urls.get("test"):
                raise NotSupported(f"{self._venue} has no test environment.")
            instance.set_sandbox_mode(True)
        return instance

    def _rebase(self, instance: Any) -> None:
        """Put the operator's address, if there is one, in the place of every address of the exchange."""
        if self._call.override:
            # Some classes look up the test hosts by themselves.
            for name in ("api", "test"):
                instance.urls[name] = self._rebased(instance.urls.get(name))

    def _rebased(self, urls: Any) -> Any:
        if isinstance(urls, Mapping):
            return {name: self._rebased(below) for name, below in urls.items()}
        return self._call.rebased(urls) if isinstance(urls, str) else urls

    async def _read(self, opened: Opened, wish: Wish) -> Balance:
        account_type = self._type_read(opened, wish)
        try:
            with self._recorded(opened.ccxt) as record:
                try:
                    result = await opened.instance.fetch_balance(dict(wish.parameters))
                except opened.ccxt.BaseError as error:
                    if record.arose_in_reading(error):
                        self._raise_what_was_swallowed(opened.ccxt, record)
                    raise
            self._raise_what_was_swallowed(opened.ccxt, record)
            answers = record.json_values()
            if not opened.instance.markets:
                raise VenueMalformed(f"{self._venue} lists no markets, so nothing of its answer is believed.")
            return self._believed(result, record, answers, account_type)
        except VenueError as error:
            if error.transient:
                # What a class found out about the account while the venue had trouble is not to be kept.
                for name in ("opened", "instance"):
                    self._call.account_state.forget(name)
            raise

    def _type_read(self, opened: Opened, wish: Wish) -> str:
        """The type of the account that the wish reads; FeatureNotEnabled for a unified one that the user has not."""
        if wish.named and wish.account_type != UNIFIED:
            return wish.account_type
        offered = self._call.exchange.account_types
        found = true_type(self._id, wish.account_type, opened.instance.options, offered)
        if wish.named and found != UNIFIED:
            raise FeatureNotEnabled(f"{self._venue} says that this account is no unified one.")
        return found

    def _raise_what_was_swallowed(self, ccxt: Any, record: Record, plain_code: str = "") -> None:
        """Raise the trouble that a class has taken for an answer, as some do for the plain kind of account: they would
        then read another wallet. The venue's `plain_code` is no trouble."""
        for answer in record.answers:
            if answer.error is None or has_code(answer.body, plain_code):
                continue
            failure = self._named(ccxt, answer.error, record)
            raise self._untold() if isinstance(failure, RequestRefused) else failure from None

    def _untold(self) -> VenueMalformed:
        return VenueMalformed(f"{self._venue} does not tell which kind of account it is.")

    def _believed(self, result: Any, record: Record, answers: list[Any], account_type: str) -> Balance:
        """The balance, if there are rows, or if the raw answer proves that there are none."""
        try:
            assets = parse.rows(result, record.venue_codes)
        except VenueMalformed as malformed:
            raise self._of_venue(malformed) from None
        lost = lost_row(self._id, account_type, answers, record.venue_codes, {row.asset for row in assets})
        if lost:
            raise VenueMalformed(f"{self._venue} answered with {lost}.")
        if not assets and not proves_empty(self._id, account_type, answers[-1]):
            raise VenueMalformed(
                f"{self._venue} answered without a balance, and not as it answers for an empty account."
            )
        notes = parse.collision_notes(assets, record.venue_codes)
        when = None if self._id in _TIME_OF_LAST_CHANGE else parse.venue_time(result)
        return parse.balance(assets, account_type, when, notes)

    @contextmanager
    def _recorded(self, ccxt: Any) -> Iterator[Record]:
        """Record the answers of what runs inside, and turn what CCXT raises there into our errors."""
        record = Record()
        token = RECORD.set(record)
        try:
            yield record
        except VenueMalformed as malformed:
            raise self._of_venue(malformed) from None
        except ccxt.BaseError as error:
            raise self._named(ccxt, error, record) from None
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            if not record.answers and isinstance(error, ValueError):
                # Before any request only what the user stored can have been read.
                raise CredentialInvalid(
                    f"What is stored for {self._venue} is no key that CCXT can use.",
                    advice="Check that it was copied whole.",
                ) from None
            if not record.answers:
                raise
            # CCXT's classes trip over an answer of another shape than theirs.
            raise VenueMalformed(f"{self._venue} answered in a shape that cannot be read.") from None
        finally:
            RECORD.reset(token)

    def _of_venue(self, malformed: VenueMalformed) -> VenueMalformed:
        """The same, saying whose answer it was."""
        if malformed.message.startswith(self._venue):
            return malformed
        return VenueMalformed(f"{self._venue}: {malformed.message}")

    def _named(self, ccxt: Any, error: Exception, record: Record) -> VenueError:
        if isinstance(error, VenueError):
            return error
        refused = isinstance(error, ccxt.ExchangeError) and not isinstance(
            error, (ccxt.AuthenticationError, ccxt.NotSupported)
        )
        if refused and record.arose_in_reading(error):
            return VenueMalformed(f"{self._venue} answered with something that is no balance.")
        if isinstance(error, ccxt.BaseError):
            return translated(error, record.of(error), self._id, self._venue)
        return VenueMalformed(f"{self._venue} answered in a shape that cannot be read.")


async def _few_at_once() -> asyncio.Semaphore:
    return asyncio.Semaphore(_LOADS_AT_ONCE)


async def _import_ccxt() -> Any:
    """CCXT's module. Importing takes seconds, so it happens in a thread."""
    module = await asyncio.to_thread(importlib.import_module, "ccxt.async_support")
    # At DEBUG CCXT logs keys, signed addresses and whole bodies; the filter holds whatever level is set later.
    logger = logging.getLogger(_CCXT_LOGGER)
    logger.addFilter(_no_debug)
    if logger.getEffectiveLevel() < logging.INFO:
        logger.setLevel(logging.INFO)
    return module


def _no_debug(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.INFO
