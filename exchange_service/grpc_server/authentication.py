"""Authenticates every call except health checks.

The check runs inside the handler wrapper, which turns its refusals into statuses. Reflection has no such wrapper, so
its refusals are turned into statuses here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias

import grpc

from exchange_service.errors import CallerUnknown
from exchange_service.grpc_server.handler_wrapper import (
    LOOK_TIME,
    REQUEST_ID_KEY,
    Context,
    Handler,
    Look,
    Metadata,
    Quick,
    abort,
)
from exchange_service.grpc_server.methods import BeginLook, Ready
from exchange_service.grpc_server.turns import Openings
from exchange_service.identity import ANYBODY, Caller, PresentedCredentials
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.quotas import Action

_BEARER = "bearer "
_TOKEN_AT = len(_BEARER)
_ACT_AS = "x-act-as"
# A caller that sends its request id gets it back beside the reply.
_NOT_ORDINARY = frozenset((_ACT_AS, REQUEST_ID_KEY))

_NOTHING = PresentedCredentials()
_ANYBODY = Caller(ANYBODY, _NOTHING)

_caller: ContextVar[Caller] = ContextVar("caller")
_StreamHandler: TypeAlias = Callable[[Any, Context], AsyncIterator[Any]]


def current_caller() -> Caller:
    """The caller of the call in progress. Raises LookupError if the call was not authenticated."""
    return _caller.get()


class Authentication:
    """Identifies the caller of each call, and counts the call against the caller's quota. Streams of known callers
    then wait for their turn in `openings`."""

    def __init__(self, authenticator: Authenticator, openings: Openings | None = None) -> None:
        self._authenticator = authenticator
        self._openings = openings if openings is not None else Openings()

    def require_caller(self, inner: Handler, action: Action = Action.CALL) -> Handler:
        """The handler for known callers only; each call is counted as this action."""

        async def handle(request: Any, context: Context) -> Any:
            caller = self._admit_local(context) if action is Action.CALL else None
            # Each call has its own task, and therefore its own context.
            _caller.set(caller or await self._admit(context, action))
            if action is Action.OPENING:
                await self._openings.take()
            # Other transports' requests may still have to be turned into bytes, which is done for known callers only.
            return await inner(request() if callable(request) else request, context)

        return handle

    def quick(self, ready: Ready, begin_look: BeginLook | None = None) -> Quick:
        """The ready answers, and the looks for others, for callers who are known here and have calls left. A call is
        counted while it looks, and if it is answered.

        Call it in the event loop that serves."""
        authenticator, loop = self._authenticator, asyncio.get_running_loop()
        take_local = authenticator.take_local

        def after(look: Look, caller: Caller) -> bytes | None:
            try:
                reply = look.reply()
            except Exception:
                # The handler meets it too, and tells the caller.
                reply = None
            if reply is None:
                authenticator.return_call(caller)
            return reply

        def answer(data: bytes, metadata: Metadata, remaining: float | None) -> bytes | Look | None:
            now = loop.time()
            caller = self._known_caller(metadata, now)
            if caller is None or not take_local(caller.identity, Action.CALL, now):
                return None
            try:
                reply = ready(data, caller)
                if reply is None and begin_look is not None and (remaining is None or remaining >= LOOK_TIME):
                    look = begin_look(data, caller)
                    if look is not None:
                        return Look(look.reading, partial(after, look, caller))
            except Exception:
                # As above.
                reply = None
            if reply is None:
                authenticator.return_call(caller)
            return reply

        return answer

    def require_caller_of_reflection(self, inner: _StreamHandler, parse: Callable[[bytes], Any]) -> _StreamHandler:
        """Reflection's own handler for known callers only. `parse` reads the bytes of a request."""

        async def handle(requests: Any, context: Context) -> AsyncIterator[Any]:
            async def admit_each() -> AsyncIterator[Any]:
                # Each request counts: one call may send requests without end.
                async for request in requests:
                    await self._admit(context)
                    yield parse(request)

            try:
                async for reply in inner(admit_each(), context):
                    yield reply
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await abort(context, error)

        return handle

    def _admit_local(self, context: Context) -> Caller | None:
        """The bearer of a token who is known here and has calls left, as in most calls; None for all other callers."""
        metadata: Any = context.invocation_metadata() or ()
        now = asyncio.get_running_loop().time()
        caller = self._known_caller(metadata, now)
        if caller is None or not self._authenticator.take_local(caller.identity, Action.CALL, now):
            return None
        return caller

    def _known_caller(self, metadata: Metadata, now: float) -> Caller | None:
        """The bearer of a token who is known here, or anybody if all may call; None for all other callers, and where
        more is to be looked at."""
        header = None
        for key, value in metadata:
            if key == "authorization":
                if header is not None:
                    return None
                header = value
            elif key in _NOT_ORDINARY:
                return None
        if self._authenticator.open_to_all:
            return _ANYBODY
        if not isinstance(header, str) or header[:_TOKEN_AT].lower() != _BEARER:
            return None
        return self._authenticator.known_caller(header[_TOKEN_AT:].strip(), now)

    async def _admit(self, context: Context, action: Action = Action.CALL) -> Caller:
        presented = _NOTHING if self._authenticator.open_to_all else read_credentials(context)
        return await self._authenticator.admit(presented, action)


def read_credentials(context: Context) -> PresentedCredentials:
    """What the call presented. Raises CallerUnknown if that is ambiguous: two tokens, or a header of another kind."""
    tokens, users = [], []
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            tokens.append(value)
        elif key == _ACT_AS:
            users.append(value)
    if len(tokens) > 1 or len(users) > 1:
        raise CallerUnknown(
            "The call has several authorizations, or several x-act-as.", advice="Send at most one of each."
        )
    act_as = str(users[0]) if users else None
    if tokens:
        header = tokens[0]
        if not isinstance(header, str) or header[: len(_BEARER)].lower() != _BEARER:
            raise CallerUnknown("The authorization is not `Bearer TOKEN`.")
        return PresentedCredentials(token=header[len(_BEARER) :].strip(), act_as=act_as)
    transport = context.auth_context()
    certificate = next(iter(transport.get("x509_pem_cert", ())), b"")
    if not certificate:
        return PresentedCredentials(act_as=act_as)
    # As elsewhere in TLS, the common name counts only without DNS names: an issuer may not have checked it.
    names = tuple(transport.get("peer_dns", ())) or transport.get("x509_common_name", ())
    return PresentedCredentials(
        certificate=certificate,
        certificate_names=tuple(name.decode("utf-8", "replace") for name in names),
        act_as=act_as,
    )
