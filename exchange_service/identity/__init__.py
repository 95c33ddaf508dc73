"""Identities: the callers, and the users whose accounts each caller may read.

Nothing here knows gRPC. The server passes what a call presents (`PresentedCredentials`), and learns the caller's
`Identity`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from exchange_service.errors import UserForbidden

# The two values of a scope that are not lists; the same in a certificate's mapping, a token's row and a JWT's claim.
ALL_USERS = "*"
ACT_AS = "act-as"
# As long as the user_id of a request may be.
_LONGEST_USER = 256


class Kind(StrEnum):
    """The kind of an identity; its quotas depend on it."""

    USER = "user"
    SERVICE = "service"
    # The only kind of a service without authentication.
    ANYBODY = "anybody"


@dataclass(frozen=True, slots=True)
class Scope:
    """The users whose accounts may be read: those in `users`, or all of them if `everybody` is true.

    `requires_act_as`: each call must also name its user in the metadata, so that a program which acts for many users
    never reads another one by mistake. `manage`: these users' accounts may also be connected and removed.
    """

    users: frozenset[str] = frozenset()
    everybody: bool = False
    requires_act_as: bool = False
    manage: bool = False

    def covers(self, user_id: str) -> bool:
        """Whether this user is within the scope."""
        return self.everybody or user_id in self.users

    def as_value(self) -> str | list[str] | dict[str, Any]:
        """The scope in the form that `scope_from` reads."""
        users = self._users_value()
        return {"users": users, "manage": True} if self.manage else users

    def _users_value(self) -> str | list[str]:
        if self.requires_act_as:
            return ACT_AS
        return ALL_USERS if self.everybody else sorted(self.users)

    def describe(self) -> str:
        """The scope in words, for people."""
        if self.requires_act_as:
            users = "any user that x-act-as names"
        else:
            users = "all users" if self.everybody else ", ".join(sorted(self.users))
        return f"{users}, and may manage their accounts" if self.manage else users

    def only_user(self) -> str:
        """The user, if there is just one; else empty."""
        return next(iter(self.users)) if len(self.users) == 1 and not self.everybody else ""


def scope_from(value: object) -> Scope:
    """The scope that "*", "act-as" or a list of users stands for, or an object of one of these as `users` with the
    right to `manage`; ValueError for everything else."""
    if isinstance(value, dict):
        return _managing_scope(value)
    if value == ALL_USERS:
        return Scope(everybody=True)
    if value == ACT_AS:
        return Scope(everybody=True, requires_act_as=True)
    if isinstance(value, list) and value and all(map(is_user_id, value)):
        return Scope(frozenset(value))
    raise ValueError(
        'a scope is "*" for all users, "act-as", or a list of users, or {"users": one of these, "manage": true}'
    )


def _managing_scope(value: dict[Any, Any]) -> Scope:
    users, manage = value.get("users"), value.get("manage", False)
    if value.keys() - {"users", "manage"} or isinstance(users, dict) or not isinstance(manage, bool):
        raise ValueError('a scope as an object has "users" and perhaps "manage", which is true or false')
    return replace(scope_from(users), manage=manage)


def is_user_id(value: object) -> bool:
    """Whether a request could name this user."""
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_USER or not value.isprintable():
        return False
    # In a list these values are a mistake, and could not be the id of a user.
    return value not in (ALL_USERS, ACT_AS)


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller. `expires` is in seconds since 1970; None if the caller's credentials do not expire."""

    name: str
    kind: Kind
    scope: Scope
    expires: float | None = None

    def may_read(self, user_id: str) -> bool:
        """Whether the identity's scope covers this user."""
        return self.scope.covers(user_id)


ANYBODY = Identity("anybody", Kind.ANYBODY, Scope(everybody=True, manage=True))


def token_digest(token: str) -> bytes:
    """A hash that stands for a token in memory."""
    # Each call needs it. SHA-256 takes 5 µs within one, because OpenSSL prepares much for each hash.
    return hashlib.blake2b(b"token " + token.encode("utf-8", "replace")).digest()


@dataclass(frozen=True, slots=True)
class PresentedCredentials:
    """What a call presents: a bearer token, or the client certificate of its connection (PEM) with the names in it, and
    the user named by x-act-as. A token takes precedence; the certificate has then only opened the connection."""

    token: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    certificate_names: Sequence[str] = field(default=(), repr=False)
    act_as: str | None = None
    # Stands for the token or the certificate in memory, where they themselves are never kept.
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = token_digest(self.token) if self.token else hashlib.sha256(b"certificate " + self.certificate).digest()
        object.__setattr__(self, "digest", digest)

    @property
    def is_empty(self) -> bool:
        """Whether the call presents nothing that identifies its caller."""
        return not self.token and not self.certificate


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one call: an identity, and the credentials that were presented for it."""

    identity: Identity
    presented: PresentedCredentials

    def require(self, user_id: str) -> None:
        """Raise UserForbidden unless the caller may read this user. The error is the same for every user outside the
        scope, because it must not reveal which users exist."""
        act_as, scope = self.presented.act_as, self.identity.scope
        if act_as is None and scope.requires_act_as:
            advice = "Name the call's user in the metadata x-act-as."
            raise UserForbidden("This caller acts for users, but the call does not name one.", advice=advice)
        if act_as is not None and act_as != user_id:
            raise UserForbidden("The metadata x-act-as and the request name different users.", advice="Name one user.")
        if not scope.covers(user_id):
            raise UserForbidden("This user's accounts are outside the caller's scope.")

    def require_management(self, user_id: str) -> None:
        """Raise UserForbidden unless the caller may also connect and remove this user's accounts."""
        self.require(user_id)
        if not self.identity.scope.manage:
            raise UserForbidden(
                "The caller may read this user's accounts, but not manage them.",
                advice="Ask the operator for a token or certificate with the right to manage.",
            )

    def only_user(self) -> str:
        """The user of this call, if the caller's scope or x-act-as leaves only one; else empty."""
        return self.identity.scope.only_user() or self.presented.act_as or ""

    def require_everybody(self) -> None:
        """Raise UserForbidden unless the caller may read every user; what concerns no user is for operators."""
        if not self.identity.scope.everybody:
            raise UserForbidden(
                "Only a caller that may read every user can ask for this.",
                advice="Use a token or certificate for all users.",
            )


@dataclass(frozen=True, slots=True)
class Verified:
    """The identity that a method found. It may be reused without another check for `keep` seconds, and for `grace`
    seconds while the check is impossible because its source does not answer."""

    identity: Identity
    keep: float
    grace: float = 0.0


class AuthenticationMethod(Protocol):
    """One way to authenticate a caller."""

    async def authenticate(self, presented: PresentedCredentials) -> Verified | None:
        """The identity that the credentials prove; None if they are for another method. CallerUnknown if they are for
        this method and not valid, StoreUnavailable if that cannot be decided right now."""

    async def close(self) -> None:
        """Release what the method holds."""
