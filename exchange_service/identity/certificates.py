"""Client certificates: who a certificate's names stand for. TLS itself has checked who signed it."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography import x509

from exchange_service.errors import CallerUnknown
from exchange_service.identity import Identity, Kind, Proof, Scope, Verified

# The mapping does not change while the service runs; a certificate only ends.
_KEEP = 300.0


class ClientCertificates:
    """The AuthenticationMethod of client certificates; `scopes` by DNS name, or by common name for those without."""

    def __init__(self, scopes: Mapping[str, Scope]) -> None:
        self._scopes = dict(scopes)

    async def authenticate(self, proof: Proof) -> Verified | None:
        """Whose certificate it is, where the call brought no token."""
        if proof.token or not proof.certificate:
            return None
        known = sorted({name for name in proof.certificate_names if name in self._scopes})
        if not known:
            raise CallerUnknown("The client certificate bears no name that this service knows.")
        if len({self._scopes[name] for name in known}) > 1:
            raise CallerUnknown("The client certificate bears several names with different scopes.")
        identity = Identity(f"certificate {known[0]}", Kind.SERVICE, self._scopes[known[0]], _end(proof.certificate))
        return Verified(identity, _KEEP)

    async def close(self) -> None:
        """There is nothing to release."""


def _end(certificate: bytes) -> float:
    """When it ends, in seconds since 1970: TLS looks at that only when the connection begins."""
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except ValueError:
        raise CallerUnknown("The client certificate cannot be read.") from None
