"""The door: who calls, whether he calls too often, and whether he who holds a stream may still hold it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from exchange_service.errors import CallerUnknown, ServiceError, ServiceFailed, StoreUnavailable, UserForbidden
from exchange_service.identity import ANYBODY, AuthenticationMethod, Caller, Identity, Proof, Verified, token_digest
from exchange_service.identity.quotas import Action, Quotas

log = structlog.get_logger(__name__)

_MAX_REMEMBERED = 20_000
# Proofs that were no good are looked at again after this long; there are as many as somebody cares to make up.
_REFUSAL_MEMORY = 5.0
_MAX_REFUSALS = 2_000
# What does not answer is asked this often on behalf of somebody who is known.
_RETRY_AFTER = 5.0
# Seconds between two looks at whether the callers of open streams are still who they were.
_RECHECK_INTERVAL = 7.0
_EXPIRED, _OPEN_AGAIN = "The token has expired.", "Open the stream again with a new one."


_NOTHING_SHOWN = Proof()


@dataclass(slots=True)
class _Known:
    """A proof that was good; times are the event loop's. `until`: without a second look; `grace`: while there is
    nobody to ask."""

    identity: Identity
    until: float
    grace: float


# Compared by identity, so that equal ones of two streams stand side by side.
@dataclass(slots=True, eq=False)
class _Watched:
    """An open stream."""

    proof: Proof
    user_id: str
    end: Callable[[ServiceError], None]


class Authenticator:
    """Tells who calls. Without any way to tell, everybody is ANYBODY and may read all.

    A proof that was good is remembered by its digest, so that a signature is checked once and not at every call.
    """

    def __init__(self, authenticators: Sequence[AuthenticationMethod], quotas: Quotas) -> None:
        self._authenticators = tuple(authenticators)
        self._quotas = quotas
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[str, str | None, float]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Identity]] = {}
        self._watched: set[_Watched] = set()
        self._rechecking: asyncio.Task[None] | None = None

    @property
    def open_to_all(self) -> bool:
        """Whether nobody is told apart."""
        return not self._authenticators

    async def admit(self, proof: Proof, action: Action = Action.CALL) -> Caller:
        """Whose call it is, once it is counted as this action. CallerUnknown, CallerRateLimited, or StoreUnavailable
        where nobody can tell just now."""
        identity = await self.identify(proof)
        await self._quotas.take(identity, action)
        return Caller(identity, proof)

    def admit_local(self, token: str) -> Caller | None:
        """The bearer of this token, once the call is counted, where that needs no question to anybody; None where
        `admit` is to be asked. What he gets bears no token: it is for one call, and not for what lasts."""
        identity = self._still_known(token_digest(token))
        if identity is None or not self._quotas.take_local(identity, Action.CALL):
            return None
        return Caller(identity, _NOTHING_SHOWN)

    async def identify(self, proof: Proof) -> Identity:
        """Whose proof it is."""
        if self.open_to_all:
            return ANYBODY
        if proof.is_empty:
            raise CallerUnknown("The call is not authenticated.", advice="Send `authorization: Bearer TOKEN` with it.")
        return self._remembered(proof) or await self._ask(proof)

    async def take_refresh(self, caller: Caller) -> None:
        """Count a refresh that the caller forces; CallerRateLimited where it is one too many."""
        await self._quotas.take(caller.identity, Action.REFRESH)

    def _remembered(self, proof: Proof) -> Identity | None:
        return self._still_known(proof.digest)

    def _still_known(self, digest: bytes) -> Identity | None:
        known = self._known.get(digest)
        if known is None or asyncio.get_running_loop().time() >= known.until:
            return None
        # By the wall clock, which may have been set since.
        return None if _has_expired(known.identity) else known.identity

    async def _ask(self, proof: Proof) -> Identity:
        """The authenticators' word; of callers with the same proof at the same time, one asks."""
        now = asyncio.get_running_loop().time()
        refusal = self._refused.get(proof.digest)
        if refusal is not None and now < refusal[2]:
            raise CallerUnknown(refusal[0], advice=refusal[1])
        task = self._asking.get(proof.digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._verify(proof), name="who calls")
            self._asking[proof.digest] = task
            task.add_done_callback(lambda done: self._answered(proof.digest, done))
        return await asyncio.shield(task)

    def _answered(self, digest: bytes, task: asyncio.Task[Identity]) -> None:
        del self._asking[digest]
        if not task.cancelled():
            # Taken here too: perhaps nobody waits any more, and asyncio would log it.
            task.exception()

    async def _verify(self, proof: Proof) -> Identity:
        try:
            for authenticator in self._authenticators:
                verified = await authenticator.authenticate(proof)
                if verified is not None:
                    return self._remember(proof, verified)
            raise CallerUnknown("The caller's proof is of a kind that this service does not take.")
        except CallerUnknown as refusal:
            self._known.pop(proof.digest, None)
            self._remember_refusal(proof, refusal)
            raise
        except StoreUnavailable as trouble:
            known, now = self._known.get(proof.digest), asyncio.get_running_loop().time()
            if known is None or now >= known.grace or _has_expired(known.identity):
                raise
            log.warning("caller.not_confirmed", reason=trouble.text)
            known.until = min(now + _RETRY_AFTER, known.grace)
            return known.identity

    def _remember(self, proof: Proof, verified: Verified) -> Identity:
        if _has_expired(verified.identity):
            raise CallerUnknown("The caller's token or certificate has expired.", advice="Get a new one.")
        now = asyncio.get_running_loop().time()
        self._known[proof.digest] = _Known(verified.identity, now + verified.keep, now + verified.grace)
        self._known.move_to_end(proof.digest)
        while len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        return verified.identity

    def _remember_refusal(self, proof: Proof, refusal: CallerUnknown) -> None:
        until = asyncio.get_running_loop().time() + _REFUSAL_MEMORY
        self._refused[proof.digest] = (refusal.message, refusal.advice, until)
        while len(self._refused) > _MAX_REFUSALS:
            self._refused.popitem(last=False)

    @contextmanager
    def streaming(self, caller: Caller, user_id: str) -> Iterator[Callable[[Callable[[ServiceError], None]], None]]:
        """While a stream of this user is open, it counts: CallerRateLimited where the caller has too many. Give what
        it yields the function that ends the stream: it is called with the reason once he may not hold it any longer."""
        closed = self._quotas.open_stream(caller.identity)
        endings: list[Callable[[], None]] = [closed]
        try:
            yield lambda end: endings.append(self._watch(caller, user_id, end))
        finally:
            for ending in endings:
                ending()

    def _watch(self, caller: Caller, user_id: str, end: Callable[[ServiceError], None]) -> Callable[[], None]:
        """Look after an open stream's caller from now on; what it gives ends that."""
        if self.open_to_all:
            return lambda: None
        watched = _Watched(caller.proof, user_id, end)
        self._watched.add(watched)
        self._start_rechecking()
        expiry = self._at_expiry(caller.identity, end)

        def leave() -> None:
            self._watched.discard(watched)
            if expiry is not None:
                expiry.cancel()

        return leave

    def _at_expiry(self, identity: Identity, end: Callable[[ServiceError], None]) -> asyncio.TimerHandle | None:
        if identity.expires is None:
            return None
        left = max(0.0, identity.expires - time.time())
        return asyncio.get_running_loop().call_later(left, lambda: end(CallerUnknown(_EXPIRED, advice=_OPEN_AGAIN)))

    def _start_rechecking(self) -> None:
        if self._rechecking is None:
            self._rechecking = asyncio.get_running_loop().create_task(self._recheck_for_ever(), name="stream callers")

    async def _recheck_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_RECHECK_INTERVAL)
            await self.recheck()

    async def recheck(self) -> None:
        """Look once at every open stream's caller; streams of one token are one question."""
        proofs: dict[bytes, list[_Watched]] = {}
        for watched in self._watched:
            proofs.setdefault(watched.proof.digest, []).append(watched)
        questions = []
        for streams in proofs.values():
            known = self._remembered(streams[0].proof)
            if known is None:
                questions.append(self._confirm(streams))
            else:
                _end_outside(streams, known)
        await asyncio.gather(*questions)

    async def _confirm(self, streams: list[_Watched]) -> None:
        try:
            identity = await self.identify(streams[0].proof)
        except ServiceError as error:
            _end_all(streams, error)
        except Exception as error:
            # Whoever cannot be checked is let go, and the next look at everybody else is not lost with him.
            log.error("caller.check_failed", error=type(error).__name__)
            _end_all(
                streams, ServiceFailed("The service failed to authenticate the caller.", advice="Look into its log.")
            )
        else:
            _end_outside(streams, identity)

    async def close(self) -> None:
        """End what is under way and release what the authenticators hold."""
        tasks = [task for task in (self._rechecking, *self._asking.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for authenticator in self._authenticators:
            await authenticator.close()
        await self._quotas.close()


def _end_all(streams: list[_Watched], error: ServiceError) -> None:
    for watched in streams:
        watched.end(error)


def _end_outside(streams: list[_Watched], identity: Identity) -> None:
    """End the streams that the identity might not open any more."""
    for watched in streams:
        try:
            Caller(identity, watched.proof).require(watched.user_id)
        except UserForbidden as refusal:
            watched.end(refusal)


def _has_expired(identity: Identity) -> bool:
    return identity.expires is not None and time.time() >= identity.expires
