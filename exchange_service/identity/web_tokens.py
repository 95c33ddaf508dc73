"""JWTs, as Supabase and other issuers sign them: with a shared secret (HS256), or with keys that they publish."""

from __future__ import annotations

from typing import Any

import jwt

from exchange_service.errors import CallerUnknown
from exchange_service.identity import Identity, Kind, Proof, Scope, Verified, is_user_id, scope_from
from exchange_service.identity.key_sets import ALGORITHMS, KeySet
from exchange_service.identity.tokens import PREFIX

# A signature is not checked again for so long; a key that its issuer withdraws counts soon after all the same.
_KEEP = 300.0
_SHARED = "HS256"


class JsonWebTokens:
    """The AuthenticationMethod of JWTs. `leeway` is in seconds; `users_claim` is the claim that widens a token's scope.

    Which signatures are taken is fixed by what is configured, never by the token: the secret checks HS256 alone, and
    a published key only the one algorithm that it is for.
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

    async def authenticate(self, proof: Proof) -> Verified | None:
        """Whose token it is: its `sub`, and the users whom the claim adds."""
        if not proof.token or proof.token.startswith(PREFIX):
            return None
        key, algorithm = await self._key(proof.token)
        claims = self._claims(proof.token, key, algorithm)
        subject = claims["sub"]
        if not is_user_id(subject):
            raise CallerUnknown("The token's subject can be no user.")
        scope, kind = Scope(frozenset({subject})), Kind.USER
        if self._users_claim in claims:
            scope, kind = _widened(subject, claims[self._users_claim]), Kind.SERVICE
        return Verified(Identity(f"{kind.value} {subject}", kind, scope, claims["exp"] + self._leeway), _KEEP)

    async def _key(self, token: str) -> tuple[str | jwt.PyJWK, str]:
        """The key to check this token with, and the one algorithm to check it by."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise CallerUnknown("The token is none that this service can read.") from None
        algorithm = header.get("alg")
        if algorithm == _SHARED and self._secret is not None:
            return self._secret, _SHARED
        if isinstance(algorithm, str) and algorithm in ALGORITHMS and self._keys is not None:
            key = await self._keys.key(header.get("kid"))
            return key, key.algorithm_name
        raise CallerUnknown("The token is signed in a way that this service does not take.")

    def _claims(self, token: str, key: str | jwt.PyJWK, algorithm: str) -> dict[str, Any]:
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
            # The library takes digits in a text too, and numbers that no clock reaches.
            return {**claims, "exp": float(int(claims["exp"]))}
        except jwt.ExpiredSignatureError:
            raise CallerUnknown("The token has expired.", advice="Get a new one.") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            raise CallerUnknown("The token is made for another audience, or by another issuer.") from None
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError):
            # The library's own text may repeat a claim.
            raise CallerUnknown("The token's signature or claims are not good.") from None

    async def close(self) -> None:
        """End what is under way."""
        if self._keys is not None:
            await self._keys.close()


def _widened(subject: str, value: object) -> Scope:
    """The subject's scope with the claim's users. A claim of another shape is a mistake, and opens nothing."""
    try:
        scope = scope_from(value)
    except ValueError:
        raise CallerUnknown("The token's claim of users is none that this service can read.") from None
    return scope if scope.everybody else Scope(scope.users | {subject})
