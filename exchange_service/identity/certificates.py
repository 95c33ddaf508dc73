"""Client certificates: the scope of the names in a certificate. TLS itself has checked its signature."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography import x509

from exchange_service.errors import CallerUnknown
from exchange_service.identity import Identity, Kind, PresentedCredentials, Scope, Verified

# Seconds. The mapping does not change while the service runs; a certificate only expires.
_KEEP = 300.0


class ClientCertificates:
    """Authenticates client certificates. `scopes` are by DNS name, or by common name for certificates without one."""

    def __init__(self, scopes: Mapping[str, Scope]) -> None:
        self._scopes = dict(scopes)

    async def authenticate(self, presented: PresentedCredentials) -> Verified | None:
        """The identity of the certificate, if the call presents no token."""
        if presented.token or not presented.certificate:
            return None
        known = sorted({name for name in presented.certificate_names if name in self._scopes})
        if not known:
            raise CallerUnknown("The client certificate has no name that this service knows.")
        if len({self._scopes[name] for name in known}) > 1:
            raise CallerUnknown("The client certificate has several names with different scopes.")
        identity = Identity(
            f"certificate {known[0]}", Kind.SERVICE, self._scopes[known[0]], _expiry(presented.certificate)
        )
        return Verified(identity, _KEEP)

    async def close(self) -> None:
        """There is nothing to release."""


def _expiry(certificate: bytes) -> float:
    """When the certificate expires, in seconds since 1970: TLS checks that only when the connection begins."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except (ValueError, x509.InvalidVersion):
        raise CallerUnknown("The client certificate cannot be read.") from None
