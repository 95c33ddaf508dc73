"""JWTs, as Supabase and other issuers sign them: with a shared secret (HS256), or with keys that they publish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jwt

from exchange_service.errors import CallerUnknown
from exchange_service.identity import Identity, Kind, PresentedCredentials, Scope, Verified, is_user_id, scope_from
from exchange_service.identity.key_sets import ALGORITHMS, KeySet
from exchange_service.identity.tokens import PREFIX

# Seconds for which a signature is not checked again; a key that its issuer withdraws is refused soon after.
_KEEP = 300.0
_SHARED = "HS256"


class JsonWebTokens:
    """Authenticates JWTs. `leeway` is in seconds; `users_claim` is the claim that widens a token's scope.

    The configuration decides which signatures are accepted, never the token: the secret checks only HS256, and a
    published key only the one algorithm that it is for.
    """

    def __init__(
        self,
        *,
        secret: str | None = None,
        keys: KeySet | None = None,
        audience: str = "authenticated",
        issuer: str | None = None,
        users_claim: str = "exchange_service_users",
        leeway: float = 60.0,
    ) -> None:
        self._secret = secret
        self._keys = keys
        self._audience = audience or None
        self._issuer = issuer
        self._users_claim = users_claim
        self._leeway = leeway

    def __repr__(self) -> str:
        return f"JsonWebTokens(audience={self._audience!r}, issuer={self._issuer!r})"

    async def authenticate(self, presented: PresentedCredentials) -> Verified | None:
        """The identity of the token: the user in `sub`, and the users that the claim adds."""
        if not presented.token or presented.token.startswith(PREFIX):
            return None
        key, algorithm = await self._select_key(presented.token)
        claims = self._verify_claims(presented.token, key, algorithm)
        subject = claims["sub"]
        if not is_user_id(subject):
            raise CallerUnknown("The token's subject cannot be a user.")
        scope, kind = Scope(frozenset({subject})), Kind.USER
        if self._users_claim in claims:
            scope = _widen(subject, claims[self._users_claim])
            # A claim that only lets its own user manage makes no service of the user.
            kind = Kind.USER if scope.only_user() and scope.manage else Kind.SERVICE
        return Verified(Identity(f"{kind.value} {subject}", kind, scope, claims["exp"] + self._leeway), _KEEP)

    async def _select_key(self, token: str) -> tuple[str | jwt.PyJWK, str]:
        """The key to check this token with, and the one algorithm to check it by."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise CallerUnknown("The token is not one that this service can read.") from None
        algorithm = header.get("alg")
        if algorithm == _SHARED and self._secret is not None:
            return self._secret, _SHARED
        if isinstance(algorithm, str) and algorithm in ALGORITHMS and self._keys is not None:
            key = await self._keys.key(header.get("kid"), algorithm)
            return key, key.algorithm_name
        raise CallerUnknown("The token is signed in a way that this service does not accept.")

    def _verify_claims(self, token: str, key: str | jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "sub"], "enforce_minimum_key_length": True},
            )
            # The library also accepts a text of digits, and numbers that no clock reaches.
            return {**claims, "exp": float(int(claims["exp"]))}
        except jwt.ExpiredSignatureError:
            raise CallerUnknown("The token has expired.", advice="Get a new one.") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            raise CallerUnknown("The token is for another audience, or from another issuer.") from None
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError):
            # The library's own text may repeat a claim.
            raise CallerUnknown("The token's signature or claims are not valid.") from None

    async def close(self) -> None:
        """End a running read of the issuer's keys."""
        if self._keys is not None:
            await self._keys.close()


def _widen(subject: str, value: object) -> Scope:
    """The subject's scope with the claim's users; CallerUnknown for a claim of another shape, which is a mistake."""
    try:
        scope = scope_from(value)
    except ValueError:
        raise CallerUnknown("The token's claim of users is not one that this service can read.") from None
    return scope if scope.everybody else replace(scope, users=scope.users | {subject})
