"""Nobody gets in who has not said who he is: the check that stands before every handler but health's.

It stands inside the boundary, which turns its refusals into statuses; for reflection, which the boundary leaves alone,
it does so itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from exchange_service.errors import CallerUnknown
from exchange_service.grpc_server.boundary import Context, abort
from exchange_service.identity import Caller, Proof
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.quotas import Action

_BEARER = "bearer "
_ACT_AS = "x-act-as"

_NOTHING = Proof()

_caller: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Whose call is being handled. Without the check before it there is nobody, and so nobody is served."""
    return _caller.get()


class Admission:
    """Lets a call through once it is known whose it is, and that he does not call too often."""

    def __init__(self, callers: Authenticator) -> None:
        self._callers = callers

    def _at_hand(self, context: Context) -> Caller | None:
        """The bearer of a token who is known and has calls left, which is most calls; None for all others."""
        found = None
        for key, value in context.invocation_metadata() or ():
            if key == _ACT_AS or (key == "authorization" and found is not None):
                return None
            if key == "authorization":
                found = value
        if not isinstance(found, str) or found[: len(_BEARER)].lower() != _BEARER:
            return None
        return self._callers.admit_local(found[len(_BEARER) :].strip())

    async def _admit(self, context: Context, action: Action = Action.CALL) -> Caller:
        return await self._callers.admit(_NOTHING if self._callers.open_to_all else proof_of(context), action)

    def admitting(
        self, inner: Callable[[Any, Context], Awaitable[Any]], action: Action = Action.CALL
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        """The handler, for callers who are known; each call is counted as this action."""

        async def handle(request: Any, context: Context) -> Any:
            caller = self._at_hand(context) if action is Action.CALL else None
            # Each call has a task, and so a context, of its own.
            _caller.set(caller or await self._admit(context, action))
            return await inner(request, context)

        return handle

    def admitting_reflection(
        self, inner: Callable[[Any, Context], AsyncIterator[Any]]
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        """Reflection's own handler, for callers who are known."""

        async def handle(requests: Any, context: Context) -> AsyncIterator[Any]:
            async def admitted() -> AsyncIterator[Any]:
                # Each question counts: one call may ask for ever.
                async for request in requests:
                    await self._admit(context)
                    yield request

            try:
                async for reply in inner(admitted(), context):
                    yield reply
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await abort(context, error)

        return handle


def proof_of(context: Context) -> Proof:
    """What the call brought. CallerUnknown where that is not clear: two tokens, or a header of another kind."""
    tokens, users = [], []
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            tokens.append(value)
        elif key == _ACT_AS:
            users.append(value)
    if len(tokens) > 1 or len(users) > 1:
        raise CallerUnknown("The call has two authorizations, or two x-act-as.", advice="Send each once at most.")
    act_as = str(users[0]) if users else None
    if tokens:
        header = tokens[0]
        if not isinstance(header, str) or header[: len(_BEARER)].lower() != _BEARER:
            raise CallerUnknown("The authorization should be `Bearer TOKEN`.")
        return Proof(token=header[len(_BEARER) :].strip(), act_as=act_as)
    presented = context.auth_context()
    certificate = next(iter(presented.get("x509_pem_cert", ())), b"")
    if not certificate:
        return Proof(act_as=act_as)
    # As in TLS everywhere: beside DNS names the common name says nothing, because who signs may not have looked at it.
    names = tuple(presented.get("peer_dns", ())) or presented.get("x509_common_name", ())
    return Proof(
        certificate=certificate,
        certificate_names=tuple(name.decode("utf-8", "replace") for name in names),
        act_as=act_as,
    )
