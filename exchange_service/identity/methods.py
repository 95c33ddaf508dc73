"""The methods of authentication that the settings enable, joined in one Authenticator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exchange_service.identity import AuthenticationMethod, Kind, Scope, scope_from
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.quotas import AccountAttempts, Allowance, Quotas, QuotaStore
from exchange_service.settings import Settings

if TYPE_CHECKING:
    from exchange_service.cache.sealed_redis import SealedRedis


def open_authenticator(settings: Settings, hash_key: bytes, sealed: SealedRedis | None = None) -> Authenticator:
    """The Authenticator for these settings, not connected yet. ValueError, with a sentence, for an invalid scope."""
    return Authenticator(_make_methods(settings), _make_quotas(settings, hash_key, sealed))


def certificate_scopes(settings: Settings) -> dict[str, Scope]:
    """The scope of each certificate's name; ValueError with a sentence for the operator."""
    scopes = {}
    for name, value in settings.client_certificates.items():
        try:
            scopes[name] = scope_from(value)
        except ValueError as error:
            raise ValueError(f"client_certificates gives {name!r} no valid scope: {error}.") from None
    return scopes


def _make_methods(settings: Settings) -> list[AuthenticationMethod]:
    # Imported here, because a service without authentication does not need these libraries.
    methods: list[AuthenticationMethod] = []
    if settings.client_certificates:
        from exchange_service.identity.certificates import ClientCertificates

        methods.append(ClientCertificates(certificate_scopes(settings)))
    if settings.service_tokens:
        from exchange_service.identity.token_signatures import KeyUnusable, configured_signatures
        from exchange_service.identity.token_store import TokenStore
        from exchange_service.identity.tokens import ServiceTokens

        try:
            signatures = configured_signatures(settings)
        except KeyUnusable as error:
            raise ValueError(str(error)) from None
        store = TokenStore(settings.database_url)
        methods.append(ServiceTokens(store.find, store.close, signatures.fits))
    if settings.jwt_secret or settings.jwt_jwks_url or settings.jwt_jwks_file:
        methods.append(_make_web_tokens(settings))
    return methods


def _make_web_tokens(settings: Settings) -> AuthenticationMethod:
    from exchange_service.identity.key_sets import from_file, from_url
    from exchange_service.identity.web_tokens import JsonWebTokens

    keys = None
    if settings.jwt_jwks_url:
        keys = from_url(settings.jwt_jwks_url)
    elif settings.jwt_jwks_file:
        keys = from_file(settings.jwt_jwks_file)
    return JsonWebTokens(
        secret=settings.jwt_secret.get_secret_value() if settings.jwt_secret else None,
        keys=keys,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        users_claim=settings.jwt_users_claim,
        leeway=settings.jwt_leeway,
    )


def _make_quotas(settings: Settings, hash_key: bytes, sealed: SealedRedis | None) -> Quotas:
    allowances = {
        Kind.USER: Allowance(
            settings.user_calls, settings.user_refreshes, settings.user_streams, settings.user_changes
        ),
        Kind.SERVICE: Allowance(
            settings.service_calls, settings.service_refreshes, settings.service_streams, settings.service_changes
        ),
    }
    return Quotas(allowances, shared=_shared(sealed) if settings.knows_callers else None, hash_key=hash_key)


def account_attempts(settings: Settings, hash_key: bytes, sealed: SealedRedis | None = None) -> AccountAttempts:
    """The limit of attempts for each account that its venue may refuse; it holds for every caller."""
    return AccountAttempts(settings.failed_checks, _shared(sealed), hash_key)


def _shared(sealed: SealedRedis | None) -> QuotaStore | None:
    if sealed is None:
        return None
    from exchange_service.identity.redis_quotas import RedisQuotas

    return RedisQuotas(sealed)


def who_may_call(settings: Settings) -> str:
    """Which callers are served, in words for the operator; the text ends a sentence."""
    methods = []
    if settings.client_certificates:
        methods.append(f"client certificates of {', '.join(sorted(settings.client_certificates))}")
    if settings.service_tokens:
        methods.append("service tokens")
    if settings.jwt_secret:
        methods.append("JWTs signed with the shared secret")
    if settings.jwt_jwks_url or settings.jwt_jwks_file:
        methods.append("JWTs signed with their issuer's keys")
    if methods:
        managing = "; those with the right to manage may also connect and remove accounts"
        return f"to callers with {' or '.join(methods)}, each within its scope{managing * settings.manage_accounts}"
    everybody = "to every program on this machine" if settings.loopback else "to ANYBODY who reaches the port"
    return everybody + (", which may also connect and remove accounts" if settings.manage_accounts else "")
