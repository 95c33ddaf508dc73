"""Authentication of calls: the caller's identity, the caller's quotas, and the callers of open streams."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from cachetools import TTLCache

from exchange_service.deadlines import has_ended, within
from exchange_service.errors import CallerUnknown, ServiceError, ServiceFailed, StoreUnavailable, UserForbidden
from exchange_service.identity import (
    ANYBODY,
    AuthenticationMethod,
    Caller,
    Identity,
    PresentedCredentials,
    Verified,
    token_digest,
)
from exchange_service.identity.quotas import Action, Quotas
from exchange_service.recently_used import RecentlyUsed
from exchange_service.tasks import retrieve_exception

log = structlog.get_logger(__name__)

_MAX_REMEMBERED = 20_000
# Seconds after which refused credentials are checked again. Their number is bounded, because anybody can invent some.
_REFUSAL_MEMORY = 5.0
MAX_REFUSALS = 2_000
# Seconds between two attempts to confirm known credentials while their source does not answer.
_RETRY_AFTER = 5.0
# Credentials that are due for a check serve on without its answer after this many seconds, but only this long after the
# check was due: a check ends within three seconds unless its source does not answer at all, so that a revoked token
# still stops working within half a minute.
_CONFIRM_WAIT = 0.5
_UNCONFIRMED = 7.0
# Seconds between two checks of the callers of open streams.
RECHECK_INTERVAL = 7.0
_AUTHENTICATE = "Send `authorization: Bearer TOKEN` with it."


_NOTHING_PRESENTED = PresentedCredentials()


@dataclass(slots=True)
class _Remembered:
    """The identity of verified credentials; times are the event loop's. `until`: no check is needed before; `grace`:
    accepted until then while no check is possible. `caller` is the one of calls that present nothing else."""

    identity: Identity
    until: float
    grace: float
    caller: Caller = field(init=False)
    # By the wall clock, which may have been set since.
    expires: float = field(init=False)

    def __post_init__(self) -> None:
        self.caller = Caller(self.identity, _NOTHING_PRESENTED)
        self.expires = math.inf if self.identity.expires is None else self.identity.expires


# Compared by object, so that equal ones of two streams are two entries of a set.
@dataclass(slots=True, eq=False)
class _OpenStream:
    """An open stream of `user_id`; `end` ends it with an error."""

    presented: PresentedCredentials
    user_id: str
    end: Callable[[ServiceError], None]


class Authenticator:
    """Authenticates callers. Without any method every caller is ANYBODY and may read all users.

    Verified credentials are remembered by their digest, so that a signature is checked once and not at every call.
    """

    def __init__(self, methods: Sequence[AuthenticationMethod], quotas: Quotas) -> None:
        self._methods = tuple(methods)
        self._quotas = quotas
        # Counts an action if memory is enough to decide; False if it was not counted, and `admit` must decide.
        self.take_local = quotas.take_local
        # Whether callers are not authenticated.
        self.open_to_all = not self._methods
        self._remembered: RecentlyUsed[bytes, _Remembered] = RecentlyUsed(_MAX_REMEMBERED)
        self._refused: TTLCache[bytes, tuple[str, str | None]] = TTLCache(
            MAX_REFUSALS, _REFUSAL_MEMORY, timer=_loop_time
        )
        self._verifying: dict[bytes, asyncio.Task[Identity]] = {}
        self._streams = _StreamCallers(self)

    @property
    def remembered_refusals(self) -> int:
        """The number of refused credentials that are remembered."""
        return len(self._refused)

    async def admit(self, presented: PresentedCredentials, action: Action = Action.CALL) -> Caller:
        """The caller, after the action is counted. CallerUnknown, CallerRateLimited, or StoreUnavailable if the caller
        cannot be identified right now."""
        identity = self._recall_presented(presented) or await self._verify_soon(presented)
        await self._quotas.take(identity, action)
        return Caller(identity, presented)

    def known_caller(self, token: str, now: float) -> Caller | None:
        """The caller with this token if memory is enough to tell; else None, and `admit` decides. Nothing is counted.
        The result holds no token: it is for one call, and not for a stream. `now` is the event loop's time, as below:
        to ask for the running loop takes longer than to ask it for its time."""
        remembered = self._remembered.get(token_digest(token))
        if remembered is None or now >= remembered.until or time.time() >= remembered.expires:
            return None
        return remembered.caller

    def return_call(self, caller: Caller) -> None:
        """Take back a call that was counted a moment ago: it is counted again where it is answered."""
        self._quotas.give_back(caller.identity, Action.CALL)

    async def identify(self, presented: PresentedCredentials) -> Identity:
        """The identity that the credentials prove; CallerUnknown or StoreUnavailable as `admit`. If they are due for a
        check, its answer is waited for."""
        known = self._recall_presented(presented)
        return known if known is not None else await within(self._verification(presented), _late)

    def _recall_presented(self, presented: PresentedCredentials) -> Identity | None:
        """As `recall`; CallerUnknown if nothing is presented."""
        if self.open_to_all:
            return ANYBODY
        if presented.is_empty:
            raise CallerUnknown("The call does not identify its caller.", advice=_AUTHENTICATE)
        return self.recall(presented.digest)

    async def _verify_soon(self, presented: PresentedCredentials) -> Identity:
        """Verify the credentials. Those that were good a moment ago serve on if the check takes long."""
        verification = self._verification(presented)
        known = self._known_lately(presented.digest)
        if known is not None and not await has_ended(verification, _CONFIRM_WAIT):
            return known
        return await within(verification, _late)

    def _known_lately(self, digest: bytes) -> Identity | None:
        remembered, now = self._remembered.get(digest), _loop_time()
        if remembered is None or now >= min(remembered.grace, remembered.until + _UNCONFIRMED):
            return None
        return None if _has_expired(remembered.identity) else remembered.identity

    async def take_selectors(self, caller: Caller, count: int) -> None:
        """Count the accounts that a stream selects beyond the first, which the call itself has counted;
        CallerRateLimited if they exceed the quota."""
        if count > 1:
            await self._quotas.take_selectors(caller.identity, count - 1)

    async def take_refresh(self, caller: Caller) -> None:
        """Count a refresh that the caller forces; CallerRateLimited if it exceeds the quota."""
        await self._quotas.take(caller.identity, Action.REFRESH)

    async def take_change(self, caller: Caller) -> None:
        """Count an account that the caller connects, checks or removes; CallerRateLimited if it exceeds the quota."""
        await self._quotas.take(caller.identity, Action.CHANGE)

    def return_refresh(self, caller: Caller) -> None:
        """Take back a refresh that was counted: the venue was not asked for it."""
        self._quotas.give_back(caller.identity, Action.REFRESH)

    def recall(self, digest: bytes) -> Identity | None:
        """The identity of credentials that need no check now; None if they do."""
        known = self._remembered.get(digest)
        if known is None or _loop_time() >= known.until or time.time() >= known.expires:
            return None
        return known.identity

    def _verification(self, presented: PresentedCredentials) -> asyncio.Task[Identity]:
        """The check of the credentials: simultaneous calls with the same ones share it. CallerUnknown if they were
        refused a moment ago."""
        refusal = self._refused.get(presented.digest)
        if refusal is not None:
            message, advice = refusal
            raise CallerUnknown(message, advice=advice)
        task = self._verifying.get(presented.digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._verify(presented), name="verify caller")
            self._verifying[presented.digest] = task
            task.add_done_callback(lambda _: self._verifying.pop(presented.digest))
            task.add_done_callback(retrieve_exception)
        return task

    async def _verify(self, presented: PresentedCredentials) -> Identity:
        try:
            for method in self._methods:
                verified = await method.authenticate(presented)
                if verified is not None:
                    return self._remember(presented, verified)
            raise CallerUnknown("The caller's credentials are of a kind that this service does not accept.")
        except CallerUnknown as refusal:
            self._remembered.pop(presented.digest, None)
            self._refused[presented.digest] = refusal.message, refusal.advice
            raise
        except StoreUnavailable as error:
            remembered, now = self._remembered.get(presented.digest), _loop_time()
            if remembered is None or now >= remembered.grace or _has_expired(remembered.identity):
                raise
            log.warning("caller.not_confirmed", reason=error.text)
            remembered.until = min(now + _RETRY_AFTER, remembered.grace)
            return remembered.identity

    def _remember(self, presented: PresentedCredentials, verified: Verified) -> Identity:
        if _has_expired(verified.identity):
            raise CallerUnknown("The caller's credentials have expired.", advice="Get new ones.")
        now = _loop_time()
        self._remembered[presented.digest] = _Remembered(verified.identity, now + verified.keep, now + verified.grace)
        return verified.identity

    @contextmanager
    def streaming(self, caller: Caller, user_id: str) -> Iterator[Callable[[Callable[[ServiceError], None]], None]]:
        """Count an open stream of this user until the context ends; CallerRateLimited if the caller has too many.

        Pass the yielded function the one that ends the stream. That one is called with the reason when the caller may
        no longer hold the stream.
        """
        release = self._quotas.open_stream(caller.identity)
        cleanups: list[Callable[[], None]] = [release]
        try:
            yield lambda end: cleanups.append(self._watch(caller, user_id, end))
        finally:
            for clean_up in cleanups:
                clean_up()

    def _watch(self, caller: Caller, user_id: str, end: Callable[[ServiceError], None]) -> Callable[[], None]:
        """Check the caller of an open stream from now on; the returned function ends that."""
        if self.open_to_all:
            return lambda: None
        return self._streams.watch(caller.identity, _OpenStream(caller.presented, user_id, end))

    async def recheck(self) -> None:
        """Check the callers of all open streams once."""
        await self._streams.recheck()

    async def close(self) -> None:
        """End running checks and release what the methods hold."""
        await self._streams.close()
        tasks = list(self._verifying.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for method in self._methods:
            await method.close()


class _StreamCallers:
    """Ends the open streams whose callers have expired, were revoked, or may no longer read the streams' users."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._open: set[_OpenStream] = set()
        self._rechecking: asyncio.Task[None] | None = None

    def watch(self, identity: Identity, stream: _OpenStream) -> Callable[[], None]:
        """Check the stream's caller from now on; the returned function ends that."""
        self._open.add(stream)
        if self._rechecking is None:
            self._rechecking = asyncio.get_running_loop().create_task(self._recheck_forever(), name="stream callers")
        expiry = _end_at_expiry(identity, stream.end)

        def stop_watching() -> None:
            self._open.discard(stream)
            if expiry is not None:
                expiry.cancel()

        return stop_watching

    async def _recheck_forever(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_INTERVAL)
            await self.recheck()

    async def recheck(self) -> None:
        """Check the caller of every open stream once; streams with the same credentials share one check."""
        by_digest: dict[bytes, list[_OpenStream]] = {}
        for stream in self._open:
            by_digest.setdefault(stream.presented.digest, []).append(stream)
        checks = []
        for digest, streams in by_digest.items():
            known = self._authenticator.recall(digest)
            if known is None:
                checks.append(self._confirm(streams))
            else:
                _end_outside(streams, known)
        await asyncio.gather(*checks)

    async def _confirm(self, streams: list[_OpenStream]) -> None:
        try:
            identity = await self._authenticator.identify(streams[0].presented)
        except ServiceError as error:
            _end_all(streams, error)
        except Exception as error:
            # A caller that cannot be checked loses its streams, and the checks of the other callers go on.
            log.error("caller.check_failed", error=type(error).__name__)
            _end_all(
                streams,
                ServiceFailed("The service failed to identify the caller.", advice="Look for the reason in its log."),
            )
        else:
            _end_outside(streams, identity)

    async def close(self) -> None:
        """End the checks."""
        if self._rechecking is not None:
            self._rechecking.cancel()
            await asyncio.wait({self._rechecking})


def _end_at_expiry(identity: Identity, end: Callable[[ServiceError], None]) -> asyncio.TimerHandle | None:
    if identity.expires is None:
        return None
    left = max(0.0, identity.expires - time.time())
    return asyncio.get_running_loop().call_later(left, _end_expired, end)


def _end_expired(end: Callable[[ServiceError], None]) -> None:
    end(CallerUnknown("The token has expired.", advice="Open the stream again with a new one."))


def _end_all(streams: list[_OpenStream], error: ServiceError) -> None:
    for stream in streams:
        stream.end(error)


def _end_outside(streams: list[_OpenStream], identity: Identity) -> None:
    """End the streams that the identity could not open now."""
    for stream in streams:
        try:
            Caller(identity, stream.presented).require(stream.user_id)
        except UserForbidden as refusal:
            stream.end(refusal)


def _late() -> StoreUnavailable:
    return StoreUnavailable("The caller could not be identified in the time that the call had.")


def _has_expired(identity: Identity) -> bool:
    return identity.expires is not None and time.time() >= identity.expires


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
