"""Who calls, and for whom he may read: identities, their scopes, and what stands at the door.

Nothing here knows gRPC: the server says what a call brought (`Proof`), and is told whose call it is (`Identity`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from exchange_service.errors import UserForbidden

# The two words of a scope that is no list; in a certificate's mapping, a token's row and a JWT's claim alike.
ALL_USERS = "*"
ACT_AS = "act-as"
# As long as a request's own user_id may be.
_LONGEST_USER = 256


class Kind(Enum):
    """What an identity is: its quotas depend on it."""

    USER = "user"
    SERVICE = "service"
    # Where nobody is told apart.
    ANYBODY = "anybody"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose accounts may be read: those of `users`, or everybody's (`everybody`).

    `must_say`: each call has to name its user in the metadata too, so that a program which acts for many never reads
    one by mistake.
    """

    users: frozenset[str] = frozenset()
    everybody: bool = False
    must_say: bool = False

    def covers(self, user_id: str) -> bool:
        """Whether this user is within it."""
        return self.everybody or user_id in self.users

    def as_value(self) -> str | list[str]:
        """As `scope_from` reads it."""
        if self.must_say:
            return ACT_AS
        return ALL_USERS if self.everybody else sorted(self.users)

    def describe(self) -> str:
        """In words, for people."""
        if self.must_say:
            return "any user that x-act-as names"
        return "all users" if self.everybody else ", ".join(sorted(self.users))


def scope_from(value: object) -> Scope:
    """The scope that "*", "act-as" or a list of users stands for; ValueError for everything else."""
    if value == ALL_USERS:
        return Scope(everybody=True)
    if value == ACT_AS:
        return Scope(everybody=True, must_say=True)
    if isinstance(value, list) and value and all(map(is_user_id, value)):
        return Scope(frozenset(value))
    raise ValueError('a scope is "*" for all users, "act-as", or a list of users')


def is_user_id(value: object) -> bool:
    """Whether a request could name this user."""
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_USER or not value.isprintable():
        return False
    # In a list it is a slip of the pen, and would be the id of nobody.
    return value not in (ALL_USERS, ACT_AS)


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller who has proved who he is. `expires` is in seconds since 1970; None: his proof does not expire."""

    name: str
    kind: Kind
    scope: Scope
    expires: float | None = None

    def may_read(self, user_id: str) -> bool:
        """Whether his scope covers this user."""
        return self.scope.covers(user_id)


ANYBODY = Identity("anybody", Kind.ANYBODY, Scope(everybody=True))


def token_digest(token: str) -> bytes:
    """What stands for a token where it is remembered."""
    return hashlib.sha256(b"token " + token.encode("utf-8", "replace")).digest()


@dataclass(frozen=True, slots=True)
class Proof:
    """What a call brought: a bearer token, or the client certificate of its connection (PEM) with the names in it, and
    for whom it says to be. Where there is a token, it counts, and the certificate has only opened the connection."""

    token: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    certificate_names: Sequence[str] = field(default=(), repr=False)
    act_as: str | None = None
    # Stands for token or certificate where it is remembered: they themselves never are.
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = token_digest(self.token) if self.token else hashlib.sha256(b"certificate " + self.certificate).digest()
        object.__setattr__(self, "digest", digest)

    @property
    def is_empty(self) -> bool:
        """Whether the call brought nothing that could tell who calls."""
        return not self.token and not self.certificate


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is: his identity, and what he showed for it."""

    identity: Identity
    proof: Proof

    def require(self, user_id: str) -> None:
        """Raise UserForbidden unless he may read this user. It is the same for every user outside his scope, so that
        it tells nobody who exists."""
        said = self.proof.act_as
        if said is None and self.identity.scope.must_say:
            raise UserForbidden("The call names no user to act for.", advice="Name the user in the metadata x-act-as.")
        if said is not None and said != user_id:
            raise UserForbidden("The metadata x-act-as and the request name different users.", advice="Name the same.")
        if not self.identity.may_read(user_id):
            raise UserForbidden("This user's accounts are outside the caller's scope.")

    def require_everybody(self) -> None:
        """Raise UserForbidden unless he may read every user: what concerns no user is for operators."""
        if not self.identity.scope.everybody:
            raise UserForbidden("Only callers that may read every user may call this.", advice="Use another token.")


@dataclass(frozen=True, slots=True)
class Verified:
    """An authenticator's finding: it may be used again for `keep` seconds without a second look, and for `grace`
    seconds after it was made while the place to look at does not answer."""

    identity: Identity
    keep: float
    grace: float = 0.0


class AuthenticationMethod(Protocol):
    """One way to tell who calls."""

    async def authenticate(self, proof: Proof) -> Verified | None:
        """Whose proof it is; None where it is of another kind. CallerUnknown where it is of this kind and not good,
        StoreUnavailable where that cannot be told just now."""

    async def close(self) -> None:
        """Release what it holds."""
