"""CCXT's classes, the markets that accounts share, and one instance for each account."""

from __future__ import annotations

import asyncio
import copy
import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from exchange_service.plugin_api import SANDBOX, NotSupported, State, VenueCall, VenueMalformed
from exchange_service_ccxt_generic.allowance import Allowance
from exchange_service_ccxt_generic.aside import by_steps
from exchange_service_ccxt_generic.credentials import StoredCredential, read_credential
from exchange_service_ccxt_generic.describe import environment_urls, required_credentials
from exchange_service_ccxt_generic.exact import Exact, Guarded, bound_exponents, make_layered_class
from exchange_service_ccxt_generic.kinds import KINDS, Kind, kept, questions
from exchange_service_ccxt_generic.limits import has_known_window
from exchange_service_ccxt_generic.listening import Listening
from exchange_service_ccxt_generic.nonces import Nonces
from exchange_service_ccxt_generic.recording import Recorder
from exchange_service_ccxt_generic.refusals import SAFE_OPTIONS
from exchange_service_ccxt_generic.sockets import Signals

# Milliseconds for one request. The host ends the call at its deadline, which may be earlier.
_ACCOUNT_TIMEOUT = 10_000
# Milliseconds. Lists of markets are megabytes, and loading them goes on after the call's deadline.
_MARKETS_TIMEOUT = 30_000
_CONCURRENT_LOADS = 2
# Seconds. Until the markets are loaded again, new assets have their venue's code.
_MARKETS_AGE = 24 * 3600.0
# Seconds.
INSTANCE_AGE = 3600.0
# How many balances are read before the venue is asked again which kind of account it is. A user who changes the kind
# is read rightly in the second call after at the latest.
_BALANCES_OF_A_KIND = 2
_CCXT_LOGGER = "ccxt.base.exchange"

# These exchanges send even their public lists to a key alone, so each account loads its own.
_KEY_FOR_MARKETS = frozenset(
    {
        "alpaca",  # witness: CCXT: alpaca.fetch_markets
        "mudrex",  # witness: CCXT: mudrex.fetch_markets
    }
)


@dataclass(frozen=True, slots=True)
class Untouched:
    """An instance in the call's environment before it has any user's data: what it needs, and its addresses."""

    # CCXT's names of the credentials that it needs.
    required: tuple[str, ...]
    urls: Mapping[str, str]


@dataclass(slots=True)
class Belief:
    """How many balances were read since the venue has said which kind of account it is."""

    balances: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """What the calls of an account use: CCXT's module, the stored credential and the instance."""

    ccxt: Any
    stored: StoredCredential
    instance: Any
    belief: Belief = field(default_factory=Belief)


class Instances:
    """Makes the instances of one call. They are kept in the state of the plugin and of the account."""

    def __init__(self, call: VenueCall, recorder: Recorder) -> None:
        self._call = call
        self._recorder = recorder
        self._id = call.exchange.id
        self._venue = call.exchange.name
        # Whether the venue has told this call which kind of account it is.
        self._kind_is_new = False

    async def open(self) -> Opened:
        """What the account is read with, with the current markets that all accounts share."""
        opened = await self._open_kept()
        if opened.belief.balances >= _BALANCES_OF_A_KIND and await self.kind_has_changed(opened):
            opened = await self._open_kept()
        self._kind_is_new = self._kind_is_new or not opened.belief.balances
        opened.belief.balances += 1
        source = await self._markets()
        if source is not None and opened.instance.markets is not source.markets:
            opened.instance.set_markets_from_exchange(source)
        return opened

    async def _open_kept(self) -> Opened:
        return await self._call.account_state.get("opened", self._open, max_age=INSTANCE_AGE)

    async def kind_has_changed(self, opened: Opened) -> bool:
        """Ask the venue again which kind of account it is, unless it has told this call. If the kind has changed, the
        instance is dropped, and `open` makes another.
        """
        if self._kind_is_new or self._id not in KINDS:
            return False
        # Calls at the same time share the answer, which no later call gets.
        changed = await self._call.account_state.get("kind", partial(self._ask_again, opened), max_age=0.0)
        self._kind_is_new = True
        return changed

    async def _ask_again(self, opened: Opened) -> bool:
        asked = questions(self._id, opened.instance.options)
        before = kept(asked, opened.instance.options)
        # A copy, because other calls read with the instance meanwhile.
        other = copy.copy(opened.instance)
        other.options = {name: value for name, value in other.options.items() if name not in before}
        await self._ask(opened.ccxt, other, asked)
        opened.belief.balances = 0
        if kept(asked, other.options) == before:
            return False
        self.forget()
        return True

    async def _ask(self, ccxt: Any, instance: Any, asked: Sequence[Kind]) -> None:
        """Let CCXT ask the venue these questions. Raises VenueMalformed if an answer states no known kind."""
        for kind in asked:
            if kind.unless and instance.options.get(kind.unless) is True:
                continue
            with self._recorder.record(ccxt) as record:
                await by_steps(getattr(instance, kind.method)(*kind.arguments))
            self._recorder.raise_swallowed(ccxt, record, kind.plain)
            if not kind.is_told(record.answers):
                raise self._recorder.unknown_kind()

    async def _open(self) -> Opened:
        """The credential, read once, and the account's instance. The host drops the state if the credential changes."""
        ccxt, stored, untouched = await self._read_stored()
        make = partial(self._account_instance, ccxt, Exact, stored, untouched)
        return Opened(ccxt, stored, await self._call.account_state.get("instance", make, max_age=INSTANCE_AGE))

    async def open_listening(self, signals: Signals) -> Opened:
        """What one watch of the account listens with. Its instance belongs to the caller, who closes it."""
        _, stored, untouched = await self._read_stored()
        ccxt = await self._call.plugin_state.get("ccxt.pro", _import_sockets)
        instance = await self._account_instance(ccxt, Listening, stored, untouched)
        instance.listen(signals, self._call.rebased)
        return Opened(ccxt, stored, instance)

    async def _read_stored(self) -> tuple[Any, StoredCredential, Untouched]:
        call = self._call
        ccxt = await call.plugin_state.get("ccxt", import_ccxt)
        untouched = await call.plugin_state.get(f"untouched {self._where()}", partial(self._describe_untouched, ccxt))
        stored = read_credential(call.credential, self._id, untouched.required, call.exchange.account_types)
        return ccxt, stored, untouched

    async def _markets(self) -> Any:
        """The instance with the markets that all accounts share; None if each account loads its own."""
        if self._id in _KEY_FOR_MARKETS:
            return None
        return await self._call.plugin_state.get(f"markets {self._where()}", self._fetch_markets, max_age=_MARKETS_AGE)

    async def _fetch_markets(self) -> Any:
        return await self.load_markets(await self._call.plugin_state.get("ccxt", import_ccxt))

    def forget(self) -> None:
        """Drop the account's instance, and with it what CCXT has found out about the account."""
        for name in ("opened", "instance"):
            self._call.account_state.forget(name)

    async def _allowance(self, shared: State) -> Allowance | None:
        """What the venue's requests are counted by, by all instances with this state; None if CCXT's pauses count."""
        # CCXT may say of an exchange that it needs no pauses.
        if not has_known_window(self._id) or not self._call.exchange.limits:
            return None
        # A venue counts by address, and lists of markets are read from that of the account that needs them first.
        return await shared.get(f"allowance {self._where()} {self._call.way}", self._make_allowance)

    async def _make_allowance(self) -> Allowance:
        return Allowance(self._venue, self._call.exchange.limits[0])

    def _where(self) -> str:
        return f"{self._id} {self._call.environment.name} {self._call.override}"

    async def _describe_untouched(self, ccxt: Any) -> Untouched:
        instance = self.construct(ccxt, Guarded, self._call.public_http.client_session, _MARKETS_TIMEOUT)
        await instance.close()
        required = required_credentials(self._id, instance.requiredCredentials)
        return Untouched(required, environment_urls(instance.urls, instance.hostname))

    async def load_markets(self, ccxt: Any) -> Any:
        """An instance without a key that has loaded the markets. The state makes it in a task of its own, which goes on
        after the deadline of the call that began it."""
        # Reading megabytes keeps the event loop busy. Many at the same time would block it for too long.
        slots = await self._call.plugin_state.get("loading markets", _load_slots)
        async with slots:
            return await self._load_markets_now(ccxt)

    async def _load_markets_now(self, ccxt: Any) -> Any:
        instance = self.construct(ccxt, Guarded, self._call.public_http.client_session, _MARKETS_TIMEOUT)
        instance.allowance = await self._allowance(self._call.plugin_state)
        self._rebase(instance)
        with self._recorder.record(ccxt):
            await instance.load_markets()
        await instance.close()
        if not instance.markets:
            raise VenueMalformed(f"{self._venue} lists no markets, so its answer cannot be checked.")
        return instance

    async def _account_instance(
        self, ccxt: Any, layer: type[Exact], stored: StoredCredential, untouched: Untouched
    ) -> Any:
        """An instance for the account, with the shared markets if there are any. If CCXT distinguishes kinds of
        account, it has already read the account's kind."""
        source = await self._markets()
        session = self._call.http.client_session
        instance = self.construct(ccxt, layer, session, _ACCOUNT_TIMEOUT, credentials=stored.constructor)
        # A class for sockets has further ones.
        if not untouched.urls.items() <= environment_urls(instance.urls, instance.hostname).items():
            raise RuntimeError("an instance's addresses differ from its exchange's")
        self._rebase(instance)
        by_key = any(limit.scope == "key" for limit in self._call.exchange.limits)
        instance.allowance = await self._allowance(self._call.key_state if by_key else self._call.plugin_state)
        instance.nonces = await self._call.key_state.get("nonces", _new_nonces)
        if source is not None:
            instance.set_markets_from_exchange(source)
        await self._ask(ccxt, instance, KINDS.get(self._id, ()))
        return instance

    def construct(
        self,
        ccxt: Any,
        layer: type[Guarded],
        session: Any,
        timeout: int,
        credentials: Mapping[str, str] | None = None,
    ) -> Any:
        """An instance in the call's environment, with `timeout` in milliseconds. Raises NotSupported if CCXT lacks it.

        CCXT sets an attribute for every key that its constructor is given, so it gets these keys and no others.
        """
        ccxt_class = getattr(ccxt, self._id, None) if self._id in ccxt.exchanges else None
        if ccxt_class is None:
            raise NotSupported(f"The installed CCXT has no exchange {self._id}.")
        instance = make_layered_class(layer, ccxt_class)(
            {
                **(credentials or {}),
                "session": session,
                "timeout": timeout,
                "enableRateLimit": True,
                "aiohttp_trust_env": False,
                "verbose": False,
                "enableLastHttpResponse": False,
                "enableLastResponseHeaders": False,
                # The test host of Binance's futures still works, but CCXT refuses it without this option.
                "options": {**SAFE_OPTIONS, "disableFuturesSandboxWarning": True},
            }
        )
        if self._call.environment.name == SANDBOX:
            # Without test addresses CCXT's own switch fails half-way and leaves the live addresses.
            if not instance.urls.get("test"):
                raise NotSupported(f"{self._venue} has no test environment.")
            instance.set_sandbox_mode(True)
        return instance

    def _rebase(self, instance: Any) -> None:
        """Replace every address of the exchange by the operator's, if there is one."""
        if self._call.override:
            # Some classes also read the test hosts.
            for name in ("api", "test"):
                instance.urls[name] = self._rebase_urls(instance.urls.get(name))

    def _rebase_urls(self, urls: Any) -> Any:
        if isinstance(urls, Mapping):
            return {name: self._rebase_urls(below) for name, below in urls.items()}
        # A socket's address is replaced when it is opened, because some classes read from it which socket it is.
        return self._call.rebased(urls) if isinstance(urls, str) and not urls.startswith("wss://") else urls


async def _new_nonces() -> Nonces:
    return Nonces()


async def _load_slots() -> asyncio.Semaphore:
    return asyncio.Semaphore(_CONCURRENT_LOADS)


async def import_ccxt() -> Any:
    """CCXT's module. Importing it takes seconds, so a thread does it."""
    module = await asyncio.to_thread(importlib.import_module, "ccxt.async_support")
    bound_exponents()
    # At DEBUG CCXT logs keys, signed addresses and whole bodies. The filter works for any level that is set later.
    logger = logging.getLogger(_CCXT_LOGGER)
    logger.addFilter(_is_not_debug)
    if logger.getEffectiveLevel() < logging.INFO:
        logger.setLevel(logging.INFO)
    return module


async def _import_sockets() -> Any:
    """CCXT's module of the classes for sockets."""
    return await asyncio.to_thread(importlib.import_module, "ccxt.pro")


def _is_not_debug(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.INFO
